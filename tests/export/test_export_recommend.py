"""Lists for many users as a Parquet file: the service's own, whole or not at all, in bounded memory."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from export import batch_ranking, bundle
from export import recommend as module
from export.index import build_index
from export.index_tuning import IndexChoice
from export.publish import publish
from export.recommend import SCHEMA, recommend
from service.engine import Engine
from tests.helpers_bundle import Content, cancelling, gather_tower, make_content, seal, write_bundle
from tests.helpers_export import dvib_export, edit_json, python, reseal
from tests.helpers_publish import names
from training.common.errors import BundleError

Line = tuple[str, int, str, float]


CONTENTS = {
    "plain": make_content(),
    "larger": make_content(n_users=70, n_items=701, dimension=33, seen_share=0.05, seed=1),
    "long vectors": make_content(n_users=9, n_items=50, dimension=300, seed=4),
    "exact ties": make_content(n_users=20, n_items=400, dimension=2, levels=1, seen_share=0.03, seed=2),
    "cancellation": cancelling(n_users=20),
    "one item": replace(
        make_content(n_users=4, n_items=4, seed=3),
        items=np.ones((1, 7), dtype=np.float32),
        item_ids=["only"],
        titles=[""],
        seen=[np.array(rows, dtype=np.int32) for rows in ([0], [], [], [])],
        popularity=np.array([1], dtype=np.int64),
        categories=None,
    ),
}
SIZES = {"as usual": (4096, 256, 2**20), "few items at a time": (23, 7, 2**20), "crowded": (16, 5, 40)}


@pytest.fixture(params=SIZES)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Items of a tile, users of a block, and how many candidates are kept before some are decided."""
    chosen = SIZES[request.param]
    for name, value in zip(("_TILE", "_USERS", "_MOST_CANDIDATES"), chosen, strict=True):
        monkeypatch.setattr(batch_ranking, name, value)
    monkeypatch.setattr(batch_ranking, "_GROUP", min(16, chosen[0]))
    return chosen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", CONTENTS["plain"])
    return tmp_path / "bundle"


def lines_of(path: Path) -> list[Line]:
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == SCHEMA
    return frame.rows()


def served(folder: Path, content: Content, k: int) -> Iterator[Line]:
    """What the service replies to every user in turn."""
    engine = Engine.load(folder)
    for user_id in content.user_ids:
        for rank, item in enumerate(engine.recommend(user_id, k).items, 1):
            yield user_id, rank, item.item_id, item.score


@pytest.mark.parametrize("name", CONTENTS)
def test_every_list_is_the_services_to_the_last_bit(name: str, sizes: object, tmp_path: Path) -> None:
    content = CONTENTS[name]
    write_bundle(tmp_path / "b", content)
    for k in (1, 3, 10, 1000):
        out = tmp_path / f"{k}.parquet"
        written = recommend(tmp_path / "b", out, k, threads=2)
        expected = list(served(tmp_path / "b", content, k))
        assert lines_of(out) == expected
        assert (written.users, written.lines) == (len(content.user_ids), len(expected))


def test_lists_are_brute_force_in_float64(folder: Path, tmp_path: Path) -> None:
    """Without the service: it might be wrong in the same way."""
    content = CONTENTS["plain"]
    recommend(folder, tmp_path / "l.parquet", 7)
    expected: list[Line] = []
    for user, user_id in enumerate(content.user_ids):
        scores = (content.items.astype(np.float64) * content.users[user].astype(np.float64)).sum(axis=1)
        unseen = np.setdiff1d(np.arange(len(scores)), content.seen[user])
        best = unseen[np.lexsort((unseen, -scores[unseen]))][:7]
        expected += [(user_id, rank, content.item_ids[row], scores[row]) for rank, row in enumerate(best, 1)]
    assert lines_of(tmp_path / "l.parquet") == expected


