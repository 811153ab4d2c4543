"""Whole runs for tests: compared to the last bit, and killed in the middle."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers_training import planted_blocks, same_tensors
from training import trainer
from training.checkpoint import MODEL, load_checkpoint
from training.config import RunConfig
from training.reporting import SilentReporter
from training.resume import LAST
from training.trainer import Trainer


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if not name.endswith("_seconds")} for entry in history]


def assert_same_run(left: Path, right: Path) -> None:
    """Two runs ended alike to the last bit: best checkpoint, last state, optimiser, history, metrics."""
    found = [load_checkpoint(run) for run in (left, right)]
    assert same_tensors(found[0].model, found[1].model)
    assert same_tensors(found[0].dvib, found[1].dvib)
    assert (left / "best" / MODEL).read_bytes() == (right / "best" / MODEL).read_bytes()
    infos = [checkpoint.info for checkpoint in found]
    assert infos[0].metrics == infos[1].metrics
    assert (infos[0].epoch, infos[0].finished) == (infos[1].epoch, infos[1].finished)
    assert timeless(infos[0].history) == timeless(infos[1].history)
    for name in ("parameters.safetensors", "optimiser.safetensors"):
        assert same_tensors(load_file(left / LAST / name), load_file(right / LAST / name))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (left, right)]
    assert timeless(logs[0]) == timeless(logs[1]) == timeless(infos[0].history)


EPOCHS_AT_ONCE = 4
"""A process that was not killed by then waits for it: it cannot run away from a parent that gets no processor."""


class _Counted(SilentReporter):
    """Counts epochs for the parent, and waits to be killed when there were enough."""

    def __init__(self, done: Synchronized[int], started: Event) -> None:
        self.done, self.started = done, started

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:  # noqa: ARG002
        self.done.value += 1
        while self.done.value >= EPOCHS_AT_ONCE:
            time.sleep(1)


def _train(config: RunConfig, out: Path, save_seconds: float, reporter: _Counted | None) -> None:
    torch.set_num_threads(1)
    setattr(os, "fsync", lambda _: None)  # noqa: B010  # a kill, unlike a power cut, loses nothing that was written
    trainer.SAVE_SECONDS = save_seconds
    if reporter is not None:
        reporter.started.set()
    Trainer(config, planted_blocks(), out, reporter=reporter, ks=(5,)).fit(resume=True)


def _processes() -> ForkServerContext:
    """Return processes that come out of one that has imported torch already, but has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers_runs", "training.models"])
    return context


def train_with_kills(config: RunConfig, out: Path, kills: int, seed: int) -> list[int]:
    """Train on ``planted_blocks`` in processes that are killed by SIGKILL at random moments, then to the end.

    A moment is a random time after the start, or after the first, second or third epoch that the process makes.

    Args:
        config: Of more than ``kills * EPOCHS_AT_ONCE`` epochs, so that no process finishes before it is killed.
        out: The run's folder.
        kills: How many.
        seed: Of the moments.

    Returns:
        For each kill, the epochs that the process had made.
    """
    assert config.training.epochs > kills * EPOCHS_AT_ONCE
    context, draw, epochs = _processes(), random.Random(seed), []  # noqa: S311
    for _ in range(kills):
        started, done = context.Event(), context.Value("i", 0, lock=False)
        # Mostly the state is saved after each epoch; else the best checkpoint and the log run ahead of it.
        saves = -1.0 if draw.random() < 0.7 else 1e9
        process = context.Process(target=_train, args=(config, out, saves, _Counted(done, started)))
        process.start()
        assert started.wait(60)
        after = draw.choice([0, 1, 2, 3])
        while done.value < after:
            assert process.exitcode is None, process.exitcode
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.04 if after else 0.4))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        process.close()
        epochs.append(done.value)
    _finish(context, config, out)
    return epochs


def train_unbroken(config: RunConfig, out: Path) -> None:
    """Train on ``planted_blocks`` in a process of its own that nobody disturbs."""
    _finish(_processes(), config, out)


def _finish(context: ForkServerContext, config: RunConfig, out: Path) -> None:
    process = context.Process(target=_train, args=(config, out, 1e9, None))
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()
