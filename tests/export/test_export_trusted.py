"""Files with pickles, loaded for who trusts them: what torch cannot load or run, and what gives no scores."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import bundle
from tests.helpers_export import dvib_export, reseal

Copy = Callable[[Path], Path]
FLAGS = {bundle.TORCHSCRIPT: "--trust-torchscript", bundle.PROGRAM: "--trust-program"}


class Pair(nn.Module):
    def forward(self, users: Tensor) -> tuple[Tensor, Tensor]:
        return users.float(), users.float()


class Doubles(nn.Module):
    def forward(self, users: Tensor) -> Tensor:
        return users.double()[:, None].expand(-1, 41)


class OneItemLess(nn.Module):
    def forward(self, users: Tensor) -> Tensor:
        return users.float()[:, None].expand(-1, 40)


class OneColumn(nn.Module):
    """It would be compared with every item's scores, were its shape let pass."""

    def forward(self, users: Tensor) -> Tensor:
        return users.float()[:, None]


class Failing(nn.Module):
    """A table of two rows for many more users."""

    def forward(self, users: Tensor) -> Tensor:
        return torch.zeros(2, 41)[users]


MODULES: dict[str, tuple[nn.Module, str]] = {
    "a tuple": (Pair(), "torch cannot run it"),
    "an error": (Failing(), "torch cannot run it"),
    "float64": (Doubles(), "gives float64 (23, 41), wanted float32 (23, 41)"),
    "one item less": (OneItemLess(), "gives float32 (23, 40), wanted float32 (23, 41)"),
    "one column": (OneColumn(), "gives float32 (23, 1), wanted float32 (23, 41)"),
}


def saved(module: nn.Module, name: str) -> bytes:
    """Save a sound file of a module that is none of ours."""
    target, examples = io.BytesIO(), (torch.arange(2),)
    if name == bundle.TORCHSCRIPT:
        torch.jit.save(torch.jit.trace(module, examples), target)  # type: ignore[no-untyped-call]
    else:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module, examples, dynamic_shapes=shapes), target)
    return target.getvalue()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", FLAGS)
def test_what_runs_and_gives_no_scores(name: str, kind: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    module, words = MODULES[kind]
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).write_bytes(saved(module, name))
    reseal(spoiled)
    assert dvib_export("verify", spoiled).code == 0
    outcome = dvib_export("verify", spoiled, FLAGS[name])
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{spoiled}: {name}: " in outcome.complaint
    assert words in outcome.complaint


class Heard(logging.Handler):
    """Notes what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("name", FLAGS)
def test_one_line_is_said_of_what_is_no_archive(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    """Not torch's own notes of how loading failed, whose loggers write to the terminal by themselves."""
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).write_bytes(b"no archive")
    reseal(spoiled)
    heard, logger = Heard(), logging.getLogger("torch.export")
    level = logger.level
    logger.addHandler(heard)
    try:
        outcome = dvib_export("verify", spoiled, FLAGS[name])
    finally:
        logger.removeHandler(heard)
    assert outcome.code == 2
    assert f"{name}: torch cannot load it" in outcome.complaint
    assert heard.records == []
    assert logger.level == level


@pytest.mark.parametrize("name", FLAGS)
def test_what_was_asked_for_and_is_not_looked_at_is_said(
    name: str, adaptive_bundle: Path, wide_bundle: Path, copy_of: Copy
) -> None:
    absent = copy_of(adaptive_bundle)
    (absent / name).unlink()
    reseal(absent, absent={name: "left out"})
    outcome = dvib_export("verify", absent, *FLAGS.values())
    assert (outcome.code, outcome.err) == (0, "")
    assert f"skip  {name}: not looked at: there is no {name}\n" in outcome.out
    assert outcome.out.count("ok    parity of ") == 1

    graph = bundle.MODEL_ONNX
    spoiled = copy_of(wide_bundle)
    (spoiled / graph).write_bytes((adaptive_bundle / graph).read_bytes())
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled, FLAGS[name])
    assert outcome.code == 1
    assert f"skip  {name}: not looked at: there is no certified {graph} to compare it with\n" in outcome.out
