"""Peak memory of a training run, measured in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.probe import run_probe
from benchmarks.shapes import shape_of
from training.common.choices import Preset, Variant
from training.config import build_config

COMMAND = (sys.executable, "-P", "-m", "benchmarks.memory_probe")


def measure(shape: str, model: str, variant: Variant, preset: Preset, steps: int) -> dict[str, Any]:
    """Run ``benchmarks.memory_probe`` in a fresh process.

    Args:
        shape: A key of ``benchmarks.shapes.SHAPES``.
        model: The recommender.
        variant: Without DVIB, or which.
        preset: Where its settings come from.
        steps: Training steps; 0 for one whole epoch with checkpoints.

    Returns:
        The document that ``--json`` writes.

    Raises:
        DvibError: No such shape or model, what the process complains of, or how it ended.
    """
    shape_of(shape)
    build_config(model_name=model, dataset=shape, variant=variant, preset=preset)
    arguments = {"shape": shape, "model": model, "variant": variant, "preset": preset, "steps": steps}
    result = run_probe([*COMMAND, json.dumps(arguments)], "the measured process")
    peaks = result["peak_bytes"]
    return {**arguments, **result, "peak_total_bytes": max(peaks.values()), "peak_before_bytes": peaks["data"]}


def report(result: dict[str, Any]) -> Iterator[str]:
    """Yield a measurement as lines."""
    yield f"{'peak so far':<32}{'memory':>10}{'time':>11}"
    for part, size in result["peak_bytes"].items():
        spent = f"{result['seconds'][part]:>9.1f} s" if part in result["seconds"] else ""
        yield f"{part:<32}{size / 1e9:>7.2f} GB{spent}"
    total, before = result["peak_total_bytes"], result["peak_before_bytes"]
    yield f"peak in all {total / 1e9:.2f} GB; before the model, with the data alone, {before / 1e9:.2f} GB"
    yield f"building the model took {result['seconds']['building']:.1f} s (item graphs included, where it has any)"
