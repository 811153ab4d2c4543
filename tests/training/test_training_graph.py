from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from training.graph import Graph, edges_at_random, edges_by_degree, light_gcn, users_and_items

N_USERS, N_ITEMS = 4, 5
# User 3 and item 4 are isolated; (1, 2) stands there twice.
EDGES = torch.tensor([[1, 0, 0, 1, 2, 1, 1], [2, 0, 3, 2, 0, 0, 1]])
N = N_USERS + N_ITEMS


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adjacency() -> Tensor:
    """A [N, N] with ones, built entry by entry."""
    dense = torch.zeros(N, N)
    for user, item in EDGES.T.tolist():
        dense[user, N_USERS + item] = dense[N_USERS + item, user] = 1
    return dense


def dense_of(graph: Graph, weights: Tensor | None = None) -> Tensor:
    """The graph as [T, S], from its edge list alone."""
    values = graph.weights if weights is None else weights
    return torch.zeros(graph.shape).index_put((graph.targets, graph.sources), values)


def odd_graph() -> Graph:
    """A directed 3 × 5 graph: unsorted, with a repeated edge, an empty row (1) and an empty column (2)."""
    return Graph(torch.tensor([2, 0, 2, 0, 2]), torch.tensor([4, 1, 0, 3, 4]), 3, 5)


def test_edges_are_in_order_and_each_once() -> None:
    graph = odd_graph()
    assert graph.targets.tolist() == [0, 0, 2, 2]
    assert graph.sources.tolist() == [1, 3, 0, 4]
    assert graph.weights.tolist() == [1, 1, 1, 1]
    assert not list(graph.parameters())
    assert not graph.state_dict()


def test_bipartite_graphs_equal_their_dense_forms() -> None:
    dense = adjacency()
    assert torch.equal(dense_of(Graph.bipartite(EDGES, N_USERS, N_ITEMS)), dense)
    degrees = dense.sum(1)
    scale = (degrees + 1e-7).rsqrt()
    normalised = dense_of(Graph.normalised(EDGES, N_USERS, N_ITEMS))
    assert torch.allclose(normalised, scale[:, None] * dense * scale, atol=1e-7)
    assert normalised[0, N_USERS].item() == pytest.approx((2 * 3) ** -0.5)  # user 0 has two items, item 0 three users
    averaging = dense_of(Graph.averaging(EDGES[1], EDGES[0], N_ITEMS, N_USERS))
    assert torch.allclose(averaging, (dense / degrees.clamp(min=1)[:, None])[N_USERS:, :N_USERS])
    assert averaging.sum(1).tolist() == pytest.approx((degrees[N_USERS:] > 0).float().tolist())


