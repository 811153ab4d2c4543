"""What loading and calling a full graph costs on this machine. Needs neither torch nor training.

ONNX Runtime computes whatever does not depend on the user once, when it loads a graph (it folds it), so that a call of
the folded graph is a lookup and a product. Unfolded, every call computes the whole model. Both are measured, each in a
process of its own, because a process's memory tells nothing of one part of it.

These figures change from run to run, so that they are no part of the certificate.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from training.common.errors import ExportError
from training.common.memory import peak_bytes, resident_bytes

BATCHES = (1, 32)
_CALL_BUDGET_SECONDS = 0.15
_FEWEST_CALLS = 3
_MOST_CALLS = 200
_THREADS = 1
_ROOT = Path(__file__).resolve().parents[1]


def write_measurements(graph: Path, target: Path) -> None:
    """Measure a full graph and write the figures.

    Args:
        graph: ``model.onnx``, of our own making.
        target: The file to write: for ``folded`` and ``unfolded`` each the seconds of loading, the memory of the
            process before and at its most (bytes, the graph's own bytes included in both), and the median seconds of
            a call by batch size; and ``folding_bytes``, the estimate by which `export.parity.session` decides whether
            ``folded`` really folds.

    Raises:
        ExportError: The measuring process failed.
    """
    document: dict[str, Any] = {"schema_name": "dvib.measurements", "schema_version": 1}
    document |= {"processor": _processor(), "system": platform.system(), "threads": _THREADS}
    for name in ("folded", "unfolded"):
        document |= _in_new_process(graph, name)
    target.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _in_new_process(graph: Path, name: str) -> dict[str, Any]:
    # The package need not be installed; nothing else is added to where modules are looked for.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "export.measure", str(graph.absolute()), name],
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ExportError(
            f"measuring {graph.name} {name} failed with code {done.returncode} ({said}); "
            "free some memory and export again"
        )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def measure_here(graph: Path, *, folded: bool) -> dict[str, Any]:
    """Load a full graph in this process and call it.

    Args:
        graph: The file.
        folded: Let ONNX Runtime optimise.

    Returns:
        JSON values.
    """
    import numpy as np

    from export.onnx_canonical import parse
    from export.onnx_folding import folded_bytes
    from export.parity import session
    from export.runtime import onnxruntime

    data = graph.read_bytes()
    before = resident_bytes()
    started = time.perf_counter()
    opened = session(data, optimised=folded, threads=_THREADS)
    seconds = time.perf_counter() - started
    figures: dict[str, Any] = {
        "load_seconds": seconds,
        "memory_before_bytes": before,
        "memory_peak_bytes": peak_bytes(),
        "call_seconds": {},
    }
    for batch in BATCHES:
        feed = {"users": np.zeros(batch, dtype=np.int64)}  # row 0 exists in every table
        figures["call_seconds"][str(batch)] = _median_seconds(partial(opened.run, ["scores"], feed))
    return {
        "onnxruntime": onnxruntime.__version__,
        "folding_bytes": folded_bytes(parse(data).graph),
        "folded" if folded else "unfolded": figures,
    }


def _median_seconds(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    while len(times) < _FEWEST_CALLS or (sum(times) < _CALL_BUDGET_SECONDS and len(times) < _MOST_CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(measure_here(Path(sys.argv[1]), folded=sys.argv[2] == "folded")))
