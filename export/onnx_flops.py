"""How many floating-point operations an ONNX graph takes for one user, counted from shapes. Needs only ``onnx``.

What is counted, with nothing folded or fused and every free dimension 1:

* matrix products (``MatMul``, ``Gemm``): 2·m·n·k, and one per output element for a ``Gemm``'s third operand;
* element by element (``Add``, ``Mul``, ``Sqrt``, ``Exp``, ``Sigmoid``, ``Relu``, ``Where``, comparisons …): one per
  output element, whatever the function; with several operands to choose from (``Max``, ``Clip``), one per comparison;
* reductions: one per input element, two where each is squared first;
* ``Softmax`` and ``LogSoftmax``: four per element (the shift, the exponential, the sum, the quotient);
* scatters with a reduction: one per update element;
* random numbers: one per number drawn;
* moving, casting, indexing and shapes: none.

An operator that is in none of these groups, or whose shapes cannot be told, is named in ``uncounted``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from export.onnx_canonical import RANDOM_OPERATORS
from export.onnx_shapes import shapes_of

PRODUCTS = frozenset({"MatMul", "Gemm"})
# fmt: off
_ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "And", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
        "GreaterOrEqual", "HardSigmoid", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod",
        "Mul", "Neg", "Not", "Or", "Pow", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor",
    }
)
# fmt: on
_CHOOSING = frozenset({"Max", "Min", "Sum", "Mean", "Clip"})
_REDUCING = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ArgMax"), 1),
    **dict.fromkeys(("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"), 2),
    **dict.fromkeys(("Softmax", "LogSoftmax"), 4),
}
_SCATTERING = frozenset({"ScatterND", "ScatterElements"})
# fmt: off
_MOVING = frozenset(
    {
        "Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "Identity", "NonZero", "Pad", "Range", "Reshape", "SequenceAt",
        "Shape", "Size", "Slice", "Split", "SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)
# fmt: on


@dataclass(frozen=True)
class Flops:
    """The count of one graph.

    Attributes:
        by_operator: Operator → operations for one user; operators that take none are left out.
        uncounted: Operators that could not be counted.
    """

    by_operator: dict[str, int]
    uncounted: list[str]

    @property
    def total(self) -> int:
        """Return all operations."""
        return sum(self.by_operator.values())

    @property
    def products(self) -> int:
        """Return the operations of the matrix products, biases left out."""
        return self.by_operator.get("MatMul", 0) + self.by_operator.get("Gemm", 0)


class _UncountableError(Exception):
    """An operator of no known group, or a shape that nobody declares and that does not follow from others."""


def count_flops(model: ModelProto) -> Flops:
    """Count a graph's operations for one user.

    Args:
        model: A parsed model.

    Returns:
        The count, a ``Gemm``'s third operand under ``Add``.
    """
    shapes = shapes_of(model.graph)
    counted: Counter[str] = Counter()
    uncounted: set[str] = set()
    for node in model.graph.node:
        try:
            for operator, operations in _of_node(node, shapes):
                counted[operator] += operations
        except _UncountableError:
            uncounted.add(str(node.op_type))
    counted += Counter()  # drops the zeros
    return Flops(dict(sorted(counted.items())), sorted(uncounted))


def _of_node(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    def elements(names: Sequence[str], place: int = 0) -> int:
        return math.prod(_shape(names, place, shapes))

    op = node.op_type
    if op in _MOVING:
        return []
    if op in PRODUCTS:
        out = elements(node.output)
        product = (op, 2 * _inner(node, shapes) * out)
        return [product, ("Add", out)] if op == "Gemm" and len(node.input) > 2 and node.input[2] else [product]
    if op in _ELEMENTWISE:
        times = max(0, sum(bool(name) for name in node.input) - 1) if op in _CHOOSING else 1
        return [(op, times * elements(node.output))]
    if op in _REDUCING:
        return [(op, _REDUCING[op] * elements(node.input))]
    if op in _SCATTERING:
        reduces = any(entry.name == "reduction" and entry.s != b"none" for entry in node.attribute)
        return [(op, elements(node.input, 2))] if reduces else []
    if op in RANDOM_OPERATORS:
        return [(op, elements(node.output))]
    raise _UncountableError


def _shape(names: Sequence[str], place: int, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    if place >= len(names) or names[place] not in shapes:
        raise _UncountableError
    return shapes[names[place]]


def _inner(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return k of an m×k by k×n product."""
    left = _shape(node.input, 0, shapes)
    if not left:
        raise _UncountableError
    turned = any(entry.name == "transA" and entry.i for entry in node.attribute)
    return left[0] if turned else left[-1]