def test_users_with_few_unseen_items_have_short_lists(folder: Path, tmp_path: Path) -> None:
    """User 0 has seen everything, user 1 all but two items, user 2 nothing."""
    content = CONTENTS["plain"]
    recommend(folder, tmp_path / "l.parquet", 1000)
    counts = dict(pl.read_parquet(tmp_path / "l.parquet").group_by("user_id").len().rows())
    assert [counts.get(user_id, 0) for user_id in content.user_ids[:3]] == [0, 2, len(content.items)]


def test_an_approximate_index_does_not_matter(tmp_path: Path) -> None:
    content = make_content(n_users=60, n_items=400, dimension=8, seen_share=0.1, seed=6)
    write_bundle(tmp_path / "exact", content)
    write_bundle(tmp_path / "coarse", content)
    choice = IndexChoice("IVF8,PQ4x4")
    entry = build_index(content.items, tmp_path / "coarse" / bundle.INDEX, content.users, choice, content.seen)
    edit_json(tmp_path / "coarse" / bundle.MANIFEST, lambda m: m.update(index=entry.model_dump(mode="json")))
    reseal(tmp_path / "coarse")
    for name in ("exact", "coarse"):
        recommend(tmp_path / name, tmp_path / f"{name}.parquet", 10)
    assert lines_of(tmp_path / "coarse.parquet") == lines_of(tmp_path / "exact.parquet")
    assert list(served(tmp_path / "coarse", content, 10)) != lines_of(tmp_path / "exact.parquet")


def test_the_command_says_what_it_wrote_and_so_does_the_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "lists.parquet"
    root = tmp_path / "root"
    version = publish(folder, root).version
    done = dvib_export("recommend", root, "--all-users", "--k", 5, "--out", out, "--threads", 1)
    assert (done.code, done.err) == (0, "")
    lines = lines_of(out)
    assert f"{out}: {len(lines)} lines for 12 users of version {version}, loaded in" in done.out
    said = pl.read_parquet_metadata(out)
    assert {name: value for name, value in said.items() if name.startswith("dvib.")} == {
        "dvib.bundle_version": version,
        "dvib.model": "vbpr",
        "dvib.variant": "none",
        "dvib.dataset": "toy",
        "dvib.k": "5",
        "dvib.version": "0.1.0",
    }
    again = dvib_export("recommend", root, "--all-users", "--k", 5, "--out", out, "--force", "--json")
    document = json.loads(again.out)
    assert (document["lines"], document["users"], document["version"]) == (len(lines), 12, version)
    assert lines_of(out) == lines


def test_some_users_come_once_each_in_the_bundles_order(folder: Path, tmp_path: Path) -> None:
    ids = CONTENTS["plain"].user_ids
    chosen = [ids[7], ids[5], ids[7], ids[0]]
    flags = itertools.chain.from_iterable(("--user", user_id) for user_id in chosen)
    assert dvib_export("recommend", folder, *flags, "--k", 3, "--out", tmp_path / "l.parquet").code == 0
    expected = [line for line in served(folder, CONTENTS["plain"], 3) if line[0] in chosen]
    assert lines_of(tmp_path / "l.parquet") == expected
    assert [line[0] for line in expected] == [ids[5]] * 3 + [ids[7]] * 3  # the first has seen everything


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--out", "l"), "give either --all-users or --user ID"),
        (("--out", "l", "--all-users", "--user", "u-1"), "give either --all-users or --user ID"),
        (("--out", "l", "--user", "u-1", "--user", "no\x1bbody"), r"--user 'no\x1bbody': the bundle has no such user"),
        (("--out", "l", "--all-users", "--k", "0"), "--k"),
        (("--out", "l", "--all-users", "--threads", "0"), "--threads"),
        (("--out", "there", "--all-users"), "is there already; choose another name, or replace it with --force"),
        (("--out", ".", "--all-users", "--force"), "is a folder; name a file"),
        (("--out", "pipe", "--all-users", "--force"), "is a device or a pipe; name a file"),
        (("--out", "bundle/l", "--all-users", "--force"), "bundles are never edited; choose another --out"),
        (("--out", "there/l", "--all-users"), "there: File exists"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], complaint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("precious", "utf-8")
    os.mkfifo("pipe")
    before = names(folder)
    ended = dvib_export("recommend", "bundle", *arguments)
    assert ended.code == 2
    assert complaint in ended.complaint
    assert Path("there").read_text("utf-8") == "precious"
    assert names(tmp_path) == ["bundle", "pipe", "there"]
    assert Path("pipe").is_fifo()
    assert names(folder) == before


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "NaN"), (3e38, "overflow")])
def test_vectors_that_cannot_be_ranked_are_refused(value: float, message: str, folder: Path, tmp_path: Path) -> None:
    """The last user's: other lists are ready by then, and are not written either."""
    content = CONTENTS["plain"]
    users = content.users.copy()
    users[-1] = value
    (folder / bundle.USER_TOWER).write_bytes(gather_tower(users))
    seal(folder, content)
    with pytest.raises(BundleError, match=message):
        recommend(folder, tmp_path / "l.parquet", 3)
    assert names(tmp_path) == ["bundle"]


