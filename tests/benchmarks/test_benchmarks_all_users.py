from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import all_users
from benchmarks.all_users import Options, WrongListsError, check_lists, exit_code, measure
from export.recommend import recommend
from export.serving import load_for_serving
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_bundle import make_content, write_bundle

SMALL = ("all-users", "--shape", "small", "--rounds", "2", "--threads", "1", "--k", "5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", make_content(n_users=30, n_items=90))
    return tmp_path / "bundle"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without its process, and a product that takes no time."""

    def command(folder: Path, out: Path, options: Options) -> dict[str, float]:
        recommend(folder, out, options.k, force=True)
        return {"command": 3.0, "ranking": 2.0, "loading": 0.5}

    monkeypatch.setattr(all_users, "_command", command)
    monkeypatch.setattr(all_users, "_product", lambda *_: [1.0, 1.0])


def test_the_whole_way_from_the_command_line(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar is out of reach: starting an interpreter takes longer than so small a product."""
    place = tmp_path / "all.json"
    assert bench(*SMALL, "--check", "--max-ratio", "1", "--json", place) == 1
    document = read_json(place)
    assert document["benchmark"] == "all-users"
    assert document["bar"] == {"max_ratio": 1.0, "code": 1}
    assert (document["users"], document["items"], document["seen"]) == (600, 400, 6000)
    assert [len(document["samples"][name]) for name in ("product", "command", "ranking", "loading")] == [2] * 4
    assert all(len(seconds) == all_users.PRODUCT_CALLS for seconds in document["samples"]["product"])
    for whole, ranking, loading in zip(
        *(document["samples"][n] for n in ("command", "ranking", "loading")), strict=True
    ):
        assert whole[0] > ranking[0] + loading[0] > 0
    shown = capsys.readouterr().out
    assert "bare float32 product (NumPy)" in shown
    assert "bar: the whole in at most 1 × the bare product: is missed" in shown


def test_a_bundle_of_ones_own(in_process: None, bench: Bench, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "all.json"
    arguments = ("all-users", "--bundle", folder, "--rounds", "2", "--json", place, "--check", "--max-ratio")
    assert bench(*arguments, "3.1") == 0
    document = read_json(place)
    assert (document["users"], document["items"], document["dataset"]) == (30, 90, "toy")
    assert document["ratios"]["command"]["value"] == pytest.approx(3)
    assert document["ratios"]["ranking"]["value"] == pytest.approx(2)
    assert bench(*arguments, "2.9") == 1


def test_a_missed_bar_is_only_shown_without_check(in_process: None, bench: Bench, folder: Path) -> None:
    assert bench("all-users", "--bundle", folder, "--rounds", "2", "--max-ratio", "2.9") == 0


@pytest.mark.parametrize(("low", "high", "code"), [(2.0, 3.5, 0), (3.4, 3.6, 4), (3.6, 4.0, 1)])
def test_the_interval_decides(low: float, high: float, code: int) -> None:
    ratios: dict[str, Any] = {"command": {"value": 3.0, "low": low, "high": high, "confidence": 0.9}}
    assert exit_code({"ratios": ratios}, 3.5) == code


def test_fast_but_wrong_is_void(
    in_process: None, bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = all_users._command

    def careless(folder: Path, out: Path, options: Options) -> dict[str, float]:
        seconds = command(folder, out, options)
        pl.read_parquet(out).reverse().write_parquet(out)
        return seconds

    monkeypatch.setattr(all_users, "_command", careless)
    assert bench("all-users", "--bundle", folder, "--rounds", "2") == 3
    assert "was not given the best items" in capsys.readouterr().err


def test_lists_are_compared_with_brute_force(folder: Path, tmp_path: Path) -> None:
    content, out = load_for_serving(folder), tmp_path / "l.parquet"
    recommend(folder, out, 10)
    lists = pl.read_parquet(out)
    check_lists(content, out, 10)
    lists.head(len(lists) - 1).write_parquet(out)
    with pytest.raises(WrongListsError, match="lines"):
        check_lists(content, out, 10)
    recommend(folder, out, 9, force=True)
    with pytest.raises(WrongListsError, match="lines"):
        check_lists(content, out, 10)
    swapped = lists.with_columns(pl.col("item_id").shift(1).over("user_id").fill_null(content.item_ids[0]))
    swapped.write_parquet(out)
    with pytest.raises(WrongListsError, match="best items"):
        check_lists(content, out, 10)


def test_arms_take_turns_in_random_order(in_process: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(arm: str) -> None:
        call = getattr(all_users, f"_{arm}")

        def noted(*given: object) -> object:
            order.append(arm)
            return call(*given)

        monkeypatch.setattr(all_users, f"_{arm}", noted)

    noting("command")
    noting("product")
    measure("small", folder, Options(k=3, rounds=12))
    rounds = {tuple(order[start : start + 2]) for start in range(0, 24, 2)}
    assert rounds == {("command", "product"), ("product", "command")}


def test_an_unknown_shape_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("all-users", "--shape", "sport") == 2
    assert "no shape 'sport'; did you mean 'sports'?" in capsys.readouterr().err
