"""The JSON documents of replies, of the shapes that `service.http.schemas` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from export.manifest import Manifest
    from service.values import DescribedItem, KnownItem, Recommendation, ScoredItems


def describe(
    manifests: Mapping[str, Manifest],
    shares: Mapping[str, float],
    categories: Mapping[str, Sequence[str]],
    users: Mapping[str, Sequence[str]],
    providers: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, Any]:
    """Return the ``/models`` document.

    Args:
        manifests: Model name to manifest; the first is the default model's.
        shares: Model name to the share of the users that it answers; 0 where left out.
        categories: Model name to its categories.
        users: Model name to the ids of some users that it knows.
        providers: Model name to the execution providers of each of its sessions.
    """
    default = next(iter(manifests), None)
    return {
        "models": [
            {
                "name": name,
                "default": name == default,
                "share": shares.get(name, 0.0),
                **manifest.model_dump(include={"model", "variant", "preset", "dimension", "version", "metrics"}),
                "n_items": manifest.n_items,
                "dataset": manifest.dataset.model_dump(include={"name", "n_users", "n_items", "n_train"}),
                "categories": list(categories[name]),
                "example_users": list(users[name]),
                "providers": {session: list(got) for session, got in providers[name].items()},
            }
            for name, manifest in manifests.items()
        ]
    }


def recommend_document(user_id: str, model: str, version: str, answer: Recommendation) -> dict[str, Any]:
    """Return the document of one answer."""
    return {
        "user_id": user_id,
        "model": model,
        "version": version,
        "source": answer.source,
        "items": _scored(answer.items),
    }


def similar_document(item_id: str, model: str, version: str, items: ScoredItems) -> dict[str, Any]:
    """Return the document of similar items."""
    return {
        "item_id": item_id,
        "model": model,
        "version": version,
        "items": _scored(items),
    }


def items_document(model: str, version: str, items: Sequence[DescribedItem]) -> dict[str, Any]:
    """Return the document of what is known of some items."""
    return {
        "model": model,
        "version": version,
        "items": [{"item_id": item.item_id, "title": item.title, "categories": item.categories} for item in items],
    }


def history_document(user_id: str, model: str, version: str, items: Sequence[KnownItem], limit: int) -> dict[str, Any]:
    """Return the document of a user's training items, of which so many are listed."""
    return {
        "user_id": user_id,
        "model": model,
        "version": version,
        "n_items": len(items),
        "items": [{"item_id": item.item_id, "title": item.title} for item in items[:limit]],
    }


def _scored(items: ScoredItems) -> list[dict[str, Any]]:
    named = zip(items.names, items.scores, strict=True)
    return [{"item_id": item_id, "title": title, "score": score} for (item_id, title), score in named]