def wrapping(pull: Callable[..., Iterator[pl.DataFrame]], **options: Any) -> pl.LazyFrame:
    """As older versions of polars do: an error of a source becomes one of their own."""

    def wrapped(*arguments: object) -> Iterator[pl.DataFrame]:
        try:
            yield from pull(*arguments)
        except BundleError as error:
            raise pl.exceptions.ComputeError(f"caught exception: {error}") from None

    return register_io_source(wrapped, **options)


@pytest.mark.parametrize("source", [register_io_source, wrapping])
def test_an_error_on_the_way_leaves_the_old_file(
    source: object, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_ranking, "_USERS", 2)
    monkeypatch.setattr(module, "register_io_source", source)
    out = tmp_path / "l.parquet"
    out.write_text("old", "utf-8")
    calls = itertools.count()
    frame = module._Source.frame

    def failing(source: module._Source, rows: NDArray[np.int64]) -> pl.DataFrame:
        if next(calls) == 3:
            raise BundleError("planted")
        return frame(source, rows)

    monkeypatch.setattr(module._Source, "frame", failing)
    with pytest.raises(BundleError, match="planted"):
        recommend(folder, out, 3, force=True)
    assert out.read_text("utf-8") == "old"
    assert names(tmp_path) == ["bundle", "l.parquet"]


def test_a_file_that_appears_meanwhile_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "l.parquet"

    def appear(_done: int, _all: int) -> None:
        out.write_text("another's", "utf-8")

    with pytest.raises(FileExistsError, match="it is there already"):
        recommend(folder, out, 3, on_users=appear)
    assert out.read_text("utf-8") == "another's"
    assert names(tmp_path) == ["bundle", "l.parquet"]


