"""Proofs 1 and 1b on runs trained independently, and each of them failing on a planted fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from export import build, bundle, strip
from export.artefacts import full_graph_onnx
from export.certificate import Certificate, RemovedFacts
from export.index import build_index
from export.manifest import IndexEntry
from tests.helpers_export import blanked, digests, dvib_export
from training.checkpoint import BEST, DVIB, MODEL, load_checkpoint
from training.dvib.objective import Objective
from training.models.base import Hidden, Latent, Recommender
from training.models.vbpr import VBPR

Certify = Callable[..., Certificate]
PATHS = ("onnx", "onnx_unfolded", "program", "torchscript", "towers_index")
HOLDS = {"transplant": True, "blanked": True, "architecture": True, "parity": True}


def learned_of(run: Path) -> set[str]:
    return {f"model.{name}" for name in load_file(run / BEST / MODEL)}


def certificate_of(folder: Path) -> Certificate:
    return Certificate.model_validate_json((folder / bundle.CERTIFICATE).read_bytes())


def test_the_runs_are_independent(baseline_run: Path, adaptive_run: Path) -> None:
    """Else equality would prove nothing: every learned tensor differs, and only one run has a Net_φ."""
    baseline, adaptive = (load_file(run / BEST / MODEL) for run in (baseline_run, adaptive_run))
    assert baseline.keys() == adaptive.keys() == {"users", "items", "weight", "bias"}
    for name in baseline:
        assert not np.isclose(baseline[name], adaptive[name]).any(), name
    assert load_file(baseline_run / BEST / DVIB) == {}
    assert len(load_file(adaptive_run / BEST / DVIB)) == 6


@pytest.mark.parametrize("run", ["adaptive_run", "constant_run"])
def test_proof_1_a_baseline_with_the_same_tensors_exports_to_the_same_bytes(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.info.config.dvib.variant == run.removesuffix("_run")
    plain = strip.plain_model(checkpoint, transplant=True)
    assert type(plain) is VBPR
    stripped = strip.strip(strip.trained_objective(checkpoint))
    assert hashlib.sha256(full_graph_onnx(stripped)).digest() == (hashlib.sha256(full_graph_onnx(plain)).digest())


def test_proof_1b_blanked_graphs_of_independent_runs_are_the_same_bytes(
    baseline_run: Path, adaptive_run: Path, baseline_bundle: Path, adaptive_bundle: Path
) -> None:
    ours, theirs = adaptive_bundle / bundle.MODEL_ONNX, baseline_bundle / bundle.MODEL_ONNX
    assert ours.read_bytes() != theirs.read_bytes()
    assert blanked(ours, learned_of(adaptive_run)) == blanked(theirs, learned_of(baseline_run))


def test_the_certificate_says_what_was_found(
    adaptive_run: Path, baseline_run: Path, adaptive_bundle: Path, baseline_bundle: Path
) -> None:
    certificate = certificate_of(adaptive_bundle)
    assert certificate.proofs == HOLDS
    assert all(certificate.proofs.values())
    assert certificate.variant == "adaptive"
    assert set(certificate.learned) == learned_of(adaptive_run)
    own = digests(adaptive_bundle)[bundle.MODEL_ONNX]
    assert certificate.exported.sha256 == certificate.transplanted.sha256 == own
    assert certificate.independent.sha256 == digests(baseline_bundle)[bundle.MODEL_ONNX] != own
    expected = blanked(adaptive_bundle / bundle.MODEL_ONNX, learned_of(adaptive_run))
    assert certificate.exported.blanked_sha256 == certificate.independent.blanked_sha256 == expected
    assert certificate.independent_source == "baseline trained independently"
    learned = load_file(adaptive_run / BEST / MODEL)
    assert certificate.exported.parameters == sum(array.size for array in learned.values())
    assert {name: entry.users for name, entry in certificate.parity.items()} == dict.fromkeys(PATHS, 23)
    assert "never trained" in certificate_of(baseline_bundle).independent_source


# Faults. Each takes the objective and returns what a broken strip would; none changes a score by more than rounding.


class Faulty(VBPR):
    """A stripped model that is not quite the baseline."""

    leftover: Tensor

    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        """Return item vectors [I, 2d]."""
        raise NotImplementedError

    def represent(self, hidden: Hidden) -> Latent:
        items = self.spoil(hidden.context["items"], hidden.sites["fused"])
        return Latent(users=hidden.context["users"], items=items)


class OneNetPhiTensor(Faulty):
    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        return torch.cat([items, fused + 0 * self.leftover], dim=1)


class OneRandomOperator(Faulty):
    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        return torch.cat([items, fused + 0 * torch.randn_like(fused)], dim=1)


class OneCast(Faulty):
    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        return torch.cat([items, fused.double().float()], dim=1)


class SwappedHalves(Faulty):
    """The halves of every vector change places: each score is the same up to the order of summation."""

    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        return torch.cat([fused, items], dim=1)


class SwappedProduct(Faulty):
    """The operands of the projection's product change places: W·M' turned, in place of M·W'."""

    def spoil(self, items: Tensor, fused: Tensor) -> Tensor:
        del fused
        return torch.cat([items, (self.weight @ self.features.T).T + self.bias], dim=1)


