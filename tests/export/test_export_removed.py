"""What stripping takes away, and the graph that has it all: by hand, and against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from export import bundle
from export.certificate import Certificate, RemovedFacts
from export.onnx_canonical import RANDOM_OPERATORS, operators, parse
from export.onnx_safety import check_graph
from export.outline import outline
from export.removed import UnstrippedGraph, removed_from, unstripped_onnx
from tests.helpers_export import model_of, numpy_vectors
from tests.helpers_training import make_config, planted_blocks
from training.build import build_objective
from training.checkpoint import BEST, DVIB, load_checkpoint
from training.common.errors import BundleError, ExportError
from training.dvib.objective import DvibObjective
from training.models import MODELS

DATASET = planted_blocks(n_users=11, n_items=40)
I, D, WIDTH = 41, 8, 32  # noqa: E741 (the paper's letters)
USERS = np.arange(23)


def removed_of(folder: Path) -> RemovedFacts:
    return Certificate.model_validate_json((folder / bundle.CERTIFICATE).read_bytes()).removed


def test_what_was_removed_by_hand(adaptive_bundle: Path, adaptive_run: Path) -> None:
    """VBPR has one site [I, d]: Net_φ d → 32 → 32 → 1 over its rows, noise, and a second product with the users."""
    removed = removed_of(adaptive_bundle)
    tensors = load_file(adaptive_run / BEST / DVIB)
    assert removed.tensors == {name: list(array.shape) for name, array in sorted(tensors.items())}
    assert removed.parameters == D * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + 1
    assert removed.inputs == {}
    assert removed.noise == "gaussian"
    assert removed.random_operators == {"RandomNormalLike": 1}
    counted = {name: removed.operators.get(name) for name in ("Gemm", "Relu", "Sigmoid", "MatMul", "RandomNormalLike")}
    assert counted == {"Gemm": 3, "Relu": 2, "Sigmoid": 1, "MatMul": 1, "RandomNormalLike": 1}
    products = 2 * I * (D * WIDTH + WIDTH * WIDTH + WIDTH) + 2 * 2 * D * I
    assert removed.matmul_flops_per_user == products
    # Biases, ReLUs, the sigmoid, the draw, H + φ·ε (with addcmul's factor of one), and the mean of two score lists.
    rest = I * (2 * WIDTH + 1) + I * 2 * WIDTH + I + I * D + 3 * I * D + 2 * I
    assert products < removed.flops_per_user <= products + rest
    assert sum(removed.flops_by_operator.values()) == removed.flops_per_user


def test_from_a_plain_model_nothing_is_removed(baseline_bundle: Path, baseline_run: Path) -> None:
    assert removed_of(baseline_bundle) == RemovedFacts(tensors={}, parameters=0)
    with pytest.raises(ExportError, match="a plain model has nothing to strip"):
        unstripped_onnx(load_checkpoint(baseline_run))


@pytest.fixture(scope="module")
def unstripped(adaptive_run: Path) -> bytes:
    return unstripped_onnx(load_checkpoint(adaptive_run))


def test_the_unstripped_graph_has_what_the_stripped_one_lacks(
    unstripped: bytes, adaptive_bundle: Path, adaptive_run: Path
) -> None:
    whole, ours = operators(parse(unstripped)), operators(model_of(adaptive_bundle / bundle.MODEL_ONNX))
    removed = removed_of(adaptive_bundle)
    assert whole == {name: ours.get(name, 0) + removed.operators.get(name, 0) for name in sorted(whole)}
    names = {tensor.name for tensor in parse(unstripped).graph.initializer}
    assert names >= load_file(adaptive_run / BEST / DVIB).keys()
    with pytest.raises(BundleError, match="such graphs are not run"):
        check_graph(unstripped, "unstripped.onnx")
    assert unstripped_onnx(load_checkpoint(adaptive_run)) == unstripped


def draws(graph: bytes, count: int) -> NDArray[np.float64]:
    """Run a graph for every user, so many times."""
    opened = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.stack([opened.run(["scores"], {"users": USERS})[0] for _ in range(count)]).astype(np.float64)


def test_the_unstripped_graph_scores_with_noise_of_the_learned_scale(unstripped: bytes, adaptive_run: Path) -> None:
    """Mean of s and s + <p, φ ε> for every pair: its mean is s, its deviation φ ‖p‖ / 2, with φ computed in NumPy.

    ONNX Runtime folds nothing that depends on a draw, so that every call draws anew.
    """
    users, items = numpy_vectors(adaptive_run)
    net = {name: array.astype(np.float64) for name, array in load_file(adaptive_run / BEST / DVIB).items()}
    h = items[:, D:]
    for layer in (0, 2):
        h = np.maximum(h @ net[f"net_phi.at_fused.{layer}.weight"].T + net[f"net_phi.at_fused.{layer}.bias"], 0)
    logit = h @ net["net_phi.at_fused.4.weight"].T + net["net_phi.at_fused.4.bias"]
    phi = 1 / (1 + np.exp(-logit))  # [I, 1]
    deviation = np.linalg.norm(users[:, D:], axis=1)[:, None] * phi.T / 2
    found = (draws(unstripped, 400) - users @ items.T) / deviation
    # 400 draws of a standard normal: mean within 6/20 and deviation within 30 % for each of a thousand pairs.
    assert np.abs(found.mean(axis=0)).max() < 0.3
    assert np.abs(found.std(axis=0) - 1).max() < 0.3
    # Over all pairs and draws, far closer.
    assert abs(found.std() - 1) < 0.02


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "dropout"])
def test_every_noise_is_exported(noise: str, constant_run: Path) -> None:
    """Of scale zero it changes nothing; and it is what ``perturb`` draws, by its two first moments."""
    checkpoint = load_checkpoint(constant_run)

    def scores(sigma: float, count: int) -> NDArray[np.float64]:
        dvib = checkpoint.info.config.dvib.model_copy(update={"noise": noise, "sigma": sigma})
        config = checkpoint.info.config.model_copy(update={"dvib": dvib})
        info = checkpoint.info.model_copy(update={"config": config})
        return draws(unstripped_onnx(type(checkpoint)(**{**vars(checkpoint), "info": info})), count)

    users, items = numpy_vectors(constant_run)
    clean = users @ items.T
    assert np.abs(scores(0.0, 1)[0] - clean).max() <= 2e-6 * np.abs(clean).max()
    sigma, p, h = 0.3, users[:, D:], items[:, D:]
    found = scores(sigma, 300)
    if noise == "dropout":
        wanted_mean, variance = clean - sigma * (p @ h.T) / 2, sigma * (1 - sigma) * (p**2 @ (h**2).T) / 4
    else:
        wanted_mean, variance = clean, sigma**2 * (p**2).sum(axis=1)[:, None] / 4 * np.ones((1, I))
    normalised = (found - wanted_mean) / np.sqrt(variance)
    assert abs(normalised.mean()) < 0.05
    assert abs(normalised.std() - 1) < 0.05


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_both_passes(name: str, preset: str) -> None:
    """In every model, the second pass depends on the noise, and reaches the scores or has an output of its own."""
    config = make_config("adaptive", model=name, preset=preset)  # type: ignore[arg-type]
    objective = build_objective(config, DATASET).eval()
    assert isinstance(objective, DvibObjective)
    graph = UnstrippedGraph(objective).eval()
    users = torch.arange(4)
    with torch.no_grad():
        first, again = graph(users), graph(users)
        clean_users, clean_items = objective.model.vectors()
    clean = clean_users[:4] @ clean_items.T
    assert len(first) == len(graph.outputs)
    if graph.outputs == ["scores"]:
        assert not torch.equal(first[0], again[0])
        assert not torch.equal(first[0], clean)
    else:
        torch.testing.assert_close(first[0], clean)
        assert not torch.equal(first[1], again[1])
        assert first[1].shape == (40, len(objective.model.site_widths) * D)


def test_the_outline_of_a_stripped_graph_will_do(adaptive_run: Path, adaptive_bundle: Path) -> None:
    stripped = outline(model_of(adaptive_bundle / bundle.MODEL_ONNX))
    assert removed_from(load_checkpoint(adaptive_run), stripped) == removed_of(adaptive_bundle)


def test_only_random_operators_are_called_random(adaptive_bundle: Path) -> None:
    removed = removed_of(adaptive_bundle)
    assert removed.random_operators.keys() == removed.operators.keys() & RANDOM_OPERATORS