def test_a_full_disk_is_one_line(folder: Path, tmp_path: Path) -> None:
    limit = (300, 300)
    done = subprocess.run(
        [sys.executable, "-m", "export", "recommend", folder, "--all-users", "--out", tmp_path / "l.parquet"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "l.parquet cannot be written" in line
    assert names(tmp_path) == ["bundle"]


def run_and_signal(folder: Path, out: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that signals itself in the third of twelve blocks, and says how many there were."""
    program = f"""
import atexit, itertools, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from export import batch_ranking, recommend
from export.__main__ import main
batch_ranking._USERS, calls, frame = 1, itertools.count(), recommend._Source.frame
atexit.register(lambda: print(next(calls)))
def signalling(source, rows):
    if next(calls) == 2:
        os.kill(os.getpid(), {int(number)})
        time.sleep(1)
    return frame(source, rows)
recommend._Source.frame = signalling
sys.argv = ["dvib-export", "recommend", {str(folder)!r}, "--all-users", "--threads", "1", "--out", {str(out)!r}]
main()
"""
    return python("-c", program, cwd=folder.parent)


def test_a_kill_leaves_nothing_that_looks_whole(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "l.parquet"
    assert run_and_signal(folder, out, signal.SIGKILL).returncode == -signal.SIGKILL
    (leftover,) = names(out.parent)
    assert leftover.startswith(".l.parquet.tmp-")
    recommend(folder, out, 3)
    assert names(out.parent) == ["l.parquet"]


def test_an_interruption_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "l.parquet"
    ended = run_and_signal(folder, out, signal.SIGINT)
    assert (ended.returncode, ended.stderr) == (130, "dvib-export: interrupted\n")
    assert int(ended.stdout) <= 3 + 1 + module._BLOCKS_AHEAD
    assert names(out.parent) == []


def test_blocks_are_ranked_only_a_little_ahead() -> None:
    """Whoever takes results slowly holds the work up: memory does not depend on the number of users."""
    begun: list[int] = []

    def work(block: int) -> int:
        begun.append(block)
        return -block

    results = module._in_order(work, range(1000), 3)
    for taken in range(20):
        assert next(results) == -taken
        assert len(begun) <= taken + 1 + 3 * (module._BLOCKS_AHEAD + 1)
    assert [*results] == [-block for block in range(20, 1000)]


def test_very_many_equal_scores_are_decided_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users whose vectors are zero: every item is as good as every other."""
    content = make_content(n_users=40, n_items=900, dimension=4, seed=8)
    content.users[:] = 0
    write_bundle(tmp_path / "b", content)
    for name, value in {"_TILE": 32, "_USERS": 8, "_MOST_CANDIDATES": 500}.items():
        monkeypatch.setattr(batch_ranking, name, value)
    score, scored = batch_ranking.pair_scores, []

    def counted(vectors: object, owners: NDArray[np.int64], *rest: object) -> object:
        scored.append(len(owners))
        return score(vectors, owners, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_ranking, "pair_scores", counted)
    recommend(tmp_path / "b", tmp_path / "l.parquet", 10)
    assert lines_of(tmp_path / "l.parquet") == list(served(tmp_path / "b", content, 10))
    assert max(scored) <= 500 + 8 * 32
    assert sum(scored) > 30_000


def test_long_lists_make_small_blocks() -> None:
    items = np.ones((5000, 2), dtype=np.float32)
    for k in (1, 4096, 5000, 10**9):
        ranker = batch_ranking.BatchRanker(items, k)
        assert 1 <= ranker.users_at_once <= 256
        assert ranker.users_at_once * min(k, 5000) <= 2**18


def test_the_number_of_threads_changes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_ranking, "_USERS", 1)
    found = []
    for threads in (1, 4):
        recommend(folder, tmp_path / f"{threads}.parquet", 10, threads=threads)
        found.append((tmp_path / f"{threads}.parquet").read_bytes())
    assert found[0] == found[1]


def test_progress_is_told_for_every_block(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_ranking, "_USERS", 5)
    told: list[tuple[int, int]] = []
    recommend(folder, tmp_path / "l.parquet", 2, on_users=lambda *progress: told.append(progress))
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_neither_torch_nor_the_service_is_loaded(folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
from export.__main__ import main
sys.argv = ["dvib-export", "recommend", {str(folder)!r}, "--all-users", "--out", "l.parquet"]
try:
    main()
finally:
    print(*{{name.split(".")[0] for name in sys.modules}}, "training.models" in sys.modules)"""
    done = python("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *loaded, models = done.stdout.splitlines()[-1].split()
    assert {"export", "polars"} <= set(loaded)
    assert not {"service", "fastapi", "torch_geometric", "sklearn", "pandas", "pyarrow"} & set(loaded)
    assert models == "False"
