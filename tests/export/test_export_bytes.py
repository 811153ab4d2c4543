"""A bundle's bytes depend on the run alone: not on where it lies, who exports it, or from where."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import export
from export import bundle
from export.graphs import FullGraph
from export.torchscript import save_torchscript
from tests.helpers_export import assert_same_bytes, messages, model_of, python
from tests.helpers_training import make_config
from training.build import build_model
from training.data.dataset import Dataset

GRAPHS = (bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.ITEM_TOWER)


@pytest.fixture(scope="module")
def elsewhere(baseline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline again: copied, exported by another process, from another working folder, by relative paths."""
    cwd = tmp_path_factory.mktemp("else where")
    shutil.copytree(baseline_run, cwd / "a copied run")
    done = python("-m", "export", "build", "a copied run", "--out", "new/deep/bundle", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert "proof transplant" in done.stdout
    return cwd / "new" / "deep" / "bundle"


def test_two_folders_give_the_same_bytes(elsewhere: Path, baseline_bundle: Path) -> None:
    assert_same_bytes(elsewhere, baseline_bundle)


def test_torchscript_does_not_tell_what_was_traced_before(dataset: Dataset, tmp_path: Path) -> None:
    """TorchScript numbers the classes of a process; MMGCN has many modules of one class, and VBPR shares some."""
    written: dict[str, set[bytes]] = {"vbpr": set(), "mmgcn": set()}
    for name in ("mmgcn", "vbpr", "vbpr", "mmgcn"):
        model = build_model(make_config("none", model=name), dataset).eval()
        traced = save_torchscript(FullGraph(model), tmp_path / bundle.TORCHSCRIPT, dataset.n_users)
        written[name].add((tmp_path / bundle.TORCHSCRIPT).read_bytes())
        users = torch.arange(dataset.n_users)
        with torch.no_grad():
            assert torch.equal(traced(users), FullGraph(model)(users))
    assert {name: len(files) for name, files in written.items()} == {"vbpr": 1, "mmgcn": 1}


def members(path: Path) -> dict[str, bytes]:
    """Return a file's bytes and, for an archive, what it holds unpacked."""
    found = {path.name: path.read_bytes()}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found |= {f"{path.name}/{name}": archive.read(name) for name in archive.namelist()}
    return found


def test_no_file_names_a_place(elsewhere: Path, adaptive_bundle: Path, baseline_bundle: Path) -> None:
    repository = Path(export.__file__).parents[1]
    for folder in (elsewhere, adaptive_bundle, baseline_bundle):
        places = (folder, folder.parent, repository, Path.home(), Path("/home"))
        for path in folder.iterdir():
            for name, content in members(path).items():
                for place in places:
                    if place != Path("/"):
                        assert str(place).encode() not in content, (name, place)
                assert b"stack_trace" not in content, name
                if bundle.TORCHSCRIPT not in name:  # TorchScript is source code and calls its own modules so
                    assert b".py" not in content, name


@pytest.mark.parametrize("name", GRAPHS)
def test_no_graph_carries_metadata(name: str, adaptive_bundle: Path) -> None:
    model = model_of(adaptive_bundle / name)
    for message in messages(model):
        present = {field.name for field, _ in message.ListFields()}
        assert not present & {"doc_string", "metadata_props", "external_data"}, type(message).__name__
    assert not model.producer_name + model.producer_version + model.domain
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    assert not model.graph.sparse_initializer
    assert model.SerializeToString(deterministic=True) == (adaptive_bundle / name).read_bytes()
