from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import training.knn
from training.knn import knn_graph


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def neighbours(features: Tensor, k: int, block: int = 7) -> list[list[int]]:
    training.knn._results.clear()
    rows, columns = knn_graph(features, k, block=block)
    width = min(k, len(features))
    assert rows.tolist() == [row for row in range(len(features)) for _ in range(width)]
    found: list[list[int]] = columns.view(-1, width).tolist()
    return found


def brute_force(features: Tensor, k: int) -> list[list[int]]:
    """Rows sorted by (itself first, similarity, row), from the whole matrix of similarities in float64."""
    norms = features.double().norm(dim=1)
    result = []
    for row in range(len(features)):
        dots = features.double() @ features[row].double()
        similarity = [
            float(dot / (norm * norms[row])) if norm * norms[row] > 0 else 0.0
            for dot, norm in zip(dots, norms, strict=True)
        ]
        order = sorted(range(len(features)), key=lambda i: (i != row, -similarity[i], i))
        result.append(order[:k])
    return result


@pytest.mark.parametrize("block", [1, 3, 7, 40, 59, 60, 1000])
@pytest.mark.parametrize("k", [1, 2, 10, 59])
def test_neighbours_equal_brute_force_for_any_block(k: int, block: int) -> None:
    features = random(59, 6)
    assert neighbours(features, k, block) == brute_force(features, k)


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_ties_go_to_the_lower_row(block: int) -> None:
    # All sixteen ±1 rows of width 4 in some order, twice: norms are 2, so each cosine is one of five exact numbers.
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    features = torch.cat([signs, signs])[torch.randperm(32, generator=torch.Generator().manual_seed(3))]
    for k in (1, 2, 4, 7, 32):
        assert neighbours(features, k, block) == brute_force(features, k)


@pytest.mark.parametrize("block", [1, 2, 6])
def test_zero_rows_come_first_among_their_own_and_are_similar_to_nothing(block: int) -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    # Worked by hand. Row 0: itself, row 3 (1), then the zeros 1, 4 and 5 before row 2 (-1).
    assert neighbours(features, 6, block) == [
        [0, 3, 1, 4, 5, 2],
        [1, 0, 2, 3, 4, 5],
        [2, 1, 4, 5, 0, 3],
        [3, 0, 1, 4, 5, 2],
        [4, 0, 1, 2, 3, 5],
        [5, 0, 1, 2, 3, 4],
    ]
    assert neighbours(torch.zeros(4, 3), 2, block) == [[0, 1], [1, 0], [2, 0], [3, 0]]


def test_a_row_is_its_own_first_neighbour_even_beside_copies_of_itself() -> None:
    features = random(1, 33, seed=5).expand(9, -1) * torch.linspace(0.1, 7.0, 9).unsqueeze(1)
    assert [row[0] for row in neighbours(features, 3, 4)] == list(range(9))


def test_keys_sort_like_pairs_of_similarity_and_row() -> None:
    pairs = [(-torch.inf, 0), (-1.0, 3), (-0.5, 4), (-0.5, 2), (-1e-30, 0), (0.0, 9), (-0.0, 5), (0.0, 1), (1e-30, 8)]
    pairs += [(0.5, 7), (0.5, 6), (torch.inf, 2)]
    similarities, rows = torch.tensor([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])
    keys = training.knn._keys(similarities, rows)
    assert keys.tolist() == sorted(set(keys.tolist()))
    assert torch.equal(training.knn._similarity(keys), similarities)


def test_scale_changes_nothing() -> None:
    features = random(40, 5)
    scaled = features * 2.0 ** torch.randint(-20, 20, (40, 1), generator=torch.Generator().manual_seed(1))
    assert neighbours(scaled, 6) == neighbours(features, 6)


def test_k_larger_than_the_number_of_rows_gives_them_all() -> None:
    features = random(5, 3)
    assert neighbours(features, 99) == neighbours(features, 5) == brute_force(features, 5)
    assert neighbours(random(1, 3), 10) == [[0]]


def test_results_are_remembered_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    training.knn._results.clear()
    calls = []
    compute = training.knn._neighbours

    def counted(features: Tensor, k: int, block: int) -> Tensor:
        calls.append(k)
        return compute(features, k, block)

    monkeypatch.setattr(training.knn, "_neighbours", counted)
    features = random(20, 4)
    first = knn_graph(features, 3)
    first_values = first.clone()
    first.zero_()  # the caller's own copy
    assert torch.equal(knn_graph(features.clone(), 3), first_values)
    assert len(calls) == 1
    features[7] = -features[7]  # changed in place, same object, same shape, same k
    changed = knn_graph(features, 3)
    assert len(calls) == 2
    assert changed[1].view(-1, 3).tolist() == brute_force(features, 3)
    assert not torch.equal(changed, first_values)
    assert knn_graph(features, 4).shape == (2, 80)
    assert knn_graph(features.view(40, 2), 3).shape == (2, 120)  # the same bytes in another shape
    assert len(calls) == 4


def test_the_memory_of_results_is_bounded() -> None:
    training.knn._results.clear()
    for seed in range(3 * training.knn._REMEMBERED):
        knn_graph(random(4, 2, seed=seed), 2)
    assert len(training.knn._results) == training.knn._REMEMBERED
