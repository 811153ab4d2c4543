"""What ONNX Runtime would hold to fold a graph. Needs only the ``onnx`` package.

It computes all that does not depend on an input when it loads a graph, and keeps every intermediate result until the
whole graph is folded. A graph network over many edges, whose messages alone are larger than all of its tables, then
takes gigabytes for vectors of a few megabytes.
"""

from __future__ import annotations

import math

import onnx
from onnx import GraphProto, TensorProto

from export.onnx_canonical import parse
from export.onnx_shapes import shapes_of

LARGEST_FOLDING = 2 * 10**9
"""Bytes of intermediate results; a graph that would hold more is opened unfolded."""


def folded_bytes(graph: GraphProto) -> int:
    """Return the size of all results that do not depend on an input.

    Args:
        graph: Its nodes in topological order.
    """
    shapes = shapes_of(graph)
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    dependent = {value.name for value in graph.input}
    total = 0
    for node in graph.node:
        if any(name in dependent for name in node.input):
            dependent.update(node.output)
            continue
        for name in node.output:
            kind = types.get(name, TensorProto.FLOAT)
            total += math.prod(shapes.get(name, ())) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return total


def is_worth_folding(data: bytes) -> bool:
    """Tell whether a serialised graph may be folded at load."""
    return folded_bytes(parse(data).graph) <= LARGEST_FOLDING
