"""Every model with every variant, all the way: train, export, verify, serve, and answer one request.

Each row stands for itself: what goes wrong in one is said in it, and the others go on.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.http_client import Connection, serving
from benchmarks.quality import Combination, Study
from export.build import build_bundle
from export.manifest import Manifest
from export.parity import TOLERANCE
from export.verify import verify_bundle
from training.build import load_model
from training.checkpoint import BEST, INFO, Checkpoint, load_checkpoint
from training.common.choices import Variant
from training.common.errors import ConfigError, DvibError
from training.data.dataset import Dataset
from training.data.load import load_dataset
from training.evaluation import GroupedItems
from training.trainer import Trainer

Stage = Callable[[str], None]
_SERVED_AS = "model"
_ITEMS = 5


class WrongAnswerError(DvibError):
    """The service answered, but not what the trained model says."""


@dataclass
class Row:
    """What became of one combination.

    Attributes:
        model: The recommender.
        variant: Without DVIB, or which.
        figures: What has been measured so far: ``train_seconds`` (none for a run that was there already),
            ``export_seconds``, ``verify_seconds``, ``bundle_bytes``, ``proofs`` and ``checks`` (held and made),
            ``parity`` (path to largest relative error), their largest as ``parity_error``, ``removed`` and ``answer``.
        error: What went wrong, as ``STAGE: CLASS: message``; empty where nothing did.
    """

    model: str
    variant: str
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def document(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {"model": self.model, "variant": self.variant, **self.figures, "error": self.error or None}


def run_matrix(study: Study, runs: Path | None = None, on_stage: Stage = lambda _: None) -> Iterator[Row]:
    """Make the rows of a study, one after another. Seeds count from the study's first, one for each variant.

    Args:
        study: Combinations and data, each model's together and the plain one first: the DVIB variants are compared
            with it where it went well.
        runs: Folder that keeps the trained runs, and has those of an earlier matrix; by default none is kept.
        on_stage: Told what happens.

    Yields:
        Each row as soon as it is made.
    """
    for _, same_model in itertools.groupby(study.combinations, key=lambda combination: combination.model):
        # Runs and bundles of one model at a time: all together take many gigabytes.
        with tempfile.TemporaryDirectory(prefix="dvib-matrix-") as place:
            for combination in same_model:
                yield _make_row(study, combination, Path(place), runs or Path(place), on_stage)


def _make_row(study: Study, combination: Combination, place: Path, runs: Path, on_stage: Stage) -> Row:
    row = Row(combination.model, combination.variant)
    stage = "training"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        on_stage(f"{combination.label}: {name}")

    try:
        _fill(row, study, combination, place, runs, enter)
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the row
        message = " ".join(str(error).split())[:300]
        row.error = f"{stage}: {type(error).__name__}: {message}"
    return row


def _run_of(study: Study, runs: Path, model: str, variant: Variant) -> Path:
    return runs / f"{study.dataset}-{model}-{variant}-run"


def _trained(study: Study, combination: Combination, runs: Path, dataset: Dataset, figures: dict[str, Any]) -> Path:
    """Train a combination, unless a whole run with the very same settings and data is there already."""
    # A seed for each variant: what is compared later has not even its initial values in common.
    seed = study.seeds[0] + get_args(Variant).index(combination.variant)
    config = study.config(combination, f"training.seed={seed}")
    run = _run_of(study, runs, combination.model, combination.variant)
    if (run / BEST / INFO).exists():
        info = load_checkpoint(run).info
        if info.finished and info.config == config and info.dataset.fingerprint == dataset.fingerprint():
            return run
        raise ConfigError(f"{run} has other settings or data, or is not finished; remove it or choose another --runs")
    started = time.perf_counter()
    Trainer(config, dataset, run, device=study.device).fit()
    figures["train_seconds"] = time.perf_counter() - started
    return run


def _fill(row: Row, study: Study, combination: Combination, place: Path, runs: Path, enter: Stage) -> None:
    figures = row.figures
    bundle = place / f"{combination.model}-{combination.variant}-bundle"
    plain_run, plain_bundle = (
        _run_of(study, runs, combination.model, "none"),
        place / f"{combination.model}-none-bundle",
    )
    enter("training")
    dataset = load_dataset(study.dataset, study.data_dir, study.config(combination).data)
    run = _trained(study, combination, runs, dataset, figures)
    enter("export")
    # A plain model has no other to be compared with; its proofs are made against one with initial values.
    compared = combination.variant != "none" and plain_bundle.is_dir()
    started = time.perf_counter()
    checkpoint = load_checkpoint(run)
    manifest, certificate = build_bundle(
        checkpoint,
        bundle,
        independent=load_checkpoint(plain_run) if compared else None,
        on_stage=lambda stage: enter(f"export, {stage}"),
    )
    figures["export_seconds"] = time.perf_counter() - started
    figures["proofs"] = [sum(certificate.proofs.values()), len(certificate.proofs)]
    figures["parity"] = {path: entry.max_relative_error for path, entry in certificate.parity.items()}
    figures["parity_error"] = max(figures["parity"].values())
    figures["bundle_bytes"] = sum(entry.size for entry in manifest.files.values())
    figures["removed"] = {"parameters": certificate.removed.parameters, "flops": certificate.removed.flops_per_user}
    figures["against_plain"] = compared
    enter("verification")
    started = time.perf_counter()
    checks = verify_bundle(bundle, plain_bundle if compared else None)
    figures["verify_seconds"] = time.perf_counter() - started
    figures["checks"] = [sum(check.passed is True for check in checks), len(checks)]
    failed = [f"{check.name} ({check.detail})" for check in checks if check.passed is False]
    if failed:
        raise DvibError(f"not verified: {'; '.join(failed)}")
    enter("request")
    figures["answer"] = ask(bundle, manifest, checkpoint, dataset)


def ask(bundle: Path, manifest: Manifest, checkpoint: Checkpoint, dataset: Dataset) -> dict[str, Any]:
    """Start ``dvib-serve`` with a bundle, ask it for a user, and compare the answer with the trained model's scores.

    Args:
        bundle: The bundle's folder.
        manifest: Its description.
        checkpoint: What it was exported from.
        dataset: The data; the user is the first one with a test interaction.

    Returns:
        ``user`` and the reply's first item.

    Raises:
        WrongAnswerError: The reply holds another number of items, an item of the user's training, or one that the
            model scores lower than some other item, beyond rounding.
    """
    user = int(dataset.splits["test"].users[0])
    user_id = dataset.user_ids[user]
    with serving({_SERVED_AS: bundle}) as (host, port), closing(Connection(host, port, _SERVED_AS, _ITEMS)) as client:
        client.check(user_id, manifest.version)
        items = json.loads(client.post(client.target(user_id)))["items"]
    with torch.no_grad():
        users, vectors = load_model(checkpoint).vectors()
        scores = (users[user].double() @ vectors.double().T).float()
    allowed = TOLERANCE * float(scores.abs().max())
    seen = GroupedItems.of(dataset.train, dataset.n_users)
    scores[seen.cells(torch.tensor([user]))[1]] = -torch.inf
    wanted = scores.topk(min(_ITEMS, int(scores.isfinite().sum()))).values
    rows = {dataset.item_ids[row]: row for row in range(dataset.n_items)}
    found = torch.stack([scores[rows[item["item_id"]]] for item in items]) if items else wanted[:0]
    if found.shape != wanted.shape or not bool(((found - wanted).abs() <= allowed).all()):
        raise WrongAnswerError(
            f"user {user_id}: the model scores the items of the reply {found.tolist()}, its best are {wanted.tolist()}"
        )
    return {"user": user_id, **items[0]}


_PATHS = {
    "onnx": "folded",
    "onnx_unfolded": "unfolded",
    "torchscript": ".ts",
    "program": ".pt2",
    "towers_index": "towers",
}
"""Paths of a certificate's parity, and what they are called in the table."""


