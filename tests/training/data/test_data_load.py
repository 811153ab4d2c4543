"""Finding a data set, and the options."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.common.errors import ConfigError, DataError
from training.data import load
from training.data.load import available_datasets, load_dataset
from training.data.options import DataOptions

Write = Callable[[str, str], Path]

MMREC = "userID~itemID~x_label\n0~0~0\n0~1~1\n0~2~2\n"
RECBOLE = "user_id:token~item_id:token\nu~a\nu~b\nu~c\n"
RATINGS = "user_id,item_id\nu,a\nu,b\nu,c\n"


@pytest.fixture
def three(tmp_path: Path, write: Write) -> Path:
    write("data/amazon/amazon.inter", MMREC)
    write("data/movies/movies.inter", RECBOLE)
    write("data/shop/ratings.csv", RATINGS)
    write("data/empty/readme.txt", "nothing")
    return tmp_path / "data"


@pytest.mark.parametrize(("name", "layout"), [("amazon", "mmrec"), ("movies", "recbole"), ("shop", "tables")])
def test_the_layout_is_recognised(three: Path, name: str, layout: str) -> None:
    for folder in (three, three / name):  # below the folder, or the folder itself
        data = load_dataset(name, folder, DataOptions())
        assert (data.name, data.notes["layout"], data.n_items) == (name, layout, 3)


def test_the_environment_names_the_folder(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVIB_DATA", str(three))
    assert load_dataset("shop", None, DataOptions()).n_users == 1
    assert available_datasets(None) == ["amazon", "movies", "shop"]
    monkeypatch.setenv("DVIB_DATA", str(tmp_path / "absent"))
    assert load_dataset("shop", three).n_users == 1  # the argument wins
    with pytest.raises(DataError, match=r"the data folder .*absent does not exist"):
        load_dataset("shop", None)


def test_what_is_there(three: Path, tmp_path: Path) -> None:
    assert available_datasets(three) == ["amazon", "movies", "shop"]
    assert available_datasets(three / "amazon") == ["amazon"]
    assert available_datasets(three / "shop") == ["shop"]
    assert available_datasets(three / "empty") == []
    assert available_datasets(tmp_path / "absent") == []
    assert available_datasets(None) == ["ml-100k"]


def test_an_unknown_name_gets_the_nearest(three: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("shpo", three)
    message = str(caught.value)
    assert f"no data set 'shpo' in {three}" in message
    assert "did you mean 'shop'?" in message
    assert "'ml-100k' is fetched" in message
    with pytest.raises(DataError, match="known: amazon, movies, shop"):
        load_dataset("qqqqqq", three)
    with pytest.raises(DataError, match="there is none at all"):
        load_dataset("shop", three / "empty")


@pytest.mark.parametrize("name", ["", ".", "..", "../shop", "a/b", "/etc"])
def test_a_name_is_no_path(three: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not the name of a data set"):
        load_dataset(name, three)


def test_the_default_is_fetched_only_where_no_folder_is_given(
    three: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = write("fetched/ml-100k.inter", RECBOLE).parent
    calls: list[int] = []

    def fetch() -> Path:
        calls.append(1)
        return fetched

    monkeypatch.setattr(load, "fetch_default", fetch)
    assert load_dataset("ml-100k", None, DataOptions()).name == "ml-100k"
    assert len(calls) == 1
    with pytest.raises(DataError, match="no data set 'ml-100k' in"):
        load_dataset("ml-100k", three)
    monkeypatch.setenv("DVIB_DATA", str(three))
    with pytest.raises(DataError, match="no data set 'ml-100k' in"):
        load_dataset("ml-100k", None)
    monkeypatch.delenv("DVIB_DATA")
    with pytest.raises(DataError, match="no folder is given; use --data-dir or DVIB_DATA"):
        load_dataset("shop", None)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"kcore": 5},
        {"k_core": -1},
        {"split": "global"},
        {"split_seed": -1},
        {"text_dimensions": 0},
        {"min_rating": float("nan")},
    ],
)
def test_bad_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataOptions.model_validate(wrong)


def test_options_are_frozen_and_refuse_what_does_not_apply() -> None:
    options = DataOptions(k_core=3)
    with pytest.raises(ValidationError):
        options.k_core = 4
    options.refuse(("min_rating",), "toy", "of a reason")
    with pytest.raises(
        ConfigError, match=r"k_core=3 does not apply to toy: of a reason; leave k_core at its default \(0\)"
    ):
        options.refuse(("min_rating", "k_core"), "toy", "of a reason")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("training.data.dataset", "polars"), ("training.data.options", "polars"), ("training.data.load", "sklearn")],
)
def test_heavy_packages_load_only_where_they_are_needed(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('{absent}', 'sklearn', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
