from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from export import artefacts
from export.onnx_graph import export_onnx
from tests.helpers_export import dvib_export
from tests.helpers_training import make_config, planted_blocks, with_categories
from training.common.choices import Variant
from training.data.dataset import Dataset
from training.trainer import Trainer

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return with_categories(planted_blocks(n_users=23, n_items=41))


@pytest.fixture(scope="session")
def train(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains two epochs into a new folder and returns the run."""

    def run(variant: Variant, seed: int, *overrides: str, data: Dataset = dataset) -> Path:
        out = tmp_path_factory.mktemp("runs") / variant
        Trainer(make_config(variant, "training.epochs=2", f"training.seed={seed}", *overrides), data, out).fit()
        return out

    return run


@pytest.fixture(scope="session")
def baseline_run(train: Train) -> Path:
    return train("none", 1)


@pytest.fixture(scope="session")
def adaptive_run(train: Train) -> Path:
    return train("adaptive", 2)


@pytest.fixture(scope="session")
def constant_run(train: Train) -> Path:
    return train("constant", 3)


@pytest.fixture(scope="session")
def wide_run(train: Train) -> Path:
    """The same data and variant as the baseline, another architecture."""
    return train("none", 4, "model.dimension=12")


@pytest.fixture(scope="session")
def elsewhere_run(train: Train) -> Path:
    """A baseline trained on other data."""
    return train("none", 1, data=planted_blocks(n_users=23, n_items=41, seed=1))


@pytest.fixture(scope="session")
def baseline_bundle(baseline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test; see ``copy_of``."""
    out = tmp_path_factory.mktemp("bundles") / "baseline"
    outcome = dvib_export("build", baseline_run, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    return out


@pytest.fixture(scope="session")
def adaptive_bundle(baseline_run: Path, adaptive_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certified against the baseline run; never changed by a test."""
    out = tmp_path_factory.mktemp("bundles") / "adaptive"
    outcome = dvib_export("build", adaptive_run, "--out", out, "--baseline", baseline_run)
    assert (outcome.code, outcome.err) == (0, "")
    assert "removed: 6 training-only tensors with 1377 parameters, " in outcome.out
    return out


@pytest.fixture(scope="session")
def wide_bundle(wide_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture of the same model; never changed by a test."""
    out = tmp_path_factory.mktemp("bundles") / "wide"
    assert dvib_export("build", wide_run, "--out", out).code == 0
    return out


@pytest.fixture(scope="session")
def exports() -> dict[tuple[object, ...], bytes]:
    return {}


@pytest.fixture
def remembered(exports: dict[tuple[object, ...], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports a module of the same classes and tensors once: every fault is compared with the same two baselines."""

    def once(module: nn.Module, *arguments: Any) -> bytes:
        digest = hashlib.sha256()
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
        key = (*(type(part) for part in module.modules()), digest.hexdigest())
        if key not in exports:
            exports[key] = export_onnx(module, *arguments)
        return exports[key]

    monkeypatch.setattr(artefacts, "export_onnx", once)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a run or a bundle for a test to spoil."""

    def copy(folder: Path) -> Path:
        target = tmp_path / f"copy of {folder.name}"
        shutil.copytree(folder, target)
        return target

    return copy
