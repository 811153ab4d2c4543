from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load.tree import MemoryLog, leaves, memory, processes, total, tree_memory
from benchmarks.production import environment_size
from tests.benchmarks.helpers import Bench

HELD = 40_000_000
FAMILY = f"""
import mmap, os, sys
shared = mmap.mmap(-1, {HELD}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared.write(b"x" * {HELD})
for _ in range(2):
    if not os.fork():
        if not os.fork():
            os.write(1, b"%d\\n" % os.getpid())  # at once: both write into one pipe
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def family() -> Iterator[tuple[int, list[int]]]:
    """A process with two children and two grandchildren, which share 40 MB; the grandchildren."""
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        grandchildren = [int(process.stdout.readline()) for _ in range(2)]
        yield process.pid, sorted(grandchildren)
        assert process.stdin is not None
        process.stdin.close()


def test_a_tree_has_everybody_below_its_root(family: tuple[int, list[int]]) -> None:
    root, grandchildren = family
    found = processes(root)
    assert len(found) == 5
    assert leaves(root) == grandchildren
    assert len(found[root]) == 2
    assert os.getpid() not in found
    assert root in processes(os.getpid())


def test_shared_memory_counts_once(family: tuple[int, list[int]]) -> None:
    root, grandchildren = family
    held = tree_memory(root)
    assert len(held) == 5
    everyone = total([*held.values()])
    assert everyone.resident > 5 * HELD
    assert HELD < everyone.proportional < 2 * HELD
    assert HELD / 5 <= held[grandchildren[0]].proportional < HELD / 2


def test_the_log_names_processes_that_come_and_go(family: tuple[int, list[int]]) -> None:
    log = MemoryLog(family[0])
    log.read()
    log.read()
    assert log.stable
    assert log.bytes[0] > 5 * HELD
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as other:
        ours = MemoryLog(os.getpid())
        ours.read()
        other.communicate()
    ours.read()
    assert not ours.stable
    assert ours.document()[f"process_{sorted({*ours.readings[0]}).index(other.pid)}"][1] == 0
    assert memory(other.pid) is None
    assert processes(other.pid) == {}


def test_an_environment_is_weighed_and_torch_is_found(tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    packages = next((place / "lib").glob("python*")) / "site-packages"
    plant(packages, "small", 1000)
    run = environment_size.weigh(place, place / "bin" / "python")
    assert run.distributions["small"] >= 1000
    assert run.total < 1_000_000
    assert environment_size.judge(run).code(check=True) == 0
    plant(packages, "Large_One", 351_000_000)
    run = environment_size.weigh(place, place / "bin" / "python")
    assert run.distributions["large-one"] >= 351_000_000
    assert environment_size.judge(run).code(check=True) == 1
    assert environment_size.judge(run).code(check=False) == 0
    plant(packages, "torch", 10)
    verdict = environment_size.judge(environment_size.weigh(place, place / "bin" / "python"))
    assert verdict.faults == ["torch is installed"]
    assert verdict.code(check=False) == 1
    shown = "\n".join(environment_size.report(run, verdict))
    assert "large-one" in shown
    assert "MISSED" in shown


def plant(packages: Path, name: str, size: int) -> None:
    """Write a distribution with one file, sparse."""
    description = packages / f"{name}-1.0.dist-info"
    description.mkdir()
    (description / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (description / "RECORD").write_text(f"{name}.bin,,\n{name}-1.0.dist-info/METADATA,,\n")
    with (packages / f"{name}.bin").open("wb") as stream:
        stream.truncate(size)


def test_an_environment_wants_the_projects_folder(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("environment", "--source", tmp_path) == 2
    shown = capsys.readouterr().err
    assert "name the project's folder with --source" in shown
    assert shown.count("\n") == 1
