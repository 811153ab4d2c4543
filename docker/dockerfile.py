"""What a Dockerfile says: its stages, and in each of them what is done and what a container of it starts with."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_KNOWN = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "WORKDIR",
}
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SPLIT = re.compile(r"^--([a-z-]+)=(\S+)\s+")


class DockerfileError(Exception):
    """The file says what is not understood here."""


class Step(NamedTuple):
    """One instruction that changes the image.

    Attributes:
        kind: ``RUN``, ``COPY`` or ``WORKDIR``.
        text: What follows it, without its options; variables stand as they are in ``RUN``, which a shell reads.
        options: Its ``--name=value``.
        variables: Build arguments and environment as they are here.
    """

    kind: str
    text: str
    options: Mapping[str, str]
    variables: Mapping[str, str]


@dataclass
class Stage:
    """One ``FROM`` and what follows it.

    Attributes:
        image: That it begins with.
        name: By which a later stage copies from it.
        steps: That change the image, in order.
        environment: Of a container.
        user: Of a container; ``root`` where the file names none.
        folder: Where a container starts.
        ports: That it listens on.
        healthcheck: Its options and its command, in exec form; None for ``NONE`` and where there is none.
        entrypoint: Exec form.
        command: Exec form.
        stop_signal: That asks a container to end.
    """

    image: str
    name: str = ""
    steps: list[Step] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    ports: list[str] = field(default_factory=list)
    healthcheck: tuple[Mapping[str, str], list[str]] | None = None
    says_no_healthcheck: bool = False
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


def read_dockerfile(path: Path, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """Return the stages of a Dockerfile; the last one is the image.

    Args:
        path: The file.
        arguments: As ``--build-arg`` gives them.

    Raises:
        DockerfileError: An instruction, or a form of one, that the project's files do without.
    """
    return parse(path.read_text("utf-8"), arguments or {})


def parse(text: str, arguments: Mapping[str, str]) -> list[Stage]:
    """Return the stages of a Dockerfile's text; see `read_dockerfile`."""
    stages: list[Stage] = []
    declared: dict[str, str] = {}
    for kind, rest in instructions(text):
        if kind == "FROM":
            words = rest.split()
            stages.append(Stage(words[0], words[2] if len(words) == 3 and words[1].upper() == "AS" else ""))
            declared = {}
            continue
        if not stages:
            raise DockerfileError(f"{kind} before FROM")
        if kind == "ARG":
            name, _, default = rest.partition("=")
            declared[name] = arguments.get(name, "".join(shlex.split(default)))
            continue
        _take(stages[-1], kind, rest, declared)
    if not stages:
        raise DockerfileError("no FROM")
    return stages


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction and what follows it, continued lines joined, comments left out."""
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("#") or not (line or pending):
            continue
        pending += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        kind, _, rest = pending.partition(" ")
        if kind.upper() not in _KNOWN:
            raise DockerfileError(f"unknown instruction {kind!r}")
        yield kind.upper(), rest.strip()
        pending = ""
    if pending:
        raise DockerfileError(f"the last line goes on: {pending!r}")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Put in the values of ``$NAME`` and ``${NAME}``.

    Raises:
        DockerfileError: A variable without a value.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in variables:
            raise DockerfileError(f"${name} has no value")
        return variables[name]

    return _VARIABLE.sub(value, text)


def _take(stage: Stage, kind: str, rest: str, declared: Mapping[str, str]) -> None:
    # PATH is the base image's.
    variables = {"PATH": "$PATH", **declared, **stage.environment}
    options, rest = _options(rest)
    if kind == "RUN":
        stage.steps.append(Step(kind, rest, options, variables))
    elif kind == "COPY":
        stage.steps.append(Step(kind, expand(rest, variables), options, variables))
    elif kind == "WORKDIR":
        stage.folder = expand(rest, variables)
        stage.steps.append(Step(kind, stage.folder, options, variables))
    elif kind == "ENV":
        for word in shlex.split(rest):
            name, equals, value = word.partition("=")
            if not equals:
                raise DockerfileError(f"ENV {rest}: wanted NAME=VALUE")
            stage.environment[name] = expand(value, variables)
    elif kind == "USER":
        stage.user = rest
    elif kind == "EXPOSE":
        stage.ports += rest.split()
    elif kind == "STOPSIGNAL":
        stage.stop_signal = rest
    elif kind == "HEALTHCHECK":
        stage.says_no_healthcheck = rest == "NONE"
        stage.healthcheck = None if rest == "NONE" else (options, _exec_form(rest.removeprefix("CMD").strip()))
    elif kind == "ENTRYPOINT":
        stage.entrypoint = _exec_form(rest)
    elif kind == "CMD":
        stage.command = _exec_form(rest)


def _options(rest: str) -> tuple[dict[str, str], str]:
    options = {}
    while found := _SPLIT.match(rest):
        options[found[1]] = found[2]
        rest = rest[found.end() :]
    return options, rest


def _exec_form(text: str) -> list[str]:
    """Read a JSON list. The other form starts a shell, which keeps signals to itself."""
    try:
        words = json.loads(text)
    except json.JSONDecodeError as error:
        raise DockerfileError(f'wanted ["WORD", ...], got {text!r}') from error
    if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
        raise DockerfileError(f'wanted ["WORD", ...], got {text!r}')
    return words
