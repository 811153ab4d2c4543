"""What can be said of an ONNX graph without running it. Needs only the ``onnx`` package.

Everything here works on serialised or parsed ``ModelProto``: clearing metadata, blanking learned tensors, counts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


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


def opset(source: bytes | ModelProto) -> int:
    """Return the version of the standard operators that a model uses, serialised or parsed; 0 where it names none."""
    model = source if isinstance(source, ModelProto) else parse(source)
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def initializer_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Return name → shape of every initialiser."""
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


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


def operators(model: ModelProto) -> dict[str, int]:
    """Count the nodes of every operator, inner graphs and functions included."""
    nodes: list[NodeProto] = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return dict(sorted(Counter(str(node.op_type) for node in nodes).items()))
