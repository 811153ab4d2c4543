"""Features from an items table alone: words by TF-IDF and SVD, labels by multi-hot. No weights to download."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.items import ItemTable

MAX_TOKENS = 256
"""A column with more distinct tokens names items rather than groups them."""
_MAX_VOCABULARY = 50_000


def text_features(items: ItemTable, dimensions: int) -> NDArray[np.float32] | None:
    """Return latent semantic features of each item's words (TF-IDF, then truncated SVD).

    The same table gives the same numbers: the SVD is seeded, runs on one thread (the order of a parallel sum is not
    fixed), and each component's sign is set so that its largest entry is positive.

    Args:
        items: The table; its columns of words are joined.
        dimensions: The width wanted; fewer where there are fewer items or words.

    Returns:
        float32 [rows, F], a zero row for an item without a known word, or None where there are no words at all.
    """
    # Slow to import, and needed nowhere else.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits

    columns = [column.values for column in items.columns if column.words]
    if not columns:
        return None
    texts = (
        pl.DataFrame(columns)
        .select(pl.concat_str(pl.all().str.replace_all("|", " ", literal=True), separator=" ", ignore_nulls=True))
        .to_series()
        .to_list()
    )
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", max_features=_MAX_VOCABULARY)
    analyse = vectorizer.build_analyzer()
    if not any(analyse(text) for text in texts):
        return None
    # Items that all say the same have no variance, and scikit-learn divides by it for a figure not used here.
    with threadpool_limits(limits=1), np.errstate(invalid="ignore"):
        weights = vectorizer.fit_transform(texts)
        width = min(dimensions, *weights.shape)
        latent = TruncatedSVD(width, random_state=0).fit_transform(weights)
    peaks = latent[np.abs(latent).argmax(axis=0), np.arange(width)]
    return np.ascontiguousarray(latent * np.where(peaks < 0, -1.0, 1.0), dtype=np.float32)


def attribute_features(items: ItemTable) -> NDArray[np.float32] | None:
    """Return which labels each item carries: genres, year, and every other column with few distinct tokens.

    Args:
        items: The table; free text is left out, and so is a column with more than ``MAX_TOKENS`` distinct tokens or
            whose tokens are all different.

    Returns:
        float32 [rows, F] of 0 and 1, columns in the table's order and their tokens sorted, or None without any label.
    """
    blocks = []
    for column in items.columns:
        if column.prose:
            continue
        long = column.tokens()
        tokens = long["token"].unique().sort()
        if len(tokens) > MAX_TOKENS or len(tokens) == len(long):  # a token per item groups nothing
            continue
        block = np.zeros((len(items.ids), len(tokens)), dtype=np.float32)
        block[long["row"].to_numpy(), tokens.search_sorted(long["token"]).to_numpy()] = 1
        blocks.append(block)
    return np.hstack(blocks) if blocks else None
