"""The ``torch.export`` program of a graph: what ONNX is made of, and an offline artefact of its own, ``model.pt2``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from export.writing import make_room

_PLACES = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node")
"""What torch notes of every operation about the source code that it came from."""


def trace_program(module: nn.Module, examples: Sequence[Tensor]) -> ExportedProgram:
    """Trace a module whose inputs share one free batch dimension.

    Args:
        module: In evaluation mode, on the CPU.
        examples: One tensor per input, the same number of rows each.
    """
    shapes = tuple({0: Dim("batch")} for _ in examples)
    # A forward with *args takes its inputs as one tuple-valued argument.
    variadic = bool(module.forward.__code__.co_flags & inspect.CO_VARARGS)
    with torch.no_grad():
        return torch.export.export(
            module.eval(), tuple(examples), dynamic_shapes=(shapes,) if variadic else shapes, strict=False
        )


def unread(program: ExportedProgram) -> list[str]:
    """Return the names of the module's parameters and buffers that the program takes and never reads."""
    signature = program.graph_signature
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return [
        owners[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in owners and not node.users
    ]


def drop(module: nn.Module, names: Sequence[str]) -> None:
    """Take parameters and buffers out of a module, for good: what only training reads is no part of an artefact."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program to a file whose bytes depend on the program alone.

    The file holds raw tensors, JSON, and one small pickle: the example input. Nobody needs to load it to trust what is
    in a bundle, and nothing of ours does so unasked.

    Args:
        program: From ``trace_program``; loses its notes of where in the source code it came from.
        path: The file to write, ``*.pt2``. Its stem is in the file.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for place in _PLACES:
                    node.meta.pop(place, None)
    tensors = (*program.state_dict.values(), *program.constants.values())
    make_room(path, (tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)))
    torch.export.save(program, path)
