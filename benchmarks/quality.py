"""Ranking quality of the plain model and of both DVIB variants, equally tuned, over several seeds.

Settings are chosen on the validation split only, with the same number of trials for every variant; the test split is
looked at once, by the runs with the chosen settings.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.common.choices import Preset, Variant
from training.config import RunConfig, build_config
from training.data.dataset import Dataset
from training.data.load import load_dataset
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate, popularity_scorer
from training.trainer import Trainer

VARIANTS: tuple[Variant, ...] = ("none", "constant", "adaptive")
TUNING_SEED = 2024

# Twelve trials each. The perturbed pass counts the task's loss twice, so the weight decay that means the same to DVIB
# is (1 + γ0) = 2 times the plain model's: its grid is shifted by that factor.
_DECAY = (0.5, 1.0, 1.5, 2.0)
GRIDS: dict[Variant, list[tuple[str, ...]]] = {
    "none": [
        (f"model.regularisation={decay}", f"training.learning_rate={rate}")
        for decay, rate in itertools.product(_DECAY, (0.002, 0.003, 0.005))
    ],
    "constant": [
        (f"model.regularisation={2 * decay}", "training.learning_rate=0.003", f"dvib.sigma={sigma}")
        for decay, sigma in itertools.product(_DECAY, (0.001, 0.1, 0.5))
    ],
    "adaptive": [
        (f"model.regularisation={2 * decay}", "training.learning_rate=0.003", f"dvib.gamma_r={weight}")
        for decay, weight in itertools.product(_DECAY, (0.0001, 0.001, 0.1))
    ],
}


def _fit(config: RunConfig, dataset: Dataset) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="dvib-quality-") as folder:
        info = Trainer(config, dataset, Path(folder) / "run").fit()
    return {**info.metrics, "run": {"epoch": info.epoch, "epochs": len(info.history)}}


def tune(
    dataset_name: str,
    data_dir: Path | None,
    preset: Preset,
    *,
    overrides: Sequence[str] = (),
    on_trial: Callable[[Variant, Sequence[str], float], None] | None = None,
) -> dict[str, Any]:
    """Try every setting of every variant once.

    Args:
        dataset_name: Name of the data set.
        data_dir: Where it is.
        preset: The preset that the settings are put on.
        overrides: Settings of every run; a trial's own win.
        on_trial: Called with variant, settings and validation metric.

    Returns:
        Variant → ``{"best": settings, "trials": [{"settings", "valid"}]}``.
    """
    result: dict[str, Any] = {}
    for variant in VARIANTS:
        trials: list[dict[str, Any]] = []
        for settings in GRIDS[variant]:
            config = build_config(
                model_name="vbpr",
                dataset=dataset_name,
                variant=variant,
                preset=preset,
                overrides=[*overrides, *settings, f"training.seed={TUNING_SEED}"],
            )
            metrics = _fit(config, load_dataset(dataset_name, data_dir, config.data))
            value = metrics["valid"][config.training.monitor]
            trials.append({"settings": list(settings), "valid": value, **metrics["run"]})
            if on_trial is not None:
                on_trial(variant, settings, value)
        best = max(trials, key=lambda trial: float(trial["valid"]))
        result[variant] = {"best": best["settings"], "trials": trials}
    return result


def compare(
    dataset_name: str,
    data_dir: Path | None,
    preset: Preset,
    seeds: Sequence[int],
    settings: Mapping[str, Sequence[str]] | None = None,
    *,
    overrides: Sequence[str] = (),
    on_run: Callable[[Variant, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train every variant with every seed and compare test metrics.

    Args:
        dataset_name: Name of the data set.
        data_dir: Where it is.
        preset: The preset.
        seeds: One run each.
        settings: Settings per variant, as chosen by ``tune``; none by default.
        overrides: Settings of every run; those per variant win.
        on_run: Called with variant, seed and test metrics.

    Returns:
        ``rows``: label → metric → ``{"mean", "sd"}`` over the seeds, and every run's metrics under ``runs``.
    """
    rows: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    dataset: Dataset | None = None
    for variant in VARIANTS:
        collected = []
        for seed in seeds:
            config = build_config(
                model_name="vbpr",
                dataset=dataset_name,
                variant=variant,
                preset=preset,
                overrides=[*overrides, *(settings or {}).get(variant, ()), f"training.seed={seed}"],
            )
            dataset = load_dataset(dataset_name, data_dir, config.data)
            metrics = _fit(config, dataset)
            collected.append(metrics)
            if on_run is not None:
                on_run(variant, seed, metrics["test"])
        runs[variant] = collected
        rows[variant] = {
            name: {
                "mean": statistics.mean(entry["test"][name] for entry in collected),
                "sd": statistics.stdev(entry["test"][name] for entry in collected) if len(seeds) > 1 else 0.0,
            }
            for name in collected[0]["test"]
        }
    if dataset is None:
        raise ValueError("at least one seed is needed")
    popular = evaluate(popularity_scorer(dataset), EvaluationSet.of(dataset, "test"), dataset.n_items, DEFAULT_KS)
    rows["popularity"] = {name: {"mean": value, "sd": 0.0} for name, value in popular.items()}
    return {"dataset": dataset_name, "preset": preset, "seeds": list(seeds), "rows": rows, "runs": runs}
