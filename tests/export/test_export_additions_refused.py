"""What ``dvib-export add-items`` refuses: one line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import additions, bundle
from export.build import build_bundle
from export.index_tuning import IndexChoice
from export.manifest import IndexEntry
from export.publish import current, publish
from service.engine import Engine
from tests.helpers_export import digests, dvib_export, model_of, reseal, write_new_items
from training.checkpoint import load_checkpoint
from training.data.dataset import Dataset

Copy = Callable[[Path], Path]
IDS = ["a", "b", "c"]


@pytest.fixture
def new(tmp_path: Path, dataset: Dataset) -> Path:
    """Three items that can be added, for a test to spoil."""
    write_new_items(tmp_path / "new", IDS, {name: matrix[:3] for name, matrix in dataset.features.items()})
    return tmp_path / "new"


def refused(base: Path, new: Path, *words: str, out: Path | None = None) -> None:
    before = digests(base) if base.is_dir() else {}
    target = new.parent / "place" / "out" if out is None else out
    outcome = dvib_export("add-items", base, new, "--out", target)
    assert (outcome.code, outcome.out) == (2, "")
    for word in words:
        assert word in outcome.complaint
    if out is None:
        assert not target.exists()
        assert not target.parent.exists() or not list(target.parent.iterdir())
    if before:
        assert digests(base) == before


def rewrite(new: Path, *lines: str, name: str = "items.csv") -> None:
    (new / "items.csv").unlink()
    (new / name).write_text("\n".join(lines) + "\n", "utf-8")


def test_the_folder_as_it_is_can_be_added(adaptive_bundle: Path, new: Path) -> None:
    """Else the refusals below would prove nothing."""
    assert dvib_export("add-items", adaptive_bundle, new, "--out", new.parent / "out").code == 0


def test_no_items_table(adaptive_bundle: Path, new: Path) -> None:
    (new / "items.csv").unlink()
    refused(adaptive_bundle, new, str(new), "items.csv, items.tsv or items.parquet", "item_id")
    refused(adaptive_bundle, new / "nowhere", str(new / "nowhere"), "items.csv")


def test_two_items_tables(adaptive_bundle: Path, new: Path) -> None:
    (new / "items.tsv").write_text("item_id\na\n")
    refused(adaptive_bundle, new, "items.csv and items.tsv")


def test_no_rows(adaptive_bundle: Path, new: Path) -> None:
    rewrite(new, "item_id,title")
    refused(adaptive_bundle, new, "items.csv", "no items")


def test_no_id_column(adaptive_bundle: Path, new: Path) -> None:
    rewrite(new, "id,title", "a,A", "b,B", "c,C")
    refused(adaptive_bundle, new, "items.csv", "no column item_id", "id, title")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("a", ("'a'", "no row before")),
        ("", ("data row 2", "nothing")),
        ("item-7-ü", ("data row 2", "'item-7-ü'", "the bundle does not have")),
    ],
)
def test_an_id_that_cannot_be_given(second: str, words: tuple[str, ...], adaptive_bundle: Path, new: Path) -> None:
    rewrite(new, "item_id,title", "a,A", f"{second},B", "c,C")
    refused(adaptive_bundle, new, "items.csv", *words)


def test_an_id_that_was_added_before(adaptive_bundle: Path, new: Path) -> None:
    first = new.parent / "first"
    assert dvib_export("add-items", adaptive_bundle, new, "--out", first).code == 0
    refused(first, new, "data row 1", "'a'", "the bundle does not have")


def test_a_missing_or_unknown_modality(adaptive_bundle: Path, new: Path) -> None:
    (new / "text_feat.npy").rename(new / "txt_feat.npy")
    refused(adaptive_bundle, new, "has no text_feat.npy", "image (5 columns), text (7 columns)")
    np.save(new / "text_feat.npy", np.ones((3, 7), np.float32))
    refused(adaptive_bundle, new, "has a txt_feat.npy", "image (5 columns), text (7 columns)")


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((3, 6), np.float32), ("6 columns", "wanted 7")),
        (np.ones((2, 7), np.float32), ("(2, 7)", "3 rows")),
        (np.ones(3, np.float32), ("(3,)", "3 rows")),
        (np.ones((3, 7), np.int64), ("int64", "wanted floats")),
        (np.array([[1.0] * 7, [1.0] * 6 + [np.nan], [1.0] * 7], np.float32), ("NaN", "row 1")),
        (np.full((3, 7), np.inf, np.float16), ("NaN or infinite", "3 rows")),
        (np.array([["x"] * 7] * 3, dtype=object), ("not a usable .npy",)),
    ],
)
def test_features_that_cannot_be_used(
    matrix: np.ndarray, words: tuple[str, ...], adaptive_bundle: Path, new: Path
) -> None:
    np.save(new / "text_feat.npy", matrix)
    refused(adaptive_bundle, new, str(new / "text_feat.npy") if "NaN" not in words[0] else "text", *words)


def test_features_too_large_for_the_model(adaptive_bundle: Path, new: Path) -> None:
    np.save(new / "text_feat.npy", np.full((3, 7), 3e38, np.float32))
    refused(adaptive_bundle, new, "not finite", "scale")


@pytest.mark.parametrize("index", ["flat", "IVF4,SQ8"])
def test_features_whose_scores_would_overflow(
    index: str, adaptive_run: Path, new: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """Vectors may be finite, and their products with the longest user's not: such a bundle could not be served."""
    base = tmp_path / "base"
    build_bundle(load_checkpoint(adaptive_run), base, choice=IndexChoice(index))
    served = 0
    for scale in 10.0 ** np.arange(30, 39):
        np.save(new / "text_feat.npy", (scale * np.sign(dataset.features["text"][:3])).astype(np.float32))
        out = tmp_path / f"out-{scale:.0e}"
        outcome = dvib_export("add-items", base, new, "--out", out)
        if outcome.code == 0:
            served += 1
            Engine.load(out)
        else:
            assert "the training data's" in outcome.complaint
            assert not out.exists()
    assert 0 < served < 9


