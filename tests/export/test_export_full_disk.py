"""A disk that takes no more: one line that names the place, nothing half written, and no process that PyTorch ends."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from export import artefacts, bundle
from export.writing import write_array, write_faiss
from tests.helpers_export import digests, dvib_export, limited, python, write_new_items
from training.data.dataset import Dataset

REPOSITORY = Path(__file__).parents[2]
NO_SPACE = "Error while serializing: I/O error: No space left on device (os error 28)"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


@pytest.fixture
def new(tmp_path: Path, dataset: Dataset) -> Path:
    """Items with titles so long that the file of ids is the bundle's largest."""
    features = {name: matrix[:3] for name, matrix in dataset.features.items()}
    write_new_items(tmp_path / "new", ["a", "b", "c"], features)
    (tmp_path / "new" / "items.csv").write_text("item_id,title\na,\nb,\nc," + "t" * 200_000 + "\n", "utf-8")
    return tmp_path / "new"


def test_a_bundle_whose_archives_do_not_fit(adaptive_run: Path, adaptive_bundle: Path, out: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in adaptive_bundle.iterdir()}
    # What is written before it fits.
    room = sizes[bundle.PROGRAM] - 1000
    assert room > max(sizes[bundle.MODEL_ONNX], sizes[bundle.ITEM_TOWER], sizes[bundle.USER_TOWER])
    limited(room, out, "build", adaptive_run, "--out", out)
    assert list(out.parent.iterdir()) == []


def test_added_items_whose_ids_do_not_fit(adaptive_bundle: Path, new: Path, out: Path) -> None:
    before = digests(adaptive_bundle)
    limited(100_000, out, "add-items", adaptive_bundle, new, "--out", out)
    assert list(out.parent.iterdir()) == []
    assert digests(adaptive_bundle) == before
    assert dvib_export("add-items", adaptive_bundle, new, "--out", out).code == 0
    ids = (out / bundle.IDS).stat().st_size
    assert ids > 100_000 > max(path.stat().st_size for path in out.iterdir() if path.name != bundle.IDS)


@pytest.mark.parametrize("name", [bundle.IDS, bundle.SEEN])
def test_tensors_that_do_not_fit(
    adaptive_run: Path, adaptive_bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(tensors: dict[str, Any], path: Path) -> None:
        if path.name == name:
            raise SafetensorError(NO_SPACE)
        save_file(tensors, path)

    monkeypatch.setattr(artefacts, "save_file", full)
    outcome = dvib_export("build", adaptive_run, "--out", out)
    assert (outcome.code, outcome.complaint) == (2, f"dvib-export: {out}: No space left on device")
    assert list(out.parent.iterdir()) == []


def test_pytorch_does_not_end_the_process(tmp_path: Path) -> None:
    """Its archives do not fit at all, or end too early, or lack what stands behind the tensors."""
    program = f"""
import resource
from pathlib import Path
import torch
from export.program import save_program, trace_program
from export.torchscript import save_torchscript
class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(100_000))
    def forward(self, users):
        return self.table[users]
module, folder = Table().eval(), Path({str(tmp_path)!r})
program = trace_program(module, [torch.arange(2)])
for size in (10, 200_000, 401_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for save in (
        lambda: save_program(program, folder / "model.pt2"),
        lambda: save_torchscript(module, folder / "model.ts", 9),
    ):
        try:
            save()
        except OSError as error:
            print(error.errno)
"""
    done = python("-B", "-c", program, cwd=REPOSITORY)
    assert (done.returncode, done.stdout.split()) == (0, [str(errno.EFBIG)] * 6), done.stderr[-2000:]


def flat(vectors: NDArray[np.float32]) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


@pytest.mark.parametrize("rows", [50, 5000])
@pytest.mark.parametrize("missing", [1, 500])
def test_an_index_or_an_array_is_whole_or_an_error(tmp_path: Path, rows: int, missing: int) -> None:
    """FAISS's own writer is silent about the last bytes."""
    vectors = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    faiss.write_index(flat(vectors), str(tmp_path / "wanted.faiss"))
    np.save(tmp_path / "wanted.npy", vectors)
    write_faiss(tmp_path / "found.faiss", flat(vectors))
    write_array(tmp_path / "found.npy", vectors)
    for kind in ("faiss", "npy"):
        assert (tmp_path / f"found.{kind}").read_bytes() == (tmp_path / f"wanted.{kind}").read_bytes()
    with (
        files_of_at_most((tmp_path / "wanted.faiss").stat().st_size - missing),
        pytest.raises(OSError, match="File too large"),
    ):
        write_faiss(tmp_path / "short.faiss", flat(vectors))
    with (
        files_of_at_most((tmp_path / "wanted.npy").stat().st_size - missing),
        pytest.raises(OSError, match="File too large"),
    ):
        write_array(tmp_path / "short.npy", vectors)


@pytest.mark.parametrize(
    "array", [np.arange(5, dtype=np.int64), np.zeros((0, 3), np.float32), np.ones((3, 4), np.float32).T]
)
def test_an_array_is_written_as_numpy_does(tmp_path: Path, array: NDArray[Any]) -> None:
    write_array(tmp_path / "found.npy", array)
    np.save(tmp_path / "wanted.npy", np.ascontiguousarray(array))
    assert (tmp_path / "found.npy").read_bytes() == (tmp_path / "wanted.npy").read_bytes()
