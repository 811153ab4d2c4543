"""Noise and redundancy put into a data set on purpose: reproducible, by seed.

What is drawn is a function of the seed, the kind of transform, the modality, and of how many of that kind came before.
It does not depend on the strength: ``noise:0.05`` adds five times what ``noise:0.01`` adds.

Features are changed as they are read, before ``data.feature_scaling``, where the paper's Table 2 (for MMGCN, whose
input they are) and Table 3 have it; a model is then trained on them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.common.errors import ConfigError, nearest
from training.data.dataset import Dataset
from training.data.items import ItemColumn, ItemTable
from training.data.transform_specs import FeatureNoise, TextRedundancy, Transform, VisualRedundancy, parse_transform
from training.scaling import Scaling

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ123456789"


def with_transformed_features(
    dataset: Dataset, texts: Iterable[str], seed: int, *, after: Iterable[str] = ()
) -> Dataset:
    """Apply all that is done to features, in the given order; ``text-redundancy`` is done before there are any.

    Args:
        dataset: As it was read.
        texts: Transforms as they are written.
        seed: Of what is drawn.
        after: Transforms that the features have already, whose draws are not to be added once more.

    Returns:
        Another data set, whose notes name the transforms; the same where there are none.

    Raises:
        ConfigError: A transform is malformed, or names a modality that the data set does not have.
    """
    texts = tuple(texts)
    if not texts:
        return dataset
    features = dict(dataset.features)
    earlier: Counter[type[Transform]] = Counter(map(type, map(parse_transform, after)))
    for transform in map(parse_transform, texts):
        if isinstance(transform, TextRedundancy):
            continue
        for name in _touched(transform, features, dataset.name):
            draw = _stream(seed, transform, name, earlier[type(transform)])
            features[name] = _changed(transform, features[name], draw)
        earlier[type(transform)] += 1
    return replace(
        dataset,
        features=features,
        notes={**dataset.notes, "transforms": ", ".join(texts), "transform_seed": seed},
    )


def with_redundant_texts(items: ItemTable, texts: Iterable[str], seed: int) -> ItemTable:
    """Append random characters to the texts of some items, from which features are then derived.

    Args:
        items: Titles, categories and labels of the result are the same.
        texts: Transforms as they are written; all but ``text-redundancy`` are left out.
        seed: Of which items and which characters.
    """
    wanted = [transform for transform in map(parse_transform, texts) if isinstance(transform, TextRedundancy)]
    for number, transform in enumerate(wanted):
        draw = _stream(seed, transform, "text", number)
        chosen = draw.permutation(len(items.ids))[: int(transform.share * len(items.ids))]
        letters = np.array(list(_CHARACTERS))[draw.integers(len(_CHARACTERS), size=(len(chosen), transform.length))]
        added: list[str | None] = [None] * len(items.ids)
        for row, characters in zip(chosen, letters, strict=True):
            added[row] = "".join(characters)
        # A column of prose: the texts are all such columns joined, and labels are made of none.
        values = pl.Series(added, dtype=pl.String)
        column = ItemColumn(f"random {number}", values, words=True, prose=True, separator=None)
        items = replace(items, columns=(*items.columns, column))
    return items


def changes_texts(texts: Iterable[str]) -> bool:
    """Whether a transform is among these that needs the items' texts."""
    return any(isinstance(parse_transform(text), TextRedundancy) for text in texts)


def keeps_widths(texts: Iterable[str]) -> bool:
    """Whether a model that was trained without these transforms can read what they give."""
    return all(isinstance(parse_transform(text), FeatureNoise) for text in texts)


def _touched(
    transform: FeatureNoise | VisualRedundancy, features: dict[str, NDArray[np.float32]], where: str
) -> list[str]:
    if transform.modality is None:
        return list(features)
    if transform.modality not in features:
        raise ConfigError(
            f"data.transforms: {where} has no features of the modality '{transform.modality}'"
            f"{nearest(transform.modality, features)}"
        )
    return [transform.modality]


def _changed(
    transform: FeatureNoise | VisualRedundancy, matrix: NDArray[np.float32], draw: np.random.Generator
) -> NDArray[np.float32]:
    if isinstance(transform, FeatureNoise):
        scale = transform.scale * (_deviation(matrix) if transform.relative else 1.0)
        noise = draw.standard_normal(matrix.shape, dtype=np.float32)
        noise *= np.float32(scale)
        noise += matrix
        return noise
    shape = (len(matrix), transform.columns)
    random = np.abs(1 + 3 * draw.standard_normal(shape, dtype=np.float32))
    return np.hstack([matrix, random, np.zeros(shape, dtype=np.float32)])


def _deviation(matrix: NDArray[np.float32]) -> float:
    factor = float(Scaling.of(matrix, "global").factor[0])
    return 1 / factor if factor else 0.0


def _stream(seed: int, transform: Transform, modality: str, number: int) -> np.random.Generator:
    text = f"{seed}/{type(transform).__name__}/{modality}/{number}"
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")))
