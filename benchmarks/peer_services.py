"""Other ways to recommend from the vectors of a bundle, each as its own documentation shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from export.serving import SeenItems, ServingBundle
from service.retrieval.tower import UserTower

THREADS = 1

Answer = list[tuple[str, float]]
"""Item ids and scores, best first."""
Ask = Callable[[str], Answer]
"""User id → answer."""


@dataclass(frozen=True)
class Material:
    """What every peer is made from.

    Attributes:
        user_ids: External ids, row by row.
        item_ids: External ids, row by row.
        users: float32 [U, D].
        items: float32 [I, D].
        seen: What is not to be recommended.
        k: Items per answer.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: NDArray[np.float32]
    items: NDArray[np.float32]
    seen: SeenItems
    k: int

    @classmethod
    def of(cls, bundle: ServingBundle, k: int) -> Material:
        """Take it out of a bundle."""
        n_users, dimension = len(bundle.users), bundle.manifest.dimension
        tower = UserTower(bundle.user_tower, n_users, dimension)
        return cls(
            user_ids=list(bundle.users),
            item_ids=list(bundle.item_ids),
            users=tower(np.arange(n_users, dtype=np.int64)),
            items=bundle.items,
            seen=bundle.seen,
            k=k,
        )

    def rows(self) -> dict[str, int]:
        """Return the row of every user id."""
        return {name: row for row, name in enumerate(self.user_ids)}

    def seen_matrix(self) -> Any:
        """Return who has seen what as SciPy's compressed rows, float32 [U, I]."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self.seen.items), dtype=np.float32)
        shape = len(self.user_ids), len(self.item_ids)
        return csr_matrix((ones, self.seen.items.astype(np.int32), self.seen.offsets.astype(np.int32)), shape=shape)


@dataclass(frozen=True)
class Peer:
    """Another way to do the job.

    Attributes:
        what: For people.
        packages: Distributions that it needs, each importable by the same name.
        open: Makes it ready to be asked.
    """

    what: str
    packages: tuple[str, ...]
    open: Callable[[Material], Ask]


def _open_numpy(material: Material) -> Ask:
    users, items, rows, names = material.users.copy(), material.items.copy(), material.rows(), material.item_ids
    k, seen = material.k, material.seen

    def ask(user_id: str) -> Answer:
        user = rows[user_id]
        scores = items @ users[user]
        scores[seen.of(user)] = -np.inf
        best = np.argpartition(scores, -k)[-k:]
        best = best[np.argsort(-scores[best])]
        return [(names[item], score) for item, score in zip(best.tolist(), scores[best].tolist(), strict=True)]

    return ask


def _open_torch(material: Material) -> Ask:
    import torch
    from torch.nn.functional import embedding

    torch.set_num_threads(THREADS)
    users, items = torch.tensor(material.users), torch.tensor(material.items)
    seen = torch.tensor(material.seen.items.astype(np.int64))
    offsets, rows, names, k = material.seen.offsets.tolist(), material.rows(), material.item_ids, material.k

    @torch.inference_mode()
    def ask(user_id: str) -> Answer:
        user = rows[user_id]
        scores = embedding(torch.tensor([user]), users) @ items.T
        scores[0, seen[offsets[user] : offsets[user + 1]]] = -torch.inf
        values, best = torch.topk(scores[0], k)
        return [(names[item], score) for item, score in zip(best.tolist(), values.tolist(), strict=True)]

    return ask


def _open_implicit(material: Material) -> Ask:
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(THREADS):  # it warns where BLAS has more
        model = AlternatingLeastSquares(factors=material.users.shape[1], num_threads=THREADS)
    model.user_factors, model.item_factors = material.users.copy(), material.items.copy()
    liked, rows, names, k = material.seen_matrix(), material.rows(), material.item_ids, material.k

    def ask(user_id: str) -> Answer:
        user = rows[user_id]
        best, scores = model.recommend(user, liked[user], N=k, filter_already_liked_items=True)
        return [(names[item], score) for item, score in zip(best.tolist(), scores.tolist(), strict=True)]

    return ask


def _open_cornac(material: Material) -> Ask:
    """Cornac's own serving replies with ids alone."""
    from cornac.data import Dataset
    from cornac.models import MF

    seen = material.seen
    interactions = (
        np.repeat(np.arange(len(material.user_ids)), np.diff(seen.offsets)),
        seen.items.astype(np.int64),
        np.ones(len(seen.items)),
    )
    columns = {name: column for column, name in enumerate(material.item_ids)}
    train = Dataset(len(material.user_ids), len(material.item_ids), material.rows(), columns, interactions)
    vectors = {"U": material.users.copy(), "V": material.items.copy()}
    model = MF(k=material.users.shape[1], trainable=False, use_bias=False, init_params=vectors, num_threads=THREADS)
    model.fit(train)
    k = material.k

    def ask(user_id: str) -> Answer:
        return [(name, np.nan) for name in model.recommend(user_id, k=k, remove_seen=True, train_set=train)]

    return ask


PEERS = {
    "numpy": Peer("a plain service: one product, seen items masked, argpartition", ("numpy",), _open_numpy),
    "torch": Peer("PyTorch eager: embedding, product, seen items masked, topk", ("torch",), _open_torch),
    "implicit": Peer("recommend with filter_already_liked_items", ("implicit", "scipy"), _open_implicit),
    "cornac": Peer("MF.recommend with remove_seen; replies without scores", ("cornac", "scipy"), _open_cornac),
}
