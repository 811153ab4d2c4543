"""VBPR's graph written by hand, and what is needed to change it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

U, I, D, F = 5, 6, 4, 3  # noqa: E741 (the paper's letters)
LEARNED = ("P", "Q", "W", "b")


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    shapes = {"P": (U, 2 * D), "Q": (I, D), "W": (D, F), "b": (D,), "M": (I, F)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def vbpr_graph(values: dict[str, NDArray[np.float32]] | None = None) -> ModelProto:
    """VBPR as the exporter writes it, by hand: two independent chains, Gather and Gemm → Concat, meet in MatMul."""
    values = {"M": weights()["M"], **(values or weights())}
    nodes = [
        helper.make_node("Gather", ["P", "users"], ["user_vectors"], axis=0, name="n0"),
        helper.make_node("Gemm", ["M", "W", "b"], ["fused"], transB=1, name="n1"),
        helper.make_node("Concat", ["Q", "fused"], ["item_vectors"], axis=1, name="n2"),
        helper.make_node("Transpose", ["item_vectors"], ["turned"], perm=[1, 0], name="n3"),
        helper.make_node("MatMul", ["user_vectors", "turned"], ["raw"], name="n4"),
        helper.make_node("Reshape", ["raw", "shape"], ["scores"], name="n5"),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [value("users", TensorProto.INT64, ["batch"])],
        [value("scores", TensorProto.FLOAT, ["batch", I])],
        [
            *(numpy_helper.from_array(values[name], name) for name in (*LEARNED, "M")),
            numpy_helper.from_array(np.array([-1, I], dtype=np.int64), "shape"),
        ],
        value_info=[
            value("user_vectors", TensorProto.FLOAT, ["batch", 2 * D]),
            value("fused", TensorProto.FLOAT, [I, D]),
            value("item_vectors", TensorProto.FLOAT, [I, 2 * D]),
            value("turned", TensorProto.FLOAT, [2 * D, I]),
            value("raw", TensorProto.FLOAT, ["batch", I]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(model: ModelProto, op_type: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(entry for entry in model.graph.node if entry.op_type == op_type)
    return found


def initializer(model: ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(entry for entry in model.graph.initializer if entry.name == name)
    return found


def insert(model: ModelProto, before: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes before the first node of a type, keeping the order topological."""
    everything = list(model.graph.node)
    place = next(position for position, entry in enumerate(everything) if entry.op_type == before)
    everything[place:place] = nodes
    del model.graph.node[:]
    model.graph.node.extend(everything)


def with_branches(offset: float) -> ModelProto:
    """A graph with an ``If`` whose branches are graphs of their own."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node(
                    "Constant", [], [f"c{name}"], value=numpy_helper.from_array(np.array(offset, np.float32), "c")
                ),
                helper.make_node(op_type, ["x", f"c{name}"], [name]),
            ],
            name,
            [],
            [value(name, TensorProto.FLOAT, ["n"])],
        )

    graph = helper.make_graph(
        [
            helper.make_node(
                "If", ["choice"], ["y"], then_branch=branch("then", "Add"), else_branch=branch("else", "Mul")
            )
        ],
        "outer",
        [value("choice", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
