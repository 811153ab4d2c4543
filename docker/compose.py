"""What docker-compose.yml says once its variables have their values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:-|:\?)([^}]*))?\})")


class ComposeError(Exception):
    """A variable that must be set is not, or what is to be extended is not there."""


def read_compose(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the document with variables put in and ``extends`` carried out.

    Args:
        path: The compose file.
        variables: Of the environment; an empty value counts as none, as ``:-`` and ``:?`` have it.

    Raises:
        ComposeError: ``${NAME:?…}`` without a value; the message ends like docker compose's own.
    """
    document: dict[str, Any] = _interpolated(yaml.safe_load(path.read_text("utf-8")), variables)
    services = document["services"]
    for name, service in services.items():
        base = service.pop("extends", None)
        if base is not None:
            if base["service"] not in services:
                raise ComposeError(f"{name} extends {base['service']}, which is not there")
            services[name] = {**services[base["service"]], **service}
    return document


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_interpolated(inner, variables) for inner in value]
    return _text(value, variables) if isinstance(value, str) else value


def _text(text: str, variables: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        dollar, plain, name, how, rest = found.groups()
        if dollar:
            return "$"
        value = variables.get(plain or name, "")
        if value or how is None:
            return value
        if how == ":?":
            raise ComposeError(f"required variable {name} is missing a value: {rest}")
        return str(rest)

    return _VARIABLE.sub(put, text)
