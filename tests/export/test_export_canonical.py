"""What is said of a graph without running it: clearing, blanking, counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper, numpy_helper

from export.certificate import GraphFacts
from export.onnx_canonical import blank, canonical_bytes, initializer_shapes, opset, parse
from export.onnx_fingerprint import fingerprint
from tests.helpers_export import messages
from tests.helpers_graphs import (
    LEARNED,
    D,
    F,
    I,
    U,
    initializer,
    insert,
    node,
    value,
    vbpr_graph,
    weights,
    with_branches,
)


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
    assert facts.matmul_flops_per_user == 2 * I * F * D + 2 * 2 * D * I
    assert facts.flops_per_user == facts.matmul_flops_per_user + I * D
    assert facts.flops_by_operator == {"Add": I * D, "Gemm": 2 * I * F * D, "MatMul": 2 * 2 * D * I}
    assert (facts.uncounted, facts.opset) == ([], 20)
    assert facts.size == len(data)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    shapes = {"P": [U, 2 * D], "Q": [I, D], "W": [D, F], "b": [D], "M": [I, F], "shape": [2]}
    assert facts.tensors == initializer_shapes(parse(data)) == shapes
    assert facts.operators == {"Concat": 1, "Gather": 1, "Gemm": 1, "MatMul": 1, "Reshape": 1, "Transpose": 1}


def test_the_operator_set_is_that_of_the_standard_operators() -> None:
    model = vbpr_graph()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 99))
    assert opset(model) == opset(model.SerializeToString()) == 20
    del model.opset_import[:]
    assert opset(model) == 0


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
    assert fingerprint(parse(data)) == fingerprint(vbpr_graph())


def test_long_integer_constants_are_data() -> None:
    """Edges differ between data sets of one size; axes and shapes are the architecture."""

    def graph(count: int, first: int) -> ModelProto:
        model = vbpr_graph()
        model.graph.initializer.append(numpy_helper.from_array(np.arange(first, first + count), "edges"))
        return model

    assert fingerprint(graph(64, 0)) != fingerprint(graph(64, 1))
    assert fingerprint(graph(65, 0)) == fingerprint(graph(65, 1))
    assert fingerprint(graph(65, 0)) != fingerprint(graph(66, 0))


def test_attributes_of_every_kind_count() -> None:
    """Strings, lists and tensors as attributes, not only numbers."""

    def graph(**attributes: object) -> str:
        model = vbpr_graph()
        transpose = node(model, "Transpose")
        transpose.attribute.extend(helper.make_attribute(name, part) for name, part in attributes.items())
        return fingerprint(model)

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
