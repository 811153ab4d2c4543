"""The user–item graph and products with it: one matrix, two ways to multiply.

In training a product runs on sparse kernels (compressed rows), forty times faster on a CPU than gathering and
scattering. In evaluation mode it is gather and scatter, since sparse products have no ONNX form; the two agree up to
the order of summation.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # torch-geometric scripts some of its own classes when it is imported, in a way that torch has deprecated.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
    from torch_geometric.utils import degree as _degree
    from torch_geometric.utils import softmax as segment_softmax

_EPSILON = 1e-7
"""Added to degrees before they are inverted, as in MMRec."""


def degree(ends: Tensor, count: int) -> Tensor:
    """Return how many edges end in each of so many nodes, int64 [count]: float32 stops counting at 2^24."""
    degrees: Tensor = _degree(ends, count, torch.int64)
    return degrees


def _compressed(offsets: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    size = (len(offsets) - 1, width)
    return torch.sparse_csr_tensor(offsets, columns, values, size, check_invariants=False)


with warnings.catch_warnings():
    # torch says once per process that compressed rows are in beta. Nobody who trains a model can act on that.
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
    _compressed(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 1)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        # The reducing kernel runs on CPUs only, where it takes half the time of the general product.
        product: Tensor = torch.sparse.mm(matrix, x, "sum") if x.device.type == "cpu" else matrix @ x
    return product


def _wide(x: Tensor) -> Tensor:
    """Return what a sparse kernel takes: it stays in float32 where everything around it is in mixed precision."""
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, graph: Graph) -> Tensor:
        ctx.save_for_backward(weights, x)
        ctx.graph = graph
        return _product(graph.matrix(weights), x.contiguous())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, x = ctx.saved_tensors
        grad, graph = grad_outputs[0].contiguous(), ctx.graph
        to_weights = graph.sampled(grad, x) if ctx.needs_input_grad[0] else None
        to_x = _product(graph.transposed(weights), grad) if ctx.needs_input_grad[1] else None
        return to_weights, to_x, None


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, graph: Graph) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.graph = graph
        return ctx.graph.sampled(left, right)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        graph, grad = ctx.graph, grad_outputs[0]
        to_left = _product(graph.matrix(grad), right.contiguous()) if ctx.needs_input_grad[0] else None
        to_right = _product(graph.transposed(grad), left.contiguous()) if ctx.needs_input_grad[1] else None
        return to_left, to_right, None


class Graph(nn.Module):
    """A sparse matrix [T, S] with a fixed pattern: edge e goes from source node s_e to target node t_e.

    Edges are kept in the order of (target, source), each once. Nothing of a graph is a parameter or is saved.

    Args:
        targets: int64 [E].
        sources: int64 [E].
        n_targets: T.
        n_sources: S.

    Attributes:
        targets: int64 [E], in order.
        sources: int64 [E], in order.
        weights: float32 [E]; ones, unless a class method says otherwise.
    """

    targets: Tensor
    sources: Tensor
    weights: Tensor

    def __init__(self, targets: Tensor, sources: Tensor, n_targets: int, n_sources: int) -> None:
        super().__init__()
        keys = torch.unique(targets * n_sources + sources)
        targets, sources = keys // n_sources, keys % n_sources
        order = torch.argsort(sources, stable=True)
        self.shape = n_targets, n_sources
        for name, value in (
            ("targets", targets),
            ("sources", sources),
            ("weights", torch.ones(len(keys), device=keys.device)),
            ("_offsets", _starts(targets, n_targets)),
            ("_order", order),
            ("_transposed_offsets", _starts(sources[order], n_sources)),
            ("_transposed_columns", targets[order]),
        ):
            self.register_buffer(name, value, persistent=False)
        self._offsets: Tensor
        self._order: Tensor
        self._transposed_offsets: Tensor
        self._transposed_columns: Tensor

    @classmethod
    def normalised(cls, edges: Tensor, n_users: int, n_items: int) -> Self:
        """Return Â = D^-½ A D^-½ of the bipartite graph (He et al., "LightGCN", SIGIR 2020).

        Args:
            edges: int64 [2, E], user rows above, item rows below.
            n_users: U.
            n_items: I.

        Returns:
            The symmetric graph over U + I nodes, users first, without self loops.
        """
        graph = cls.bipartite(edges, n_users, n_items)
        scale = (degree(graph.targets, n_users + n_items) + _EPSILON).rsqrt()
        graph.weights = scale[graph.targets] * scale[graph.sources]
        return graph

    @classmethod
    def averaging(cls, targets: Tensor, sources: Tensor, n_targets: int, n_sources: int) -> Self:
        """Return D^-1 A [T, S]: each target gets the mean over its sources, and zero where it has none."""
        graph = cls(targets, sources, n_targets, n_sources)
        graph.weights = degree(graph.targets, n_targets)[graph.targets].reciprocal()
        return graph

    @classmethod
    def bipartite(cls, edges: Tensor, n_users: int, n_items: int) -> Self:
        """Return the graph over U + I nodes with every interaction as an edge in both directions."""
        users, items = edges[0], edges[1] + n_users
        n = n_users + n_items
        return cls(torch.cat([users, items]), torch.cat([items, users]), n, n)

    def user_item_edges(self, n_users: int) -> Tensor:
        """Return a bipartite graph's interactions, int64 [2, E / 2]: user rows above, item rows below."""
        count = len(self.targets) // 2
        return torch.stack([self.targets[:count], self.sources[:count] - n_users])

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return ``y_t = Σ_e w_e x_{s_e}`` over the edges that end in t.

        Args:
            x: float32 [S, d].
            weights: float32 [E], learned or drawn; by default the graph's own.

        Returns:
            float32 [T, d].
        """
        values = self.weights if weights is None else weights
        if self.training:
            result: Tensor = _Aggregate.apply(_wide(values), _wide(x), self)  # type: ignore[no-untyped-call]
            return result
        messages = values.unsqueeze(1) * x.index_select(0, self.sources)  # [E, d]
        # Adding whole rows by number becomes one ScatterND, which runs twelve times faster than ScatterElements.
        heard = torch.zeros(self.shape[0], x.shape[1], dtype=messages.dtype, device=x.device)
        return heard.index_add(0, self.targets, messages)

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``<left_{t_e}, right_{s_e}>`` for every edge, float32 [E].

        Args:
            left: float32 [T, d], for the targets.
            right: float32 [S, d], for the sources.
        """
        if self.training:
            result: Tensor = _EdgeDot.apply(_wide(left), _wide(right), self)  # type: ignore[no-untyped-call]
            return result
        return (left.index_select(0, self.targets) * right.index_select(0, self.sources)).sum(1)

    def softmax(self, values: Tensor) -> Tensor:
        """Return the softmax of edge values, float32 [E], over the edges that end in the same node."""
        result: Tensor = segment_softmax(values, self.targets, num_nodes=self.shape[0])
        return result

    def matrix(self, values: Tensor) -> Tensor:
        """Return the graph with these edge values as a compressed matrix [T, S]."""
        # A gradient may come expanded, with strides of zero, which not every kernel looks at.
        return _compressed(self._offsets, self.sources, values.contiguous(), self.shape[1])

    def transposed(self, values: Tensor) -> Tensor:
        """Return the transposed graph with these edge values as a compressed matrix [S, T]."""
        return _compressed(self._transposed_offsets, self._transposed_columns, values[self._order], self.shape[0])

    def sampled(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``<left_{t_e}, right_{s_e}>`` for every edge, without ever holding [E, d]."""
        pattern = self.matrix(left.new_zeros(len(self.targets)))
        with torch.autocast(left.device.type, enabled=False):
            result: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
        return result


def _starts(sorted_rows: Tensor, count: int) -> Tensor:
    """Return where each row's entries begin, int64 [count + 1]."""
    offsets = sorted_rows.new_zeros(count + 1)
    torch.cumsum(torch.bincount(sorted_rows, minlength=count), 0, out=offsets[1:])
    return offsets


class _MeanOfPowers(torch.autograd.Function):
    """light_gcn with weights that are not learned: by Horner's rule, and its gradient in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, graph: Graph, layers: int) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.graph, ctx.layers = graph, layers
        return _mean_of_powers(graph.matrix(weights), x, layers)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (weights,) = ctx.saved_tensors
        return _mean_of_powers(ctx.graph.transposed(weights), grad_outputs[0], ctx.layers), None, None, None


def _mean_of_powers(matrix: Tensor, x: Tensor, layers: int) -> Tensor:
    x = x.contiguous() / (layers + 1)
    total = x
    for _ in range(layers):
        total = _product(matrix, total).add_(x)
    return total


def light_gcn(graph: Graph, x: Tensor, layers: int, weights: Tensor | None = None) -> Tensor:
    """Return the mean of x, Âx, …, Â^L x (He et al., "LightGCN", SIGIR 2020).

    Args:
        graph: Â, N nodes.
        x: float32 [N, d].
        layers: L.
        weights: float32 [E], edge weights instead of the graph's own.
    """
    values = graph.weights if weights is None else weights
    if graph.training and not values.requires_grad:
        result: Tensor = _MeanOfPowers.apply(_wide(x), values, graph, layers)  # type: ignore[no-untyped-call]
        return result
    total = x
    for _ in range(layers):
        x = graph(x, weights)
        total = total + x
    return total / (layers + 1)


def users_and_items(x: Tensor, n_users: int, *, training: bool) -> tuple[Tensor, Tensor]:
    """Return the users' rows and the items' rows of a joint float32 [N, d], users first.

    Args:
        x: float32 [N, d].
        n_users: U.
        training: Split, which has the faster gradient. Otherwise slice: a split is a sequence in ONNX, and ONNX Runtime
            folds nothing that comes after one.
    """
    if training:
        users, items = torch.split(x, [n_users, x.shape[0] - n_users])
        return users, items
    return x[:n_users], x[n_users:]


def edges_by_degree(edges: Tensor, n_users: int, n_items: int, keep: int, generator: torch.Generator) -> Tensor:
    """Keep edges with a probability that falls with the degrees of their ends (Zhou et al., "LayerGCN", ICDE 2023).

    Drawn without replacement, each in proportion to ``1/√(deg_u deg_i)``, by adding Gumbel noise to the logarithm and
    taking the largest.

    Args:
        edges: int64 [2, E].
        n_users: U.
        n_items: I.
        keep: Number of edges to keep.
        generator: On the device of ``edges``.

    Returns:
        int64 [2, keep].
    """
    users, items = edges
    by_user, by_item = degree(users, n_users) + _EPSILON, degree(items, n_items) + _EPSILON
    logits = -0.5 * (by_user.log()[users] + by_item.log()[items])
    gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
    return edges[:, (logits + gumbel).topk(keep).indices]


def edges_at_random(edges: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """Keep a uniform sample of edges, int64 [2, keep], drawn without replacement."""
    return edges[:, torch.randperm(edges.shape[1], generator=generator, device=edges.device)[:keep]]