def test_a_user_without_a_vector(adaptive_bundle: Path, new: Path, copy_of: Copy) -> None:
    """Items are compared in scale with all users, so all must have a vector."""
    folder = copy_of(adaptive_bundle)
    model = model_of(folder / bundle.USER_TOWER)
    (table,) = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    values = numpy_helper.to_array(table).copy()
    values[-1, 0] = np.nan
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    (folder / bundle.USER_TOWER).write_bytes(model.SerializeToString())
    reseal(folder)
    refused(folder, new, str(folder), bundle.USER_TOWER, "NaN")


def test_feature_rows_that_leave_an_item_out(adaptive_bundle: Path, new: Path) -> None:
    (new / "feature_rows.csv").write_text("row,item_id\n0,a\n1,x\n2,c\n")
    refused(adaptive_bundle, new, "feature_rows.csv", "'b'")


def test_feature_rows_say_whose_row_it_is(adaptive_bundle: Path, new: Path, dataset: Dataset) -> None:
    plain, mixed = new.parent / "plain", new.parent / "mixed"
    assert dvib_export("add-items", adaptive_bundle, new, "--out", plain).code == 0
    (new / "feature_rows.csv").write_text("row,item_id\n2,a\n0,b\n1,c\n3,unknown\n")
    for name, matrix in dataset.features.items():
        np.save(new / f"{name}_feat.npy", matrix[[1, 2, 0, 9]])
    assert dvib_export("add-items", adaptive_bundle, new, "--out", mixed).code == 0
    assert digests(plain) == digests(mixed)


def test_any_table_and_any_float_width_will_do(adaptive_bundle: Path, new: Path, dataset: Dataset) -> None:
    plain = new.parent / "plain"
    assert dvib_export("add-items", adaptive_bundle, new, "--out", plain).code == 0
    frame = pl.read_csv(new / "items.csv")
    for suffix in ("tsv", "parquet"):
        (new / "items.csv").unlink(missing_ok=True)
        if suffix == "tsv":
            frame.write_csv(new / "items.tsv", separator="\t")
        else:
            (new / "items.tsv").unlink()
            frame.write_parquet(new / "items.parquet")
        for name, matrix in dataset.features.items():
            np.save(new / f"{name}_feat.npy", matrix[:3].astype(np.float64))
        assert dvib_export("add-items", adaptive_bundle, new, "--out", new.parent / suffix).code == 0
        assert digests(plain) == digests(new.parent / suffix)


