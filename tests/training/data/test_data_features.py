"""Feature matrices from files: what is refused, and how rows find their items."""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.common.errors import DataError
from training.data.features import Owners, align, feature_files, feature_owners, load_matrix, rows_of

Write = Callable[[str, str], Path]

THREE = Owners(pl.Series(["a", "b", "c"]), "the items in items.csv")


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_matrix(path, "image", THREE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_object_arrays_are_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    path, mark = tmp_path / "image_feat.npy", tmp_path / "executed"
    objects = np.empty(3, dtype=object)
    objects[:] = [Trap(mark)] * 3
    np.save(path, objects, allow_pickle=True)
    refused(path, "Python objects")
    assert not mark.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    path, mark = tmp_path / "image_feat.npy", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Trap(mark)))
    refused(path, "not a usable .npy file")
    assert not mark.exists()


def test_files_that_are_no_npy(tmp_path: Path) -> None:
    path = tmp_path / "image_feat.npy"
    whole = io.BytesIO()
    np.save(whole, np.ones((3, 4), dtype=np.float32))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("x.npy", whole.getvalue())
    for content in (b"", b"1,2,3\n" * 9, whole.getvalue()[:-8], whole.getvalue()[:30], archive.getvalue()):
        path.write_bytes(content)
        refused(path, r"not a usable \.npy file .*numpy\.save")
    refused(tmp_path / "absent_feat.npy", "No such file")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((4, 2), dtype=np.float32), r"shape \(4, 2\), wanted 3 rows, one for each of the items in items\.csv"),
        (np.ones((2, 2), dtype=np.float32), "wanted 3 rows"),
        (np.ones(3, dtype=np.float32), r"shape \(3,\)"),
        (np.ones((3, 2, 2), dtype=np.float32), r"shape \(3, 2, 2\)"),
        (np.ones((3, 0), dtype=np.float32), "one column or more"),
        (np.ones((3, 2), dtype=np.int64), "int64, wanted floats"),
        (np.ones((3, 2), dtype=np.complex64), "complex64"),
        (np.array([[1, 2], [np.nan, 2], [1, 2]], dtype=np.float16), "NaN or infinite values in 1 rows, first in row 1"),
        (np.array([[1, 2], [1, 2], [1, -np.inf]], dtype=np.float32), "first in row 2"),
        (np.array([[1e300, 2], [1, 2], [1, 2]]), "first in row 0"),
    ],
)
def test_matrices_that_models_cannot_use(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    path = tmp_path / "image_feat.npy"
    np.save(path, matrix)
    refused(path, message)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
def test_any_width_becomes_float32(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image_feat.npy"
    values = np.array([[0.5, -2], [3, 4], [5, 6]])
    np.save(path, values.astype(kind))
    matrix = load_matrix(path, "image", THREE)
    assert matrix.dtype == np.float32
    assert matrix.dtype.isnative
    assert np.array_equal(matrix, values)
    path.unlink()  # it is in memory, not mapped
    assert matrix.sum() == 16.5


def test_modalities_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("text_feat.npy", "audio_feat.npy", "other.npy"):
        (tmp_path / name).touch()
    assert list(feature_files(tmp_path)) == ["audio", "text"]
    (tmp_path / "a b_feat.npy").touch()
    with pytest.raises(DataError, match="'a b' cannot name a modality"):
        feature_files(tmp_path)


def test_feature_rows_say_whose_row_it_is(tmp_path: Path, write: Write) -> None:
    write("feature_rows.csv", "row,item_id\n2,x\n0,y\n1,z\n")
    assert feature_owners(tmp_path, None).ids.to_list() == ["y", "z", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,item_id\n0,x\n0,y\n", "data row 2: row is '0', wanted a row number that no line before has"),
        ("row,item_id\n0,x\n2,y\n", "data row 2: row is '2', wanted a whole number from 0 to 1"),
        ("row,item_id\n0,x\n1,x\n", "data row 2: item_id is 'x', wanted an id that no row before has"),
        ("row,item_id\n0,x\n1,\n", "data row 2: item_id is nothing, wanted an id"),
        ("row,asin\n0,x\n", "no column item_id .*the header names row, asin"),
    ],
)
def test_bad_feature_rows(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write("feature_rows.csv", text)
    with pytest.raises(DataError, match=message):
        feature_owners(tmp_path, None)


def test_without_feature_rows_and_items_nobody_knows_whose_rows_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"add feature_rows\.csv"):
        feature_owners(tmp_path, None)


def test_items_without_a_row_get_the_mean_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    matrix = np.array([[1, 2], [3, 8]], dtype=np.float32)
    rows = rows_of(pl.Series(["a", "b"]), pl.Series(["b", "q", "a", "r"]))
    assert rows.tolist() == [1, -1, 0, -1]
    with caplog.at_level(logging.INFO, "dvib.data"):
        aligned, missing = align(matrix, rows, "image", "toy")
    assert aligned.tolist() == [[3, 8], [2, 5], [1, 2], [2, 5]]
    assert aligned.dtype == np.float32
    assert missing == 2
    assert caplog.messages == ["toy: 2 of 4 items have no image features: they get the mean"]


def test_features_of_other_items_altogether() -> None:
    with pytest.raises(DataError, match="no item of the catalogue has image features"):
        align(np.ones((2, 2), dtype=np.float32), np.array([-1, -1, -1]), "image", "toy")
