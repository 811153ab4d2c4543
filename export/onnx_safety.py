"""Which ONNX graphs of a bundle may be run. Needs only the ``onnx`` package.

ONNX Runtime opens files that a graph names, relative to the working directory, allocates what a graph declares, and
runs whatever operators it knows. So the bytes are looked at here before any session is made of them: only what the
project's own exports consist of may pass. Every tensor, node and graph counts, wherever it hangs: the walk follows the
protobuf descriptors and not a list of known places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorAnnotation,
    TensorProto,
    ValueInfoProto,
)
from onnx import TrainingInfoProto as TrainingInfo

from export.onnx_canonical import RANDOM_OPERATORS, messages
from training.common.errors import BundleError, shown

DOMAINS = frozenset({"", "ai.onnx"})

OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Add", "Div", "Exp", "Max", "Mul", "Reciprocal", "Relu", "Sqrt", "Sub"), ()),
    **dict.fromkeys(("Clip", "Expand", "Identity", "MatMul", "Slice", "Squeeze", "Unsqueeze"), ()),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum"), ("keepdims", "noop_with_empty_axes")),
    "Cast": ("to",),
    "Concat": ("axis",),
    "Constant": ("value", "value_ints"),
    "ConstantOfShape": ("value",),
    "Gather": ("axis",),
    "GatherND": ("batch_dims",),
    "Gemm": ("alpha", "beta", "transA", "transB"),
    "LeakyRelu": ("alpha",),
    "Reshape": ("allowzero",),
    "ScatterElements": ("axis", "reduction"),
    "ScatterND": ("reduction",),
    "Shape": ("start", "end"),
    "TopK": ("axis", "largest", "sorted"),
    "Transpose": ("perm",),
}
"""What the graphs of the project's models consist of, with its attributes. A new model may need a line here."""

_ITEM_SIZES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
}
_MAX_RANK = 8
_TENSOR_FIELDS = {"name", "dims", "data_type", "raw_data"}
_ATTRIBUTE_FIELDS: dict[int, str] = {
    AttributeProto.INT: "i",
    AttributeProto.FLOAT: "f",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.INTS: "ints",
}
_ORT_FORMAT = b"ORTM"

USERS, VECTORS = "users", "vectors"
"""Input and output of the user tower."""


