"""What a load asks a server, and what the replies must be: ``/recommend`` of a bundle, and a constant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import numpy as np

from training.common.errors import BundleError

if TYPE_CHECKING:
    from export.manifest import Manifest

CONSTANT = "/constant"
MOST_USERS = 4096
"""Different users that a load asks for; their requests are made before it begins."""
_EACH_ITEM = b'"item_id":'


def post(target: str, host: str = "dvib") -> bytes:
    """Return the bytes of a POST request without a body."""
    return f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Recommend:
    """Asks for the items of one user.

    Attributes:
        request: The whole request.
        wanted: What the reply must say of user, model, version and source.
        marks: The same as the pieces of JSON that the reply must hold.
        items: Items that the reply must hold.
    """

    request: bytes
    wanted: dict[str, str]
    marks: tuple[bytes, ...]
    items: int

    @classmethod
    def of(cls, user_id: str, model: str, version: str, k: int) -> Self:
        """Return the request for ``k`` items of a user that the model knows and that has not seen too many.

        The reply may come from any version where ``version`` is empty.
        """
        wanted = {"user_id": user_id, "model": model, "source": "model"} | ({"version": version} if version else {})
        marks = tuple(f'"{key}":{json.dumps(text, ensure_ascii=False)}'.encode() for key, text in wanted.items())
        return cls(post("/recommend?" + urlencode({"user_id": user_id, "k": k, "model": model})), wanted, marks, k)

    def fault(self, status: int, body: bytes) -> str:
        """See ``benchmarks.load.client.Question``."""
        if status != HTTPStatus.OK:
            return f"status {status}"
        for mark in self.marks:
            if mark not in body:
                return f"another {mark.split(b':')[0].decode()} than was asked for"
        # A quotation mark inside a text is escaped, so that this counts keys only.
        found = body.count(_EACH_ITEM)
        return "" if found == self.items else f"{found} items, wanted {self.items}"

    def fault_in_full(self, body: bytes) -> str:
        """See ``benchmarks.load.client.Question``."""
        try:
            document: dict[str, Any] = json.loads(body)
            said = {key: document[key] for key in self.wanted}
            scores = [float(item["score"]) for item in document["items"]]
            names = {item["item_id"] for item in document["items"]}
        except (ValueError, KeyError, TypeError) as error:
            return f"a reply of another shape: {type(error).__name__}"
        if said != self.wanted:
            return "a reply to something else"
        if len(names) != self.items or len(scores) != self.items:
            return f"{len(names)} different items, wanted {self.items}"
        return "" if scores == sorted(scores, reverse=True) else "items in another order than that of their scores"


@dataclass(frozen=True, slots=True)
class Constant:
    """Asks for the same bytes each time.

    Attributes:
        request: The whole request.
        body: The bytes.
    """

    request: bytes
    body: bytes

    @classmethod
    def of(cls, length: int) -> Self:
        """Return the request to a server that replies so many bytes."""
        return cls(post(CONSTANT), constant_body(length))

    def fault(self, status: int, body: bytes) -> str:
        """See ``benchmarks.load.client.Question``."""
        if status != HTTPStatus.OK:
            return f"status {status}"
        return "" if body == self.body else f"{len(body)} other bytes than the {len(self.body)} that were wanted"

    def fault_in_full(self, body: bytes) -> str:
        """See ``benchmarks.load.client.Question``; all of it is compared each time."""
        return self.fault(HTTPStatus.OK, body)


def constant_body(length: int) -> bytes:
    """Return what the constant endpoint replies."""
    return b"x" * length


@dataclass(frozen=True)
class Asked:
    """A bundle and the users that a load asks it for.

    Attributes:
        folder: Of the bundle, in a root of versions the current one.
        manifest: What it is.
        users: External ids of users with at least ``k`` items that they have not seen, in an order drawn at random.
    """

    folder: Path
    manifest: Manifest
    users: list[str]

    @classmethod
    def read(cls, folder: Path, k: int, seed: int) -> Asked:
        """Read a bundle and draw its users.

        Raises:
            BundleError: It is unusable, or nobody is left with ``k`` items.
        """
        # Client processes use this module, too, and read no bundle.
        from export.publish import resolve
        from export.serving import load_for_serving

        folder = resolve(folder)
        bundle = load_for_serving(folder)
        left = bundle.manifest.n_items - np.diff(bundle.seen.offsets)
        rows = np.flatnonzero(left >= k)
        if not len(rows):
            raise BundleError(f"{folder}: no user has {k} items left that it has not seen; choose a smaller --k")
        drawn = np.random.default_rng(seed).permutation(rows)[:MOST_USERS]
        return cls(folder, bundle.manifest, [bundle.users[int(row)] for row in drawn])

    def questions(self, name: str, k: int) -> Sequence[Recommend]:
        """Return a request for each of the users, to a server that holds the bundle under some name."""
        return [Recommend.of(user, name, self.manifest.version, k) for user in self.users]
