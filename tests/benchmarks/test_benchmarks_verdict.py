from __future__ import annotations

import numpy as np
import pytest

from benchmarks.latency.verdict import Comparison, Finding, Role, Verdict, finding_of
from benchmarks.statistics import Ratio, ratio_of_quantiles

SAME, SLOWER, WIDE = Ratio(1.0, 0.99, 1.01), Ratio(1.05, 1.03, 1.07), Ratio(1.01, 0.97, 1.05)


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [
        (0.99, 1.01, "equivalent"),
        (0.98, 1.02, "equivalent"),
        (0.979, 1.0, "inconclusive"),
        (1.0, 1.021, "inconclusive"),
        (0.9, 1.1, "inconclusive"),
        (1.02, 1.03, "inconclusive"),
        (1.021, 1.03, "different"),
        (0.5, 0.979, "different"),
    ],
)
def test_where_the_interval_lies(low: float, high: float, finding: Finding) -> None:
    assert finding_of(Ratio((low + high) / 2, low, high), 0.02) == finding


def compared(role: Role, ratio: Ratio) -> Comparison:
    return Comparison("engine", role, role, ratio, 0.02)


@pytest.mark.parametrize(
    ("same", "control", "measured", "code", "word"),
    [
        (SAME, SLOWER, SAME, 0, "equivalent"),
        (SAME, SLOWER, SLOWER, 1, "different"),
        (SAME, SLOWER, WIDE, 4, "inconclusive"),
        (WIDE, SLOWER, SAME, 3, "void"),
        (SLOWER, SLOWER, SLOWER, 3, "void"),
        (SAME, SAME, SLOWER, 3, "void"),
        (SAME, WIDE, SAME, 3, "void"),
    ],
)
def test_the_controls_come_first(same: Ratio, control: Ratio, measured: Ratio, code: int, word: str) -> None:
    entries = [compared("measured", measured), compared("same", same), compared("control", control)]
    verdict = Verdict.of([*entries, compared("shown", SLOWER)])
    assert (verdict.code, verdict.word) == (code, word)
    assert bool(verdict.reasons) == bool(code)
    assert "shown" not in {entry.role for entry in verdict.reasons}


def test_one_slower_arm_outweighs_an_inconclusive_one() -> None:
    verdict = Verdict.of([compared("measured", WIDE), compared("measured", SLOWER), compared("measured", SAME)])
    assert (verdict.code, [entry.ratio for entry in verdict.reasons]) == (1, [SLOWER])


@pytest.mark.parametrize(("truth", "never"), [(1.0, "different"), (1.05, "equivalent"), (0.95, "equivalent")])
def test_noise_seldom_turns_the_finding_round(truth: float, never: Finding) -> None:
    """Rounds differ by 30 % from each other, arms within a round by 1 %."""
    findings = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        shared = np.exp(0.3 * draw.standard_normal((20, 1)))
        arms = [shared * np.exp(0.01 * draw.standard_normal((20, 1))) * np.ones((1, 5)) for _ in "ab"]
        findings.append(finding_of(ratio_of_quantiles(arms[0], truth * arms[1], np.random.default_rng(seed)), 0.02))
    assert never not in findings
    right: Finding = "equivalent" if truth == 1.0 else "different"
    assert findings.count(right) >= 50