def check_graph(data: bytes, name: str) -> ModelProto:
    """Refuse a serialised ONNX model that reaches beyond itself, or holds what no export of this project holds.

    Time and memory of what passes are bounded for each node but not in all: a graph of allowed nodes can still be made
    to compute for long.

    Args:
        data: The very bytes that a session will be made of.
        name: The file they come from, for the message.

    Returns:
        The parsed model.

    Raises:
        BundleError: It is no ONNX model; it has external data, sparse tensors, local functions, training information,
            graphs within nodes, other operators, attributes or domains, tensors whose declared size is not that of
            their content; or it holds fields unknown to this program.
    """
    # ONNX Runtime takes such bytes for a flatbuffer of its own, also where they parse as a protobuf of another content.
    if data[4:8] == _ORT_FORMAT:
        raise BundleError(f"{name} is in ONNX Runtime's own format, wanted ONNX; export the bundle again")
    try:
        model = ModelProto.FromString(data)
        reason = next(_reasons(model), None)
    except (DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{name} is no ONNX model; export the bundle again") from error
    if reason is not None:
        raise _refusal(name, reason)
    return cast(ModelProto, model)


def check_user_tower(data: bytes, name: str, n_users: int, dimension: int) -> None:
    """Refuse anything but a table of user vectors and one look-up: what the service runs computes nothing.

    Args:
        data: ``users`` int64 [B] → ``vectors`` float32 [B, D].
        name: The file it comes from, for the message.
        n_users: Rows of the table.
        dimension: D.

    Raises:
        BundleError: See `check_graph`; or it is another graph, or its table has another shape.
    """
    graph = check_graph(data, name).graph
    nodes, tables = list(graph.node), list(graph.initializer)
    if [node.op_type for node in nodes] != ["Gather"] or len(tables) != 1:
        raise _refusal(name, f"has {len(nodes)} nodes and {len(tables)} tables, wanted one Gather from one table")
    node, table = nodes[0], tables[0]
    if (
        list(node.input) != [table.name, USERS]
        or list(node.output) != [VECTORS]
        or any(attribute.i or attribute.type != AttributeProto.INT for attribute in node.attribute)
        or _ports(graph.input) != [(USERS, TensorProto.INT64, 1)]
        or _ports(graph.output) != [(VECTORS, TensorProto.FLOAT, 2)]
        or any(value.name != table.name for value in graph.value_info)
    ):
        raise _refusal(name, f"does not look {VECTORS} float32 up for {USERS} int64, row by row")
    found = (table.data_type, tuple(table.dims))
    if found != (TensorProto.FLOAT, (n_users, dimension)):
        raise _refusal(
            name, f"has a table of type {found[0]} and shape {found[1]}, wanted float32 {n_users, dimension}"
        )


def _refusal(name: str, reason: str) -> BundleError:
    return BundleError(f"{name} {reason}; such graphs are not run, export the bundle again")


def _ports(values: Any) -> list[tuple[str, int, int]]:
    return [(port.name, port.type.tensor_type.elem_type, len(port.type.tensor_type.shape.dim)) for port in values]


def _reasons(model: ModelProto) -> Iterator[str]:
    if not model.HasField("graph"):
        yield "holds no graph"
    for message in messages(model):
        if len(UnknownFieldSet(message)):
            yield f"holds a field that this program does not know, in a {message.DESCRIPTOR.name}"
        yield from _reasons_of(message)


def _reasons_of(message: Any) -> Iterator[str]:
    match message:
        case TensorProto():
            yield from _reasons_of_tensor(message)
        case NodeProto():
            yield from _reasons_of_node(message)
        case ValueInfoProto():
            yield from _reasons_of_value(message)
        case OperatorSetIdProto():
            if message.domain not in DOMAINS:
                yield f"imports the operator domain {shown(message.domain)}"
        case SparseTensorProto():
            yield f"holds the sparse tensor {shown(message.values.name)}"
        case FunctionProto():
            yield f"defines the local function {shown(message.name)}"
        case TrainingInfo():
            yield "holds training information"
        case TensorAnnotation():
            yield f"annotates the tensor {shown(message.tensor_name)}"


def _reasons_of_tensor(tensor: TensorProto) -> Iterator[str]:
    if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
        yield f"keeps the tensor {shown(tensor.name)} in another file"
    if {field.name for field, _ in tensor.ListFields()} - _TENSOR_FIELDS or tensor.data_type not in _ITEM_SIZES:
        yield f"stores the tensor {shown(tensor.name)} in a way that no export does"
    elif len(tensor.dims) > _MAX_RANK or any(size < 0 for size in tensor.dims):
        yield f"holds the tensor {shown(tensor.name)} of an impossible shape"
    elif (declared := math.prod(tensor.dims) * _ITEM_SIZES[tensor.data_type]) != len(tensor.raw_data):
        yield f"declares {declared} bytes for the tensor {shown(tensor.name)} and carries {len(tensor.raw_data)}"


def _reasons_of_value(value: ValueInfoProto) -> Iterator[str]:
    tensor = value.type.tensor_type
    if {field.name for field, _ in value.type.ListFields()} != {"tensor_type"} or tensor.elem_type not in _ITEM_SIZES:
        yield f"gives {shown(value.name)} a type that no export needs"
    if len(tensor.shape.dim) > _MAX_RANK:
        yield f"gives {shown(value.name)} {len(tensor.shape.dim)} dimensions"


def _reasons_of_node(node: NodeProto) -> Iterator[str]:
    if node.domain not in DOMAINS:
        yield f"uses the operator {shown(node.op_type)} of the domain {shown(node.domain)}"
    if node.op_type in RANDOM_OPERATORS:
        yield f"uses the random operator {node.op_type}"
    if node.op_type not in OPERATORS:
        yield f"uses the operator {shown(node.op_type)}, which no export needs"
    if not node.output or (not node.input and node.op_type != "Constant"):
        yield f"gives the operator {shown(node.op_type)} no input or no output"
    for attribute in node.attribute:
        value = _ATTRIBUTE_FIELDS.get(attribute.type)
        fields = {field.name for field, _ in attribute.ListFields()}
        # An empty list is there without being seen.
        usual = fields - {"name", "type"} == {value} or (value == "ints" and fields == {"name", "type"})
        if not usual or attribute.name not in OPERATORS.get(node.op_type, ()):
            yield f"gives the operator {shown(node.op_type)} the attribute {shown(attribute.name)}"
