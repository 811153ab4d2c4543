"""Seconds for the full ranking of one split: ``training.evaluation`` beside a plain reference, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from benchmarks.reference_loops import PlainVBPR
from benchmarks.reference_ranking import PlainRanking
from benchmarks.shapes import synthetic_dataset
from training.build import build_model
from training.common.errors import DvibError
from training.config import build_config
from training.data.dataset import Dataset
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate_model
from training.models.vbpr import VBPR

COMPARED = ("recall@20", "ndcg@20")
TOLERANCE = 2e-4
"""Largest difference of a compared metric. Scores a rounding error apart may change places; at Baby's shape, one such
change at the end of a list moves the mean by at most 8e-5."""


class DisagreementError(DvibError):
    """The two sides do not compute the same, so their times must not be compared."""


@torch.no_grad()
def model_with_taste(dataset: Dataset) -> VBPR:
    """Return an untrained VBPR whose users resemble their training and test items.

    Seen items then score highest and test items come next, so that a ranking that forgets the mask, or loses items,
    has other metrics. With unrelated vectors every ranking would be about as bad.
    """
    model = cast("VBPR", build_model(build_config(model_name="vbpr", dataset=dataset.name), dataset))
    items = model.vectors()[1]
    model.users.zero_()
    for split, weight in (("train", 1.0), ("test", 0.5)):
        part = dataset.splits[split]  # type: ignore[index]
        rows = torch.from_numpy(part.users.copy())
        model.users.index_add_(0, rows, items[torch.from_numpy(part.items.copy())], alpha=weight)
    return model.eval()


def measure(
    shape: str, *, rounds: int = 5, seed: int = 0, on_round: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Time both sides over the same synthetic data.

    Both group the interactions by user once, outside the timing, and include everything else: item vectors, scores,
    mask, lists of 50, all metrics.

    Args:
        shape: A key of ``benchmarks.shapes.SHAPES``.
        rounds: Timed evaluations of each side; one more before them warms up.
        seed: Draws which side goes first in each round.
        on_round: Called after each round.

    Returns:
        The document that ``--json`` writes; times in seconds.

    Raises:
        ConfigError: There is no such shape.
        DisagreementError: The two sides give different metrics.
    """
    dataset = synthetic_dataset(shape)
    model = model_with_taste(dataset)
    prepared = EvaluationSet.of(dataset, "test")
    plain = PlainRanking(PlainVBPR(model, learning_rate=1.0), dataset, "test")
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: evaluate_model(model, prepared, dataset.n_items, DEFAULT_KS),
        "reference": lambda: plain.evaluate(DEFAULT_KS),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    metrics: dict[str, dict[str, float]] = {}
    generator = np.random.default_rng(seed)
    for number in range(rounds + 1):
        for name in generator.permutation(list(sides)).tolist():
            started = time.perf_counter()
            metrics[name] = sides[name]()
            if number > 0:
                times[name].append(time.perf_counter() - started)
        check_agreement(metrics["ours"], metrics["reference"])
        if on_round is not None:
            on_round()
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "shape": shape,
        "users": len(prepared.users),
        "items": dataset.n_items,
        "rounds": rounds,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratio": seconds["ours"] / seconds["reference"],
        "metrics": metrics["ours"],
        "reference_metrics": metrics["reference"],
        "samples_seconds": times,
    }


def check_agreement(ours: dict[str, float], reference: dict[str, float]) -> None:
    """Compare what both sides computed.

    Raises:
        DisagreementError: A compared metric differs by more than the tolerance.
    """
    for name in COMPARED:
        # Not the other way round: a NaN on either side must fail.
        if not abs(ours[name] - reference[name]) <= TOLERANCE:
            raise DisagreementError(
                f"void: {name} is {ours[name]:.6f} by training.evaluation and {reference[name]:.6f} by the reference; "
                "their times must not be compared"
            )
