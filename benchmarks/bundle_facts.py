"""What reports and documents say of the bundle that was measured."""

from __future__ import annotations

from typing import Any

from export.manifest import Manifest


def bundle_line(manifest: Manifest, k: int) -> str:
    """Say to people which bundle was asked, and for how many items per reply."""
    return f"{manifest.dataset.name}, {manifest.n_items} items of dimension {manifest.dimension}, k {k}"


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what identifies a bundle and what its speed depends on, as JSON values."""
    return {
        **manifest.model_dump(include={"version", "model", "variant", "dimension"}),
        "dataset": manifest.dataset.name,
        "n_items": manifest.n_items,
        "n_users": manifest.dataset.n_users,
        "index": manifest.index.factory,
    }
