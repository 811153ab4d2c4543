"""The shapes of an ONNX graph's values, as far as they can be told. Needs only the ``onnx`` package.

Exporters declare most shapes; those between the lines (the index arithmetic around a scatter) follow from others. The
inference that ``onnx`` brings can be made to take any amount of memory by a graph of a few bytes, and graphs come from
strangers too: this one knows a few rules, and what it does not know stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

Shape = tuple[int, ...]
_MOST_VALUES = 64
"""Of an integer tensor that may be a shape, an axis or a list of them."""
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def shapes_of(graph: GraphProto) -> dict[str, Shape]:
    """Return value → shape, with 1 for every dimension that is free.

    Args:
        graph: Nodes in topological order, without regard to inner graphs.
    """
    known = _Known()
    for tensor in graph.initializer:
        known.learn(tensor.name, tensor)
    for value in (*graph.input, *graph.value_info, *graph.output):
        declared = value.type.tensor_type
        if declared.HasField("shape") and value.name not in known.shapes:
            known.shapes[value.name] = tuple(dim.dim_value or 1 for dim in declared.shape.dim)
    for node in graph.node:
        known.follow(node)
    return known.shapes


class _Known:
    """Shapes of values, and the content of those few that say what shape another has."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, Shape] = {}

    def learn(self, name: str, tensor: TensorProto) -> None:
        """Take over a constant tensor."""
        self.shapes[name] = tuple(tensor.dims)
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) <= _MOST_VALUES:
            self.values[name] = tuple(int(entry) for entry in numpy_helper.to_array(tensor).ravel())

    def follow(self, node: NodeProto) -> None:
        """Find out what follows for a node's first result."""
        if not node.output:
            return
        result, attributes = node.output[0], {entry.name: entry for entry in node.attribute}
        if node.op_type == "Constant":
            self._constant(result, attributes)
            return
        try:
            shape = _shape_of(node, attributes, self)
            value = _value_of(node, self)
        except (KeyError, IndexError, ValueError):
            # An operand is unknown, or the node is none that could run.
            return
        if value is not None and len(value) <= _MOST_VALUES:
            self.values[result] = value
        if shape is not None and all(size >= 0 for size in shape):
            self.shapes.setdefault(result, shape)

    def _constant(self, name: str, attributes: dict[str, AttributeProto]) -> None:
        if "value" in attributes:
            self.learn(name, attributes["value"].t)
        elif "value_ints" in attributes:
            self.values[name] = tuple(attributes["value_ints"].ints)[:_MOST_VALUES]
            self.shapes[name] = (len(attributes["value_ints"].ints),)
        elif "value_int" in attributes:
            self.values[name], self.shapes[name] = (attributes["value_int"].i,), ()
        elif "value_float" in attributes:
            self.shapes[name] = ()


def _value_of(node: NodeProto, known: _Known) -> Shape | None:
    """Return the content of a node's result where it is an integer list that follows from others."""
    op, operands = node.op_type, node.input
    if op == "Shape":
        return known.shapes[operands[0]]
    if op in {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"}:
        return known.values.get(operands[0])
    if op == "Concat" and all(name in known.values for name in operands):
        return tuple(entry for name in operands for entry in known.values[name])
    if op == "Gather" and operands[0] in known.values and operands[1] in known.values:
        return tuple(known.values[operands[0]][place] for place in known.values[operands[1]])
    return None


def _shape_of(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    if node.op_type in _RULES:
        return _RULES[node.op_type](node, attributes, known)
    return broadcast(*(known.shapes[name] for name in node.input if name)) if node.op_type in _BROADCASTING else None


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that several are stretched to.

    Raises:
        ValueError: They do not fit together.
    """
    rank = max(map(len, shapes), default=0)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        wanted = {size for size in sizes if size != 1}
        if len(wanted) > 1:
            raise ValueError(f"{shapes} do not fit together")
        result.append(wanted.pop() if wanted else 1)
    return tuple(result)


def _reshape(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    before, target = known.shapes[node.input[0]], known.values[node.input[1]]
    keeps_zero = "allowzero" in attributes and attributes["allowzero"].i
    sizes = [before[axis] if size == 0 and not keeps_zero else size for axis, size in enumerate(target)]
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(before) // rest if rest > 0 else -1
    return tuple(sizes)


def _transpose(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    shape = known.shapes[node.input[0]]
    order = attributes["perm"].ints if "perm" in attributes else reversed(range(len(shape)))
    return tuple(shape[axis] for axis in order)


def _unsqueeze(node: NodeProto, _: dict[str, AttributeProto], known: _Known) -> Shape | None:
    shape, axes = list(known.shapes[node.input[0]]), known.values[node.input[1]]
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return tuple(shape)


def _concat(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    shapes = [known.shapes[name] for name in node.input]
    axis = attributes["axis"].i % len(shapes[0])
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _gather(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    data, rows = known.shapes[node.input[0]], known.shapes[node.input[1]]
    axis = (attributes["axis"].i if "axis" in attributes else 0) % len(data)
    return (*data[:axis], *rows, *data[axis + 1 :])


def _gather_nd(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    data, rows = known.shapes[node.input[0]], known.shapes[node.input[1]]
    if "batch_dims" in attributes and attributes["batch_dims"].i:
        return None
    return (*rows[:-1], *data[rows[-1] :])


def _product(node: NodeProto, attributes: dict[str, AttributeProto], known: _Known) -> Shape | None:
    left, right = (known.shapes[name] for name in node.input[:2])
    if len(left) != 2 or len(right) != 2:
        return None
    rows = left[1] if "transA" in attributes and attributes["transA"].i else left[0]
    return rows, right[0] if "transB" in attributes and attributes["transB"].i else right[1]


def _as_first(node: NodeProto, _: dict[str, AttributeProto], known: _Known) -> Shape | None:
    return known.shapes[node.input[0]]


_BROADCASTING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Less", "Greater", "Equal", "And", "Or", "Where"}
)
_RULES: dict[str, Callable[[NodeProto, dict[str, AttributeProto], _Known], Shape | None]] = {
    **dict.fromkeys(
        ("Cast", "Identity", "Clip", "Neg", "Not", "Exp", "Sqrt", "Relu", "LeakyRelu", "Sigmoid", "Reciprocal"),
        _as_first,
    ),
    **dict.fromkeys(("Softmax", "ScatterND", "ScatterElements", "RandomNormalLike", "RandomUniformLike"), _as_first),
    **dict.fromkeys(("MatMul", "Gemm"), _product),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Expand": lambda node, _, known: broadcast(known.shapes[node.input[0]], known.values[node.input[1]]),
    "ConstantOfShape": lambda node, _, known: known.values[node.input[0]],
    "Shape": lambda node, _, known: (len(known.shapes[node.input[0]]),),
}
