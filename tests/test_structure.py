"""How the code is laid out: no circle of imports, no file too long, no model that knows what is put around it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from training.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("training", "export", "service", "benchmarks")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
MODEL_FILES = [MODULES[f"training.models.{name}"] for name in MODELS]


def _imported(name: str) -> set[str]:
    """Return the project's modules that a module needs when it is imported: functions import when they are called."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[name].read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & MODULES.keys() or {node.module}
        waiting += ast.iter_child_nodes(node)
    return (found & MODULES.keys()) - {name}


def test_no_import_runs_in_a_circle() -> None:
    order = list(TopologicalSorter({name: _imported(name) for name in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_data_flows_one_way() -> None:
    forbidden = {"training": ("export", "service", "benchmarks"), "export": ("service", "benchmarks")}
    forbidden["service"] = ("benchmarks",)
    for name in MODULES:
        for package in forbidden.get(name.split(".")[0], ()):
            assert not [other for other in _imported(name) if other.split(".")[0] == package], name


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_no_source_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODEL_FILES, ids=MODELS)
def test_a_model_file_is_short_and_does_not_know_what_is_put_around_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 250
    assert "dvib" not in text.lower()


def test_registry_and_files_of_models_are_in_step() -> None:
    shared = {"__init__", "base", "layers"}
    assert {path.stem for path in (ROOT / "training" / "models").glob("*.py")} - shared == set(MODELS)
