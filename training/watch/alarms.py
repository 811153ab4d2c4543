"""What a run should be told about itself: a term that teaches nothing, items nobody knows that fill the ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from training.data.dataset import Dataset
from training.watch.worth import WORTH

Entry = dict[str, float]

NEGLIGIBLE = 1e-6
"""Of L0's gradient: below it a term is out of float32's sight when the two are added up."""
IN_A_ROW = 5
"""So many epochs (that measured it) before a warning: the first ones of a training may be anything."""
PLACES = 20
NEVER_TRAINED = "watch/never_trained_top20"
WARNING = "warning/"
"""Before a cause in the log: for how many epochs it has been there, in every epoch that has it."""
_WITHOUT_OWN_WEIGHT = frozenset({"general_perturbed", "distillation", "entropy", "variational", "adversarial"})


class Alarms:
    """Judges epochs by what was logged about them, so that a resumed run goes on where it was.

    Args:
        dataset: Whose training interactions say which items are trained.
        device: Where rankings are.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        known = np.zeros(dataset.n_items, dtype=bool)
        known[dataset.train.items] = True
        self.never_trained = torch.from_numpy(~known).to(device)
        self.share = 1.0 - float(known.mean())
        self.limit = flood_limit(self.share)

    def ranked(self, lists: Tensor) -> dict[str, float]:
        """Return the share of never-trained items in a ranking's first places, by log name.

        Args:
            lists: int64 [n, K], best first; of fewer than ``PLACES``, all count.
        """
        if not self.share:
            return {}
        return {NEVER_TRAINED: float(self.never_trained[lists[:, :PLACES]].float().mean())}

    def judge(self, entry: Entry, before: Sequence[Mapping[str, float]]) -> list[str]:
        """Add to an epoch's entry what is wrong with it.

        Args:
            entry: The epoch's; gets ``warning/CAUSE``, for how many epochs in a row.
            before: Those of the epochs before.

        Returns:
            One line for each cause that this run has not been told yet.
        """
        epochs = [*before, entry]
        new: list[str] = []
        for name in [name for name in entry if name.startswith(WORTH)]:
            count = _in_a_row(epochs, name, partial(_is_dead, name))
            if count >= IN_A_ROW:
                term = name.removeprefix(WORTH)
                new += self._raise(entry, f"{WARNING}negligible/{term}", count, before, _dead(term, entry[name], count))
        if NEVER_TRAINED in entry:
            count = _in_a_row(epochs, NEVER_TRAINED, lambda each: each[NEVER_TRAINED] >= self.limit)
            if count >= IN_A_ROW:
                new += self._raise(entry, f"{WARNING}never_trained", count, before, self._flood(entry, count))
        return new

    @staticmethod
    def _raise(entry: Entry, cause: str, count: int, before: Sequence[Mapping[str, float]], text: str) -> list[str]:
        entry[cause] = float(count)
        return [] if any(cause in each for each in before) else [text]

    def _flood(self, entry: Entry, count: int) -> str:
        return (
            f"items that never occur in training take {entry[NEVER_TRAINED]:.0%} of the first {PLACES} places, for "
            f"{count} epochs in a row, and are {self.share:.1%} of the catalogue: something lifts what nothing was "
            "learned about; a term over all items' scores does (dvib.candidates=training keeps it from that)"
        )


def flood_limit(share: float) -> float:
    """Return the share of a ranking's first places from which never-trained items are said to flood it.

    A blind ranking gives them their share of the catalogue, and one that has learned anything gives them less, since
    nothing speaks for them: twice their share is worse than blind, by more than chance does. Below one place in
    twenty nobody's list has lost anything, whatever the share; and where they are more than a third of the catalogue,
    half of the way from their share to everything takes the place of its double.

    Args:
        share: Of the catalogue, from 0 to 1.
    """
    return max(1 / PLACES, min(2 * share, (1 + share) / 2))


def _is_dead(name: str, entry: Mapping[str, float]) -> bool:
    term = name.removeprefix(WORTH)
    # A model's own term that is exactly zero is one whose weight is.
    off = term not in _WITHOUT_OWN_WEIGHT and entry.get(f"loss/{term}") == 0
    return entry[name] < NEGLIGIBLE and not off


def _dead(term: str, worth: float, count: int) -> str:
    return (
        f"the term {term} teaches nothing: its gradient, weighted, was below {NEGLIGIBLE:g} of L0's in {count} "
        f"measured epochs in a row, and is {worth:.1e} of it now; raise its weight, or what makes it (a larger "
        "dvib.sigma for a divergence), or save its time with a weight of 0"
    )


def _in_a_row(epochs: Sequence[Mapping[str, float]], name: str, holds: Callable[[Mapping[str, float]], bool]) -> int:
    """Count the last epochs that measured something and of which it holds."""
    count = 0
    for epoch in reversed(epochs):
        if name not in epoch:
            continue
        if not holds(epoch):
            break
        count += 1
    return count