def test_a_bipartite_graph_knows_its_interactions() -> None:
    edges = Graph.normalised(EDGES, N_USERS, N_ITEMS).user_item_edges(N_USERS)
    assert edges.T.tolist() == [[0, 0], [0, 3], [1, 0], [1, 1], [1, 2], [2, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_products_and_gradients_equal_the_dense_ones(training: bool) -> None:
    graph = odd_graph().train(training)
    x = random(5, 3, seed=1).requires_grad_()
    weights = random(4, seed=2).requires_grad_()
    upstream = random(3, 3, seed=3)
    ours, dense = graph(x, weights), dense_of(graph, weights) @ x
    assert torch.allclose(ours, dense, atol=1e-6)
    assert ours[1].tolist() == [0, 0, 0]  # nothing ends in node 1
    grads = [torch.autograd.grad((upstream * y).sum(), (x, weights)) for y in (ours, dense)]
    for left, right in zip(*grads, strict=True):
        assert torch.allclose(left, right, atol=1e-6)
    assert torch.allclose(graph(x), dense_of(graph) @ x, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_edge_values_and_their_gradients_equal_the_dense_ones(training: bool) -> None:
    graph = odd_graph().train(training)
    left, right = random(3, 4, seed=1).requires_grad_(), random(5, 4, seed=2).requires_grad_()
    upstream = random(4, seed=3)
    ours, dense = graph.dot(left, right), (left @ right.T)[graph.targets, graph.sources]
    assert torch.allclose(ours, dense, atol=1e-6)
    grads = [torch.autograd.grad((upstream * y).sum(), (left, right)) for y in (ours, dense)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_no_product_is_made_for_what_needs_no_gradient() -> None:
    graph = odd_graph().train()
    x, weights = random(5, 3, seed=1), random(4, seed=2).requires_grad_()
    (grad,) = torch.autograd.grad(graph(x, weights).sum(), weights)
    assert torch.allclose(grad, x.sum(1)[graph.sources], atol=1e-6)
    (grad,) = torch.autograd.grad(graph(x.requires_grad_()).sum(), x)
    assert torch.allclose(grad, dense_of(graph).sum(0)[:, None].expand(5, 3))


def test_softmax_sums_to_one_over_the_edges_of_a_target() -> None:
    graph = odd_graph()
    values = torch.tensor([1.0, 3.0, 200.0, -200.0])
    expected = torch.cat([values[:2].softmax(0), values[2:].softmax(0)])
    assert torch.allclose(graph.softmax(values), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("weighted", ["own", "drawn", "learned"])
def test_light_gcn_is_the_mean_of_powers(training: bool, layers: int, weighted: str) -> None:
    graph = Graph.normalised(EDGES, N_USERS, N_ITEMS).train(training)
    # Not symmetric: the gradient must go through the transposed matrix.
    weights = None if weighted == "own" else random(len(graph.weights), seed=4)
    dense = dense_of(graph, weights)
    x = random(N, 3, seed=5).requires_grad_()
    upstream = random(N, 3, seed=6)
    if weighted == "learned":
        assert weights is not None
        weights.requires_grad_()
        dense = dense_of(graph, weights)
    powers = sum((torch.linalg.matrix_power(dense, power) for power in range(1, layers + 1)), torch.eye(N))
    ours, expected = light_gcn(graph, x, layers, weights), powers @ x / (layers + 1)
    assert torch.allclose(ours, expected, atol=1e-5)
    wanted = (x,) if weighted != "learned" or layers == 0 else (x, weights)
    grads = [torch.autograd.grad((upstream * y).sum(), wanted) for y in (ours, expected)]  # type: ignore[arg-type]
    for left, right in zip(*grads, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_light_gcn_leaves_its_input_alone() -> None:
    graph = Graph.normalised(EDGES, N_USERS, N_ITEMS).train()
    x = random(N, 3)
    before = x.clone()
    light_gcn(graph, x, 2)
    assert torch.equal(x, before)


def test_an_isolated_node_keeps_its_own_share_only() -> None:
    x = random(N, 3)
    out = light_gcn(Graph.normalised(EDGES, N_USERS, N_ITEMS).train(), x, 2)
    assert torch.allclose(out[3], x[3] / 3)
    assert torch.allclose(out[N_USERS + 4], x[N_USERS + 4] / 3)


@pytest.mark.parametrize("training", [True, False])
def test_users_come_first_in_a_joint_tensor(training: bool) -> None:
    x = random(5, 2).requires_grad_()
    users, items = users_and_items(x, 2, training=training)
    assert torch.equal(users, x[:2])
    assert torch.equal(items, x[2:])
    (grad,) = torch.autograd.grad(users.sum() + 3 * items.sum(), x)
    assert grad[:, 0].tolist() == [1, 1, 3, 3, 3]


PATH = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 2]])  # degrees: users 3, 1; items 1, 1, 2
PATH_WEIGHTS = [3**-0.5, 3**-0.5, 6**-0.5, 2**-0.5]
"""1 / √(deg_u deg_i) of each edge."""


def inclusion(weights: list[float], keep: int) -> Counter[frozenset[int]]:
    """Exact probability of each kept set, over all orders of drawing without replacement in proportion to weights."""
    sets: Counter[frozenset[int]] = Counter()
    for order in itertools.permutations(range(len(weights)), keep):
        probability, left = 1.0, sum(weights)
        for edge in order:
            probability *= weights[edge] / left
            left -= weights[edge]
        sets[frozenset(order)] += probability  # type: ignore[assignment]
    return sets


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("rule", ["degree", "random"])
def test_edges_are_drawn_without_replacement_in_proportion_to_their_weights(rule: str, keep: int) -> None:
    generator = torch.Generator().manual_seed(keep)
    names = {tuple(edge): number for number, edge in enumerate(PATH.T.tolist())}
    draws, found = 4000, Counter[frozenset[int]]()
    for _ in range(draws):
        if rule == "degree":
            kept = edges_by_degree(PATH, 2, 3, keep, generator)
        else:
            kept = edges_at_random(PATH, keep, generator)
        assert kept.shape == (2, keep)
        found[frozenset(names[tuple(edge)] for edge in kept.T.tolist())] += 1
    exact = inclusion(PATH_WEIGHTS if rule == "degree" else [1.0] * 4, keep)
    assert sum(exact.values()) == pytest.approx(1)
    assert found.keys() <= exact.keys()  # every set has `keep` different edges
    # Pearson's statistic: above 16.3 (1 in 1000 for 3 degrees of freedom) or 20.5 (5) the distribution is another.
    statistic = sum((found[some] - draws * p) ** 2 / (draws * p) for some, p in exact.items())
    assert statistic < {4: 16.3, 6: 20.5}[len(exact)]


def test_dropping_draws_from_its_generator_only() -> None:
    def both(seed: int) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        edges = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")).flatten(1)
        drawn = (edges_by_degree(edges, 8, 9, 30, generator), edges_at_random(edges, 30, generator))
        return [kept.tolist() for kept in drawn]

    state = torch.get_rng_state()
    assert both(1) == both(1)
    assert both(1)[0] != both(2)[0]
    assert both(1)[1] != both(2)[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_all_edges_can_be_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    everything = sorted(PATH.T.tolist())
    assert sorted(edges_by_degree(PATH, 2, 3, 4, generator).T.tolist()) == everything
    assert sorted(edges_at_random(PATH, 4, generator).T.tolist()) == everything
