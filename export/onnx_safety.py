"""Which ONNX graphs of a bundle may be run. Needs only the ``onnx`` package.

ONNX Runtime opens files that a graph names, relative to the working directory, and runs whatever operators it knows.
So the bytes are looked at here before any session is made of them. Every tensor, node and graph counts, wherever it
hangs: the walk follows the protobuf descriptors and not a list of known places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto
from onnx import TrainingInfoProto as TrainingInfo

from export.onnx_canonical import RANDOM_OPERATORS, messages
from training.common.errors import BundleError

DOMAINS = frozenset({"", "ai.onnx"})
_ORT_FORMAT = b"ORTM"
_SHOWN = 40


def check_graph(data: bytes, name: str) -> None:
    """Refuse a serialised ONNX model that reaches beyond itself or beyond the standard operators.

    Args:
        data: The very bytes that a session will be made of.
        name: The file they come from, for the message.

    Raises:
        BundleError: It is no ONNX model; it has external data, sparse tensors, local functions, training information,
            other operator domains or random operators; or it holds fields unknown to this program.
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
        raise BundleError(f"{name} {reason}; such graphs are not run, export the bundle again")


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
            if message.external_data or message.data_location != TensorProto.DEFAULT:
                yield f"keeps the tensor {_shown(message.name)} in another file"
        case SparseTensorProto():
            yield f"holds the sparse tensor {_shown(message.values.name)}"
        case FunctionProto():
            yield f"defines the local function {_shown(message.name)}"
        case TrainingInfo():
            yield "holds training information"
        case OperatorSetIdProto():
            if message.domain not in DOMAINS:
                yield f"imports the operator domain {_shown(message.domain)}"
        case NodeProto():
            if message.domain not in DOMAINS:
                yield f"uses the operator {_shown(message.op_type)} of the domain {_shown(message.domain)}"
            if message.op_type in RANDOM_OPERATORS:
                yield f"uses the random operator {message.op_type}"


def _shown(text: str | bytes) -> str:
    """Quote a stranger's text for a line of ours; protobuf returns bytes where it is no UTF-8."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
