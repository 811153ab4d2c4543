from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import onnx_folding, parity
from export.bundle import MODEL_ONNX


def by_hand() -> bytes:
    """A [5, 4] float32 and a [5, 4] double result that depend on nothing, and two that depend on the users."""
    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(5, 4), "table")
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["table"], ["negated"]),
            helper.make_node("Cast", ["negated"], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("Gather", ["wide", "users"], ["chosen"]),
            helper.make_node("Cast", ["chosen"], ["scores"], to=TensorProto.FLOAT),
        ],
        "by hand",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 4])],
        [table],
        value_info=[helper.make_tensor_value_info("wide", TensorProto.DOUBLE, [5, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def nodes_left(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the operators that ONNX Runtime is left with after loading."""
    target = tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions

    def saving() -> object:
        made = options()
        made.optimized_model_filepath = str(target)
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", saving)
    parity.session(data, threads=1)
    return {node.op_type for node in onnx.load(target).graph.node}


def test_what_depends_on_no_input_is_counted() -> None:
    assert onnx_folding.folded_bytes(onnx.load_model_from_string(by_hand()).graph) == 5 * 4 * 4 + 5 * 4 * 8


@pytest.mark.parametrize(("allowed", "left"), [(240, {"Gather", "Cast"}), (239, {"Neg", "Gather", "Cast"})])
def test_a_graph_folds_up_to_the_limit(
    allowed: int, left: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_folding, "LARGEST_FOLDING", allowed)
    assert nodes_left(by_hand(), tmp_path, monkeypatch) == left


def test_scores_are_the_same_either_way(adaptive_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (adaptive_bundle / MODEL_ONNX).read_bytes()
    users = np.arange(23)
    folded = parity.onnx_scores(data, 23, 41)(users)
    calls: list[int] = []
    opening = parity.session

    def counted(*arguments: object, **options: object) -> object:
        opened = opening(*arguments, **options)  # type: ignore[arg-type]
        return type("Counted", (), {"run": staticmethod(_counting(opened.run, calls))})

    monkeypatch.setattr(parity, "session", counted)
    monkeypatch.setattr(onnx_folding, "LARGEST_FOLDING", 0)
    unfolded = parity.onnx_scores(data, 23, 41)
    found = np.concatenate([unfolded(users[:10]), unfolded(users[10:])])
    np.testing.assert_allclose(found, folded, rtol=1e-5, atol=1e-6)
    assert calls == [23]  # every call computes the whole model, so that one asks for all users


def _counting(run: Callable[..., list[object]], calls: list[int]) -> Callable[..., list[object]]:
    def counted(outputs: list[str], feed: dict[str, np.ndarray]) -> list[object]:
        calls.append(len(feed["users"]))
        return run(outputs, feed)

    return counted
