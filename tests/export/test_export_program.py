"""``model.pt2``, the program of ``torch.export``: its bytes, what is in it, what it computes, and who loads it."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import export
from export import bundle, verify, writing
from export.artefacts import write_full_graphs
from export.build import build_bundle
from export.graphs import FullGraph
from export.program import save_program, trace_program, unread
from export.trusted import LOADERS, program_scores, torchscript_scores
from export.verify import verify_bundle
from tests.contract.cases import CASES
from tests.helpers_export import digests, dvib_export, numpy_vectors, reseal
from tests.helpers_training import make_config
from training.build import build_model
from training.checkpoint import load_checkpoint
from training.common.errors import BundleError
from training.data.dataset import Dataset
from training.models import MODELS

Copy = Callable[[Path], Path]
PICKLES = (bundle.TORCHSCRIPT, bundle.PROGRAM)


def members(data: bytes) -> dict[str, bytes]:
    """Unpack an archive and the archives in it."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            found[name] = content
            if zipfile.is_zipfile(io.BytesIO(content)):
                found |= {f"{name}/{inner}": part for inner, part in members(content).items()}
    return found


def test_it_scores_like_numpy_for_any_batch(adaptive_bundle: Path, adaptive_run: Path) -> None:
    users, items = numpy_vectors(adaptive_run)
    module = torch.export.load(adaptive_bundle / bundle.PROGRAM).module()
    for batch in ([4], [22, 0], [5, 5, 1, 22, 0, 3, 2], list(range(23))):
        with torch.no_grad():
            scores = module(torch.tensor(batch)).numpy()
        expected = users[batch] @ items.T
        assert scores.dtype == np.float32
        assert np.abs(scores - expected).max() <= 2e-6 * np.abs(expected).max()


def test_the_archive_names_no_place_and_holds_one_harmless_pickle(adaptive_bundle: Path) -> None:
    found = members((adaptive_bundle / bundle.PROGRAM).read_bytes())
    repository = Path(export.__file__).parents[1]
    for name, content in found.items():
        for place in (b"stack_trace", b".py", b"nn_module_stack", str(repository).encode(), str(Path.home()).encode()):
            assert place not in content, (name, place)
    pickles = [name for name in found if name.endswith(".pkl")]
    assert pickles == ["model/data/sample_inputs/model.pt/archive/data.pkl"]
    asked = {argument for _, argument, _ in pickletools.genops(found[pickles[0]]) if isinstance(argument, str)}
    assert {name for name in asked if " " in name} <= {"torch LongStorage", "torch._utils _rebuild_tensor_v2"} | {
        "collections OrderedDict"
    }


def test_what_only_training_reads_is_in_no_file(dataset: Dataset, tmp_path: Path) -> None:
    """FREEDOM's feature tables and every graph's training order are dead weight at inference."""
    model = build_model(make_config("none", model="freedom"), dataset).eval()
    dead = {f"model.{name}" for name in dict(model.named_parameters()) if "features_" in name or "projection" in name}
    assert dead
    program = trace_program(FullGraph(model), [torch.arange(2)])
    assert dead < set(unread(program))
    written = write_full_graphs(model, tmp_path, dataset, lambda _: None)
    assert not written.absent
    found = members((tmp_path / bundle.PROGRAM).read_bytes())
    weights = json.loads(found["model/data/weights/model_weights_config.json"])
    assert weights["config"].keys() == {"model.users", "model.items"}
    plain = torch.export.load(tmp_path / bundle.PROGRAM)
    assert unread(plain) == []
    for name, content in members((tmp_path / bundle.TORCHSCRIPT).read_bytes()).items():
        assert b"features_" not in content, name


