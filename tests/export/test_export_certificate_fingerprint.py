"""The fingerprint of random graphs: two have the same exactly if one is the other under other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx  # type: ignore[import-untyped]
import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import categorical_node_match  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.onnx_fingerprint import fingerprint
from tests.helpers_graphs import value

SIDE = 3
"""Every value is a SIDE × SIDE matrix, so that every edge may be moved without a shape to tell."""
ARITY = {"Add": 2, "Sub": 2, "MatMul": 2, "Gemm": 3, "Relu": 1, "Transpose": 1}
Graph = tuple[ModelProto, list[str]]


def build(tensors: list[str], nodes: list[tuple[str, list[str]]], seed: int = 0) -> ModelProto:
    """Make a graph of ``n0``, ``n1`` …; whatever nobody uses is an output."""
    draw = np.random.default_rng(seed)
    used = {operand for _, operands in nodes for operand in operands}
    loose = [f"n{index}" for index in range(len(nodes)) if f"n{index}" not in used]
    graph = helper.make_graph(
        [
            helper.make_node(op, operands, [f"n{index}"], perm=[1, 0] if op == "Transpose" else None)
            for index, (op, operands) in enumerate(nodes)
        ],
        "random",
        [value("x", TensorProto.FLOAT, ["batch", SIDE])],
        [value(name, TensorProto.FLOAT, ["batch", SIDE]) for name in loose],
        [numpy_helper.from_array(draw.standard_normal((SIDE, SIDE)).astype(np.float32), name) for name in tensors],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph in which every node is needed, and which of its tensors are learned."""
    tensors = [f"t{index}" for index in range(draw(st.integers(1, 4)))]
    known, nodes = ["x", *tensors], []
    for index in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(sorted(ARITY)))
        nodes.append((op, [draw(st.sampled_from(known)) for _ in range(ARITY[op])]))
        known.append(f"n{index}")
    return build(tensors, nodes, draw(st.integers(0, 9))), draw(st.lists(st.sampled_from(tensors), unique=True))


def drawing(model: ModelProto, learned: list[str], *, named: bool) -> Any:
    """The same graph for networkx: a vertex for every tensor, node and place of an operand, without other names."""
    drawn = networkx.DiGraph()
    for entry in model.graph.input:
        drawn.add_node(entry.name, label=("input", entry.name))
    for tensor in model.graph.initializer:
        drawn.add_node(
            tensor.name, label=("tensor", tensor.name in learned, tensor.data_type, tensor.name if named else "")
        )
    for index, part in enumerate(model.graph.node):
        drawn.add_node(part.output[0], label=("node", part.op_type, str(part.attribute)))
        for place, operand in enumerate(part.input):
            drawn.add_node((index, place), label=("place", place))
            drawn.add_edge(operand, (index, place))
            drawn.add_edge((index, place), part.output[0])
    for place, entry in enumerate(model.graph.output):
        drawn.add_node(("output", place), label=("output", place))
        drawn.add_edge(entry.name, ("output", place))
    return drawn


def isomorphic(first: ModelProto, second: ModelProto, learned: list[str], *, named: bool = False) -> bool:
    left, right = (drawing(model, learned, named=named) for model in (first, second))
    return bool(networkx.is_isomorphic(left, right, node_match=categorical_node_match("label", None)))


