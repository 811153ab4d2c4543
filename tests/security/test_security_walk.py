"""The walk over ONNX graphs, fuzzed: real exports, mutated as bytes and as messages, are refused in one line or passed.

What passes is then looked at as ``verify`` does it, which must end in one of the errors that it expects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from export import strip
from export.artefacts import full_graph_onnx
from export.certificate import GraphFacts
from export.onnx_safety import OPERATORS, check_graph, check_user_tower
from export.verify import _MALFORMED
from tests.contract.cases import CASES
from tests.helpers_bundle import gather_tower
from tests.helpers_export import messages
from tests.helpers_training import make_config, planted_blocks
from tests.security.hostile import CONTENT
from training.checkpoint import load_checkpoint
from training.common.errors import BundleError
from training.trainer import Trainer

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
INTEGERS = (0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "users", "scores", "vectors", "Gather", "MatMul", "Loop", "If", "axis", "value", "\x1b[2J\n", "é" * 99)
_NUMBERS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The toy's tower, and exports of a model without a graph and of one with most operators."""
    found = {"tower": gather_tower(CONTENT.users)}
    for name in ("vbpr", "grcn"):
        run = tmp_path_factory.mktemp("runs") / name
        config = make_config("none", *CASES[name].overrides, "training.epochs=1", model=name)
        Trainer(config, planted_blocks(n_users=23, n_items=41), run).fit()
        model = strip.strip(strip.trained_objective(load_checkpoint(run))).eval()
        found[name] = full_graph_onnx(model)
    return found


def examine(data: bytes) -> None:
    """Refuse in one line, or pass what can then be looked at."""
    refusal = refusal_of(data)
    if refusal is not None:
        assert refusal.isprintable()
        assert len(refusal) < 400
        return
    for message in messages(ModelProto.FromString(data)):
        # Nothing that could reach a file, run a foreign operator or hide a graph is left.
        assert not getattr(message, "external_data", None)
        assert getattr(message, "op_type", "Gather") in OPERATORS
        assert not getattr(message, "graphs", None)
    with_expected_errors(lambda: GraphFacts.of(data, ["model.users"]))
    with_expected_errors(lambda: check_user_tower(data, "g", *CONTENT.users.shape))


def refusal_of(data: bytes) -> str | None:
    try:
        check_graph(data, "g")
    except BundleError as error:
        return str(error)
    return None


def with_expected_errors(look: Callable[[], object]) -> None:
    try:
        look()
    except (BundleError, *_MALFORMED):
        return


def test_the_exports_pass(graphs: dict[str, bytes]) -> None:
    for data in graphs.values():
        check_graph(data, "g")
        assert GraphFacts.of(data, ["model.users"]).operators
    check_user_tower(graphs["tower"], "g", *CONTENT.users.shape)


@given(data=st.data())
@FUZZ
def test_mutated_bytes(data: st.DataObject, graphs: dict[str, bytes]) -> None:
    raw = bytearray(graphs[data.draw(st.sampled_from(sorted(graphs)))])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "repeat", "cut", "splice", "noise"])):
            case "flip":
                raw[place] ^= 1 << data.draw(st.integers(0, 7))
            case "repeat":
                raw[place:place] = raw[place : place + data.draw(st.integers(1, 64))]
            case "cut":
                del raw[place : min(place + data.draw(st.integers(1, 16)), len(raw) - 1)]
            case "splice":
                other = graphs[data.draw(st.sampled_from(sorted(graphs)))]
                start = data.draw(st.integers(0, len(other) - 1))
                raw[place:place] = other[start : start + 64]
            case _:
                raw[place:place] = data.draw(st.binary(max_size=8))
    examine(bytes(raw))


@given(data=st.data())
@FUZZ
def test_mutated_messages(data: st.DataObject, graphs: dict[str, bytes]) -> None:
    names = st.sampled_from(sorted(graphs))
    model = ModelProto.FromString(graphs[data.draw(names)])
    donors = list(messages(ModelProto.FromString(graphs[data.draw(names)])))
    for _ in range(data.draw(st.integers(1, 3))):
        message = data.draw(st.sampled_from(list(messages(model))))
        change(message, data.draw(st.sampled_from(list(message.DESCRIPTOR.fields))), donors, data)
    examine(model.SerializeToString())


def change(message: Any, field: Any, donors: list[Any], data: st.DataObject) -> None:
    """Clear a field, or put another value into it: of another message, or one that is seldom there."""
    current = getattr(message, field.name)
    if data.draw(st.integers(0, 3)) == 0:
        message.ClearField(field.name)
    elif field.message_type is not None:
        fitting = [donor for donor in donors if donor.DESCRIPTOR.full_name == field.message_type.full_name]
        fresh = current.add() if hasattr(current, "add") else current
        fresh.SetInParent()
        if fitting:
            fresh.CopyFrom(data.draw(st.sampled_from(fitting)))
    else:
        value = scalar(field, data)
        with contextlib.suppress(ValueError):  # an integer of 32 bits
            if hasattr(current, "append"):
                current.append(value)
            else:
                setattr(message, field.name, value)


def scalar(field: Any, data: st.DataObject) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return data.draw(st.binary(max_size=12))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return data.draw(st.sampled_from(TEXTS))
    if field.cpp_type in _NUMBERS:
        return data.draw(st.sampled_from((0.0, -1.0, 1e30, float("nan"))))
    return data.draw(st.sampled_from(INTEGERS))


@given(st.binary(max_size=400))
@FUZZ
def test_any_bytes(raw: bytes) -> None:
    try:
        ModelProto.FromString(raw)
    except DecodeError:
        with pytest.raises(BundleError):
            check_graph(raw, "g")
    else:
        examine(raw)


def test_no_operator_runs_a_graph_or_draws_or_opens() -> None:
    """The list of operators itself: a line for one of these must not slip in."""
    forbidden = {"If", "Loop", "Scan", "SequenceMap", "RandomNormal", "Dropout", "ImageDecoder", "Tile", "Range"}
    assert not forbidden & OPERATORS.keys()
