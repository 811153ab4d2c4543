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
from training.models.base import Batch
from training.optimiser import RowAdam
from training.passes import make_passes
from training.randomness import stream
from training.robust.mirror import step_weights, with_same_draws
from training.watch.guard import STEPS_BETWEEN_LOOKS, STEPS_BETWEEN_NORMS, Finding, StepGuard
from training.watch.worth import is_measured, part_gradients, state_of, worth_of_parts

logger = logging.getLogger("dvib.training")


class DivergedError(DvibError):
    """The loss, or its gradient, is no longer a finite number."""


class EpochRunner:
    """Runs the optimisation steps of one epoch; knows nothing of evaluation or files.

    Args:
        objective: On its device.
        config: Its configuration.
        dataset: Training interactions.
        device: Where to train.

    Attributes:
        noted: What the last epoch's steps showed besides their losses, as the log names it.

    Raises:
        ConfigError: The device does not know the precision.
        DvibError: There is no compiler.
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
        training = config.training
        self._parameters = [value for _, value in self.named_parameters()]
        self._adam = RowAdam(self._parameters, lr=training.learning_rate)
        self.optimiser: torch.optim.Adam = self._adam
        if training.precision != "float32" or training.compile:
            objective.passes = make_passes(objective.model, training.precision, device, compiled=training.compile)
        self.scaler = torch.amp.GradScaler(device.type) if training.precision == "float16" else None
        self._ranked: dict[str, Tensor] | None = None
        self._guard = self._new_guard()
        self._measured: dict[str, Tensor] = {}
        self.noted: dict[str, float] = {}

    def _new_guard(self) -> StepGuard:
        period = 1 if self.device.type == "cpu" else STEPS_BETWEEN_LOOKS
        names = [name for name, _ in self.named_parameters()]
        return StepGuard(names, period, gradients=self.scaler is None)

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
        """Make the optimisation steps of one epoch, those of a batch for each value taken.

        Yields:
            The batch's share of the epoch's interactions, and its loss.

        Raises:
            DivergedError: The loss or its gradient became infinite or NaN.
        """
        seed = self.config.training.seed
        self._guard, self._measured = self._new_guard(), {}
        self.objective.model.begin_epoch(epoch, stream(seed, "model", epoch, self.device))
        noise = stream(seed, "noise", epoch, self.device)
        for number, (users, positives, negatives) in enumerate(self.triples(epoch), 1):
            if self.config.training.rank_before_last_step and number == self.steps:
                self._ranked = self._weights()
            batch = self.objective.batch(users, positives, negatives)
            weights = step_weights(self.config.robust, number - 1)
            generators = (noise, self.objective.model.current_generator())
            results: list[StepLoss] = []
            for weight in with_same_draws(weights, generators):
                result = self.objective.step(batch, noise)
                if not results and number == self._last_full_step:
                    self._measured = self._measure(epoch, result)
                self._backward(result.total if weight == 1 else weight * result.total)
                norms = self._norms(number)
                found = self._guard.saw(number, result, norms, counted=not results)
                if found is not None:
                    raise self._diverged(epoch, found, self._guilty(batch, noise))
                self._update(norms)
                results.append(result)
            yield len(users) / len(self._users), results[0]
        found = self._guard.look()
        if found is not None:
            raise self._diverged(epoch, found, [])

    @property
    def _last_full_step(self) -> int:
        return max(1, len(self._users) // self.config.training.batch_size)

    def _measure(self, epoch: int, result: StepLoss) -> dict[str, Tensor]:
        every = self.config.training.watch_every
        worth = worth_of_parts(result, self._parameters) if is_measured(epoch, every) else {}
        return {**worth, **state_of(result)} if every else {}

    def _backward(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._adam.settle()
            self.scaler.unscale_(self.optimiser)

    def _norms(self, number: int) -> Tensor | None:
        """Return the norm of each gradient, in the steps that look at them: passing over whole tables takes time."""
        looks = self.config.training.clip_norm is not None or number % STEPS_BETWEEN_NORMS == 0 or number == self.steps
        return self._adam.gradient_norms() if looks else None

    def _update(self, norms: Tensor | None) -> None:
        """Move the parameters down their gradients."""
        longest = self.config.training.clip_norm
        if longest is not None and norms is not None:
            self._adam.scale_gradients((longest / torch.linalg.vector_norm(norms).clamp_min(1e-30)).clamp_max(1.0))
        if self.scaler is None:
            self.optimiser.step()
        else:
            self.scaler.step(self.optimiser)
            self.scaler.update()

    def _guilty(self, batch: Batch, noise: torch.Generator) -> list[str]:
        """Return the parts whose gradient is not finite, where the parameters are still those that showed it."""
        if self.device.type != "cpu":
            return []
        parts = self.objective.step(batch, noise).parts
        gradients = {name: part_gradients(part, self._parameters) for name, part in parts.items() if part.weight}
        return [
            name
            for name, found in gradients.items()
            if not all(bool(torch.isfinite(g.to_dense()).all()) for g in found if g is not None)
        ]

    def _diverged(self, epoch: int, found: Finding, guilty: list[str]) -> DivergedError:
        where = f"epoch {epoch}, step {found.step} of {self.steps}"
        if found.terms:
            what = f"the loss is not finite any more ({', '.join(found.terms)})"
        else:
            of_terms = f"; the term: {', '.join(guilty)}" if guilty else ""
            what = f"the gradient is not finite any more (of {', '.join(found.parameters)}{of_terms})"
        return DivergedError(
            f"{where}: {what}; lower training.learning_rate or the weight of that term, or set training.clip_norm. "
            "What the epochs before left is still there"
        )

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
            DivergedError: The loss or its gradient became infinite or NaN.
        """
        sums: dict[str, Tensor] = {}
        for share, result in self.steps_of(epoch):
            for name, value in (("total", result.total.detach()), *result.terms.items()):
                sums[name] = sums[name] + share * value if name in sums else share * value
            if on_step is not None:
                on_step()
        measured = {name: float(value) for name, value in self._measured.items()}
        # Where L0 has no gradient, nothing can be compared with it.
        finite = {name: value for name, value in measured.items() if math.isfinite(value)}
        self.noted = {**self._guard.norms(), **finite}
        return {name: float(value) for name, value in sums.items()}