def table(rows: list[Row]) -> Iterator[str]:
    """Yield rows as lines. What follows ``error`` is each path's largest error relative to a user's largest score."""
    paths = "".join(f"{name:>9}" for name in _PATHS.values())
    yield (
        f"{'model':<10}{'DVIB':<10}{'training':>10}{'export':>9}{'verify':>9}{'proofs':>8}{'checks':>10}  error:"
        f"{paths}  first item of the answer"
    )
    for row in rows:
        seen = row.figures
        line = f"{row.model:<10}{row.variant:<10}"
        for name, width in (("train_seconds", 10), ("export_seconds", 9), ("verify_seconds", 9)):
            line += f"{seen[name]:>{width - 2}.1f} s" if name in seen else " " * width
        for name, width in (("proofs", 8), ("checks", 10)):
            line += f"{'{} of {}'.format(*seen[name]):>{width}}" if name in seen else " " * width
        errors = seen.get("parity", {})
        line += " " * 8 + "".join(f"{errors[path]:>9.1e}" if path in errors else " " * 9 for path in _PATHS)
        if row.error:
            yield f"{line}  FAILED in {row.error}"
        else:
            answer = seen["answer"]
            title = f" {answer['title']}" if answer.get("title") else ""
            yield f"{line}  {answer['item_id']}{title} ({answer['score']:.4g}) for user {answer['user']}"


def seconds_in_all(rows: list[Row]) -> float:
    """Return what exporting and verifying took, training and requests left out."""
    spent = (row.figures.get(name, 0.0) for row in rows for name in ("export_seconds", "verify_seconds"))
    return math.fsum(spent)
