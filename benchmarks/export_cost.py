"""What exporting, verifying and loading a model of a known catalogue's shape costs: each in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.probe import run_probe
from benchmarks.shapes import shape_of
from training.common.choices import Preset, Variant
from training.config import build_config

COMMAND = (sys.executable, "-P", "-m", "benchmarks.export_probe")


@dataclass(frozen=True)
class Bar:
    """The most that a step may take: seconds, and bytes of memory at its peak."""

    seconds: float
    peak_bytes: float


_LOADING = {"load": Bar(15, 4e9), "load unfolded": Bar(15, 4e9)}
_BABY_VBPR = {"export": Bar(20, 2e9), "verify": Bar(10, 2e9)}
STEPS = ("export", "verify", *_LOADING)
"""What is measured of a bundle."""


def bars_of(shape: str, model: str) -> dict[str, Bar]:
    """Return step → bar: loading for all, export and verification for VBPR at Baby's shape."""
    return {**(_BABY_VBPR if (shape, model) == ("baby", "vbpr") else {}), **_LOADING}


def measure(
    shape: str,
    model: str,
    variant: Variant,
    preset: Preset,
    on_stage: Callable[[str], None] = lambda _: None,
    *,
    only_load: bool = False,
) -> dict[str, Any]:
    """Export, verify and load one model.

    Args:
        shape: A key of ``benchmarks.shapes.SHAPES``.
        model: The recommender, with initial values.
        variant: Without DVIB, or which.
        preset: Where its settings come from.
        on_stage: Told what happens.
        only_load: Write the un-frozen graph alone, and load it.

    Returns:
        Step → what ``benchmarks.export_probe`` says of it; and ``shape``, ``model`` and ``variant``.

    Raises:
        DvibError: No such shape or model, what a step complains of, or how it ended.
    """
    shape_of(shape)
    build_config(model_name=model, dataset=shape, variant=variant, preset=preset)
    result: dict[str, Any] = {"shape": shape, "model": model, "variant": variant}
    with tempfile.TemporaryDirectory(prefix="dvib-export-") as place:
        checkpoint, bundle = f"{place}/checkpoint", f"{place}/bundle"
        what = {"shape": shape, "model": model, "variant": variant, "preset": preset}
        whole: dict[str, tuple[str, dict[str, Any]]] = {
            "prepare": ("prepare", {**what, "checkpoint": checkpoint}),
            "export": ("export", {"checkpoint": checkpoint, "bundle": bundle}),
            "verify": ("verify", {"bundle": bundle}),
        }
        steps: dict[str, tuple[str, dict[str, Any]]] = {
            **({"graph": ("graph", {**what, "bundle": bundle})} if only_load else whole),
            "load": ("load", {"bundle": bundle, "optimised": True}),
            "load unfolded": ("load", {"bundle": bundle, "optimised": False}),
        }
        for name, (step, arguments) in steps.items():
            on_stage(f"{model} {variant}: {name}")
            result[name] = run_probe([*COMMAND, step, json.dumps(arguments)], f"the process of {step}")
    result.pop("prepare", None)
    return result


def passed(result: dict[str, Any]) -> bool:
    """Tell whether a measured bundle could be verified; a graph alone cannot, and need not."""
    return "verify" not in result or bool(result["verify"]["passed"])


def beyond(result: dict[str, Any]) -> list[str]:
    """Return what a measurement says that a bar does not allow, each in a few words."""
    found = [] if passed(result) else ["verification failed"]
    for name, bar in bars_of(result["shape"], result["model"]).items():
        if name not in result:
            continue
        seconds, peak = result[name]["seconds"], result[name]["peak_bytes"]
        if seconds > bar.seconds:
            found.append(f"{name} takes {seconds:.1f} s, allowed {bar.seconds:g} s")
        if peak > bar.peak_bytes:
            found.append(f"{name} takes {peak / 1e9:.2f} GB, allowed {bar.peak_bytes / 1e9:g} GB")
    return found


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield measurements as lines: seconds, and peak memory of the whole process."""
    steps = [name for name in ("graph", *STEPS) if name in results[0]]
    yield f"{'model':<10}{'DVIB':<10}{'size':>9}" + "".join(f"{name:>20}" for name in steps) + f"{'one call':>11}"
    for result in results:
        line = f"{result['model']:<10}{result['variant']:<10}{result[steps[0]]['graph_bytes'] / 1e6:>6.0f} MB"
        for name in steps:
            line += f"{result[name]['seconds']:>9.1f} s{result[name]['peak_bytes'] / 1e9:>6.2f} GB"
        yield f"{line}{result['load unfolded']['first_call_seconds']:>9.2f} s"
