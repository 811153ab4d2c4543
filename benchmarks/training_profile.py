"""Where the time of a training step goes: the operators of PyTorch, plain and with DVIB."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

from training.epoch import EpochRunner

WARM_UP = 3
STEPS = 10
TOP = 12


def profile_steps(runner: EpochRunner) -> dict[str, Any]:
    """Profile some steps, after a few that warm up.

    Args:
        runner: Its device's own time is taken on a GPU, the CPU's time otherwise.

    Returns:
        ``milliseconds`` per step in all operators, and per operator its name, milliseconds and calls per step.
        Operators called by others are not counted twice.
    """
    on_gpu = runner.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    course = itertools.chain.from_iterable(map(runner.steps_of, itertools.count(1)))
    for _ in itertools.islice(course, WARM_UP):
        pass
    with profile(activities=activities, acc_events=True) as recorded:
        for _ in itertools.islice(course, STEPS):
            pass
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [
        {"operator": event.key, "milliseconds": getattr(event, own) / 1e3 / STEPS, "calls": event.count / STEPS}
        for event in recorded.key_averages()
    ]
    rows.sort(key=lambda row: -row["milliseconds"])
    return {"milliseconds": sum(row["milliseconds"] for row in rows), "operators": rows}


def report(profiles: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the largest operators of each profile beside one another.

    Args:
        profiles: ``none`` and ``dvib``, from ``profile_steps``.
    """
    by_name = {arm: {row["operator"]: row for row in found["operators"]} for arm, found in profiles.items()}
    names: dict[str, float] = {}
    for rows in by_name.values():
        for name, row in rows.items():
            names[name] = max(names.get(name, 0.0), row["milliseconds"])
    top = sorted(names, key=lambda name: -names[name])[:TOP]
    yield f"{'operator, own time per step':<42}" + "".join(f"{arm:>26}" for arm in profiles)
    for name in top:
        yield f"{name[:40]:<42}" + "".join(_cell(by_name[arm].get(name), profiles[arm]) for arm in profiles)
    rest = {
        arm: sum(row["milliseconds"] for name, row in rows.items() if name not in top) for arm, rows in by_name.items()
    }
    yield f"{'all others':<42}" + "".join(_cell({"milliseconds": rest[arm]}, profiles[arm]) for arm in profiles)
    totals = "".join(f"{found['milliseconds']:>14.2f} ms{'':>9}" for found in profiles.values())
    yield f"{'in all (the profiler itself takes time)':<42}{totals}".rstrip()


def _cell(row: dict[str, Any] | None, whole: dict[str, Any]) -> str:
    if row is None:
        return f"{'-':>26}"
    share = row["milliseconds"] / whole["milliseconds"]
    return f"{row['milliseconds']:>14.2f} ms {share:>6.1%} "
