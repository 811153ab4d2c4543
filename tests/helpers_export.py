"""Tools for tests of bundles and graphs: the command line in process, honest re-sealing, walks over protobufs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from safetensors.numpy import load_file

from export import bundle
from export.__main__ import main
from export.manifest import Manifest
from training.checkpoint import BEST, FEATURES, INFO, MODEL


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def dvib_export(*arguments: object) -> Outcome:
    """Run ``dvib-export`` in this process; an unexpected exception reaches the test."""
    out, err = io.StringIO(), io.StringIO()
    line, code = sys.argv, 0
    sys.argv = ["dvib-export", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = line
    return Outcome(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """This process's environment without the project's own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DVIB_")}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run another interpreter that ends by itself."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment(),
    )


def digests(folder: Path) -> dict[str, str]:
    """Return file name → SHA-256, found without the code under test."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def assert_same_bytes(left: Path, right: Path) -> None:
    """Two bundles hold the same bytes in every file but the one of measured times, and its hash in the manifest."""
    ours, theirs = digests(left), digests(right)
    assert ours.keys() == theirs.keys() >= {bundle.MODEL_ONNX, bundle.TORCHSCRIPT, bundle.ITEM_TOWER}
    for name in ours.keys() - {bundle.MEASUREMENTS, bundle.MANIFEST}:
        assert ours[name] == theirs[name], name
    manifests = [json.loads((folder / bundle.MANIFEST).read_text("utf-8")) for folder in (left, right)]
    for document in manifests:
        document["files"].pop(bundle.MEASUREMENTS, None)
    assert manifests[0] == manifests[1]


def reseal(folder: Path, **changes: Any) -> Manifest:
    """Make manifest and hashes fit a changed folder again: an attacker who knows the format, or a buggy exporter."""
    fields = json.loads((folder / bundle.MANIFEST).read_text("utf-8")) | changes
    for name in ("files", "version"):
        del fields[name]
    (folder / bundle.MANIFEST).unlink()
    return bundle.write_manifest(folder, **fields)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text("utf-8"))
    edit(document)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def edit_checkpoint(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's checkpoint.json."""
    edit_json(run / BEST / INFO, edit)


def numpy_vectors(run: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute VBPR's user and item vectors from a checkpoint's files: P and [Q ‖ m W^T + b], in float64."""
    learned, features = load_file(run / BEST / MODEL), load_file(run / BEST / FEATURES)
    users, items, weight, bias = (learned[name].astype(np.float64) for name in ("users", "items", "weight", "bias"))
    concatenated = np.hstack([features[name].astype(np.float64) for name in sorted(features)])
    return users, np.hstack([items, concatenated @ weight.T + bias])


def messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages within, found by reflection."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from messages(inner)


def model_of(path: Path) -> ModelProto:
    """Parse a file without the code under test."""
    return onnx.load_model_from_string(path.read_bytes())


def blanked(path: Path, learned: set[str]) -> str:
    """Return the SHA-256 of a graph whose learned initialisers are zeroed, without the code under test."""
    model = model_of(path)
    found = set()
    for tensor in model.graph.initializer:
        if tensor.name in learned:
            found.add(tensor.name)
            zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    assert found == learned
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def write_new_items(
    folder: Path,
    ids: Sequence[str],
    features: Mapping[str, NDArray[np.float32]],
    categories: Mapping[str, str] | None = None,
) -> None:
    """Write what ``dvib-export add-items`` reads.

    Args:
        folder: A new one.
        ids: The first item has no title.
        features: A row for each.
        categories: Id → the cell that lists its categories; by default there is no such column.
    """
    folder.mkdir(parents=True)
    lines = [f"{name},{f'Title of {name}' if row else ''}" for row, name in enumerate(ids)]
    if categories is not None:
        lines = [f"{line},{categories.get(name, '')}" for line, name in zip(lines, ids, strict=True)]
    header = "item_id,title" if categories is None else "item_id,title,genres"
    (folder / "items.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    for name, matrix in features.items():
        np.save(folder / f"{name}_feat.npy", matrix)


def limited(bytes_per_file: int, place: Path, *arguments: object) -> None:
    """Run a command that fails because no file may grow beyond a size, as on a full disk; it says where."""
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_per_file},) * 2)\n"
        f"sys.argv = {['dvib-export', *map(str, arguments)]}\n"
        "from export.__main__ import main; main()"
    )
    done = python("-B", "-c", program, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-2000:]
    assert re.fullmatch(rf"dvib-export: {re.escape(str(place))}: File too large\n", done.stderr)
