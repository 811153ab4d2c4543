from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tests.helpers_training import VARIANTS, make_config, planted_blocks, same_tensors, trained
from training.build import build_model, model_data
from training.checkpoint import (
    DVIB,
    FEATURES,
    GRAPH,
    IDS,
    INFO,
    MODEL,
    CheckpointInfo,
    DatasetInfo,
    load_checkpoint,
    save_checkpoint,
    save_dataset,
    versions,
)
from training.common.categories import ItemCategories
from training.common.choices import Variant
from training.common.errors import CheckpointError
from training.common.strings import StringTable
from training.data.dataset import Dataset
from training.tensor_files import disk_errors

CATEGORIES = ItemCategories.of(np.arange(40) % 37, ["even", "ungerade ü"] * 20)
DATASET = replace(planted_blocks(n_users=10, n_items=40), categories=CATEGORIES)
FILES = (MODEL, DVIB, GRAPH, FEATURES, IDS, INFO)


def save(folder: Path, variant: Variant = "adaptive") -> CheckpointInfo:
    config = make_config(variant)
    objective = trained(config, DATASET, 1)
    info = CheckpointInfo(
        config=config,
        dataset=DatasetInfo.of(DATASET),
        epoch=1,
        metrics={"valid": {"recall@10": 0.1 + 0.2}},
        history=[{"epoch": 1.0, "loss/total": 1 / 3}],
        versions=versions(),
    )
    save_dataset(DATASET, folder / "data")
    save_checkpoint(
        folder / "best", info, objective.model.state_dict(), dict(objective.own_parameters()), folder / "data"
    )
    return info


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    save(folder)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_comes_back(tmp_path: Path, variant: Variant) -> None:
    info = save(tmp_path, variant)
    expected = trained(info.config, DATASET, 1)
    for place in (tmp_path, tmp_path / "best"):  # a run's folder stands for its best checkpoint
        found = load_checkpoint(place)
        assert found.folder == tmp_path / "best"
        assert found.info == info
        assert same_tensors(found.model, expected.model.state_dict())
        assert same_tensors(found.dvib, {name: value.detach() for name, value in expected.own_parameters().items()})
        assert bool(found.dvib) == (variant == "adaptive")
        data = found.dataset
        assert data.fingerprint() == DATASET.fingerprint()
        assert (data.name, data.user_ids, data.item_ids, data.titles, dict(data.notes)) == (
            DATASET.name,
            DATASET.user_ids,
            DATASET.item_ids,
            DATASET.titles,
            dict(DATASET.notes),
        )
        assert list(data.features) == list(DATASET.features)
        assert data.categories is not None
        assert CATEGORIES is not None
        assert data.categories.names == CATEGORIES.names
        assert [rows_of(data, name) for name in CATEGORIES.names] == [
            rows_of(DATASET, name) for name in CATEGORIES.names
        ]


def rows_of(data: Dataset, name: str) -> list[int]:
    rows = None if data.categories is None else data.categories.rows(name)
    assert rows is not None
    return list(map(int, rows))