def broken(kind: type[Faulty]) -> Callable[[Objective], Recommender]:
    def strip_badly(objective: Objective) -> Recommender:
        model = objective.model
        assert type(model) is VBPR
        model.__class__ = kind
        if kind is OneNetPhiTensor:
            model.leftover = nn.Parameter(objective.own_parameters()["net_phi.at_fused.4.bias"].detach().clone())
        if kind is SwappedHalves:
            d = model.items.shape[1]
            model.users.data = torch.cat([model.users.data[:, d:], model.users.data[:, :d]], dim=1)
        return model

    return strip_badly


def nudged(objective: Objective) -> Recommender:
    """The right graph, one weight one unit in the last place off."""
    assert isinstance(objective.model, VBPR)
    bias = objective.model.bias.data
    bias[0] = torch.nextafter(bias[0], bias[0] + 1)
    return objective.model


GRAPH = HOLDS | {"transplant": False, "blanked": False, "architecture": False}
PLANTED = [
    pytest.param(broken(OneNetPhiTensor), GRAPH, "tensors that the baseline lacks: model.leftover", id="Net_φ tensor"),
    pytest.param(broken(OneRandomOperator), GRAPH, "random operators: ['RandomNormalLike']", id="random operator"),
    pytest.param(broken(OneCast), GRAPH, "operators", id="cast"),
    pytest.param(broken(SwappedHalves), GRAPH, "differing: fingerprint, wiring;", id="swapped halves"),
    pytest.param(broken(SwappedProduct), GRAPH, "differing: fingerprint", id="swapped product"),
    pytest.param(nudged, HOLDS | {"transplant": False}, "parameters", id="nudged weight"),
]


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch) -> list[Certificate]:
    """Collects the certificates that builds make, also the failing ones; leaves out what is not judged, for time."""
    made: list[Certificate] = []
    certify: Certify = build.certify

    def spy(*arguments: object) -> Certificate:
        made.append(certify(*arguments))
        return made[-1]

    monkeypatch.setattr(build, "certify", spy)
    monkeypatch.setattr(build, "item_tower_onnx", lambda *_: None)
    monkeypatch.setattr(build, "removed_from", lambda *_: RemovedFacts(tensors={}, parameters=0))
    return made


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(("fault", "verdicts", "evidence"), PLANTED)
def test_a_planted_fault_fails_and_nothing_is_written(
    fault: Callable[[Objective], Recommender],
    verdicts: dict[str, bool],
    evidence: str,
    adaptive_run: Path,
    baseline_run: Path,
    certificates: list[Certificate],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(strip, "strip", fault)
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b", "--baseline", baseline_run)
    assert certificates[0].proofs == verdicts
    assert evidence in certificates[0].explain("architecture")
    assert outcome.code == 1
    assert outcome.out == ""
    for proof, held in verdicts.items():
        assert (proof in outcome.complaint) is not held
    assert "no bundle is written" in outcome.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_random_operator_that_the_baseline_has_too_fails_the_architecture(
    adaptive_run: Path, certificates: list[Certificate], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A fault of the model's own class is in both arms, so that their bytes agree."""
    sound = VBPR.represent

    def noisy(self: VBPR, hidden: Hidden) -> Latent:
        latent = sound(self, hidden)
        return Latent(users=latent.users, items=latent.items + 0 * torch.randn_like(latent.items))

    monkeypatch.setattr(VBPR, "represent", noisy)
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b")
    assert certificates[0].proofs == HOLDS | {"architecture": False}
    assert certificates[0].exported.random_operators == ["RandomNormalLike"]
    assert (outcome.code, list(tmp_path.iterdir())) == (1, [])
    assert "RandomNormalLike" in outcome.complaint


@pytest.mark.usefixtures("remembered")
def test_another_path_that_scores_otherwise_fails_parity(
    adaptive_run: Path, certificates: list[Certificate], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The graph is right and the index holds something else: only the numbers can tell."""

    def spoiled(items: NDArray[np.float32], *rest: Any) -> IndexEntry:
        return build_index(items * np.float32(1.00001), *rest)

    monkeypatch.setattr(build, "build_index", spoiled)
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b")
    assert certificates[0].proofs == HOLDS | {"parity": False}
    held = {name: entry.passed for name, entry in certificates[0].parity.items()}
    assert held == dict.fromkeys(PATHS, True) | {"towers_index": False}
    assert (outcome.code, list(tmp_path.iterdir())) == (1, [])
    assert "parity" in outcome.complaint


@pytest.mark.usefixtures("remembered")
def test_a_baseline_of_another_architecture_fails(
    adaptive_run: Path, wide_run: Path, certificates: list[Certificate], tmp_path: Path
) -> None:
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b", "--baseline", wide_run)
    assert certificates[0].proofs == HOLDS | {"blanked": False, "architecture": False}
    assert (outcome.code, list(tmp_path.iterdir())) == (1, [])


def test_the_certificate_is_plain_json(adaptive_bundle: Path) -> None:
    document = json.loads((adaptive_bundle / bundle.CERTIFICATE).read_text("utf-8"))
    assert document["schema_name"] == "dvib.certificate"
    assert document["tolerance"] == 2e-6
    assert document["top_k"] == 20