@pytest.mark.parametrize("name", MODELS)
def test_every_models_program_depends_on_the_model_alone(name: str, dataset: Dataset, tmp_path: Path) -> None:
    """Two traces of one process, the second of another object, give the same bytes and free batches."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        model = build_model(make_config("none", *CASES[name].overrides, model=name), dataset).eval()
        program = trace_program(FullGraph(model), [torch.arange(2)])
        save_program(program, tmp_path / folder / bundle.PROGRAM)
        (free,) = program.range_constraints.values()
        assert (free.lower, free.upper > 10**6) == (0, True)
    first, second = ((tmp_path / folder / bundle.PROGRAM).read_bytes() for folder in ("first", "second"))
    assert first == second
    tensors = [part for part in (*program.state_dict.values(), *program.constants.values()) if isinstance(part, Tensor)]
    # The room that is asked for before it is written is ample.
    assert 4 * (len(first) - sum(tensor.nbytes for tensor in tensors)) < writing._ARCHIVE_BYTES
    for name_of_member, content in members(first).items():
        assert b".py" not in content, name_of_member


# Who loads it.


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a file that holds pickles fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file that holds pickles was loaded")

    for module, name in ((torch, "load"), (torch.jit, "load"), (torch.export, "load")):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("unloadable")
def test_neither_build_nor_verification_loads_it(baseline_run: Path, tmp_path: Path) -> None:
    build_bundle(load_checkpoint(baseline_run), tmp_path / "b")
    assert all(check.passed for check in verify_bundle(tmp_path / "b"))


def test_verification_loads_it_for_who_trusts_it(adaptive_bundle: Path) -> None:
    outcome = dvib_export("verify", adaptive_bundle, "--trust-torchscript", "--trust-program")
    assert (outcome.code, outcome.err) == (0, "")
    for name in PICKLES:
        assert f"ok    parity of {name}: model.onnx against {name}, 23 users" in outcome.out
        flag = "--trust-torchscript" if name == bundle.TORCHSCRIPT else "--trust-program"
        one = dvib_export("verify", adaptive_bundle, flag)
        assert one.out.count("parity of ") == 1
        assert f"parity of {name}" in one.out


@pytest.mark.parametrize("name", PICKLES)
def test_another_runs_file_scores_otherwise(
    name: str, adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy
) -> None:
    """Behind matching hashes: unasked nobody looks into it, and whoever asks is told."""
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).write_bytes((baseline_bundle / name).read_bytes())
    reseal(spoiled)
    assert all(check.passed for check in verify_bundle(spoiled))
    failed = [check.name for check in verify_bundle(spoiled, trusted=LOADERS) if not check.passed]
    assert failed == [f"parity of {name}"]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"], ids=["empty", "text", "cut"])
def test_what_torch_cannot_load(name: str, content: bytes, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).write_bytes(content)
    reseal(spoiled)
    with pytest.raises(BundleError, match=f"{name}: torch cannot load it"):
        verify_bundle(spoiled, trusted=LOADERS)


def test_a_file_is_loaded_from_the_bytes_that_were_hashed(
    adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed behind the hash: refused before anything is unpickled."""
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.PROGRAM).write_bytes((baseline_bundle / bundle.PROGRAM).read_bytes())
    monkeypatch.setattr(torch.export, "load", None)
    with pytest.raises(BundleError, match=f"{bundle.PROGRAM} differs from its hash"):
        verify_bundle(spoiled, trusted={bundle.PROGRAM: program_scores})


def test_an_uncertified_graph_stops_before_pickles(adaptive_bundle: Path, wide_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.MODEL_ONNX).write_bytes((wide_bundle / bundle.MODEL_ONNX).read_bytes())
    reseal(spoiled)
    names = [check.name for check in verify_bundle(spoiled, trusted={bundle.TORCHSCRIPT: torchscript_scores})]
    assert not [name for name in names if name.startswith("parity of")]


def test_a_bundle_lacks_it_only_with_a_reason(adaptive_bundle: Path, copy_of: Copy) -> None:
    for name in PICKLES:
        spoiled = copy_of(adaptive_bundle)
        (spoiled / name).unlink()
        reseal(spoiled)
        with pytest.raises(BundleError, match=name):
            verify_bundle(spoiled)
        with bundle.BundleReader(adaptive_bundle) as reader:
            absent = {**reader.manifest.absent, name: "left out"}
        reseal(spoiled, absent=absent)
        assert all(check.passed for check in verify.verify_bundle(spoiled))
        assert digests(spoiled).keys() == digests(adaptive_bundle).keys() - {name}
        spoiled.rename(spoiled.with_name(f"without {name}"))