def copied(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def shuffled(model: ModelProto, seed: int) -> ModelProto:
    """Another topological order, initialisers in another order, other weights."""
    draw, other = np.random.default_rng(seed), copied(model)
    waiting, done = list(model.graph.node), {"x", *(tensor.name for tensor in model.graph.initializer)}
    del other.graph.node[:]
    while waiting:
        ready = [part for part in waiting if done.issuperset(part.input)]
        chosen = ready[draw.integers(len(ready))]
        waiting.remove(chosen)
        done.update(chosen.output)
        other.graph.node.append(chosen)
    tensors = [model.graph.initializer[place] for place in draw.permutation(len(model.graph.initializer))]
    del other.graph.initializer[:]
    for tensor in tensors:
        array = np.full((SIDE, SIDE), draw.random(), np.float32)
        other.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
    return other


def renamed(model: ModelProto) -> ModelProto:
    """Every name another, in another alphabetical order; a name says nothing."""
    other = copied(model)
    names = [entry.name for entry in (*other.graph.input, *other.graph.initializer)]
    names += [part.output[0] for part in other.graph.node]
    new = {name: f"v{len(names) - place}" for place, name in enumerate(names)}
    for entry in (*other.graph.input, *other.graph.initializer, *other.graph.output):
        entry.name = new[entry.name]
    for part in other.graph.node:
        part.input[:] = [new[name] for name in part.input]
        part.output[:] = [new[name] for name in part.output]
    return other


@given(graphs(), st.integers(0, 99))
@settings(max_examples=100)
def test_names_order_and_weights_do_not_count(graph: Graph, seed: int) -> None:
    model, learned = graph
    other = renamed(model)
    pairs = zip(model.graph.initializer, other.graph.initializer, strict=True)
    new_learned = [new.name for old, new in pairs if old.name in learned]
    assert fingerprint(shuffled(model, seed), learned) == fingerprint(model, learned)
    assert fingerprint(shuffled(model, seed), learned, named=True) == fingerprint(model, learned, named=True)
    assert fingerprint(other, new_learned) == fingerprint(model, learned)


@given(graphs(), st.data())
@settings(max_examples=150)
def test_an_edge_counts_exactly_if_no_renaming_undoes_its_change(graph: Graph, data: st.DataObject) -> None:
    """Move an edge, or swap two operands: networkx is the judge of whether that made another architecture."""
    model, learned = graph
    other = copied(model)
    index = data.draw(st.integers(0, len(other.graph.node) - 1))
    part = other.graph.node[index]
    place = data.draw(st.integers(0, len(part.input) - 1))
    if data.draw(st.booleans()):
        earlier = ["x", *(tensor.name for tensor in other.graph.initializer), *(f"n{step}" for step in range(index))]
        part.input[place] = data.draw(st.sampled_from(earlier))
    else:
        partner = data.draw(st.integers(0, len(part.input) - 1))
        part.input[place], part.input[partner] = part.input[partner], part.input[place]
    # What nobody uses any more would be a dead node; here it becomes an output.
    used = {operand for node in other.graph.node for operand in node.input}
    loose = [f"n{step}" for step in range(len(other.graph.node)) if f"n{step}" not in used]
    del other.graph.output[:]
    other.graph.output.extend(value(name, TensorProto.FLOAT, ["batch", SIDE]) for name in loose)
    for named in (False, True):
        same = fingerprint(other, learned, named=named) == fingerprint(model, learned, named=named)
        assert same == isomorphic(other, model, learned, named=named)


def other_operator(model: ModelProto, pick: int) -> None:
    part = model.graph.node[pick % len(model.graph.node)]
    part.op_type = {"Add": "Mul", "Sub": "Div", "MatMul": "Mod", "Gemm": "Where", "Relu": "Neg"}.get(
        part.op_type, "Exp"
    )


def other_attribute(model: ModelProto, pick: int) -> None:
    model.graph.node[pick % len(model.graph.node)].attribute.append(helper.make_attribute("alpha", 0.5))


def other_shape(model: ModelProto, pick: int) -> None:
    tensor = model.graph.initializer[pick % len(model.graph.initializer)]
    tensor.dims[:] = [SIDE * SIDE]


def other_type(model: ModelProto, pick: int) -> None:
    tensor = model.graph.initializer[pick % len(model.graph.initializer)]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def added_cast(model: ModelProto, pick: int) -> None:
    part = model.graph.node[pick % len(model.graph.node)]
    model.graph.node.insert(0, helper.make_node("Cast", [part.input[0]], ["cast"], to=TensorProto.FLOAT))
    part.input[0] = "cast"


def removed_node(model: ModelProto, pick: int) -> None:
    """The node's first operand takes its place."""
    part = model.graph.node.pop(pick % len(model.graph.node))
    for other in model.graph.node:
        other.input[:] = [part.input[0] if name == part.output[0] else name for name in other.input]
    for entry in model.graph.output:
        entry.name = part.input[0] if entry.name == part.output[0] else entry.name


def added_dead_node(model: ModelProto, pick: int) -> None:
    operand = model.graph.node[pick % len(model.graph.node)].output[0]
    model.graph.node.append(helper.make_node("Relu", [operand], ["dead"]))


def added_tensor(model: ModelProto, pick: int) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.full((SIDE, SIDE), pick, np.float32), "leftover"))


