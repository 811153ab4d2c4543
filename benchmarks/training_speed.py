"""Seconds per epoch without DVIB, with DVIB, and of a plain reference loop, interleaved within one run."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.reference_loops import reference_for
from benchmarks.sampling import shuffled
from benchmarks.shapes import synthetic_dataset
from benchmarks.training_profile import profile_steps
from training.build import build_objective
from training.common.choices import Preset, Variant
from training.config import build_config
from training.data.dataset import Dataset
from training.device import resolve_device
from training.epoch import EpochRunner

BLOCK = 10
"""Least number of steps timed at a stretch before the next arm has its turn."""


class Arm:
    """One way to train, timed block by block.

    Args:
        epoch: Starts an epoch: its number → an iterator that makes one step for each value taken.
        steps: Steps in an epoch.
        settle: Waits until the device has done what it was given.
    """

    def __init__(self, epoch: Callable[[int], Iterator[Any]], steps: int, settle: Callable[[], None]) -> None:
        self._epoch = epoch
        self._settle = settle
        self._blocks = max(1, steps // BLOCK)
        self._current: Iterator[Any] = iter(())
        self.times: list[list[float]] = [[] for _ in range(self._blocks)]

    @property
    def blocks(self) -> int:
        """Blocks in an epoch."""
        return self._blocks

    def run_block(self, epoch: int, block: int, *, keep: bool) -> None:
        """Make the steps of one block; the first includes shuffling and negatives, which belong to an epoch."""
        started = time.perf_counter()
        if block == 0:
            self._current = self._epoch(epoch)
        # The last block takes what is left besides: no block is shorter than the others.
        for _ in itertools.islice(self._current, BLOCK if block < self._blocks - 1 else None):
            pass
        self._settle()
        if keep:
            self.times[block].append(time.perf_counter() - started)

    def seconds_per_epoch(self) -> float:
        """Sum over the blocks of an epoch of each block's median time."""
        return sum(statistics.median(times) for times in self.times)


def _settler(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _runner(dataset: Dataset, model: str, variant: Variant, preset: Preset, device: str) -> EpochRunner:
    config = build_config(model_name=model, dataset=dataset.name, variant=variant, preset=preset)
    chosen = resolve_device(device)
    return EpochRunner(build_objective(config, dataset).to(chosen), config, dataset, chosen)


def measure(
    shape: str,
    model: str,
    *,
    variant: Variant = "adaptive",
    preset: Preset = "paper",
    epochs: int = 8,
    device: str = "cpu",
    profiled: bool = False,
    on_epoch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Time the arms over the same synthetic data.

    Args:
        shape: A key of ``benchmarks.shapes.SHAPES``.
        model: The recommender.
        variant: The DVIB arm.
        preset: Its preset.
        epochs: Timed epochs; one more before them warms up.
        device: Where to train.
        profiled: Also profile some steps without and with DVIB, after the timing.
        on_epoch: Called after each round of epochs.

    Returns:
        The document that ``--json`` writes; times in seconds.

    Raises:
        DvibError: There is no such shape, model or device.
    """
    dataset = synthetic_dataset(shape)
    plain = _runner(dataset, model, "none", preset, device)
    dvib = _runner(dataset, model, variant, preset, device)
    settle = _settler(plain.device)
    arms = {"none": Arm(plain.steps_of, plain.steps, settle), "dvib": Arm(dvib.steps_of, dvib.steps, settle)}
    reference = reference_for(plain)
    if reference is not None:
        arms["reference_loop"] = Arm(lambda epoch: reference.steps_of(plain.triples(epoch)), plain.steps, settle)
    draw = np.random.default_rng(0)
    for epoch in range(epochs + 1):
        for block in range(arms["none"].blocks):
            # In an order drawn for each turn: the arm before leaves the caches as it likes.
            for name in shuffled(list(arms), draw):
                arms[name].run_block(epoch + 1, block, keep=epoch > 0)
        if on_epoch is not None:
            on_epoch()
    seconds = {name: arm.seconds_per_epoch() for name, arm in arms.items()}
    return {
        "model": model,
        "shape": shape,
        "variant": variant,
        "preset": preset,
        "device": str(plain.device),
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "steps_per_epoch": plain.steps,
        "seconds_per_epoch": seconds,
        "ratio_dvib": seconds["dvib"] / seconds["none"],
        "ratio_reference": seconds["reference_loop"] / seconds["none"] if reference is not None else None,
        "block_seconds": {name: arm.times for name, arm in arms.items()},
        "profile": {"none": profile_steps(plain), "dvib": profile_steps(dvib)} if profiled else None,
    }
