"""The latency benchmark's document as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.latency.arms import BASELINE, UNSTRIPPED

FOLDING = (
    "ONNX Runtime folds whatever does not depend on the user (VBPR's projection of the item features) into constants "
    "when it loads a graph: 'model.onnx' is timed as folded, once with folding switched off, and loading by itself."
)


def report(document: dict[str, Any]) -> Iterator[str]:
    """Yield what ``dvib-bench latency`` found, line by line."""
    options, arms = document["options"], document["arms"]
    first = arms[BASELINE]
    catalogue = f"{first['n_items']} items, d {first['dimension']}, k {options['k']}, seed {options['seed']}"
    yield f"{first['model']}, {catalogue}, 1 thread; medians in microseconds"
    yield f"ratios to the baseline with {options['confidence']:.1%} intervals over rounds"
    for level in document["levels"].values():
        base = level["microseconds"][BASELINE]
        rounds = f"{level['rounds']} rounds, margin {level['margin']:.0%}"
        yield f"{level['description']}: {base['p50']:.1f} (p99 {base['p99']:.1f}), {rounds}"
        for name, ratio in level["ratio_of_medians"].items():
            tail = level["ratio_of_p99"][name]
            yield (
                f"  {name:<18} {level['microseconds'][name]['p50']:9.1f}  {_ratio(ratio)}  "
                f"{level['findings'][name]:<12} {_role(arms[name]['role'])}  p99 {_ratio(tail)}"
            )
    yield FOLDING
    if UNSTRIPPED not in arms:
        yield "without the un-stripped graph as a control: name a DVIB run with --checkpoint"
    verdict = document["verdict"]
    yield f"verdict: {verdict['word']}"
    for reason in verdict["reasons"]:
        yield f"  {reason['level']}: {reason['arm']} ({_role(reason['role'])}) is {reason['finding']}"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _role(role: str) -> str:
    return {
        "same": "must be equivalent",
        "measured": "measured",
        "control": "must be different",
        "shown": "shown only",
    }[role]
