"""One process that builds, trains and ranks, and says how much memory that took; see ``benchmarks.memory``."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.probe import answer
from training.common.memory import peak_bytes


def probe(shape: str, model: str, variant: Any, preset: Any, steps: int) -> dict[str, Any]:
    """Do the work of a training run once.

    Args:
        shape: A key of ``benchmarks.shapes.SHAPES``.
        model: The recommender.
        variant: ``none``, ``constant`` or ``adaptive``.
        preset: Where its settings come from.
        steps: Training steps; 0 runs one whole epoch as ``dvib-train fit`` does, checkpoints included.

    Returns:
        ``peak_bytes`` after each part, in order, and ``seconds`` of each part.
    """
    from training.common.allocator import keep_freed_memory

    keep_freed_memory()  # as training does: it trades memory for speed
    import torch

    from benchmarks.shapes import synthetic_dataset
    from training.build import build_objective
    from training.config import build_config
    from training.epoch import EpochRunner
    from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate_model
    from training.trainer import Trainer

    peaks: dict[str, int] = {"imports": peak_bytes()}
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        seconds[part], peaks[part] = time.perf_counter() - started, peak_bytes()
        started = time.perf_counter()

    dataset = synthetic_dataset(shape)
    done("data")
    config = build_config(
        model_name=model,
        dataset=dataset.name,
        variant=variant,
        preset=preset,
        overrides=["training.epochs=1"] if steps == 0 else [],
    )
    if steps == 0:
        with tempfile.TemporaryDirectory(prefix="dvib-memory-") as folder:
            trainer = Trainer(config, dataset, Path(folder) / "run")
            done("building")
            trainer.fit()
            done("training, ranking and saving")
    else:
        objective = build_objective(config, dataset)
        done("building")
        runner = EpochRunner(objective, config, dataset, torch.device("cpu"))
        for _ in itertools.islice(itertools.chain.from_iterable(map(runner.steps_of, itertools.count(1))), steps):
            pass
        done("training")
        objective.eval()
        evaluate_model(objective.model, EvaluationSet.of(dataset, "valid"), dataset.n_items, DEFAULT_KS)
        done("ranking")
    return {"peak_bytes": peaks, "seconds": seconds, "threads": torch.get_num_threads()}


def main() -> None:
    """Read the arguments of ``probe`` as JSON from the command line, and write its result, or what went wrong."""
    answer(probe, sys.argv[1])


if __name__ == "__main__":
    main()
