"""The state a run resumes from: parameters, optimiser and progress, in safetensors and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoint import BEST, DATA_FILES, INFO, SCHEMA_VERSION, read_info
from training.common.errors import CheckpointError
from training.common.folders import atomic_folder, write_atomically
from training.tensor_files import disk_errors

LAST = "last"
DATA = "data"
LOG = "log.jsonl"
_STATE = "state.json"
_PARAMETERS = "parameters.safetensors"
_OPTIMISER = "optimiser.safetensors"
_TEMPORARY = re.compile(rf"\.({LAST}|{DATA}|{re.escape(LOG)})\.tmp-")


class OptimisedParameters(Protocol):
    """An Adam optimiser and the names of its parameters, in its own order."""

    optimiser: torch.optim.Adam

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return names and parameters."""


@dataclass(frozen=True)
class ResumeState:
    """What ``save_resume_state`` wrote.

    Attributes:
        document: The run's progress.
        tensors: The objective's ``state_dict``.
        optimiser: Adam's moments and step counts, as ``parameter name/quantity``.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    optimiser: dict[str, Tensor]

    def restore_optimiser(self, target: OptimisedParameters) -> None:
        """Put the saved moments into an optimiser over the same parameters."""
        template = target.optimiser.state_dict()
        template["state"] = {
            index: {
                key.rpartition("/")[2]: value for key, value in self.optimiser.items() if key.rpartition("/")[0] == name
            }
            for index, (name, _) in enumerate(target.named_parameters())
        }
        target.optimiser.load_state_dict({**template, "state": {i: s for i, s in template["state"].items() if s}})


def check_run_folder(out: Path) -> None:
    """Refuse to write a run over something else.

    Args:
        out: Absent, empty, or the folder of an earlier run.

    Raises:
        CheckpointError: It is a file, or a folder that holds other things.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file; remove it, or choose another folder")
    if any((out / name).is_file() for name in (f"{LAST}/{_STATE}", f"{BEST}/{INFO}")):
        return
    if not all(_of_a_beginning(path) for path in out.iterdir()):
        raise CheckpointError(f"{out} holds something that is no run; choose another folder")


def _of_a_beginning(path: Path) -> bool:
    """Whether a run leaves this behind that is killed before its first state is written."""
    if path.name == DATA:
        return path.is_dir() and all(inner.name in DATA_FILES for inner in path.iterdir())
    return (path.name == LOG and path.stat().st_size == 0) or bool(_TEMPORARY.match(path.name))


def save_resume_state(
    out: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], source: OptimisedParameters
) -> None:
    """Write the state of a run into ``out/last``, replacing the previous one in a single step."""
    moments = {
        f"{name}/{quantity}": value.detach().cpu().contiguous()
        for name, parameter in source.named_parameters()
        for quantity, value in source.optimiser.state.get(parameter, {}).items()
    }
    with disk_errors(out / LAST), atomic_folder(out / LAST) as fresh:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, fresh / _PARAMETERS)
        save_file(moments, fresh / _OPTIMISER)
        write_atomically(fresh / _STATE, json.dumps({"schema_version": SCHEMA_VERSION, **document}))


def load_resume_state(out: Path) -> ResumeState | None:
    """Read the state of the run in ``out``, or return None where there is no run.

    Raises:
        CheckpointError: The state is damaged or of another schema version.
    """
    folder = out / LAST
    if not folder.exists():
        return None
    document = read_info(folder / _STATE, "run state")
    try:
        return ResumeState(document, load_file(folder / _PARAMETERS), load_file(folder / _OPTIMISER))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the run's state is damaged: {error}; train again") from error
