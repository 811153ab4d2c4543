"""The moves of a root's pointer: read, judged and written. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.common.errors import BundleError, first_problem
from training.common.folders import write_atomically


class Move(BaseModel):
    """One move of the pointer: a line of ``history.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: str = Field(description="UTC, ISO 8601, seconds")
    action: Literal["publish", "rollback"]
    version: str = Field(pattern="^[0-9a-f]{12}$")
    previous: str | None = Field(description="the version that was current before")


def read_moves(path: Path) -> list[Move]:
    """Return what is written down, oldest first: moves that were made, and as the last one perhaps one that was not.

    Raises:
        BundleError: The file is not what ``write_moves`` wrote.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is no text; move it away, versions and pointer do not need it") from error
    moves = []
    for number, line in enumerate(lines, 1):
        try:
            moves.append(Move.model_validate_json(line))
        except ValidationError as error:
            raise BundleError(
                f"{path}, line {number}: {first_problem(error)}; correct it, or move the file away: versions and "
                "pointer do not need it"
            ) from error
    return moves


def write_moves(path: Path, moves: list[Move]) -> None:
    """Replace the file in one step."""
    write_atomically(path, "".join(f"{move.model_dump_json()}\n" for move in moves))


def moves_made(moves: list[Move], pointer: str | None, *, damaged: bool, kept: bool) -> list[Move]:
    """Leave out a last move that was written down and not made.

    Args:
        moves: What is written down.
        pointer: The version that is current; None where the pointer names none.
        damaged: Whether the pointer is there and names none.
        kept: Whether the folder of the last move's version is there.
    """
    if not moves or moves[-1].version == pointer or moves[-1].previous != pointer:
        return moves
    # A pointer that is damaged, or gone after several moves, says nothing about the last one; one that has never been
    # there says that the first publication died.
    lost = pointer is None and (damaged or len(moves) > 1)
    return moves if lost and kept else moves[:-1]


def trail_of(moves: list[Move]) -> list[str]:
    """Return the versions that one can go back through, the newest last: publishing adds one, going back removes."""
    trail: list[str] = []
    for move in moves:
        if move.action == "rollback":
            while move.version in trail and trail[-1] != move.version:
                trail.pop()
        if not trail or trail[-1] != move.version:
            trail.append(move.version)
    return trail
