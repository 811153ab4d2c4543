"""From a module to ONNX bytes that depend on the module alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from export.onnx_canonical import canonical_bytes

_EXPORTER_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


def export_onnx(module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str], output: str) -> bytes:
    """Export a module whose inputs and output share one free batch dimension.

    Nothing is optimised or folded: the graph holds the module's operators, and its initialisers are the module's
    parameters and buffers under their own names.

    Args:
        module: In evaluation mode, on the CPU.
        examples: One tensor per input, the same number of rows each.
        inputs: Input names.
        output: Output name.

    Returns:
        A serialised ``ModelProto`` without any metadata.
    """
    batch = torch.export.Dim("batch")
    for name in _EXPORTER_LOGGERS:
        # They report operators of packages that are not installed and that no model of ours uses.
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # torch.onnx.export pickles its own tree specifications in a way that torch itself deprecates.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        # All inputs share the batch dimension; that it is named once only is what we want.
        warnings.filterwarnings("ignore", message=r"# The axis name: batch will not be used", category=UserWarning)
        program = torch.onnx.export(
            module.eval(),
            tuple(examples),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=_dynamic_shapes(module, examples, batch),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    _settle_casts(model)
    return canonical_bytes(model)


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


def _dynamic_shapes(module: nn.Module, examples: Sequence[Tensor], batch: object) -> tuple[object, ...]:
    shapes = tuple({0: batch} for _ in examples)
    # A forward with *args takes its inputs as one tuple-valued argument.
    variadic = bool(module.forward.__code__.co_flags & 0x04)
    return (shapes,) if variadic else shapes
