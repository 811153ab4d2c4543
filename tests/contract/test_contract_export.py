"""Every model in every variant goes the whole way: train, export with every proof, verify, answer a request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import bundle
from export.build import build_bundle
from export.certificate import Certificate
from export.verify import verify_bundle
from service.engine import Engine
from tests.contract.cases import CASES
from tests.helpers_training import VARIANTS, make_config, planted_blocks
from training.build import load_model
from training.checkpoint import Checkpoint, load_checkpoint
from training.common.choices import Preset, Variant
from training.models import MODELS
from training.trainer import Trainer

DATASET = planted_blocks(n_users=23, n_items=41)
USER = 5


def _initializers(data: bytes) -> set[str]:
    return {tensor.name for tensor in onnx.load_model_from_string(data).graph.initializer}


def _check_answer(folder: Path, checkpoint: Checkpoint) -> None:
    answer = Engine.load(folder).recommend(f"user {USER}", 7)
    with torch.no_grad():
        users, items = load_model(checkpoint).vectors()
        scores = (users[USER] @ items.T).numpy()
    seen = DATASET.train.items[DATASET.train.users == USER]
    best = [int(row) for row in np.argsort(-scores, kind="stable") if row not in set(seen.tolist())][:7]
    assert answer.source == "model"
    assert [item.row for item in answer.items] == best
    assert [item.score for item in answer.items] == pytest.approx(scores[best].tolist(), rel=1e-4, abs=1e-6)


# With the preset ``reference``, "constant" is the variant whose places differ from the paper's in every model.
@pytest.mark.parametrize(("preset", "variants"), [("paper", VARIANTS), ("reference", ("none", "constant"))])
@pytest.mark.parametrize("name", MODELS)
def test_every_variant_trains_exports_verifies_and_answers(
    name: str, preset: Preset, variants: tuple[Variant, ...], tmp_path: Path
) -> None:
    runs: dict[Variant, Checkpoint] = {}
    certificates: dict[Variant, Certificate] = {}
    for seed, variant in enumerate(variants):
        config = make_config(
            variant, *CASES[name].overrides, "training.epochs=2", f"training.seed={seed}", model=name, preset=preset
        )
        Trainer(config, DATASET, tmp_path / f"run-{variant}").fit()
        runs[variant] = load_checkpoint(tmp_path / f"run-{variant}")
        out = tmp_path / variant
        independent = None if variant == "none" else runs["none"]
        manifest, certificates[variant] = build_bundle(runs[variant], out, independent=independent)
        # Either there is a tower for new items, or the manifest says why this model has none.
        reason = None if (out / bundle.ITEM_TOWER).exists() else MODELS[name].no_item_encoder
        assert manifest.absent.get(bundle.ITEM_TOWER) == reason
        checks = verify_bundle(out, tmp_path / "none")
        assert [check.name for check in checks if not check.passed] == []
        _check_answer(out, runs[variant])
        names = _initializers((out / bundle.MODEL_ONNX).read_bytes())
        # ONNX Runtime cannot fold what follows a CastLike, and would propagate anew for every request.
        assert "CastLike" not in certificates[variant].exported.operators
        # What only the loss or the second pass reads is not in the graph.
        assert not any("net_phi" in entry or entry.startswith("model.features_") for entry in names)
        _check_removed(certificates[variant], runs[variant])
    _same_cost(certificates)


def _check_removed(certificate: Certificate, checkpoint: Checkpoint) -> None:
    """A random operator for every place that is perturbed, the training-only tensors, and work."""
    removed = certificate.removed
    assert certificate.exported.uncounted == []
    assert removed.tensors.keys() == checkpoint.dvib.keys()
    if certificate.variant == "none":
        assert removed.noise is None
        assert removed.flops_per_user == len(removed.operators) == 0
    else:
        assert removed.random_operators == {"RandomNormalLike": len(load_model(checkpoint).site_widths)}
        assert removed.flops_per_user > removed.matmul_flops_per_user >= 0


def _same_cost(certificates: Mapping[Variant, Certificate]) -> None:
    facts = [certificate.exported for certificate in certificates.values()]
    assert len({(entry.parameters, entry.flops_per_user, entry.size, str(entry.operators)) for entry in facts}) == 1