def fixed_batch(model: ModelProto, pick: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 + pick


def declared_type(model: ModelProto, pick: int) -> None:
    name = model.graph.node[pick % len(model.graph.node)].output[0]
    entry = next((entry for entry in model.graph.output if entry.name == name), None)
    if entry is None:
        entry = model.graph.value_info.add()
        entry.name = name
    entry.type.tensor_type.elem_type = TensorProto.FLOAT16


MUTATIONS: list[Callable[[ModelProto, int], None]] = [
    other_operator,
    other_attribute,
    other_shape,
    other_type,
    added_cast,
    removed_node,
    added_dead_node,
    added_tensor,
    fixed_batch,
    declared_type,
]


@given(graphs(), st.sampled_from(MUTATIONS), st.integers(0, 9))
@settings(max_examples=150)
def test_any_single_mutation_is_seen(graph: Graph, mutate: Callable[[ModelProto, int], None], pick: int) -> None:
    model, learned = graph
    other = copied(model)
    mutate(other, pick)
    assert fingerprint(other, learned) != fingerprint(model, learned)


def test_edges_between_dead_nodes_count() -> None:
    """Nodes that no output needs are listed by what they compute."""

    def dead(first: str, second: str) -> str:
        model = build(["t0", "t1"], [("Add", ["x", "t0"])])
        model.graph.node.append(helper.make_node("Relu", [first], ["a"]))
        model.graph.node.append(helper.make_node("Neg", ["a"], ["b"]))
        model.graph.node.append(helper.make_node("Sub", [second, "b"], ["c"]))
        return fingerprint(model)

    prints = {dead(*pair) for pair in (("t0", "t1"), ("t1", "t0"), ("x", "t0"), ("t0", "a"), ("n0", "t0"))}
    assert len(prints) == 5


def test_a_circle_and_a_repeated_name_end() -> None:
    """No ONNX, but what a stranger may send."""
    model = build(["t0"], [("Add", ["x", "t0"]), ("Relu", ["n0"])])
    sound = fingerprint(model)
    model.graph.node[0].input[0] = "n1"
    circle = fingerprint(model)
    model.graph.node[0].output[0] = "n1"
    assert len({sound, circle, fingerprint(model)}) == 3


def test_a_long_chain_is_walked_without_recursion() -> None:
    nodes = [("Relu", [f"n{index - 1}" if index else "x"]) for index in range(5000)]
    assert fingerprint(build([], nodes)) != fingerprint(build([], nodes[:-1]))


def test_function_bodies_count() -> None:
    def with_function(op: str, operands: list[str]) -> str:
        model = build(["t0"], [("Add", ["x", "t0"])])
        body = [onnx.helper.make_node(op, operands, ["y"])]
        model.functions.append(
            helper.make_function("local", "f", ["a", "b"], ["y"], body, [helper.make_opsetid("", 20)])
        )
        return fingerprint(model)

    prints = {with_function(*pair) for pair in (("Sub", ["a", "b"]), ("Sub", ["b", "a"]), ("Add", ["a", "b"]))}
    assert len(prints) == 3
