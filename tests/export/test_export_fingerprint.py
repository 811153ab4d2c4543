"""What the fingerprint of a graph sees, and what it does not count."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.onnx_canonical import blank, canonical_bytes, operators
from export.onnx_fingerprint import fingerprint
from tests.helpers_graphs import LEARNED, D, F, I, initializer, insert, node, value, vbpr_graph, weights, with_branches


def leftover_unused(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1,), np.float32), "net_phi.4.bias"))


def leftover_used(model: ModelProto) -> None:
    leftover_unused(model)
    insert(model, "Concat", helper.make_node("Add", ["fused", "net_phi.4.bias"], ["shifted"]))
    node(model, "Concat").input[1] = "shifted"


def random_noise(model: ModelProto) -> None:
    insert(
        model,
        "Concat",
        helper.make_node("RandomNormalLike", ["fused"], ["noise"], scale=0.0),
        helper.make_node("Add", ["fused", "noise"], ["noisy"]),
    )
    node(model, "Concat").input[1] = "noisy"


def cast_there_and_back(model: ModelProto) -> None:
    insert(
        model,
        "Concat",
        helper.make_node("Cast", ["fused"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT),
    )
    node(model, "Concat").input[1] = "narrow"


def swap(op_type: str, first: int = 0, second: int = 1) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        names = node(model, op_type).input
        names[first], names[second] = names[second], names[first]

    return change


def other_attribute(model: ModelProto) -> None:
    node(model, "Concat").attribute[0].i = 0


def other_attribute_list(model: ModelProto) -> None:
    node(model, "Transpose").attribute[0].ints[:] = [0, 1]


def no_attribute(model: ModelProto) -> None:
    del node(model, "Gemm").attribute[:]


def other_weight_shape(model: ModelProto) -> None:
    initializer(model, "W").dims[:] = [F, D]


def other_weight_type(model: ModelProto) -> None:
    initializer(model, "b").CopyFrom(numpy_helper.from_array(np.zeros(D, np.float64), "b"))


def other_value_type(model: ModelProto) -> None:
    model.graph.value_info[1].type.tensor_type.elem_type = TensorProto.DOUBLE


def other_value_shape(model: ModelProto) -> None:
    model.graph.value_info[1].type.tensor_type.shape.dim[0].dim_value = I + 1


def other_input_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def other_output(model: ModelProto) -> None:
    model.graph.output.append(value("fused", TensorProto.FLOAT, [I, D]))


def other_operator(model: ModelProto) -> None:
    node(model, "MatMul").op_type = "Gemm"


def other_domain(model: ModelProto) -> None:
    node(model, "MatMul").domain = "com.microsoft"


def other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 19


def other_small_constant(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.array([I, -1], dtype=np.int64), "shape")
    initializer(model, "shape").CopyFrom(tensor)


def duplicated_node(model: ModelProto) -> None:
    insert(model, "Concat", helper.make_node("Gemm", ["M", "W", "b"], ["again"], transB=1))


FAULTS: list[Callable[[ModelProto], None]] = [
    leftover_unused,
    leftover_used,
    random_noise,
    cast_there_and_back,
    swap("Gemm"),
    swap("MatMul"),
    swap("Concat"),
    other_attribute,
    other_attribute_list,
    no_attribute,
    other_weight_shape,
    other_weight_type,
    other_value_type,
    other_value_shape,
    other_input_type,
    fixed_batch,
    other_output,
    other_operator,
    other_domain,
    other_opset,
    other_small_constant,
    duplicated_node,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__qualname__.split(".")[0])
def test_a_changed_architecture_has_another_fingerprint_and_other_blanked_bytes(
    fault: Callable[[ModelProto], None],
) -> None:
    sound, changed = vbpr_graph(), vbpr_graph()
    fault(changed)
    assert canonical_bytes(changed) != canonical_bytes(sound)
    assert fingerprint(changed) != fingerprint(sound)
    assert blank(canonical_bytes(changed), LEARNED) != blank(canonical_bytes(sound), LEARNED)


def twins(operands: list[str], *more: onnx.NodeProto) -> ModelProto:
    """The graph with a second id table of the same shape, R; ``operands`` are joined."""
    model = vbpr_graph()
    model.graph.initializer.append(numpy_helper.from_array(weights()["Q"] + 1, "R"))
    insert(model, "Concat", *more)
    node(model, "Concat").input[:] = operands
    return model


def test_swapped_tensors_of_equal_shape_are_told_apart_by_their_use() -> None:
    """R is used once more elsewhere: which of the two comes first is part of the architecture."""
    scaled = helper.make_node("Mul", ["R", "R"], ["squares"])
    assert fingerprint(twins(["Q", "R", "squares"], scaled)) != fingerprint(twins(["R", "Q", "squares"], scaled))


def test_swapped_tensors_of_equal_shape_are_told_apart_by_what_is_learned() -> None:
    right, swapped = twins(["Q", "R"]), twins(["R", "Q"])
    assert fingerprint(right, LEARNED) != fingerprint(swapped, LEARNED)
    assert fingerprint(right, [*LEARNED, "R"]) != fingerprint(right, LEARNED)


def test_swapped_tensors_that_only_names_tell_apart_are_seen_by_wiring_and_bytes() -> None:
    """Two learned tensors of one shape, each used once: under other names it is the same architecture."""
    right, swapped, learned = twins(["Q", "R"]), twins(["R", "Q"]), [*LEARNED, "R"]
    assert fingerprint(right, learned) == fingerprint(swapped, learned)
    assert fingerprint(right, learned, named=True) != fingerprint(swapped, learned, named=True)
    assert blank(canonical_bytes(right), learned) != blank(canonical_bytes(swapped), learned)


def renamed(model: ModelProto) -> None:
    def new(name: str) -> str:
        return f"x{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:6]}" if name else ""

    graph = model.graph
    graph.name = "other"
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = new(entry.name)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "rows"
    for part in graph.node:
        part.name = new(part.name)
        part.input[:] = [new(name) for name in part.input]
        part.output[:] = [new(name) for name in part.output]


def reordered_nodes(model: ModelProto) -> None:
    gather, *others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*others[:3], gather, *others[3:]])


def reordered_initializers(model: ModelProto) -> None:
    backwards = list(reversed(model.graph.initializer))
    del model.graph.initializer[:]
    model.graph.initializer.extend(backwards)


def other_weights(model: ModelProto) -> None:
    for name, array in weights(1).items():
        initializer(model, name).CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize("change", [renamed, reordered_nodes, reordered_initializers, other_weights])
def test_names_order_and_weights_do_not_count(change: Callable[[ModelProto], None]) -> None:
    sound, changed = vbpr_graph(), vbpr_graph()
    change(changed)
    onnx.checker.check_model(changed)
    assert canonical_bytes(changed) != canonical_bytes(sound)
    assert fingerprint(changed) == fingerprint(sound)


def test_the_order_of_attributes_does_not_count() -> None:
    first, second = vbpr_graph(), vbpr_graph()
    node(first, "Gemm").attribute.append(helper.make_attribute("alpha", 0.5))
    node(second, "Gemm").attribute.insert(0, helper.make_attribute("alpha", 0.5))
    assert fingerprint(first) == fingerprint(second)
    node(second, "Gemm").attribute[0].f = 0.25
    assert fingerprint(first) != fingerprint(second)


def test_inner_graphs_belong_to_the_architecture() -> None:
    sound, changed = with_branches(1.0), with_branches(1.0)
    then = next(entry for entry in changed.graph.node[0].attribute if entry.name == "then_branch").g
    then.node[1].op_type = "Sub"
    assert fingerprint(sound) != fingerprint(changed)
    then.node[1].op_type = "Add"
    assert fingerprint(sound) == fingerprint(changed)
    then.node.append(helper.make_node("RandomNormalLike", ["then"], ["noise"]))
    assert operators(changed)["RandomNormalLike"] == 1
    assert operators(sound) == {"Add": 1, "Constant": 2, "If": 1, "Mul": 1}
