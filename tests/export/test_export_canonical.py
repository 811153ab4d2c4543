"""What is said of a graph without running it: clearing, blanking, fingerprint, counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper, numpy_helper

from export.certificate import GraphFacts
from export.onnx_canonical import (
    blank,
    canonical_bytes,
    fingerprint,
    flops_per_user,
    initializer_sizes,
    operators,
    parse,
)
from tests.helpers_export import messages

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
    assert fingerprint(canonical_bytes(changed)) != fingerprint(canonical_bytes(sound))
    assert blank(canonical_bytes(changed), LEARNED) != blank(canonical_bytes(sound), LEARNED)


def test_swapped_operands_of_equal_shape_escape_the_fingerprint_but_not_the_bytes() -> None:
    """Two learned tensors of one shape differ by name alone, which the fingerprint ignores and the bytes do not."""
    values = weights()

    def graph(operands: list[str]) -> bytes:
        model = vbpr_graph(values)
        model.graph.initializer.append(numpy_helper.from_array(values["Q"] + 1, "R"))
        node(model, "Concat").input[:] = operands
        return canonical_bytes(model)

    right, swapped = graph(["Q", "R"]), graph(["R", "Q"])
    assert fingerprint(right) == fingerprint(swapped)
    assert right != swapped
    assert blank(right, [*LEARNED, "R"]) != blank(swapped, [*LEARNED, "R"])


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
    assert fingerprint(canonical_bytes(changed)) == fingerprint(canonical_bytes(sound))


def test_the_order_of_attributes_does_not_count() -> None:
    first, second = vbpr_graph(), vbpr_graph()
    node(first, "Gemm").attribute.append(helper.make_attribute("alpha", 0.5))
    node(second, "Gemm").attribute.insert(0, helper.make_attribute("alpha", 0.5))
    assert fingerprint(first.SerializeToString()) == fingerprint(second.SerializeToString())
    node(second, "Gemm").attribute[0].f = 0.25
    assert fingerprint(first.SerializeToString()) != fingerprint(second.SerializeToString())


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


def test_inner_graphs_belong_to_the_architecture() -> None:
    sound, changed = with_branches(1.0), with_branches(1.0)
    then = next(entry for entry in changed.graph.node[0].attribute if entry.name == "then_branch").g
    then.node[1].op_type = "Sub"
    assert fingerprint(sound.SerializeToString()) != fingerprint(changed.SerializeToString())
    then.node[1].op_type = "Add"
    assert fingerprint(sound.SerializeToString()) == fingerprint(changed.SerializeToString())
    then.node.append(helper.make_node("RandomNormalLike", ["then"], ["noise"]))
    assert operators(changed.SerializeToString())["RandomNormalLike"] == 1
    assert operators(sound.SerializeToString()) == {"Add": 1, "Constant": 2, "If": 1, "Mul": 1}


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "RandomUniform", "Bernoulli", "Multinomial", "Dropout"])
def test_random_operators_are_named(op_type: str) -> None:
    model = vbpr_graph()
    insert(model, "Concat", helper.make_node(op_type, ["fused"], ["noise"]))
    assert GraphFacts.of(canonical_bytes(model), LEARNED).random_operators == [op_type]
    assert GraphFacts.of(canonical_bytes(vbpr_graph()), LEARNED).random_operators == []


def test_facts_by_hand() -> None:
    facts = GraphFacts.of(data := canonical_bytes(vbpr_graph()), LEARNED)
    assert facts.parameters == U * 2 * D + I * D + D * F + D
    assert facts.constants == I * F + 2
    assert facts.flops_per_user == 2 * I * F * D + 2 * 2 * D * I
    assert facts.size == len(data)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert initializer_sizes(data) == {"P": 40, "Q": 24, "W": 12, "b": 4, "M": 18, "shape": 2}
    assert facts.operators == {"Concat": 1, "Gather": 1, "Gemm": 1, "MatMul": 1, "Reshape": 1, "Transpose": 1}


def test_flops_of_a_transposed_left_operand() -> None:
    model = vbpr_graph()
    gemm = node(model, "Gemm")
    gemm.attribute.append(helper.make_attribute("transA", 1))
    initializer(model, "M").dims[:] = [F, I]
    assert flops_per_user(canonical_bytes(model)) == 2 * I * F * D + 2 * 2 * D * I


def test_blanking_zeroes_what_is_learned_and_nothing_else() -> None:
    model = parse(blank(canonical_bytes(vbpr_graph()), [*LEARNED, "not there"]))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, array in weights().items():
        expected = np.zeros_like(array) if name in LEARNED else array
        np.testing.assert_array_equal(arrays[name], expected, strict=True)
    np.testing.assert_array_equal(arrays["shape"], [-1, I])
    assert [entry.op_type for entry in model.graph.node] == [entry.op_type for entry in vbpr_graph().graph.node]


def test_blanked_bytes_depend_on_constants_not_on_weights_or_their_storage() -> None:
    sound = blank(canonical_bytes(vbpr_graph()), LEARNED)
    other = weights(1) | {"M": weights()["M"]}
    assert blank(canonical_bytes(vbpr_graph(other)), LEARNED) == sound
    typed = vbpr_graph()
    bias = initializer(typed, "b")
    bias.CopyFrom(helper.make_tensor("b", TensorProto.FLOAT, [D], weights(1)["b"].tolist()))
    assert bias.float_data
    assert blank(canonical_bytes(typed), LEARNED) == sound
    features = weights()
    features["M"][0, 0] += 1
    assert blank(canonical_bytes(vbpr_graph(features)), LEARNED) != sound


TRACE = "/home/someone/project/models/vbpr.py:12 stack_trace"


def everything_at_once() -> ModelProto:
    """A model with every kind of part that can carry a doc string: branches, constants, functions, sparse tensors."""
    model = with_branches(1.0)
    inner = with_branches(2.0).graph.node[0]
    model.functions.append(
        helper.make_function(
            "local",
            "f",
            ["choice", "x"],
            ["y"],
            [inner],
            [helper.make_opsetid("", 20)],
            attribute_protos=[helper.make_attribute("alpha", 1.0)],
        )
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64)), [2]
        )
    )
    model.graph.value_info.append(value("z", TensorProto.FLOAT, ["n"]))
    model.graph.node.append(
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(1, np.float32), "constant"))
    )
    return model


def plant_metadata(model: ModelProto) -> int:
    """Write into every doc string and every list of metadata there is."""
    planted = 0
    for message in list(messages(model)):
        fields = message.DESCRIPTOR.fields_by_name
        if "doc_string" in fields:
            message.doc_string = TRACE
            planted += 1
        if "metadata_props" in fields:
            message.metadata_props.append(StringStringEntryProto(key="stack_trace", value=TRACE))
            planted += 1
    model.producer_name, model.producer_version, model.domain, model.model_version = TRACE, TRACE, TRACE, 7
    return planted


@pytest.mark.parametrize("make", [vbpr_graph, everything_at_once], ids=["exported", "every part"])
def test_no_metadata_survives_anywhere(make: Callable[[], ModelProto]) -> None:
    clean, marked = make(), make()
    assert plant_metadata(marked) > 20
    data = canonical_bytes(marked)
    assert data == canonical_bytes(clean)
    for message in messages(parse(data)):
        present = {field.name for field, _ in message.ListFields()}
        assert not present & {"doc_string", "metadata_props"}, type(message).__name__
    assert TRACE.encode() not in data


def test_canonical_bytes_are_stable() -> None:
    data = canonical_bytes(vbpr_graph())
    assert canonical_bytes(parse(data)) == data
    assert fingerprint(data) == fingerprint(bytes(data))


def test_long_integer_constants_are_data() -> None:
    """Edges differ between data sets of one size; axes and shapes are the architecture."""

    def graph(count: int, first: int) -> bytes:
        model = vbpr_graph()
        model.graph.initializer.append(numpy_helper.from_array(np.arange(first, first + count), "edges"))
        return canonical_bytes(model)

    assert fingerprint(graph(64, 0)) != fingerprint(graph(64, 1))
    assert fingerprint(graph(65, 0)) == fingerprint(graph(65, 1))
    assert fingerprint(graph(65, 0)) != fingerprint(graph(66, 0))


def test_attributes_of_every_kind_count() -> None:
    """Strings, lists and tensors as attributes, not only numbers."""

    def graph(**attributes: object) -> str:
        model = vbpr_graph()
        transpose = node(model, "Transpose")
        transpose.attribute.extend(helper.make_attribute(name, part) for name, part in attributes.items())
        return fingerprint(model.SerializeToString())

    kinds: list[tuple[object, object]] = [
        (1, 2),
        (1.0, 2.0),
        ("a", "b"),
        ([1, 2], [2, 1]),
        ([1.0], [2.0]),
        (["a"], ["b"]),
        (numpy_helper.from_array(np.arange(3)), numpy_helper.from_array(np.arange(3) + 1)),
    ]
    for first, second in kinds:
        assert graph(extra=first) == graph(extra=first)
        assert graph(extra=first) != graph(extra=second)
    assert graph(extra=1) != graph(extra=1.0)
