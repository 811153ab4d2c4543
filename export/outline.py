"""Outlines of ONNX graphs: everything but the tensors, and of each tensor its SHA-256. Needs only ``onnx``.

A protobuf ends at 2 GB. An outline is the graph's own protobuf in which every initialiser of more than ``SMALL`` bytes
holds the hash of its content instead: two graphs have the same outline if and only if they have the same bytes. It
cannot be run, and its name, shapes and types are all there to be looked at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from onnx import ModelProto, TensorProto, helper

from export.onnx_canonical import canonical_bytes, parse

LARGEST_GRAPH_BYTES = 1_500_000_000
"""No graph with larger initialisers, in all, is written to a file."""
SMALL = 1024
"""Initialisers of up to so many bytes stay as they are: axes and shapes say what is computed."""


def outlined(name: str, data_type: int, dims: Iterable[int], content: bytes | memoryview) -> TensorProto:
    """Return what an outline keeps of an initialiser.

    Args:
        name: Its name.
        data_type: ONNX element type.
        dims: Its shape.
        content: Its elements, little-endian.
    """
    kept = bytes(content) if len(content) <= SMALL else hashlib.sha256(content).digest()
    return TensorProto(name=name, data_type=data_type, dims=dims, raw_data=kept)


def outline(model: ModelProto) -> bytes:
    """Return the outline of a whole model, whose initialisers hold raw data."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(outlined(tensor.name, tensor.data_type, tensor.dims, tensor.raw_data))
    return canonical_bytes(result)


def blank_outline(data: bytes, learned: Iterable[str]) -> bytes:
    """Take the contents of the named initialisers out of an outline; one that is not there is ignored."""
    model = parse(data)
    names = set(learned)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("raw_data")
    return canonical_bytes(model)


def tensor_bytes(model: ModelProto) -> int:
    """Return how many bytes the initialisers of a model have, by their shapes and types."""
    return sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )
