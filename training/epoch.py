"""The optimisation steps of one epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.common.errors import DataError, DvibError
from training.config import RunConfig
from training.data.dataset import Dataset
from training.data.negatives import NegativeSampler
from training.dvib.objective import Objective, StepLoss
from training.optimiser import RowAdam
from training.randomness import stream

logger = logging.getLogger("dvib.training")


class DivergedError(DvibError):
    """The loss is no longer a finite number."""


class EpochRunner:
    """Runs the optimisation steps of one epoch; knows nothing of evaluation or files.

    Args:
        objective: On its device.
        config: Its configuration.
        dataset: Training interactions.
        device: Where to train.
    """

    def __init__(self, objective: Objective, config: RunConfig, dataset: Dataset, device: torch.device) -> None:
        self.objective = objective
        self.config = config
        self.device = device
        self._users = torch.from_numpy(dataset.train.users.copy()).to(device)
        self._items = torch.from_numpy(dataset.train.items.copy()).to(device)
        self._sampler: NegativeSampler | None = None
        if objective.model.samples_negatives:
            self._prepare_negatives(dataset)
        self.optimiser: torch.optim.Adam = RowAdam(
            [value for _, value in self.named_parameters()], lr=config.training.learning_rate
        )
        self._ranked: dict[str, Tensor] | None = None

    def _prepare_negatives(self, dataset: Dataset) -> None:
        self._sampler = NegativeSampler(self._users, self._items, dataset.n_items)
        usable = self._sampler.usable
        if not bool(usable.all()):
            logger.warning("%d interactions of users who own every item are left out", int((~usable).sum()))
            self._users, self._items = self._users[usable], self._items[usable]
        if len(self._users) == 0:
            raise DataError(f"{dataset.name}: every user owns every training item, so nothing can be ranked below them")

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return all parameters in a fixed order: the model's, then the objective's own."""
        own = self.objective.own_parameters()
        return [*self.objective.model.named_parameters(prefix="model"), *own.items()]

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self._users) / self.config.training.batch_size)

    def triples(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Shuffle the interactions, draw their negatives and yield them in batches.

        Args:
            epoch: From 1; determines the result together with the seed.

        Yields:
            Users, positives and negatives, int64 [B] each; the last batch may be shorter. Models without negatives get
            [0] for these.
        """
        seed = self.config.training.seed
        order = torch.randperm(
            len(self._users), generator=stream(seed, "batches", epoch, self.device), device=self.device
        )
        users, positives = self._users[order], self._items[order]
        size = self.config.training.batch_size
        if self._sampler is None:
            for some_users, some_positives in zip(torch.split(users, size), torch.split(positives, size), strict=True):
                yield some_users, some_positives, some_users[:0]
            return
        negatives = self._sampler.draw(users, stream(seed, "negatives", epoch, self.device))
        yield from zip(*(torch.split(part, size) for part in (users, positives, negatives)), strict=True)

    def steps_of(self, epoch: int) -> Iterator[tuple[float, StepLoss]]:
        """Make the optimisation steps of one epoch, one for each value taken.

        Yields:
            The batch's share of the epoch's interactions, and its loss.
        """
        seed = self.config.training.seed
        self.objective.model.begin_epoch(epoch, stream(seed, "model", epoch, self.device))
        noise = stream(seed, "noise", epoch, self.device)
        for number, (users, positives, negatives) in enumerate(self.triples(epoch), 1):
            result = self.objective.step(self.objective.batch(users, positives, negatives), noise)
            self.optimiser.zero_grad(set_to_none=True)
            result.total.backward()  # type: ignore[no-untyped-call]
            if self.config.training.rank_before_last_step and number == self.steps:
                self._ranked = self._weights()
            self.optimiser.step()
            yield len(users) / len(self._users), result

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.objective.state_dict().items()}

    @contextmanager
    def ranked_weights(self) -> Iterator[None]:
        """Put the weights in place by which the epoch is judged, and afterwards those that training goes on from.

        They are the same, unless the configuration says ``rank_before_last_step``.
        """
        if self._ranked is None:
            yield
            return
        stepped = self._weights()
        self.objective.load_state_dict(self._ranked)
        try:
            yield
        finally:
            self.objective.load_state_dict(stepped)

    def run(self, epoch: int, on_step: Callable[[], None] | None = None) -> dict[str, float]:
        """Make one pass over the training interactions.

        Args:
            epoch: From 1.
            on_step: Called after each step.

        Returns:
            Means over the epoch of the total loss and of every logged term.

        Raises:
            DivergedError: The loss became infinite or NaN.
        """
        sums: dict[str, Tensor] = {}
        for share, result in self.steps_of(epoch):
            for name, value in (("total", result.total.detach()), *result.terms.items()):
                sums[name] = sums[name] + share * value if name in sums else share * value
            if on_step is not None:
                on_step()
        means = {name: float(value) for name, value in sums.items()}
        if not math.isfinite(means["total"]):
            bad = [name for name, value in means.items() if not math.isfinite(value)]
            raise DivergedError(
                f"epoch {epoch}: the loss is not finite any more ({', '.join(bad)}); "
                "lower training.learning_rate or the weight of that term"
            )
        return means
