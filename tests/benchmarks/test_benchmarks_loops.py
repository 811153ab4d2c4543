from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loops import PlainBM3, PlainFREEDOM, PlainLoop, PlainVBPR, reference_for
from tests.helpers_training import CPU, make_config, planted_blocks
from training.build import build_objective
from training.epoch import EpochRunner
from training.models.base import Batch, Recommender
from training.models.bm3 import BM3
from training.models.freedom import FREEDOM

SETTINGS = {
    "vbpr": ("model.regularisation=0.3",),
    "bm3": ("model.layers=2", "model.regularisation=0.3", "model.dropout=0.4"),
    # Two steps along the item graph and a heavy modality term: what is small by default must not hide a mistake.
    "freedom": ("model.item_layers=2", "model.modality_loss=0.5", "model.dropped=0.3", "model.neighbours=4"),
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Rounding must not hide a difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_runner(name: str) -> tuple[EpochRunner, PlainLoop]:
    """Ours, at the beginning of an epoch, and the plain loop from the same initial values."""
    dataset = planted_blocks()
    config = make_config("none", *SETTINGS[name], "model.dimension=8", model=name)
    objective = build_objective(config, dataset).double()
    runner = EpochRunner(objective, config, dataset, CPU)
    plain = reference_for(runner)
    assert plain is not None
    objective.train()
    objective.model.begin_epoch(1, torch.Generator().manual_seed(5))
    return runner, plain


def pairs(ours: Recommender, plain: PlainLoop) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Parameters that mean the same, by our name."""
    own = dict(ours.named_parameters())
    theirs = dict(plain.named_parameters())
    renamed = {
        "users": "users.weight",
        "items": "items.weight",
        "weight": "projection.weight",
        "bias": "projection.bias",
    }
    for name, parameter in own.items():
        if isinstance(plain, PlainVBPR) and name in ("users", "items"):
            other = name
        elif name.startswith("projection_"):
            modality, part = name.removeprefix("projection_").split(".")
            other = f"projections.{modality}.{part}"
        elif name.startswith("features_"):
            other = f"features.{name.removeprefix('features_')}.weight"
        else:
            other = renamed.get(name, name)
        yield name, parameter, theirs.pop(other)
    assert not theirs


def share_draws(runner: EpochRunner, plain: PlainLoop, batch: Batch) -> None:
    """Let the plain loop use the random draws that our next pass will make."""
    model = runner.objective.model
    if isinstance(model, FREEDOM) and isinstance(plain, PlainFREEDOM):
        assert model.masked_graph is not None
        plain.use_edges(model.masked_graph.user_item_edges(len(model.users)))
    if isinstance(model, BM3) and isinstance(plain, PlainBM3):
        state = model.current_generator().get_state()
        rows = {"users": batch.rows.users, **dict.fromkeys(("items", *model.modalities), batch.rows.items)}
        sizes = [len(part) for part in rows.values() if part is not None]
        drawn = torch.rand(sum(sizes), model.config.dimension, generator=model.current_generator())
        model.current_generator().set_state(state)
        kept = 1 - model.config.dropout
        masks = dict(zip(rows, torch.split((drawn < kept).double().div(kept), sizes), strict=True))

        def dropout(name: str, x: Tensor) -> Tensor:
            full = torch.full_like(x, torch.nan)  # what lies outside the batch must not matter
            full[rows[name]] = masks[name]
            return x * full

        plain.dropout = dropout  # type: ignore[method-assign]


def cancels(name: str, key: str) -> bool:
    """Whether a parameter has no influence: FREEDOM compares two projections, and their common bias drops out."""
    return name == "freedom" and key.endswith("bias")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plain_loop_has_our_loss_and_gradients(name: str) -> None:
    runner, plain = make_runner(name)
    triple = next(runner.triples(1))
    batch = runner.objective.batch(*triple)
    share_draws(runner, plain, batch)
    ours = runner.objective.step(batch, torch.Generator()).total
    loss = plain.loss(*triple)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
    ours.backward()  # type: ignore[no-untyped-call]
    loss.backward()  # type: ignore[no-untyped-call]
    for key, left, right in pairs(runner.objective.model, plain):
        assert left.grad is not None, key
        assert right.grad is not None, key
        assert right.grad.abs().max() > 1e-8 or cancels(name, key), key
        torch.testing.assert_close(left.grad.to_dense(), right.grad, rtol=1e-6, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plain_loop_takes_the_same_course(name: str) -> None:
    runner, plain = make_runner(name)
    started = {key: value.detach().clone() for key, value, _ in pairs(runner.objective.model, plain)}
    for triple in runner.triples(1):
        batch = runner.objective.batch(*triple)
        share_draws(runner, plain, batch)
        for optimiser, total in (
            (runner.optimiser, runner.objective.step(batch, torch.Generator()).total),
            (plain.optimiser, plain.loss(*triple)),
        ):
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert runner.steps > 3
    for key, left, right in pairs(runner.objective.model, plain):
        assert (left - started[key]).abs().max() > 0.01 or cancels(name, key), key
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=key)


def test_the_squared_decay_of_vbpr_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "vbpr", ("model.regularisation=0.3", "model.decay=squared"))
    test_a_plain_loop_has_our_loss_and_gradients("vbpr")


def test_every_epoch_of_plain_freedom_masks_its_graph_anew() -> None:
    runner, plain = make_runner("freedom")
    assert isinstance(plain, PlainFREEDOM)
    model = runner.objective.model
    assert isinstance(model, FREEDOM)
    assert model.masked_graph is not None
    patterns = []
    for epoch in (1, 2):
        for _ in plain.steps_of(runner.triples(epoch)):
            pass
        patterns.append(plain.adjacency.indices())
        assert plain.adjacency._nnz() == len(model.masked_graph.targets)
    assert not torch.equal(*patterns)


def test_a_plain_optimiser_is_pytorchs_default() -> None:
    for name in SETTINGS:
        _, plain = make_runner(name)
        assert type(plain.optimiser) is torch.optim.Adam
        group = plain.optimiser.param_groups[0]
        assert not group["fused"]
        assert not group["foreach"]
        assert {id(value) for value in group["params"]} == {id(value) for value in plain.parameters()}
