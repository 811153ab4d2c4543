"""What the size of the service's environment is measured of, without a package index."""

from __future__ import annotations

from pathlib import Path

from benchmarks.production import environment_size
from benchmarks.production.environment_size import copied

ROOT = Path(__file__).resolve().parents[2]


def test_a_build_writes_nothing_into_the_source(tmp_path: Path) -> None:
    """It is of a copy, of what a build takes and of nothing that an earlier one has left."""
    source = tmp_path / "project"
    for name in ("service/http/page.html", "training/data/load.py", "build/lib/old.py", ".venv/x.py", "pyproject.toml"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    copy = copied(source, tmp_path / "copy")
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert found == {"service/http/page.html", "training/data/load.py", "pyproject.toml"}


def test_every_package_of_the_project_is_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(environment_size.SOURCE)
