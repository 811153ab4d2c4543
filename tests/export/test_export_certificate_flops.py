"""FLOPs by hand, operator by operator, and what is said where they cannot be counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.onnx_flops import count_flops
from tests.helpers_graphs import F, I, initializer, insert, value, vbpr_graph, with_branches

A, B, E = 3, 5, 11


def one_node(op_type: str, operands: list[str], result: list[int | str] | None, **attributes: Any) -> ModelProto:
    """A graph of one node over ``a`` [A, B], ``b`` [B, A], ``wide`` [E, B], ``rows`` [E, 1], ``all`` [1]."""
    draw = np.random.default_rng(0)
    tensors = {
        "a": draw.standard_normal((A, B)),
        "b": draw.standard_normal((B, A)),
        "wide": draw.standard_normal((E, B)),
        "rows": draw.integers(0, A, (E, 1)),
        "index": draw.integers(0, A, (E, B)),
        "last": np.array([1]),
        "scalar": np.array(2.0),
        "where": draw.random((A, B)) < 0.5,
    }
    arrays = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in tensors.items()}
    kind = TensorProto.BOOL if op_type in {"Less", "Not"} else TensorProto.FLOAT
    output = value("y", kind, result) if result is not None else helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(
        [helper.make_node(op_type, operands, ["y"], **attributes)],
        "one",
        [value("users", TensorProto.FLOAT, ["batch", B])],
        [output],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in operands],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


CASES: list[tuple[str, list[str], list[int | str], dict[str, Any], dict[str, int]]] = [
    ("MatMul", ["a", "b"], [A, A], {}, {"MatMul": 2 * A * B * A}),
    ("MatMul", ["users", "b"], ["batch", A], {}, {"MatMul": 2 * B * A}),
    ("Gemm", ["a", "b"], [A, A], {}, {"Gemm": 2 * A * B * A}),
    ("Gemm", ["a", "b", "scalar"], [A, A], {}, {"Gemm": 2 * A * B * A, "Add": A * A}),
    ("Gemm", ["a", "a"], [B, B], {"transA": 1}, {"Gemm": 2 * B * A * B}),
    ("Add", ["a", "scalar"], [A, B], {}, {"Add": A * B}),
    ("Sigmoid", ["a"], [A, B], {}, {"Sigmoid": A * B}),
    ("Sqrt", ["users"], ["batch", B], {}, {"Sqrt": B}),
    ("Less", ["a", "scalar"], [A, B], {}, {"Less": A * B}),
    ("Where", ["where", "a", "scalar"], [A, B], {}, {"Where": A * B}),
    ("Max", ["a"], [A, B], {}, {}),
    ("Max", ["a", "scalar", "scalar"], [A, B], {}, {"Max": 2 * A * B}),
    ("Clip", ["a", "scalar"], [A, B], {}, {"Clip": A * B}),
    ("Clip", ["a", "", "scalar"], [A, B], {}, {"Clip": A * B}),
    ("ReduceSum", ["a", "last"], [A, 1], {}, {"ReduceSum": A * B}),
    ("ReduceL2", ["a", "last"], [A, 1], {}, {"ReduceL2": 2 * A * B}),
    ("Softmax", ["a"], [A, B], {}, {"Softmax": 4 * A * B}),
    ("ScatterND", ["a", "rows", "wide"], [A, B], {"reduction": "add"}, {"ScatterND": E * B}),
    ("ScatterND", ["a", "rows", "wide"], [A, B], {}, {}),
    ("ScatterElements", ["a", "index", "wide"], [A, B], {"reduction": "max"}, {"ScatterElements": E * B}),
    ("RandomNormalLike", ["a"], [A, B], {}, {"RandomNormalLike": A * B}),
    ("Gather", ["a", "rows"], [E, 1, B], {}, {}),
    ("Transpose", ["a"], [B, A], {}, {}),
    ("Cast", ["a"], [A, B], {"to": TensorProto.FLOAT}, {}),
]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "inferred"])
@pytest.mark.parametrize(("op", "operands", "result", "attributes", "expected"), CASES)
def test_one_node(
    op: str,
    operands: list[str],
    result: list[int | str],
    attributes: dict[str, Any],
    expected: dict[str, int],
    declared: bool,
) -> None:
    """Whether the shape of the result is written down or has to be inferred."""
    found = count_flops(one_node(op, operands, result if declared else None, **attributes))
    assert found.by_operator == expected
    assert found.total == sum(expected.values())
    assert found.products == expected.get("MatMul", 0) + expected.get("Gemm", 0)
    assert found.uncounted == []


def test_shapes_that_are_computed_from_shapes() -> None:
    """As in the exported propagation: updates are expanded to a shape that other nodes put together."""
    model = vbpr_graph()
    insert(
        model,
        "Concat",
        helper.make_node("Shape", ["M"], ["of_features"]),
        helper.make_node("Expand", ["ones", "of_features"], ["expanded"]),
        helper.make_node("Neg", ["expanded"], ["negative"]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "ones"))
    assert count_flops(model).by_operator["Neg"] == I * F


def test_values_do_not_count() -> None:
    other = vbpr_graph()
    initializer(other, "W").CopyFrom(numpy_helper.from_array(np.zeros((4, 3), np.float32), "W"))
    assert count_flops(other) == count_flops(vbpr_graph())


def test_what_cannot_be_counted_is_named() -> None:
    assert count_flops(with_branches(1.0)).uncounted == ["If"]
    strange = one_node("Neg", ["a"], [A, B])
    strange.graph.node[0].op_type = "Strange"
    assert count_flops(strange).uncounted == ["Strange"]


def test_shapes_that_contradict_each_other_are_unknown() -> None:
    assert count_flops(one_node("Add", ["a", "b"], None)).uncounted == ["Add"]


def test_a_shape_of_any_size_costs_nothing() -> None:
    """A few bytes that ask for more memory than there is."""
    model = vbpr_graph()
    insert(model, "Concat", helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
    insert(model, "Concat", helper.make_node("Neg", ["zeros"], ["negative"]))
    insert(model, "Concat", helper.make_node("Shape", ["negative"], ["of_negative"]))
    insert(model, "Concat", helper.make_node("Expand", ["negative", "of_negative"], ["expanded"]))
    model.graph.initializer.append(numpy_helper.from_array(np.full(40, 2**62), "huge"))
    assert count_flops(model).by_operator["Neg"] == 2 ** (62 * 40)


def test_operands_that_are_missing() -> None:
    model = one_node("Neg", ["a"], [A, B])
    del model.graph.node[0].output[:]
    assert count_flops(model).uncounted == ["Neg"]
