"""Small data sets with a known answer, and short ways to configurations and objectives for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.build import build_objective
from training.common.categories import ItemCategories
from training.common.choices import Preset, Variant
from training.common.strings import StringTable
from training.config import RunConfig, build_config
from training.data.dataset import SPLITS, Dataset, Interactions, Split
from training.dvib.objective import Objective
from training.epoch import EpochRunner
from training.models.base import Batch
from training.reporting import SilentReporter

Pairs = Sequence[tuple[int, int]]
VARIANTS: tuple[Variant, ...] = ("none", "constant", "adaptive")
CPU = torch.device("cpu")


def make_dataset(
    train: Pairs,
    valid: Pairs,
    test: Pairs,
    *,
    n_users: int,
    n_items: int,
    features: Mapping[str, NDArray[np.float32]] | None = None,
    name: str = "tiny",
) -> Dataset:
    """Make a data set of the given (user, item) pairs, with one modality of ones where no features are given."""
    splits: dict[Split, Interactions] = {}
    for split, pairs in zip(SPLITS, (train, valid, test), strict=True):
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        splits[split] = Interactions(table[:, 0].copy(), table[:, 1].copy())
    return Dataset(
        name=name,
        user_ids=StringTable.of(f"user {row}" for row in range(n_users)),
        item_ids=StringTable.of(f"item-{row}-ü" for row in range(n_items)),
        titles=StringTable.of("" if row % 3 == 0 else f"Title {row}" for row in range(n_items)),
        splits=splits,
        features={"text": np.ones((n_items, 2), np.float32)} if features is None else features,
        notes={"layout": "made", "threshold": None},
    )


WIDTHS = {"audio": 3, "image": 5, "text": 7}


def with_categories(dataset: Dataset) -> Dataset:
    """Name the block of most items, and of some whether they come early: the last item has no category."""
    rows = np.arange(dataset.n_items - 1)
    early = rows[:7]
    labels = ["even" if row % 2 == 0 else "ungerade ü" for row in rows] + ["early"] * len(early)
    return replace(dataset, categories=ItemCategories.of(np.concatenate([rows, early]), labels))


def planted_blocks(
    *, n_users: int = 24, n_items: int = 60, modalities: Iterable[str] = ("image", "text"), seed: int = 0
) -> Dataset:
    """Make a data set whose right answer is known: users of block b like items of block b and no others.

    User u is in block u % 2, item i in block i % 2. Each user has 12 training, 3 validation and 3 test items, all of
    its own block. Features say the block weakly: ±0.5 in their first column, under noise of deviation 1.
    """
    draw = np.random.default_rng(seed)
    pairs: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for user in range(n_users):
        liked = draw.permutation(np.arange(user % 2, n_items, 2))[:18].tolist()
        for split, items in zip(SPLITS, (liked[:12], liked[12:15], liked[15:]), strict=True):
            pairs[split] += [(user, item) for item in items]
    features = {}
    for name in sorted(modalities):
        matrix = draw.standard_normal((n_items, WIDTHS[name])).astype(np.float32)
        matrix[:, 0] += np.where(np.arange(n_items) % 2 == 0, 0.5, -0.5).astype(np.float32)
        features[name] = matrix
    return make_dataset(
        pairs["train"],
        pairs["valid"],
        pairs["test"],
        n_users=n_users,
        n_items=n_items,
        features=features,
        name="planted",
    )


def write_mmrec(dataset: Dataset, folder: Path) -> None:
    """Write a data set as FOLDER/NAME in MMRec's layout; external ids become row numbers and titles are lost."""
    place = folder / dataset.name
    place.mkdir(parents=True)
    lines = ["userID\titemID\tx_label"]
    for label, split in enumerate(SPLITS):
        part = dataset.splits[split]
        lines += [f"{user}\t{item}\t{label}" for user, item in zip(part.users, part.items, strict=True)]
    (place / f"{dataset.name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for modality, matrix in dataset.features.items():
        np.save(place / f"{modality}_feat.npy", matrix)


def make_config(
    variant: Variant = "none", *overrides: str, preset: Preset = "paper", model: str = "vbpr", dataset: str = "planted"
) -> RunConfig:
    """Make the configuration of a small run; ``overrides`` are ``section.key=value`` and win."""
    small = ["training.batch_size=64", "training.learning_rate=0.01", "training.monitor=recall@10"]
    small += ["model.dimension=8"]
    return build_config(
        model_name=model, dataset=dataset, variant=variant, preset=preset, overrides=[*small, *overrides]
    )


def trained(
    config: RunConfig, dataset: Dataset, epochs: int, after_epoch: Callable[[Objective], object] | None = None
) -> Objective:
    """Train for some epochs without evaluation or files."""
    objective = build_objective(config, dataset)
    runner = EpochRunner(objective, config, dataset, CPU)
    for epoch in range(1, epochs + 1):
        objective.train()
        runner.run(epoch)
        if after_epoch is not None:
            after_epoch(objective)
    return objective.eval()


def ready(objective: Objective) -> Objective:
    """Put an objective into the state that its first epoch begins with."""
    objective.train().model.begin_epoch(1, torch.Generator().manual_seed(0))
    return objective


def whole_batch(objective: Objective, dataset: Dataset, config: RunConfig) -> Batch:
    """Arrange all training interactions and their first negatives as one batch."""
    runner = EpochRunner(objective, config, dataset, CPU)
    return objective.batch(*(torch.cat(parts) for parts in zip(*runner.triples(1), strict=True)))


def same_tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two mappings hold the same names and bit-identical values."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_draws(outcome: Callable[[int], list[Tensor]]) -> None:
    """Check that what two passes of an epoch draw is a function of the epoch's seed, and of nothing else.

    Args:
        outcome: Begins an epoch with this seed, makes two passes and returns something that was drawn in each.
    """
    state = torch.get_rng_state()
    first, again, other = outcome(1), outcome(1), outcome(2)
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


class Interrupted(Exception):  # noqa: N818  # no error: it stands for what comes from outside
    """Stands for a kill, inside the process."""


class StopAt(SilentReporter):
    """Raises ``Interrupted`` when so many steps are done, or so many epochs."""

    def __init__(self, *, steps: int | None = None, epochs: int | None = None) -> None:
        self.left = {"steps": steps, "epochs": epochs}

    def _count(self, what: str) -> None:
        left = self.left[what]
        if left is not None:
            self.left[what] = left - 1
            if left <= 1:
                raise Interrupted

    def step_done(self) -> None:
        self._count("steps")

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:  # noqa: ARG002
        self._count("epochs")
