"""How a model's f1 and f2 are run in training: as they are, in mixed precision, or compiled."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from training.common.errors import ConfigError, DvibError
from training.graph import Graph
from training.models.base import Hidden, Latent, Recommender, Rows

Precision = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Passes:
    """Runs them as they are. Evaluation never comes here: it asks the model itself.

    Args:
        model: Any recommender.
    """

    def __init__(self, model: Recommender) -> None:
        self.model = model

    def hidden(self, rows: Rows) -> Hidden:
        """Return the model's H."""
        return self.model.hidden(rows)

    def represent(self, hidden: Hidden) -> Latent:
        """Return the model's Z."""
        return self.model.represent(hidden)


class MixedPasses(Passes):
    """Runs them in mixed precision (``torch.autocast``); parameters, H, Z and every loss are float32.

    A divergence of two passes that hardly differ, or a norm that is decayed, has no digits left in sixteen bits.

    Args:
        inner: Runs the parts.
        precision: Of the matrix products.
        device: Where the model is.
    """

    def __init__(self, inner: Passes, precision: Precision, device: torch.device) -> None:
        super().__init__(inner.model)
        self.inner = inner
        self.dtype = _DTYPES[precision]
        self.device_type = device.type

    def hidden(self, rows: Rows) -> Hidden:
        """Return H, computed in mixed precision."""
        with torch.autocast(self.device_type, self.dtype):
            hidden = self.inner.hidden(rows)
        return replace(hidden, sites=_single(hidden.sites), context=_single(hidden.context))

    def represent(self, hidden: Hidden) -> Latent:
        """Return Z, computed in mixed precision."""
        with torch.autocast(self.device_type, self.dtype):
            latent = self.inner.represent(hidden)
        return replace(
            latent,
            users=_float(latent.users),
            items=_float(latent.items),
            modalities=_single(latent.modalities),
            extra=_single(latent.extra),
        )


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _single(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _float(value) for name, value in values.items()}


class CompiledPasses(Passes):
    """Runs each as ``torch.compile`` made it.

    Sizes are dynamic: a batch has another number of distinct rows every time. What draws from a generator, or
    multiplies by a sparse matrix, stays as it is: the compiler steps around it.

    Args:
        model: Any recommender.
        backend: Of ``torch.compile``.
    """

    def __init__(self, model: Recommender, backend: str = "inductor") -> None:
        super().__init__(model)
        _import_compiler()
        for part in model.modules():
            if isinstance(part, Graph):
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign, no-untyped-call]
                part.dot = torch.compiler.disable(part.dot)  # type: ignore[method-assign, no-untyped-call]
                part.softmax = torch.compiler.disable(part.softmax)  # type: ignore[method-assign, no-untyped-call]
        self._hidden = torch.compile(model.hidden, dynamic=True, backend=backend)
        self._represent = torch.compile(model.represent, dynamic=True, backend=backend)

    def hidden(self, rows: Rows) -> Hidden:
        """Return H.

        Raises:
            DvibError: The compiler failed.
        """
        hidden: Hidden = _run(self._hidden, rows)
        return hidden

    def represent(self, hidden: Hidden) -> Latent:
        """Return Z.

        Raises:
            DvibError: The compiler failed.
        """
        latent: Latent = _run(self._represent, hidden)
        return latent


def _import_compiler() -> None:
    with warnings.catch_warnings():
        # torch scripts some of its own functions when its compiler is imported, in a way that torch has deprecated.
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        import torch._dynamo
        import torch._functorch.config
        import torch._inductor.compile_fx
    # It says on the console how often it has to begin anew. Nobody who trains a model can act on that.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    # What a term is worth is asked of a step's graph before the step's own backward pass, which must find it whole.
    torch._functorch.config.donated_buffer = False


def _run(function: Callable[..., Any], argument: object) -> Any:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        with warnings.catch_warnings():
            # What the compiler comes across on its way is torch's own.
            warnings.simplefilter("ignore")
            return function(argument)
    except (TorchDynamoException, InductorError) as error:
        raise DvibError(
            f"training.compile=true: the compiler failed: {' '.join(str(error).split())[:300]}; "
            "leave training.compile at false"
        ) from error


def make_passes(model: Recommender, precision: Precision, device: torch.device, *, compiled: bool) -> Passes:
    """Return what runs a model's f1 and f2 as a configuration asks.

    Args:
        model: On its device.
        precision: Of the matrix products.
        device: Where the model is.
        compiled: Whether ``torch.compile`` makes them.

    Raises:
        ConfigError: float16 away from CUDA.
        DvibError: There is no compiler.
    """
    if precision == "float16" and device.type != "cuda":
        raise ConfigError(
            f"training.precision=float16 needs CUDA, the device is {device.type}; choose bfloat16, or --device cuda"
        )
    if compiled:
        check_compiler(device)
    passes = CompiledPasses(model) if compiled else Passes(model)
    return passes if precision == "float32" else MixedPasses(passes, precision, device)


def check_compiler(device: torch.device) -> None:
    """Check for what ``torch.compile`` calls.

    Raises:
        DvibError: It is not there.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise DvibError(
            f"training.compile=true needs a C++ compiler, and '{compiler}' is not there; install g++, name another one "
            "in CXX, or leave training.compile at false"
        )
