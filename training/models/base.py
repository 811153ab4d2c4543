"""What every recommender offers, and the values that pass between its parts.

A model is three maps (paper, Eq. 1–3): ``H = f1(Fusion(M1..Mn))``, ``Z = f2(H)`` and ``loss = L0(f3(Z), Y)``. At
inference each of the project's models scores by an inner product of a user and an item vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """Which users and items a forward pass is about; ``None`` stands for all of them, in order.

    Attributes:
        users: int64 [n_u], distinct user rows.
        items: int64 [n_i], distinct item rows.
        shift: What this pass adds to the given items' features: modality → float32 [n_i, F_m], for some modalities or
            none. Models heed it that say so (``Recommender.shifts_features``).
    """

    users: Tensor | None = None
    items: Tensor | None = None
    shift: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Training triples, as positions within the rows of the forward pass they are scored by.

    Attributes:
        rows: The forward pass's users and items.
        users: int64 [B], positions of the users in ``rows.users``.
        positives: int64 [B], positions of the observed items in ``rows.items``.
        negatives: int64 [B], positions of the sampled items in ``rows.items``; [0] for models without negatives.
    """

    rows: Rows
    users: Tensor
    positives: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, users: Tensor, positives: Tensor, negatives: Tensor, *, all_items: bool = False) -> Self:
        """Collect the distinct rows of a batch of triples.

        Args:
            users: int64 [B], user rows.
            positives: int64 [B], item rows.
            negatives: int64 [B], item rows; [0] for models without negatives.
            all_items: Run the pass over the whole catalogue instead of the batch's items.
        """
        user_rows, user_positions = torch.unique(users, return_inverse=True)
        if all_items:
            return cls(Rows(user_rows, None), user_positions, positives, negatives)
        item_rows, item_positions = torch.unique(torch.cat([positives, negatives]), return_inverse=True)
        positive_positions, negative_positions = item_positions.split([len(positives), len(negatives)])
        return cls(Rows(user_rows, item_rows), user_positions, positive_positions, negative_positions)

    def of_its_items(self) -> Batch:
        """Return the same triples over a pass of the distinct items they name, where theirs covers all items."""
        if self.rows.items is not None:
            return self
        users = self.users if self.rows.users is None else self.rows.users[self.users]
        return Batch.of(users, self.positives, self.negatives)

    def user_weights(self) -> Tensor:
        """Return how often each distinct user occurs, as shares that sum to one; float32 [n_u]."""
        # A user of every row that the pass has stands in the batch, so that nobody is missing at the end.
        return torch.bincount(self.users).float() / len(self.users)


@dataclass(frozen=True)
class Hidden:
    """H, the model's state between f1 and f2.

    Attributes:
        sites: The tensors that may be perturbed, each float32 [rows, width].
        context: Tensors that f2 needs besides, passed through as they are.
        rows: The rows that Z shall have, for models whose f2 runs over all of them and selects at the end.
    """

    sites: Mapping[str, Tensor]
    context: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)


@dataclass(frozen=True)
class Latent:
    """Z, the representations that f3 scores and the loss reads.

    Attributes:
        users: float32 [n_u, D].
        items: float32 [n_i, D].
        modalities: Representations of single modalities that the loss compares with these, each float32 [n_i, D].
        extra: Whatever else loss, decay and towers need; no representation to be compared between two passes.
    """

    users: Tensor
    items: Tensor
    modalities: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class ModelConfig(BaseModel):
    """Base of the models' hyper-parameters: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ModelData:
    """What a model may know of the data.

    Attributes:
        n_users: Number of users, U.
        n_items: Number of items, I.
        features: Modality name → float32 [I, F_m].
        edges: int64 [2, E], training interactions: user rows above, item rows below.
    """

    n_users: int
    n_items: int
    features: Mapping[str, Tensor]
    edges: Tensor


class Recommender(nn.Module, ABC):
    """Base of all models. A model reads no file, picks no device and draws only from the generators it is given.

    In training mode (``module.training``) a pass may be random: dropped edges, dropped features. It then draws from the
    generator of ``begin_epoch``, in ``hidden`` and nowhere else, so that a second pass through ``represent`` and
    ``loss`` sees the same draw. In evaluation mode a pass is a function of the parameters and the data.

    Attributes:
        site_widths: Name → width of every tensor that ``hidden`` offers in training as a site.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    samples_negatives: ClassVar[bool] = True
    """Whether the loss reads the batch's negatives."""
    shifts_features: ClassVar[bool] = False
    """Whether ``hidden`` adds ``Rows.shift`` to the features of the given items: it must read these row by row."""
    no_item_encoder: ClassVar[str] = "an item is known by its interactions alone: features take no part in ranking"
    """Why ``item_encoder`` returns None, of a model of which it does."""

    @abstractmethod
    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        """Create the parameters on the CPU.

        Args:
            config: An instance of the class's ``Config``.
            data: Counts, features and training edges.
            generator: CPU generator for the initial values.

        Raises:
            DataError: The data lacks what the model needs.
        """
        super().__init__()
        self.site_widths: Mapping[str, int] = {}
        self._generator: torch.Generator | None = None

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Get ready for an epoch's steps. Models that resample something per epoch extend this.

        Args:
            epoch: From 1.
            generator: On the model's device; the model's own until the next call.
        """
        del epoch
        self._generator = generator

    def current_generator(self) -> torch.Generator:
        """Return the generator of the current epoch: no property, which anybody who lists attributes would read.

        Raises:
            RuntimeError: ``begin_epoch`` was not called.
        """
        if self._generator is None:
            raise RuntimeError(f"{type(self).__name__}: begin_epoch comes before the first training pass")
        return self._generator

    @abstractmethod
    def hidden(self, rows: Rows) -> Hidden:
        """Compute H = f1(Fusion(M1..Mn)) for the given rows (a graph model may need all to know these)."""

    def unread_sites(self) -> Mapping[str, Tensor]:
        """Return the sites that evaluation leaves out of H because no score reads them, each with all its rows."""
        return {}

    @abstractmethod
    def represent(self, hidden: Hidden) -> Latent:
        """Compute Z = f2(H). Called a second time with perturbed sites by whoever wants that."""

    @abstractmethod
    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return L0's terms by name, each a scalar to be added, without weight decay."""

    def decay(self, latent: Latent, batch: Batch) -> Tensor | None:
        """Return the weighted weight decay, a scalar that belongs to L0, or None where the model has none."""
        del latent, batch
        return None

    @abstractmethod
    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return user vectors [n_u, D] and item vectors [n_i, D] with ``score(u, i) = <users[u], items[i]>``."""

    def item_encoder(self, features: Mapping[str, Tensor]) -> nn.Module | None:
        """Return a module that places items which were not there in training, or None where the model cannot.

        Args:
            features: Modality name → float32 [I, F_m] of the training items, as the model was given them.

        Returns:
            A module that maps modality name → float32 [n, F_m] to item vectors float32 [n, D]. It holds copies: what
            the model learns later does not reach it.
        """
        del features
        return None

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return user vectors [U, D] and item vectors [I, D] as they are used for ranking and serving.

        Always in evaluation mode, whatever mode the module is in.
        """
        was_training = self.training
        if was_training:
            self.eval()
        try:
            return self.towers(self.represent(self.hidden(Rows())))
        finally:
            if was_training:
                self.train()
