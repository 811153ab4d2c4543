"""What may be imported where: the service's half of this package knows nothing of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers_export import python

HEAVY = ("torch", "torch_geometric", "sklearn", "polars", "onnxscript", "rich", "training.trainer", "training.models")


def loaded_after(statements: str, cwd: Path) -> set[str]:
    """Return the modules that statements load in a fresh interpreter."""
    program = f"import sys; before = set(sys.modules)\n{statements}\nprint(*sorted(set(sys.modules) - before))"
    done = python("-c", program, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_loads_nothing(tmp_path: Path) -> None:
    assert loaded_after("import export", tmp_path) == {"export"}


def test_the_bundle_needs_no_torch(tmp_path: Path) -> None:
    loaded = loaded_after("import export.bundle", tmp_path)
    assert "export.bundle" in loaded
    assert not loaded & {*HEAVY, "onnx", "onnxruntime", "faiss"}


def test_verifying_needs_no_torch(adaptive_bundle: Path, baseline_bundle: Path, tmp_path: Path) -> None:
    """Not only importing: a whole verification, through the command line, with torch out of reach."""
    program = f"""
sys.modules["torch"] = None
sys.argv = ["dvib-export", "verify", {str(adaptive_bundle)!r}, "--against", {str(baseline_bundle)!r}]
import export.verify
from export.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code"""
    loaded = loaded_after(program, tmp_path)
    assert "export.verify" in loaded
    assert not loaded & (set(HEAVY) - {"torch"})


@pytest.mark.parametrize(
    "module",
    [
        "export.certificate",
        "export.certificate_text",
        "export.diff",
        "export.measure",
        "export.onnx_fingerprint",
        "export.onnx_flops",
        "export.onnx_shapes",
        "export.onnx_canonical",
        "export.parity",
        "export.index",
        "export.index_layout",
        "export.index_search",
        "export.index_tuning",
        "export.onnx_safety",
        "export.runtime",
        "export.writing",
    ],
)
def test_modules_said_to_need_no_torch(module: str) -> None:
    """Their own imports, all of which ``export.verify`` has loaded above, name neither torch nor training's models."""
    source = (Path(__file__).parents[2] / Path(*module.split("."))).with_suffix(".py").read_text("utf-8")
    imports = [line for line in source.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if line.split()[1].split(".")[0] == "torch" or "training.models" in line]
