"""From a module to ONNX bytes that depend on the module alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from export import outline
from export.onnx_canonical import canonical_bytes
from export.program import trace_program
from training.common.errors import ExportError

_NOTHING = onnx_ir.tensor(np.zeros(0, dtype=np.uint8))
_EXPORTER_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


class GraphTooLargeError(ExportError):
    """A graph's tensors are too large for one file."""


def export_onnx(
    module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str], output: str | Sequence[str]
) -> bytes:
    """Export a module whose inputs and output share one free batch dimension.

    Nothing is optimised or folded: the graph holds the module's operators, and its initialisers are the module's
    parameters and buffers under their own names.

    Args:
        module: In evaluation mode, on the CPU.
        examples: One tensor per input, the same number of rows each.
        inputs: Input names.
        output: Name of the output, or of each output.

    Returns:
        A serialised ``ModelProto`` without any metadata.

    Raises:
        GraphTooLargeError: Its initialisers are larger than ``export.outline.LARGEST_GRAPH_BYTES``.
    """
    return onnx_of(trace_program(module, examples), inputs, output)


def onnx_of(program: ExportedProgram, inputs: Sequence[str], output: str | Sequence[str]) -> bytes:
    """Translate a traced program; see ``export_onnx``, which traces and translates."""
    translated = _translate(program, inputs, output)
    # Counted before anything is serialised: a protobuf beyond 2 GB fails in the middle of it.
    size = sum(tensor.nbytes for _, tensor in _tensors(translated))
    if size > outline.LARGEST_GRAPH_BYTES:
        limit = f"{outline.LARGEST_GRAPH_BYTES / 1e9:.2f} GB"
        raise GraphTooLargeError(
            f"its tensors have {size / 1e9:.2f} GB, and a graph with more than {limit} is not written, as protobuf "
            "ends at 2 GB"
        )
    model: onnx.ModelProto = translated.model_proto
    _settle_casts(model)
    return canonical_bytes(model)


def outline_of(program: ExportedProgram, inputs: Sequence[str], output: str | Sequence[str]) -> bytes:
    """Translate a traced program into the outline of its graph, of whatever size; see ``export.outline``."""
    translated = _translate(program, inputs, output)
    kept = []
    for value, tensor in _tensors(translated):
        content = np.ascontiguousarray(tensor.numpy())
        raw = content.reshape(-1).view(np.uint8).data
        kept.append(outline.outlined(str(value.name), int(tensor.dtype), content.shape, raw))
        value.const_value = _NOTHING
    model: onnx.ModelProto = translated.model_proto
    for tensor, small in zip(model.graph.initializer, kept, strict=True):
        tensor.CopyFrom(small)
    _settle_casts(model)
    return canonical_bytes(model)


def _tensors(translated: ONNXProgram) -> list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Return the initialisers, in order, with what they hold."""
    values = translated.model.graph.initializers.values()
    return [(value, value.const_value) for value in values if value.const_value is not None]


def _translate(program: ExportedProgram, inputs: Sequence[str], output: str | Sequence[str]) -> ONNXProgram:
    for name in _EXPORTER_LOGGERS:
        # They report operators of packages that are not installed and that no model of ours uses.
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # torch.onnx.export pickles its own tree specifications in a way that torch itself deprecates.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        # All inputs share the batch dimension; that it is named once only is what we want.
        warnings.filterwarnings("ignore", message=r"# The axis name: batch will not be used", category=UserWarning)
        translated = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=[output] if isinstance(output, str) else list(output),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
        )
    if translated is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return translated


def _settle_casts(model: onnx.ModelProto) -> None:
    """Replace CastLike by Cast to the type it amounts to: ONNX Runtime cannot fold what follows a CastLike."""
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        if node.op_type == "CastLike" and node.input[1] in types:
            target = types[node.input.pop(1)]
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", target))