def test_a_model_without_an_item_tower(adaptive_bundle: Path, new: Path, copy_of: Copy) -> None:
    folder = copy_of(adaptive_bundle)
    (folder / bundle.ITEM_TOWER).unlink()
    reseal(folder, absent={bundle.ITEM_TOWER: "SelfCF reads no features"})
    refused(folder, new, str(folder), "no item tower", "SelfCF reads no features")


def test_an_item_tower_without_modalities(adaptive_bundle: Path, new: Path, copy_of: Copy) -> None:
    folder = copy_of(adaptive_bundle)
    entry = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))["dataset"]
    reseal(folder, dataset={**entry, "modalities": {}})
    for name in ("image", "text"):
        (new / f"{name}_feat.npy").unlink()
    refused(folder, new, str(folder), bundle.ITEM_TOWER, "no modalities")


def test_a_place_that_somebody_else_takes_meanwhile(
    adaptive_bundle: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = additions._rebuild_index

    def overtaken(*arguments: Any) -> IndexEntry:
        shutil.copytree(adaptive_bundle, out)
        return real(*arguments)

    monkeypatch.setattr(additions, "_rebuild_index", overtaken)
    outcome = dvib_export("add-items", adaptive_bundle, new, "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{out}: it is there already and is not replaced" in outcome.complaint
    assert digests(out) == digests(adaptive_bundle)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "out"}


def test_a_root_stands_for_its_current_version(adaptive_bundle: Path, new: Path, tmp_path: Path) -> None:
    publish(adaptive_bundle, tmp_path / "root")
    for base, out in ((tmp_path / "root", "a"), (adaptive_bundle, "b")):
        assert dvib_export("add-items", base, new, "--out", tmp_path / out).code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    version = current(tmp_path / "root")
    outcome = dvib_export("add-items", tmp_path / "root", new, "--out", version / "out")
    assert outcome.code == 2
    assert "inside of" in outcome.complaint
    assert digests(version) == digests(adaptive_bundle)


def test_places_that_are_taken(adaptive_bundle: Path, new: Path) -> None:
    before = digests(adaptive_bundle)
    for out in (adaptive_bundle, new):
        refused(adaptive_bundle, new, str(out), "already exists", out=out)
    refused(adaptive_bundle, new, "inside of", out=adaptive_bundle / "deeper" / "out")
    (new.parent / "link").symlink_to("nowhere")
    refused(adaptive_bundle, new, str(new.parent / "link"), "already exists", out=new.parent / "link")
    shutil.copytree(adaptive_bundle, new.parent / "other")
    refused(adaptive_bundle, new, "inside of", out=new.parent / "other" / "out")
    assert digests(new.parent / "other") == digests(adaptive_bundle)
    assert digests(adaptive_bundle) == before
    assert {path.name for path in new.iterdir()} == {"items.csv", "image_feat.npy", "text_feat.npy"}


def test_a_damaged_bundle(adaptive_bundle: Path, new: Path, copy_of: Copy) -> None:
    folder = copy_of(adaptive_bundle)
    path = folder / bundle.TORCHSCRIPT
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused(folder, new, bundle.TORCHSCRIPT, "differs from its hash")
    refused(new.parent / "nowhere", new, "no bundle at")


def _identity(output: str, element: int) -> ModelProto:
    """A tower that gives back its input."""
    names = ("image", "text")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", None]) for name in names]
    cast = helper.make_node("Cast", ["text"], [output], to=element)
    graph = helper.make_graph([cast], "g", inputs, [helper.make_tensor_value_info(output, element, ["b", None])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("output", "element", "word"),
    [
        ("vectors", TensorProto.FLOAT, "(3, 7)"),
        ("vectors", TensorProto.DOUBLE, "float64"),
        ("other", TensorProto.FLOAT, "cannot be run"),
    ],
)
def test_a_tower_that_gives_something_else(
    output: str, element: int, word: str, adaptive_bundle: Path, new: Path, copy_of: Copy
) -> None:
    folder = copy_of(adaptive_bundle)
    (folder / bundle.ITEM_TOWER).write_bytes(_identity(output, element).SerializeToString())
    reseal(folder)
    refused(folder, new, str(folder), bundle.ITEM_TOWER, word)
    (folder / bundle.ITEM_TOWER).write_bytes(b"no graph")
    reseal(folder)
    refused(folder, new, bundle.ITEM_TOWER)
