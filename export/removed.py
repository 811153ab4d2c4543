"""What stripping takes away: the training-time inference of a checkpoint as a graph, beside the stripped one.

Training runs f2 twice: on H, and on H + δH with δH drawn anew each time and scaled by σ or by φ = Net_φ(H). The graph
made here keeps all of it, as a prediction that runs everything would. It never goes into a bundle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.certificate import RemovedFacts
from export.graphs import EXAMPLE_USERS
from export.onnx_canonical import RANDOM_OPERATORS, initializer_shapes, operators, parse
from export.onnx_flops import count_flops
from export.onnx_graph import export_onnx, outline_of
from export.program import trace_program
from export.strip import trained_objective
from training.checkpoint import Checkpoint
from training.common.errors import ExportError
from training.dvib.objective import DvibObjective
from training.dvib.perturbation import Noise
from training.models.base import Hidden, Latent, Rows


class UnstrippedGraph(nn.Module):
    """Both passes of Algorithm 1 over all rows: ``users`` int64 [B] → ``scores`` float32 [B, I].

    Scores are the mean of those of the clean and of the perturbed pass. Where no score reads what is perturbed (BM3's
    projected features), they are the clean pass's, and there is a second output, ``perturbed`` float32 [I, M·d]: the
    second pass's representations of the modalities, side by side.

    Args:
        objective: As trained, in evaluation mode.
    """

    def __init__(self, objective: DvibObjective) -> None:
        super().__init__()
        self.model, self.net_phi = objective.model, objective.net_phi
        # In a list, so that no tensor gets a second name.
        self._objective = [objective]

    def forward(self, users: Tensor) -> tuple[Tensor, ...]:
        """Score every item for the given users."""
        hidden = self.model.hidden(Rows())
        hidden = replace(hidden, sites=hidden.sites or self.model.unread_sites())
        clean = self.model.represent(hidden)
        noisy = self.model.represent(replace(hidden, sites=self._perturbed(hidden)))
        scores = self._scores(users, clean)
        if noisy.users is clean.users and noisy.items is clean.items:
            return scores, torch.cat(list(noisy.modalities.values()), dim=1)
        return ((scores + self._scores(users, noisy)) / 2,)

    def _perturbed(self, hidden: Hidden) -> dict[str, Tensor]:
        (objective,) = self._objective
        scales = objective.scales(hidden)
        return {name: _add_noise(site, scales[name], objective.config.noise) for name, site in hidden.sites.items()}

    def _scores(self, users: Tensor, latent: Latent) -> Tensor:
        user_vectors, item_vectors = self.model.towers(latent)
        return F.embedding(users, user_vectors) @ item_vectors.T

    @property
    def outputs(self) -> list[str]:
        """Name what ``forward`` returns."""
        with torch.no_grad():
            return ["scores", "perturbed"][: len(self.forward(torch.arange(1)))]


def _add_noise(hidden: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """Do what ``training.dvib.perturbation.perturb`` does, by operators that ONNX has: it knows no generators."""
    if noise == "gaussian":
        return torch.addcmul(hidden, scale, torch.randn_like(hidden))
    draw = torch.rand_like(hidden)
    if noise == "dropout":
        return hidden - hidden * (draw < scale).to(hidden.dtype)
    return torch.addcmul(hidden, scale, (2 * draw - 1) * math.sqrt(3))


def unstripped_onnx(checkpoint: Checkpoint) -> bytes:
    """Export what a DVIB checkpoint computes in training short of the loss: both passes, noise and Net_φ.

    Args:
        checkpoint: Of variant ``constant`` or ``adaptive``.

    Returns:
        A serialised graph, ``users`` int64 [B] → ``scores`` float32 [B, I]; see ``UnstrippedGraph``. It draws its noise
        anew at every call, so that ``export.onnx_safety`` refuses it: ONNX Runtime cannot fold what depends on it.

    Raises:
        ExportError: The checkpoint is a plain model's.
    """
    graph = _unstripped(checkpoint)
    return export_onnx(graph, EXAMPLE_USERS, ["users"], graph.outputs)


def _unstripped(checkpoint: Checkpoint) -> UnstrippedGraph:
    objective = trained_objective(checkpoint)
    if not isinstance(objective, DvibObjective):
        raise ExportError(f"{checkpoint.folder}: a plain model has nothing to strip; choose a run with --dvib")
    return UnstrippedGraph(objective).eval()


def removed_from(checkpoint: Checkpoint, stripped: bytes) -> RemovedFacts:
    """Compare a checkpoint's training-time inference with the graph that was exported.

    Args:
        checkpoint: Of any variant; from a plain model nothing is removed.
        stripped: Its ``model.onnx``, or the outline of it.
    """
    tensors = {name: list(value.shape) for name, value in sorted(checkpoint.dvib.items())}
    parameters = sum(value.numel() for value in checkpoint.dvib.values())
    if checkpoint.info.config.dvib.variant == "none":
        return RemovedFacts(tensors=tensors, parameters=parameters)
    graph = _unstripped(checkpoint)
    # Shapes are enough to count by, and an outline is small whatever the graph.
    whole = parse(outline_of(trace_program(graph, EXAMPLE_USERS), ["users"], graph.outputs))
    ours = parse(stripped)
    counts = _more(operators(whole), operators(ours))
    flops, left = count_flops(whole), count_flops(ours)
    names = initializer_shapes(whole)
    return RemovedFacts(
        tensors=tensors,
        parameters=parameters,
        inputs={name: names[name] for name in sorted(names.keys() - initializer_shapes(ours).keys() - tensors.keys())},
        operators=counts,
        random_operators={name: count for name, count in counts.items() if name in RANDOM_OPERATORS},
        flops_per_user=flops.total - left.total,
        matmul_flops_per_user=flops.products - left.products,
        flops_by_operator=_more(flops.by_operator, left.by_operator),
        uncounted=sorted(set(flops.uncounted) - set(left.uncounted)),
        noise=checkpoint.info.config.dvib.noise,
    )


def _more(whole: Mapping[str, int], part: Mapping[str, int]) -> dict[str, int]:
    """Return by how much each count of the whole is larger."""
    return dict(sorted((Counter(whole) - Counter(part)).items()))
