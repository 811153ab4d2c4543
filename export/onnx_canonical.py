"""What can be said of an ONNX graph without running it. Needs only the ``onnx`` package.

Everything here works on serialised or parsed ``ModelProto``: clearing metadata, blanking learned tensors, an
architecture fingerprint, counts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
_SMALL_CONSTANT = 64
"""Integer constants up to so many elements (axes, shapes) belong to the architecture; larger ones are data."""


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages within, wherever they hang."""
    yield message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            continue
        value = getattr(message, field.name)
        if not hasattr(value, "DESCRIPTOR"):
            for inner in value:
                yield from messages(inner)
        elif message.HasField(field.name):
            yield from messages(value)


def clear_metadata(model: ModelProto) -> None:
    """Remove everything that does not compute: doc strings, metadata, producer.

    Exporters write stack traces, absolute paths and class names there, which would make the bytes depend on where the
    export ran.
    """
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    for message in messages(model):
        fields = message.DESCRIPTOR.fields_by_name
        for name in ("doc_string", "metadata_props"):
            if name in fields:
                message.ClearField(name)


def canonical_bytes(model: ModelProto) -> bytes:
    """Clear the metadata and serialise deterministically."""
    clear_metadata(model)
    return bytes(model.SerializeToString(deterministic=True))


def parse(data: bytes) -> ModelProto:
    """Parse a serialised model."""
    return onnx.load_model_from_string(data)


def opset(data: bytes) -> int:
    """Return the version of the standard operators that a serialised model uses."""
    version: int = next(entry.version for entry in parse(data).opset_import if not entry.domain)
    return version


def initializer_sizes(data: bytes) -> dict[str, int]:
    """Return name → number of elements of every initialiser."""
    return {tensor.name: math.prod(tensor.dims) for tensor in parse(data).graph.initializer}


def blank(data: bytes, learned: Iterable[str]) -> bytes:
    """Set the named initialisers to zero and serialise again; all others (features, edges) stay.

    Args:
        data: A model with canonical bytes.
        learned: Names of initialisers; one that is not there is ignored.
    """
    model = parse(data)
    names = set(learned)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            zeros = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            zeros.raw_data = bytes(size * math.prod(tensor.dims))
            tensor.CopyFrom(zeros)
    return canonical_bytes(model)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _attribute(attribute: AttributeProto) -> tuple[object, ...]:
    value: object = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        value = _constant(value)
    elif isinstance(value, GraphProto):
        value = _fingerprint_graph(value)
    elif attribute.graphs:
        value = tuple(_fingerprint_graph(graph) for graph in attribute.graphs)
    elif not isinstance(value, int | float | bytes):
        value = tuple(value) if isinstance(value, Iterable) else str(value)
    return attribute.name, attribute.type, value


def _constant(tensor: TensorProto) -> tuple[object, ...]:
    shape = tuple(tensor.dims)
    integral = tensor.data_type in {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
    if integral and math.prod(shape) <= _SMALL_CONSTANT:
        return "constant", tensor.data_type, shape, tuple(onnx.numpy_helper.to_array(tensor).ravel().tolist())
    return "tensor", tensor.data_type, shape


def _type(value: ValueInfoProto) -> tuple[object, ...]:
    tensor = value.type.tensor_type
    # A free dimension has a name, and names do not count; a fixed one counts.
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else "free" for dim in tensor.shape.dim)
    return tensor.elem_type, shape


def _fingerprint_graph(graph: GraphProto) -> str:
    known: dict[str, str] = {"": "absent"}
    for position, value in enumerate(graph.input):
        known[value.name] = _digest("input", position, _type(value))
    for tensor in graph.initializer:
        known[tensor.name] = _digest(_constant(tensor))
    types = {value.name: _type(value) for value in (*graph.value_info, *graph.output)}
    nodes = []
    for node in graph.node:
        operands = tuple(known.get(name, _digest("outer", name)) for name in node.input)
        attributes = tuple(sorted((_attribute(entry) for entry in node.attribute), key=lambda entry: str(entry[0])))
        results = tuple(types.get(name) for name in node.output)
        digest = _digest(node.domain, node.op_type, operands, attributes, results)
        nodes.append(digest)
        for position, name in enumerate(node.output):
            known[name] = _digest(digest, position)
    outputs = tuple((known[value.name], _type(value)) for value in graph.output)
    tensors = sorted(str(_constant(tensor)) for tensor in graph.initializer)
    return _digest(sorted(nodes), outputs, tensors)


def fingerprint(data: bytes) -> str:
    """Return a hash of the architecture: operators, attributes, edges, shapes and types.

    It ignores names, node order among independent nodes, and the values of tensors (except small integer constants such
    as axes and shapes, which determine what is computed).
    """
    model = parse(data)
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    functions = sorted(
        _digest(function.domain, function.name, [(node.op_type, list(node.input)) for node in function.node])
        for function in model.functions
    )
    return _digest(opsets, functions, _fingerprint_graph(model.graph))


def operators(data: bytes) -> dict[str, int]:
    """Count the nodes of every operator, inner graphs and functions included."""
    model = parse(data)
    nodes: list[NodeProto] = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return dict(sorted(Counter(node.op_type for node in nodes).items()))


def flops_per_user(data: bytes) -> int:
    """Count 2·m·n·k of every matrix product, for one user and with nothing folded."""
    graph = parse(data).graph
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type in {"MatMul", "Gemm"}:
            left = shapes[node.input[0]]
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            inner = left[0] if transposed else left[-1]
            total += 2 * inner * math.prod(shapes[node.output[0]])
    return total
