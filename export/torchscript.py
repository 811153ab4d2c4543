"""TorchScript of the full graph: an offline artefact for programs that still load it."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit import _state

from export.writing import make_room


@contextlib.contextmanager
def _fresh_class_names() -> Iterator[None]:
    """Give the classes made inside the names of a process's first trace.

    TorchScript numbers classes of one name through the whole life of its registry, and the numbers get into the file:
    without a registry of its own, a file would tell how many traces its process had made before.
    """
    registry = _state._python_cu
    _state._python_cu = torch._C.CompilationUnit()
    try:
        yield
    finally:
        _state._python_cu = registry


def save_torchscript(module: nn.Module, path: Path, n_users: int) -> Any:
    """Trace a module over user rows and save it.

    Args:
        module: ``users`` int64 [B] → ``scores``, in evaluation mode, on the CPU.
        path: The file to write.
        n_users: Number of users, for a valid example.

    Returns:
        The traced module. The file itself is not loaded again: TorchScript files hold pickles, and a second copy of the
        features would be the most that an export holds.
    """
    example = torch.arange(min(2, n_users))
    with warnings.catch_warnings(), torch.no_grad(), _fresh_class_names():
        # PyTorch 2.9 and later deprecate torch.jit in favour of torch.export.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is not supported", category=DeprecationWarning)
        # It is the tables' length that models ask for, and tables do not change.
        warnings.filterwarnings("ignore", message="Using len to get tensor shape", category=Warning)
        traced = torch.jit.trace(module.eval(), (example,), check_trace=False)  # type: ignore[no-untyped-call]
        make_room(path, (tensor.nbytes for tensor in traced.state_dict().values()))
        torch.jit.save(traced, path)
    _drop_debug_records(path)
    return traced


def _drop_debug_records(path: Path) -> None:
    """Write a TorchScript archive again without the source locations, which name absolute paths of this machine."""
    with zipfile.ZipFile(path) as saved:
        # The id is a hash over the debug records too.
        records = [
            (name, saved.read(name))
            for name in saved.namelist()
            if not name.endswith((".debug_pkl", ".data/serialization_id"))
        ]
    with zipfile.ZipFile(path, "w") as plain:
        for name, content in records:
            plain.writestr(zipfile.ZipInfo(name), content)
