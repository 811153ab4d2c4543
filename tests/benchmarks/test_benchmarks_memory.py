from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from tests.benchmarks.helpers import Bench, read_json
from training.common.errors import DvibError
from training.common.memory import peak_bytes


def test_memory_from_the_command_line(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "memory.json"
    assert bench("memory", "--shape", "small", "--model", "vbpr", "--dvib", "adaptive", "--json", place) == 0
    document = read_json(place)
    peaks = list(document["peak_bytes"].values())
    assert list(document["peak_bytes"]) == ["imports", "data", "building", "training", "ranking"]
    assert peaks == sorted(peaks)
    assert document["peak_total_bytes"] == peaks[-1]
    assert document["peak_before_bytes"] == document["peak_bytes"]["data"]
    assert 50e6 < peaks[0] < 2e9
    assert document["seconds"]["building"] > 0
    assert "peak in all" in capsys.readouterr().out


def test_a_whole_epoch_saves_its_checkpoints() -> None:
    result = memory.measure("small", "vbpr", "none", "paper", 0)
    assert list(result["peak_bytes"])[-1] == "training, ranking and saving"


def test_the_peak_sees_what_is_already_freed_and_not_the_parent() -> None:
    program = (
        "import numpy\nfrom training.common.memory import peak_bytes\nbefore = peak_bytes()\n"
        "numpy.ones(30_000_000)\nprint(before, peak_bytes())"
    )
    ballast = bytearray(400_000_000)
    for place in range(0, len(ballast), 4096):
        ballast[place] = 1
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, after = json.loads(f"[{done.stdout.replace(' ', ',')}]")
    assert after - before == pytest.approx(240e6, rel=0.1)
    assert before < 200e6 < peak_bytes()
    assert ballast[4096] == 1


def test_a_killed_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(memory, "COMMAND", (sys.executable, "-c", program))
    with pytest.raises(DvibError, match=r"ended with signal SIGKILL; too little memory"):
        memory.measure("small", "vbpr", "none", "paper", 1)
