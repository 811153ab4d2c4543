"""What can be done to a data set to test robustness, as it is written on a command line: see ``MEANINGS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from training.common.errors import ConfigError, nearest, shown

MOST_COLUMNS = 65_536
LONGEST_TEXT = 10_000
_NOISE = "noise:CHI[:MODALITY]"
_RELATIVE_NOISE = "relative-noise:CHI[:MODALITY]"
_VISUAL = "visual-redundancy[:COLUMNS[:MODALITY]]"
_TEXT = "text-redundancy[:SHARE[:LENGTH]]"
MEANINGS = {
    _NOISE: "features m + χ ε with ε ~ N(0, I), in the units of the file, of one modality or all (paper, Eq. 24)",
    _RELATIVE_NOISE: "the same with χ counting the modality's standard deviations",
    _VISUAL: "512 columns of |N(1, 9)|, 9 the variance, and 512 of zeros added to the images (paper, Table 3)",
    _TEXT: "30 random characters after half of the items' texts, before features are derived (paper, Table 3)",
}
"""How each is written → what it does."""


@dataclass(frozen=True)
class FeatureNoise:
    """``noise`` and ``relative-noise``.

    Attributes:
        scale: χ.
        relative: Whether χ counts standard deviations of the modality's centred entries.
        modality: None for every modality.
    """

    scale: float
    relative: bool = False
    modality: str | None = None


@dataclass(frozen=True)
class VisualRedundancy:
    """``visual-redundancy``.

    Attributes:
        columns: So many random columns, and so many of zeros.
        modality: What they are appended to.
    """

    columns: int = 512
    modality: str = "image"


@dataclass(frozen=True)
class TextRedundancy:
    """``text-redundancy``.

    Attributes:
        share: Of the items in the items table, in [0, 1].
        length: Characters, a–z, A–Z and 1–9.
    """

    share: float = 0.5
    length: int = 30


Transform = FeatureNoise | VisualRedundancy | TextRedundancy


def parse_transform(text: str) -> Transform:
    """Read one transform.

    Raises:
        ConfigError: There is none of that name, or an argument is missing, too many or out of range.
    """
    kind, *arguments = text.split(":")
    if kind not in _KINDS:
        raise ConfigError(f"no transform {shown(kind)}{nearest(kind, _KINDS)}")
    usage, fewest, most, make = _KINDS[kind]
    if not fewest <= len(arguments) <= most or not all(arguments):
        raise ConfigError(f"transform {shown(text)}: {usage} is wanted")
    try:
        return make(*arguments)
    except ValueError as error:
        raise ConfigError(f"transform {shown(text)}: {usage} is wanted, {error}") from error


def _noise(scale: str, modality: str | None = None) -> FeatureNoise:
    return FeatureNoise(_number(scale, 0.0, math.inf), modality=modality)


def _relative_noise(scale: str, modality: str | None = None) -> FeatureNoise:
    return FeatureNoise(_number(scale, 0.0, math.inf), relative=True, modality=modality)


def _visual(columns: str = "512", modality: str = "image") -> VisualRedundancy:
    return VisualRedundancy(_whole(columns, MOST_COLUMNS), modality)


def _text(share: str = "0.5", length: str = "30") -> TextRedundancy:
    return TextRedundancy(_number(share, 0.0, 1.0), _whole(length, LONGEST_TEXT))


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"with a number of at least {least:g}{limit} in place of {shown(text)}")
    return value


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= most):
        raise ValueError(f"with a whole number from 1 to {most} in place of {shown(text)}")
    return int(text)


_KINDS: dict[str, tuple[str, int, int, Callable[..., Transform]]] = {
    "noise": (_NOISE, 1, 2, _noise),
    "relative-noise": (_RELATIVE_NOISE, 1, 2, _relative_noise),
    "visual-redundancy": (_VISUAL, 0, 2, _visual),
    "text-redundancy": (_TEXT, 0, 2, _text),
}
