"""Loading the files of a bundle that hold pickles, for a caller who trusts whoever made the bundle. Needs torch.

Unpickling runs code that the file names. What is loaded here has been hashed before, which says that the file is the
one that the manifest lists, and not that the manifest is honest.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from export import bundle
from export.artefacts import module_scores
from export.parity import Scores
from export.verify import Loader
from training.common.errors import BundleError

_UNUSABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    torch.jit.Error,
    zipfile.BadZipFile,
)
"""What torch raises for a file that it cannot load, or for a module that cannot be run."""


@contextlib.contextmanager
def _blaming(act: str) -> Iterator[None]:
    try:
        yield
    except _UNUSABLE as error:
        raise BundleError(f"torch cannot {act} it") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from stderr why loading failed: an error is raised for it, of one line."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _guarded(scores: Scores) -> Scores:
    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        with _blaming("run"):
            return scores(users)

    return run


def torchscript_scores(data: bytes) -> Scores:
    """Load ``model.ts`` and return its scores, which raise BundleError where it cannot be run.

    Raises:
        BundleError: It is no TorchScript.
    """
    with warnings.catch_warnings(), _blaming("load"):
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    return _guarded(module_scores(module))


def program_scores(data: bytes) -> Scores:
    """Load ``model.pt2`` and return its scores, which raise BundleError where it cannot be run.

    Raises:
        BundleError: It is no program of ``torch.export``.
    """
    with _quiet(), _blaming("load"):
        module = torch.export.load(io.BytesIO(data)).module()
    return _guarded(module_scores(module))


LOADERS: dict[str, Loader] = {bundle.TORCHSCRIPT: torchscript_scores, bundle.PROGRAM: program_scores}