def edit_ids(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the arrays of ids; the file is another one then, for data files are shared."""
    path = run / "best" / IDS
    arrays = load_file(path)
    edit(arrays)
    path.unlink()
    save_file(arrays, path)


def test_a_checkpoint_from_before_there_were_categories(run: Path) -> None:
    edit_ids(run, lambda ids: [ids.pop(name) for name in list(ids) if name.startswith("categories")])
    found = load_checkpoint(run).dataset
    assert found.categories is None
    assert (found.titles, found.fingerprint()) == (DATASET.titles, DATASET.fingerprint())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("categories.items", None, "categories.items"),
        ("categories.names.order", None, "categories.names.order"),
        ("categories.items", np.arange(40, dtype=np.int32)[::-1].copy(), "strictly ascending"),
        ("categories.offsets", np.zeros(3, np.int64), "offsets of the categories"),
        ("categories.names.bytes", np.full(15, 0xFF, np.uint8), "damaged"),
    ],
)
def test_damaged_categories(run: Path, name: str, value: np.ndarray | None, message: str) -> None:
    edit_ids(run, lambda ids: ids.pop(name) if value is None else ids.update({name: value}))
    with pytest.raises(CheckpointError, match=rf"{message}.*; train again"):
        load_checkpoint(run)


def test_categories_of_items_that_are_not_there(run: Path) -> None:
    edit_ids(run, lambda ids: ids["categories.items"].__setitem__(-1, 40))
    with pytest.raises(CheckpointError, match=r"the categories name items beyond the 40 .*; train again"):
        load_checkpoint(run)


def test_a_loaded_model_gives_the_same_vectors(saved: Path) -> None:
    found = load_checkpoint(saved)
    model = build_model(found.info.config, found.dataset)
    model.load_state_dict(found.model)
    expected = trained(found.info.config, DATASET, 1).model
    assert all(torch.equal(left, right) for left, right in zip(model.vectors(), expected.vectors(), strict=True))


def test_only_safetensors_and_json_are_written(saved: Path) -> None:
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.name for path in saved.joinpath("best").iterdir()} == set(FILES)
    for path in files:
        raw = path.read_bytes()
        if path.suffix == ".json":
            json.loads(raw)
        else:
            assert path.suffix == ".safetensors"
            size = int.from_bytes(raw[:8], "little")
            header = json.loads(raw[8 : 8 + size])  # the format: length, JSON, plain numbers
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            assert len(raw) == 8 + size + max(ends, default=0)


def test_the_model_file_holds_the_models_tensors_and_nothing_of_dvib(saved: Path) -> None:
    found = load_checkpoint(saved)
    assert set(found.model) == set(build_model(found.info.config, DATASET).state_dict())
    assert not any("phi" in name for name in found.model)
    assert all("net_phi" in name for name in found.dvib)


def test_equal_tensors_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name)
    for file in (MODEL, DVIB, GRAPH, FEATURES, IDS):
        assert (tmp_path / "a" / "best" / file).read_bytes() == (tmp_path / "b" / "best" / file).read_bytes(), file


def test_data_files_are_shared_not_copied(saved: Path) -> None:
    for name in (GRAPH, FEATURES, IDS):
        assert (saved / "best" / name).stat().st_ino == (saved / "data" / name).stat().st_ino


def test_without_hard_links_the_data_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path)
    assert (tmp_path / "best" / IDS).stat().st_ino != (tmp_path / "data" / IDS).stat().st_ino
    assert load_checkpoint(tmp_path).dataset.fingerprint() == DATASET.fingerprint()


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*checkpoint\.json is missing; run dvib-train fit"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(run: Path, name: str) -> None:
    (run / "best" / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run / "best")
    assert str(run) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(run: Path, name: str, share: float) -> None:
    path = run / "best" / name
    raw = path.read_bytes()
    path.unlink()  # the name only: data files are shared
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    assert str(run) in str(caught.value)
    assert "train again" in str(caught.value)


def rewrite(run: Path, **changes: Any) -> None:
    path = run / "best" / INFO
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_schema_version_is_named(run: Path, version: object) -> None:
    rewrite(run, schema_version=version)
    with pytest.raises(CheckpointError, match=rf"schema version {version}, this program reads 1; train again"):
        load_checkpoint(run)


def test_the_version_is_checked_before_anything_else(run: Path) -> None:
    (run / "best" / INFO).write_text('{"schema_version": 7, "else": "unheard of"}')
    with pytest.raises(CheckpointError, match="schema version 7"):
        load_checkpoint(run)


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"epoch": "many"}, "epoch"), ({"surprise": 1}, "surprise"), ({"dataset": {"name": "x"}}, r"dataset\.")],
)
def test_a_description_that_does_not_fit(run: Path, changes: dict[str, Any], place: str) -> None:
    rewrite(run, **changes)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.json: {place}.*; train again"):
        load_checkpoint(run)


@pytest.mark.parametrize("text", ["[]", "null", "3"])
def test_a_description_that_is_no_object(run: Path, text: str) -> None:
    (run / "best" / INFO).write_text(text)
    with pytest.raises(CheckpointError, match="schema version None"):
        load_checkpoint(run)


@pytest.mark.parametrize("file", [GRAPH, FEATURES, IDS])
def test_data_of_another_run_are_noticed(run: Path, tmp_path: Path, file: str) -> None:
    other = planted_blocks(n_users=10, n_items=40, seed=1)
    other = replace(other, user_ids=StringTable.of(reversed(list(other.user_ids))))
    save_dataset(other, tmp_path / "other")
    (run / "best" / file).unlink()
    shutil.copyfile(tmp_path / "other" / file, run / "best" / file)
    with pytest.raises(CheckpointError, match="the data files differ from the ones the checkpoint was made with"):
        load_checkpoint(run)


def test_an_error_while_saving_keeps_the_old_checkpoint(run: Path) -> None:
    before = {name: (run / "best" / name).read_bytes() for name in FILES}
    found = load_checkpoint(run)
    (run / "data" / IDS).unlink()
    with pytest.raises(FileNotFoundError):
        save_checkpoint(run / "best", found.info, {}, {}, run / "data")
    assert {name: (run / "best" / name).read_bytes() for name in FILES} == before
    assert sorted(path.name for path in run.iterdir()) == ["best", "data"]


def test_a_disk_that_takes_no_more_is_an_error_of_the_system(run: Path) -> None:
    before = {name: (run / "best" / name).read_bytes() for name in FILES}
    found = load_checkpoint(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(run / "best", found.info, {"a": torch.zeros(10_000)}, {}, run / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(run / "best"))
    assert {name: (run / "best" / name).read_bytes() for name in FILES} == before
    assert sorted(path.name for path in run.iterdir()) == ["best", "data"]


def test_other_mistakes_in_writing_tensors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="a header too long"), disk_errors(tmp_path):
        raise SafetensorError("a header too long")


def test_an_error_of_an_open_file_names_a_place(tmp_path: Path) -> None:
    for raised, place in ((OSError(errno.ENOSPC, "full"), tmp_path), (OSError(errno.ENOSPC, "full", "file"), "file")):
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOSPC}\]") as caught, disk_errors(tmp_path):
            raise raised
        assert caught.value.filename == str(place)
    with pytest.raises(OSError, match="without a number"), disk_errors(tmp_path):
        raise OSError("without a number")


def test_models_see_copies_of_read_only_data() -> None:
    data = model_data(DATASET)
    assert (data.n_users, data.n_items) == (10, 40)
    assert data.edges.tolist() == [DATASET.train.users.tolist(), DATASET.train.items.tolist()]
    data.features["text"][0, 0] = 1e9
    assert DATASET.features["text"][0, 0] != 1e9
