"""Bundles for the page's tests: two that can be compared, and one by somebody who means ill."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from export import bundle
from tests.helpers_bundle import make_content, seal, write_bundle
from training.common.categories import ItemCategories

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers_bundle import Content

EVIL = (
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "\u202egnp.exe\u202e",
    "\u2066\u2067ab\u202e",
    "</bdi></td></table><h1>x</h1>",
    "javascript:window.pwned=1",
    '"><svg onload=window.pwned=1>',
    "${window.pwned=1}{{1+1}}",
    "title " * 60 + "unbroken" * 60,
)


@dataclass(frozen=True)
class Bundles:
    """What is served: the two have the same users and items, other vectors."""

    options: tuple[str, ...]
    baseline: Content
    dvib: Content
    evil: Content


def certificate_of(variant: str, *, proofs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a document with what the page reads of a certificate."""
    left = {
        "parameters": 1234567,
        "flops_per_user": 7654321,
        "operators": {"Gemm": 2, "Add": 3},
        "random_operators": [],
    }
    stripped = {
        "parameters": 3169,
        "flops_per_user": 98765,
        "operators": {"Relu": 11, "RandomNormalLike": 1},
        "random_operators": {"RandomNormalLike": 1},
    }
    nothing = {"parameters": 0, "flops_per_user": 0, "operators": {}, "random_operators": {}}
    return {
        "variant": variant,
        "exported": left,
        "independent": left,
        "removed": nothing if variant == "none" else stripped,
        "proofs": dict.fromkeys(("transplant", "blanked", "architecture", "parity"), True)
        if proofs is None
        else proofs,
    }


def _write(folder: Path, content: Content, variant: str, certificate: dict[str, Any], name: str = "toy") -> None:
    write_bundle(folder, content)
    (folder / bundle.CERTIFICATE).write_text(json.dumps(certificate), "utf-8")
    seal(folder, content, variant=variant, name=name)


def _evil() -> Content:
    content = make_content(seed=2)

    def spoil(texts: list[str]) -> list[str]:
        return [f"{EVIL[row % len(EVIL)]} {row}" for row in range(len(texts))]

    users = [text[:120] for text in spoil(content.user_ids)]
    items = [f"{row} {text[:100]}" for row, text in enumerate(spoil(content.item_ids))]
    labels = {text[:200]: [row for row in range(60) if row % len(EVIL) == number] for number, text in enumerate(EVIL)}
    categories = ItemCategories.of(*_flat(labels))
    return replace(content, user_ids=users, item_ids=items, titles=spoil(content.titles), categories=categories)


def _flat(labels: dict[str, list[int]]) -> tuple[Any, list[str]]:
    import numpy as np

    pairs = [(row, name) for name, rows in labels.items() for row in rows]
    return np.array([row for row, _ in pairs]), [name for _, name in pairs]


def make_bundles(folder: Path) -> Bundles:
    """Write the bundles."""
    baseline = make_content(seed=0)
    # Close to the baseline's, so that lists have much in common.
    other = make_content(seed=1)
    dvib = replace(baseline, items=baseline.items + other.items, users=baseline.users + other.users)
    evil = _evil()
    _write(folder / "baseline", baseline, "none", certificate_of("none"))
    _write(folder / "dvib", dvib, "adaptive", certificate_of("adaptive"))
    failed = {"transplant": True, "parity": False, EVIL[0]: False}
    _write(folder / "evil", evil, "constant", certificate_of("constant", proofs=failed), name=EVIL[1])
    options = [part for name in ("baseline", "dvib", "evil") for part in ("--bundle", f"{name}={folder / name}")]
    return Bundles(tuple(options), baseline, dvib, evil)
