"""Loading the files of a bundle that hold pickles, for a caller who trusts whoever made the bundle. Needs torch.

Unpickling runs code that the file names. What is loaded here has been hashed before, which says that the file is the
one that the manifest lists, and not that the manifest is honest.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile

import torch

from export import bundle
from export.artefacts import module_scores
from export.parity import Scores
from export.verify import Loader
from training.common.errors import BundleError

_UNUSABLE = (RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What torch raises for a file that it cannot load."""


def torchscript_scores(data: bytes) -> Scores:
    """Load ``model.ts`` and return its scores.

    Raises:
        BundleError: It is no TorchScript.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        try:
            return module_scores(torch.jit.load(io.BytesIO(data), map_location="cpu"))  # type: ignore[no-untyped-call]
        except _UNUSABLE as error:
            raise BundleError("torch cannot load it") from error


def program_scores(data: bytes) -> Scores:
    """Load ``model.pt2`` and return its scores.

    Raises:
        BundleError: It is no program of ``torch.export``.
    """
    try:
        return module_scores(torch.export.load(io.BytesIO(data)).module())
    except _UNUSABLE as error:
        raise BundleError("torch cannot load it") from error


LOADERS: dict[str, Loader] = {bundle.TORCHSCRIPT: torchscript_scores, bundle.PROGRAM: program_scores}
