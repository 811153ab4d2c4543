"""Settings of the service: command-line options first, then ``DVIB_SERVE_*`` variables, then these defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from training.common.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "DVIB_SERVE_"
_SECRETS = {"api_key", "admin_token"}
_SENDABLE = re.compile(r"[!-~]+")
MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Settings(BaseSettings):
    """Everything about a service process that is not in a bundle. Each field is also ``DVIB_SERVE_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    bundles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="NAME=DIR or DIR, separated by commas"
    )
    split: str = Field(
        default="",
        description="share of the users that each model answers where a request names none: NAME=WEIGHT, separated "
        "by commas; where left out, the first bundle answers all",
    )
    split_salt: str = Field(default="", description="another salt deals the users out anew")
    default_k: int = Field(default=10, ge=1, description="items in a reply where the request names no k")
    max_k: int = Field(default=1000, ge=1, le=100_000, description="largest k of a request")
    max_id_bytes: int = Field(default=256, ge=1, le=65536, description="longest user or item id, in UTF-8 bytes")
    max_history: int = Field(default=1000, ge=1, le=1_000_000, description="most items in the history of a request")
    max_filter_ids: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="most item ids in exclude, and in allow, of a request",
    )
    max_requests: int = Field(default=256, ge=1, le=10_000, description="most requests in one POST /recommend/batch")
    max_body_bytes: int = Field(default=2**20, ge=1024, le=2**30, description="longest request body, in bytes")
    max_batch: int = Field(default=64, ge=1, le=4096, description="most requests answered by one model call")
    max_queue: int = Field(default=1024, ge=1, description="most recommendations waiting per model; more are refused")
    max_in_flight: int = Field(
        default=1024,
        ge=1,
        description="most HTTP requests in work in one worker; more get 503 and Retry-After",
    )
    request_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="seconds until an answer that is not there is given up, 504",
    )
    read_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="seconds in which a client must have sent its request, else 408",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="key that every request must carry, but those about health and for the files of the page",
    )
    index_threads: int = Field(default=1, ge=1, le=256, description="threads of one search, in ONNX Runtime and FAISS")
    workers: int = Field(
        default=1, ge=1, le=256, description="processes that answer; they share one copy of the models"
    )
    watch_s: float = Field(
        default=1.0,
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        description="seconds between two looks at which versions are published",
    )
    drain_s: float = Field(
        default=5.0,
        ge=0.1,
        le=600,
        allow_inf_nan=False,
        description="seconds in which a worker that ends answers what it has accepted",
    )
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="TCP port on 127.0.0.1 of the admin endpoint; none where left out",
    )
    admin_token: SecretStr | None = Field(default=None, min_length=16, description="what the admin endpoint asks for")
    metrics_dir: Path | None = Field(
        default=None, description="folder for the workers' metric files; a temporary one where left out"
    )
    example_users: int = Field(
        default=8,
        ge=0,
        le=100,
        description="ids of known users that GET /models shows, to try the service with; 0 shows none",
    )
    require_provider: str = Field(
        default="",
        description="execution provider of ONNX Runtime, such as CPUExecutionProvider, that every session must have "
        "got; else the service does not start",
    )
    access_log: bool = Field(default=False, description="one line per request in the log (holds user ids)")

    @field_validator("bundles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_key", "admin_token")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        # A line end that a file has brought along would make a key that no request can carry.
        if value is not None and not _SENDABLE.fullmatch(value.get_secret_value()):
            raise ValueError("wanted visible ASCII characters alone, without spaces or line ends")
        return value

    @model_validator(mode="after")
    def _default_within_limit(self) -> Self:
        if self.default_k > self.max_k:
            raise ValueError(f"default_k {self.default_k} is above max_k {self.max_k}")
        return self

    @model_validator(mode="after")
    def _admin_is_guarded(self) -> Self:
        if (self.admin_port is None) != (self.admin_token is None):
            raise ValueError("admin_port and admin_token belong together; set both or none")
        return self

    @model_validator(mode="after")
    def _workers_do_not_thread(self) -> Self:
        if self.workers > 1 and self.index_threads > 1:
            raise ValueError(
                f"workers {self.workers} with index_threads {self.index_threads}: several workers share what is loaded "
                "before they start, and threads cannot be shared; set one of them to 1"
            )
        return self


def load_settings(**options: object) -> Settings:
    """Combine command-line options with the environment.

    Args:
        options: Fields of `Settings`; ``None`` stands for an option that was not given.

    Returns:
        The settings.

    Raises:
        ConfigError: A value is out of range or of the wrong type, or a ``DVIB_SERVE_*`` variable is unknown.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise ConfigError(f"unknown environment variable {name}{nearest(name.upper(), known)}")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        problem = str(first["msg"]).removeprefix("Value error, ")
        if not first["loc"]:
            raise ConfigError(problem) from error
        name = str(first["loc"][0])
        source = "--" + name.replace("_", "-") if name in given else PREFIX + name.upper()
        got = "" if name in _SECRETS else f", got {first['input']!r}"
        raise ConfigError(f"{source}: {problem}{got}") from error


def parse_bundles(entries: Iterable[str]) -> dict[str, Path]:
    """Read ``NAME=DIR`` entries; a bare ``DIR`` is named after its folder.

    Args:
        entries: What ``--bundle`` or ``DVIB_SERVE_BUNDLES`` named, in order.

    Returns:
        Model name to folder, in the same order: the first is the default model.

    Raises:
        ConfigError: No entry at all, an impossible or repeated name, or an empty folder.
    """
    bundles: dict[str, Path] = {}
    for entry in entries:
        name, separator, folder = entry.partition("=")
        if not separator:
            name, folder = Path(entry).absolute().name, entry
        if not folder:
            raise ConfigError(f"--bundle {entry!r} names no folder; wanted NAME=DIR")
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"--bundle {entry!r}: the name {name!r} must be 1 to 64 letters, digits, '.', '_' or '-'; "
                "wanted NAME=DIR"
            )
        if name in bundles:
            raise ConfigError(f"--bundle {entry!r}: the name {name!r} is already taken by {bundles[name]}")
        bundles[name] = Path(folder)
    if not bundles:
        raise ConfigError(f"no bundle to serve; pass --bundle NAME=DIR (or set {PREFIX}BUNDLES)")
    return bundles
