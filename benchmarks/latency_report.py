"""The latency benchmark's figures as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def report(result: dict[str, Any]) -> Iterator[str]:
    """Yield what ``benchmarks.latency.measure`` found, line by line."""
    options = result["options"]
    named = (
        f"{name} = {entry['model']} {entry['variant']} {entry['version']}" for name, entry in result["bundles"].items()
    )
    yield f"{result['dataset']}: {', '.join(named)}"
    yield (
        f"{options['rounds']} rounds × {options['calls']} calls per bundle, k {options['k']}, seed {options['seed']}, "
        f"{options['threads']} thread for ONNX Runtime and for FAISS; microseconds, p50 / p95 / p99"
    )
    yield f"{'':<18}{'baseline':<32}{'DVIB':<32}DVIB ÷ baseline, medians"
    for level in result["levels"].values():
        arms = level["microseconds"].values()
        cells = (" / ".join(f"{arm[name]:8.1f}" for name in ("p50", "p95", "p99")) for arm in arms)
        ratio = level["ratio_of_medians"]
        yield (
            f"{level['description']:<18}{''.join(f'{cell:<32}' for cell in cells)}"
            f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        )
    yield (
        "[..]: 90 % bootstrap interval over rounds. No verdict: memory placement alone moves equal arms apart, and the "
        "server is started once; give the same folder twice to see by how much."
    )
    yield result["note"]
