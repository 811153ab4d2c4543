"""Small pieces that several models share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

_SMALLEST_NORM = 1e-12


def take(table: Tensor, rows: Tensor | None, *, sparse: bool = False) -> Tensor:
    """Return the given rows of a table [n, d], or the table itself for ``None``.

    ``embedding`` and not ``index_select``: the same result, but its backward pass runs in parallel (2.5 times faster).

    Args:
        table: The table.
        rows: int64 [m].
        sparse: Give the table a sparse gradient. Only for a parameter, and worth it only for a wide one, of which a
            dense gradient would be mostly zeros.
    """
    if rows is None:
        return table
    taken: Tensor = F.embedding(rows, table, sparse=sparse)
    return taken


def bpr_loss(margins: Tensor) -> Tensor:
    """Bayesian personalised ranking: ``-mean log σ(margins)`` (Rendle et al., UAI 2009).

    Args:
        margins: float32 [B], score of the observed item minus score of the sampled one.

    Returns:
        A scalar. Written with softplus, so that it stays finite for any scores.
    """
    return F.softplus(-margins).mean()


def linear(inputs: int, outputs: int, generator: torch.Generator, *, xavier: bool, bias: bool = True) -> nn.Linear:
    """Return a linear layer whose initial values all come from a generator.

    Args:
        inputs: Its width.
        outputs: Width of what it gives.
        generator: For the initial values.
        xavier: Xavier normal weights, as MMRec sets them in some models, or PyTorch's default, U(±1/√inputs).
        bias: Whether it has one; U(±1/√inputs), PyTorch's default.
    """
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    bound = inputs**-0.5
    if xavier:
        nn.init.xavier_normal_(layer.weight, generator=generator)
    else:
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if bias:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def unit_rows(x: Tensor) -> Tensor:
    """Return the rows [n, d] divided by their norms: ``F.normalize`` with half the passes on the way back."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * norms.clamp_min(_SMALLEST_NORM).reciprocal()


def summed_rows(table: Tensor, rows: Tensor, into: Tensor, count: int) -> Tensor:
    """Return ``Σ_b table[rows_b]`` over the b with ``into_b = n``, for every n below count: float32 [count, d]."""
    sums: Tensor = table.new_zeros(count, table.shape[1]).index_add_(0, into, take(table, rows))
    return sums


class _CosineSum(torch.autograd.Function):
    """Autograd's own graph of a normalisation makes three times the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, directions: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(_SMALLEST_NORM).reciprocal_()
        unit = x * inverse
        along: Tensor = (unit * directions).sum(1, keepdim=True)
        ctx.save_for_backward(unit, inverse, along, directions)
        return along.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        unit, inverse, along, directions = ctx.saved_tensors
        # d<x, g>/|x| = (g - <g, u> u) / |x| with u = x/|x|.
        return torch.addcmul(directions, unit, along, value=-1).mul_(inverse).mul_(grad_outputs[0]), None


def cosine_sum(x: Tensor, directions: Tensor) -> Tensor:
    """Return ``Σ_n <x_n, g_n> / ‖x_n‖``, a scalar: with unit vectors for g, the sum of cosines.

    Args:
        x: float32 [n, d].
        directions: g, float32 [n, d], a constant: nothing learns through it.
    """
    result: Tensor = _CosineSum.apply(x, directions.detach())  # type: ignore[no-untyped-call]
    return result


def batch_norm_of(rows: Tensor, positions: Tensor) -> Tensor:
    """Frobenius norm of ``rows[positions]`` without forming it.

    Args:
        rows: float32 [n, d], distinct rows.
        positions: int64 [B], with repetitions.

    Returns:
        A scalar. Its gradient is zero where the matrix is all zero.
    """
    counts = torch.bincount(positions, minlength=rows.shape[0])
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=1) * counts.to(rows.dtype).sqrt())
    return norm


class _Margin(torch.autograd.Function):
    """Gathers, subtracts and multiplies once; autograd's own graph of these steps takes twice the time."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, batch_users: Tensor, positives: Tensor, negatives: Tensor
    ) -> Tensor:
        left = F.embedding(batch_users, users)  # [B, D]
        right = F.embedding(positives, items).sub_(F.embedding(negatives, items))  # [B, D]
        ctx.save_for_backward(left, right, batch_users, torch.cat([positives, negatives]))
        ctx.sizes = users.shape[0], items.shape[0]
        return (left * right).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        left, right, batch_users, batch_items = ctx.saved_tensors
        scale = grad_outputs[0].unsqueeze(1)
        to_items = left * scale
        add_rows = torch.ops.aten.embedding_dense_backward
        return (
            add_rows(right * scale, batch_users, ctx.sizes[0], -1, False),
            add_rows(torch.cat([to_items, -to_items]), batch_items, ctx.sizes[1], -1, False),
            None,
            None,
            None,
        )


def margin(users: Tensor, items: Tensor, batch_users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Score of the observed item minus score of the sampled one, ``<u, i> - <u, j>``, for a batch of triples.

    Args:
        users: float32 [n_u, D].
        items: float32 [n_i, D].
        batch_users: int64 [B], rows of ``users``.
        positives: int64 [B], rows of ``items``.
        negatives: int64 [B], rows of ``items``.

    Returns:
        float32 [B].
    """
    result: Tensor = _Margin.apply(users, items, batch_users, positives, negatives)  # type: ignore[no-untyped-call]
    return result


def batch_square_sum(rows: Tensor, positions: Tensor) -> Tensor:
    """Sum of the squares of ``rows[positions]`` without forming it.

    Args:
        rows: float32 [n, d], distinct rows.
        positions: int64 [B], with repetitions.

    Returns:
        A scalar.
    """
    counts = torch.bincount(positions, minlength=rows.shape[0])
    return torch.dot(rows.square().sum(1), counts.to(rows.dtype))
