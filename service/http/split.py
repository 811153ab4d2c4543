"""Which model answers a user: always the same one, each its share of the users."""

from __future__ import annotations

import math
from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING

from training.common.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST, _MOST = 1e-6, 1e6
_WANTED = "wanted NAME=WEIGHT, separated by commas, such as a=50,b=50"


def parse_split(text: str, names: Sequence[str]) -> dict[str, float]:
    """Read the shares of models.

    Args:
        text: ``NAME=WEIGHT``, separated by commas. Empty: the first model answers all.
        names: The served models, the default one first.

    Returns:
        Model name to share, above 0; they add up to 1.

    Raises:
        ConfigError: A name is not served or is repeated, or a weight is no such number.
    """
    if not text.strip():
        return dict.fromkeys(names[:1], 1.0)
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise ConfigError(f"split: {part!r} names no weight; {_WANTED}")
        if name not in names:
            raise ConfigError(f"split: no model {name!r} is served{nearest(name, names)}; {_WANTED}")
        if name in weights:
            raise ConfigError(f"split: the model {name!r} is named twice; {_WANTED}")
        weights[name] = _weight(weight)
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not _LEAST <= weight <= _MOST:
        raise ConfigError(f"split: the weight {text!r} is no number from {_LEAST:g} to {_MOST:g}; {_WANTED}")
    return weight


class Split:
    """Deals users out to models by a hash of their id: every process and every day alike.

    Args:
        shares: Model name to share, from `parse_split`.
        salt: Another one deals the users out anew.
    """

    def __init__(self, shares: dict[str, float], salt: str) -> None:
        self._names = list(shares)
        self._ends = list(accumulate(shares.values()))[:-1]
        self._salt = salt.encode() + b"\0"

    def __call__(self, user_id: str) -> str | None:
        """Return the name of the model that answers a user; None where none is served."""
        if not self._ends:
            return self._names[0] if self._names else None
        digest = blake2b(self._salt + user_id.encode(), digest_size=8).digest()
        return self._names[bisect_right(self._ends, int.from_bytes(digest, "big") / 2**64)]
