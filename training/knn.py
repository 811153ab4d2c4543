"""Exact nearest neighbours between items by the cosine of their features, in bounded memory.

All pairs of I rows of width F are I² F multiplications, which only a matrix product makes bearable: it is done in
blocks of rows, each pair of blocks once for both of its sides. Of an I × I matrix there is never more than one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 2048
"""Rows of a block. A step holds two normalised blocks, [2048, F] each, and some 100 MB of products and candidates."""
_LEAST_NORM = 1e-12
_LOW, _MAGNITUDE = 0xFFFF_FFFF, 0x7FFF_FFFF
_REMEMBERED = 8
_results: dict[tuple[str, torch.dtype, tuple[int, ...], int], Tensor] = {}


def knn_graph(features: Tensor, k: int, *, block: int = _BLOCK) -> Tensor:
    """Connect every row to itself and to the rows most similar to it.

    A row comes first among its own neighbours, whatever rounding makes of its cosine. Where similarities are equal, the
    lower row comes first. A row of zeros has the similarity 0 to all others. Results are remembered in the process by
    the content of the features (sha256), so building the same model again costs one hash.

    Args:
        features: float32 [I, F].
        k: Neighbours of a row, itself included; min(k, I) where there are fewer rows.
        block: Rows that are compared at once.

    Returns:
        int64 [2, I · min(k, I)]: rows above, in order, and their neighbours below, the most similar first.
    """
    content = features.detach().cpu().contiguous().numpy().data
    key = hashlib.sha256(content).hexdigest(), features.dtype, tuple(features.shape), k
    if key not in _results:
        if len(_results) >= _REMEMBERED:
            del _results[next(iter(_results))]
        _results[key] = _neighbours(features.detach(), min(k, len(features)), block).cpu()
    neighbours = _results[key].to(features.device)
    rows = torch.arange(len(features), device=features.device).repeat_interleave(neighbours.shape[1])
    return torch.stack([rows, neighbours.flatten()])


def _neighbours(features: Tensor, k: int, block: int) -> Tensor:
    """Return each row's k best neighbours, best first, int64 [I, k]."""
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_(min=_LEAST_NORM)
    blocks = [slice(start, start + block) for start in range(0, len(features), block)]
    worst = _keys(norms.new_tensor([[-torch.inf]]), torch.full((1, 1), _LOW, device=norms.device))
    best = worst.repeat(len(features), k)

    def unit(rows: slice) -> Tensor:
        return torch.div(features[rows], norms[rows])

    # Within the blocks first: then every row has a bar to measure the other blocks by, and few candidates pass it.
    for rows in blocks:
        similarities = unit(rows) @ unit(rows).T
        similarities.fill_diagonal_(torch.inf)
        bar = similarities.topk(min(k, len(similarities)), dim=1).values[:, -1:]
        _merge(best[rows], similarities, rows.start, bar)
    for position, rows in enumerate(blocks):
        left = unit(rows)
        for others in blocks[position + 1 :]:
            similarities = left @ unit(others).T
            _merge(best[rows], similarities, others.start, _similarity(best[rows, -1:]))
            _merge(best[others], similarities.T, rows.start, _similarity(best[others, -1:]))
    return _LOW - (best & _LOW)


def _keys(similarities: Tensor, columns: Tensor) -> Tensor:
    """Return integers that sort like the pairs (similarity, -column): the float's bits above, ~column below."""
    bits = similarities.add(0.0).view(torch.int32)  # adding zero turns -0 into the 0 that it equals
    return (bits ^ ((bits >> 31) & _MAGNITUDE)).to(torch.int64) << 32 | (_LOW - columns)


def _similarity(keys: Tensor) -> Tensor:
    """Return the similarities in keys."""
    bits = (keys >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & _MAGNITUDE)).view(torch.float32)


def _merge(best: Tensor, similarities: Tensor, first: int, bar: Tensor) -> None:
    """Let a block's columns compete with the best so far.

    Args:
        best: int64 [n, k], keys in descending order, changed in place.
        similarities: float32 [n, m].
        first: The row that the first column stands for.
        bar: float32 [n, 1]; what is less is not among a row's best.
    """
    n, k = best.shape
    rows, columns = (similarities >= bar).nonzero(as_tuple=True)
    keys = _keys(similarities[rows, columns], columns + first)
    rows = torch.cat([torch.arange(n, device=rows.device).repeat_interleave(k), rows])
    keys, order = torch.cat([best.flatten(), keys]).sort(descending=True)
    rows, by_row = rows[order].sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(n, device=rows.device))
    best.copy_(keys[by_row][starts.unsqueeze(1) + torch.arange(k, device=rows.device)])


class NearestMean(nn.Module):
    """Places a new item among known ones: the mean of the vectors of its nearest, weighted by modality.

        y = Σ_m w_m / k Σ_{j in kNN_m(x_m)} table_j

    Nearest is by cosine, as in ``knn_graph``. Where the k-th and the next are equally near, either may be taken: ONNX
    takes the lower row, torch promises nothing.

    Args:
        features: Modality name → float32 [I, F_m] of the known items.
        shares: The same names → w_m, in sum one.
        k: Neighbours of a row; all, where there are fewer.
        table: float32 [I, D], the known items' vectors.
    """

    def __init__(self, features: Mapping[str, Tensor], shares: Mapping[str, float], k: int, table: Tensor) -> None:
        super().__init__()
        self.shares = dict(shares)
        self.k = min(k, len(table))
        self.register_buffer("table", table.detach())
        self.table: Tensor
        for name in shares:
            known = features[name].detach()
            norms = torch.linalg.vector_norm(known, dim=1, keepdim=True).clamp(min=_LEAST_NORM)
            self.register_buffer(f"known_{name}", known / norms)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return vectors float32 [n, D] of items with these features, modality name → float32 [n, F_m]."""
        parts = []
        for name, share in self.shares.items():
            # Cosines but for the length of the new item's own row, which does not change their order.
            similarities = features[name] @ self.get_buffer(f"known_{name}").T  # [n, I]
            nearest = similarities.topk(self.k, dim=1).indices  # [n, k]
            parts.append(share * F.embedding(nearest, self.table).mean(dim=1))  # [n, D]
        vectors: Tensor = torch.stack(parts).sum(dim=0)
        return vectors
