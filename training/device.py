"""Where to train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from training.common.errors import DvibError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises:
        DvibError: There is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DvibError(f"no device '{name}'; use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise DvibError(f"no device '{name}'; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DvibError(f"no device '{name}' here: {torch.cuda.device_count()} CUDA devices found; use --device cpu")
    return device


@contextlib.contextmanager
def memory_reported() -> Iterator[None]:
    """Turn torch's several ways to run out of memory into one line.

    Raises:
        DvibError: An allocation failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise DvibError(
            f"not enough memory: {str(error).splitlines()[0]}; lower training.batch_size or model.dimension"
        ) from error
