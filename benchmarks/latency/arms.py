"""The arms of a latency run: what is timed beside the baseline, and what each arm is there for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.verdict import Role
from export.bundle import MODEL_ONNX, SEEN, BundleReader
from export.manifest import Manifest
from export.onnx_safety import check_graph
from export.publish import resolve
from training.common.errors import BundleError, ConfigError

BASELINE = "baseline"
AGAIN = "baseline again"
OTHER_SEED = "other seed"
DELAYED = "baseline + delay"
UNSTRIPPED = "un-stripped DVIB"
CONTROL_DELAY = 0.05
"""What the sensitivity control is slower by, as a share of its own median."""


@dataclass(frozen=True)
class Arm:
    """One contestant of a run.

    Attributes:
        name: Unique in the run.
        role: What it is there for; the baseline itself has the role ``same``.
        folder: Its bundle.
        graph: A graph that is run instead of the bundle's; None for the bundle's own.
        delay: Busy waiting after each call, as a share of the arm's own median; 0 for none. Over HTTP every answer
            is so delayed, by a share of the median of the baseline's lone requests.
    """

    name: str
    role: Role
    folder: Path
    graph: Path | None = None
    delay: float = 0.0

    @property
    def slow(self) -> bool:
        """Whether a call takes so long that a tenth of the calls must do."""
        return self.graph is not None


def make_arms(
    baseline: Path,
    dvib: Sequence[Path],
    *,
    other_seed: Path | None = None,
    unstripped: Path | None = None,
    inject: float = 0.0,
) -> list[Arm]:
    """Return the arms of a run, the baseline first.

    Args:
        baseline: The plain model's bundle, or its root of published versions.
        dvib: DVIB bundles of the same model and data, at least one; each is named by its variant.
        other_seed: A plain bundle from another seed.
        unstripped: ``export.removed.unstripped_onnx`` of one of the DVIB checkpoints, as a file.
        inject: Delay of every DVIB arm, as a share of its own median: the run must then find them different.

    Raises:
        BundleError: A bundle cannot be read, or differs from the baseline in more than its weights.
        ConfigError: The arms are not what they are passed as.
    """
    first = resolve(baseline)
    plain = _manifest(first)
    if plain.variant != "none":
        raise ConfigError(f"--baseline {baseline} is a model trained with DVIB {plain.variant}; name the plain one")
    arms = [
        Arm(BASELINE, "same", first),
        Arm(AGAIN, "same", first),
        Arm(DELAYED, "control", first, delay=CONTROL_DELAY),
    ]
    for folder in map(resolve, dvib):
        manifest = _manifest(folder)
        if manifest.variant == "none":
            raise ConfigError(f"--dvib {folder} is a plain model; name one trained with DVIB, or use --other-seed")
        name = f"DVIB {manifest.variant}"
        if any(arm.name == name for arm in arms):
            raise ConfigError(f"--dvib {folder}: there is a bundle of DVIB {manifest.variant} already")
        arms.append(Arm(name, "measured", folder, delay=inject))
    if other_seed is not None:
        folder = resolve(other_seed)
        manifest = _manifest(folder)
        if manifest.variant != "none" or manifest.version == plain.version:
            raise ConfigError(f"--other-seed {other_seed} must be a plain model with other weights than the baseline")
        arms.append(Arm(OTHER_SEED, "shown", folder))
    for arm in arms:
        check_comparable(arms[0].folder, arm.folder)
    if unstripped is not None:
        arms.append(Arm(UNSTRIPPED, "control", arms[0].folder, graph=unstripped))
    return arms


def describe(arm: Arm) -> dict[str, Any]:
    """Return what identifies an arm, as JSON values."""
    manifest = _manifest(arm.folder)
    return {
        "role": "baseline" if arm.name == BASELINE else arm.role,
        "delay": arm.delay,
        "dataset": manifest.dataset.name,
        **manifest.model_dump(include={"version", "model", "variant", "preset", "dimension"}),
        "n_items": manifest.n_items,
        "index": manifest.index.factory,
        "search": manifest.index.search,
        "bytes": {name: entry.size for name, entry in sorted(manifest.files.items())},
    }


def _manifest(folder: Path) -> Manifest:
    with BundleReader(folder) as reader:
        return reader.manifest


def check_comparable(baseline: Path, other: Path) -> None:
    """Refuse two bundles whose times would differ for other reasons than their weights.

    Raises:
        BundleError: A bundle cannot be read or has no graph, or model, data, dimension, index or seen items differ.
    """
    with BundleReader(baseline) as first, BundleReader(other) as second:
        left, right = first.manifest, second.manifest
        for folder, reader in ((baseline, first), (other, second)):
            if MODEL_ONNX in reader.manifest.absent:
                raise BundleError(f"{folder} holds no {MODEL_ONNX}: {reader.manifest.absent[MODEL_ONNX]}")
            try:
                check_graph(bytes(reader.read(MODEL_ONNX)), MODEL_ONNX)
            except BundleError as error:
                raise BundleError(f"{folder}: {error}") from error
        for what, mine, theirs in (
            ("model", left.model, right.model),
            ("data set fingerprint", left.dataset.fingerprint[:12], right.dataset.fingerprint[:12]),
            ("dimension", left.dimension, right.dimension),
            ("number of items", left.n_items, right.n_items),
            ("index", left.index.factory, right.index.factory),
        ):
            if mine != theirs:
                raise BundleError(
                    f"{baseline} and {other} cannot be compared: {what} {mine} and {theirs}; "
                    "export two runs of the same model on the same data"
                )
        ours, others = first.tensors(SEEN), second.tensors(SEEN)
        if any(not np.array_equal(ours[name], others[name]) for name in ("offsets", "items")):
            raise BundleError(f"{baseline} and {other} cannot be compared: their users have seen other items")
