"""Publishing when processes are killed, disks are full, and others publish too: old or new, never half."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.publish import current, history, publish, published, rollback
from tests.helpers_bundle import make_content, write_bundle
from tests.helpers_export import digests, dvib_export, limited, python
from tests.helpers_publish import names
from training.common.errors import BundleError
from training.common.folders import remove_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("made")
    for seed in range(3):
        write_bundle(folder / str(seed), make_content(n_users=4, n_items=6, seed=seed))
    return [folder / str(seed) for seed in range(3)]


def version_of(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text("utf-8"))["version"])


def apart(statements: str) -> str:
    """Run statements in another interpreter, which may fork as it has no threads."""
    done = python("-c", f"from pathlib import Path\nfrom tests.helpers_publish import *\n{statements}", cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def assert_whole(root: Path, known: dict[str, Path]) -> None:
    """What a reader can see is nothing but whole versions, and a pointer to one of them."""
    for path in (root / "versions").iterdir() if (root / "versions").exists() else ():
        if not path.name.startswith("."):
            assert digests(path) == digests(known[path.name])
    if (root / "current").exists():
        assert current(root).name in known
        assert history(root)[-1].version == current(root).name


def assert_tidy(root: Path, *versions: str) -> None:
    """Nothing lies about, and the history has no gap."""
    assert names(root) == [".lock", "current", "history.jsonl", "versions"]
    assert names(root / "versions") == sorted(versions)
    moves = history(root)
    assert [move.previous for move in moves] == [None, *(move.version for move in moves[:-1])]
    assert all(move.version != move.previous for move in moves)
    assert moves[-1].version == current(root).name


@pytest.mark.parametrize("case", ["first", "second", "again", "back"])
def test_a_kill_at_any_line(case: str, bundles: list[Path], tmp_path: Path) -> None:
    """Each line of publishing and of writing folders is once a process's last."""
    template, out = tmp_path / "template", tmp_path / "killed"
    out.mkdir()
    known = {version_of(folder): folder for folder in bundles}
    for folder in {"first": [], "second": bundles[:1]}.get(case, bundles[:2]):
        publish(folder, template)
    old = current(template).name if template.exists() else None
    new = {"first": bundles[0], "second": bundles[1]}.get(case, bundles[0])
    action = f"publish.publish(Path({str(new)!r}), root)" if case != "back" else "publish.rollback(root)"
    kills = int(apart(f"print(kill_at_every_line(Path({str(template)!r}), Path({str(out)!r}), lambda root: {action}))"))
    assert kills > 50
    found = []
    for number in range(kills):
        root = out / str(number)
        assert_whole(root, known)
        found.append(current(root).name if (root / "current").exists() else None)
        # The next one finds its way from there, and leaves nothing of what the dead one left.
        if case == "back" and found[-1] == old:
            rollback(root)
        elif case != "back":
            publish(new, root)
        assert current(root).name == version_of(new)
        assert_tidy(root, *{version_of(new), *([old] if old else [])})
    assert set(found) == {old, version_of(new)}
    moved = found.index(version_of(new))
    assert set(found[:moved]) == {old}
    assert set(found[moved:]) == {version_of(new)}


def test_a_first_publication_that_died_is_listed(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(bundles[0], root)
    (root / "current").unlink()
    assert history(root) == []
    (one,) = published(root)
    assert (one.version, one.published, one.current) == (version_of(bundles[0]), None, False)
    with pytest.raises(BundleError, match=r"no version is current; .* rollback .* --to"):
        current(root)
    listing = dvib_export("list", root)
    assert listing.code == 2
    assert "never current" in listing.out
    assert "no version is current" in listing.complaint


def test_many_at_once(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    paths = [str(folder) for folder in bundles]
    apart(f"publish_at_once([Path(p) for p in {paths}], Path({str(root)!r}), processes=5, steps=8)")
    assert_whole(root, {version_of(folder): folder for folder in bundles})
    assert_tidy(root, *(path.name for path in (root / "versions").iterdir()))
    assert len(history(root)) > 10


def test_no_space_for_the_files(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(bundles[0], root)
    limited(200, root, "publish", bundles[1], root)
    assert_tidy(root, version_of(bundles[0]))
    assert current(root).name == version_of(bundles[0])


def test_no_space_for_the_history(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(bundles[0], root)
    publish(bundles[1], root)
    limited(200, root, "rollback", root)
    assert_tidy(root, version_of(bundles[0]), version_of(bundles[1]))
    assert current(root).name == version_of(bundles[1])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_root_that_may_not_be_written(bundles: list[Path], open_folder: Path) -> None:
    root, folder = open_folder / "root", open_folder / "bundle"
    publish(bundles[0], root)
    write_bundle(folder, make_content(n_users=4, n_items=6, seed=1))
    for path in folder.iterdir():
        path.chmod(0o644)
    nobody = 65534
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, nobody, nobody)
    root.chmod(0o555)
    program = (
        "import os, sys\nfrom export.__main__ import main\nimport export.cli, export.publish\n"
        f"if os.geteuid() == 0: os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})\n"
        f"sys.argv = ['dvib-export', 'publish', {str(folder)!r}, {str(root)!r}]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY
    )
    root.chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"dvib-export: .*Permission denied\n", done.stderr)
    assert_whole(root, {version_of(bundles[0]): bundles[0], version_of(folder): folder})
    assert current(root).name == version_of(bundles[0])


def test_roots_that_are_none(bundles: list[Path], tmp_path: Path) -> None:
    """One line, exit code 2, and nothing is written."""
    a_file, strange = tmp_path / "file", tmp_path / "strange"
    a_file.write_text("x")
    strange.mkdir()
    (strange / "notes.txt").write_text("x")
    for root, words in (
        (a_file, str(a_file)),
        (a_file / "root", str(a_file)),
        (strange, "notes.txt"),
        (bundles[1], "holds"),
    ):
        before = sorted(tmp_path.rglob("*")), digests(bundles[1])
        outcome = dvib_export("publish", bundles[0], root)
        assert (outcome.code, outcome.out) == (2, "")
        assert words in outcome.complaint
        for command in ("rollback", "list"):
            outcome = dvib_export(command, root)
            assert (outcome.code, outcome.out) == (2, "")
            assert "nothing is published here" in outcome.complaint
        assert (sorted(tmp_path.rglob("*")), digests(bundles[1])) == before


def test_a_root_within_a_bundle(bundles: list[Path], tmp_path: Path) -> None:
    """Bundles are never edited: neither the one that is published, nor another, nor a published one."""
    home = tmp_path / "home"
    shutil.copytree(bundles[0], home)
    (tmp_path / "link").symlink_to(home)
    publish(bundles[0], tmp_path / "root")
    before = digests(home), digests(current(tmp_path / "root"))
    for bundle in (home, bundles[1]):
        for root in (home / "pub", home / "a" / "b", tmp_path / "link" / "pub", current(tmp_path / "root") / "pub"):
            outcome = dvib_export("publish", bundle, root)
            assert (outcome.code, outcome.out) == (2, "")
            assert f"{root} lies inside of" in outcome.complaint
            assert "choose another root" in outcome.complaint
            assert (digests(home), digests(current(tmp_path / "root"))) == before


def test_a_version_that_appears_is_not_replaced(bundles: list[Path], tmp_path: Path) -> None:
    """Nobody but a publisher with the lock should write there; if somebody does, it is left to be looked at."""
    root = tmp_path / "root"
    theirs = root / "versions" / version_of(bundles[0])
    with pytest.raises(FileExistsError, match="not replaced"):
        publish(bundles[0], root, lambda _: theirs.mkdir())
    assert names(theirs) == []
    assert not (root / "current").exists()


@pytest.mark.parametrize("damage", ["missing", "damaged", "a link"])
def test_a_lost_pointer_costs_no_history(damage: str, bundles: list[Path], tmp_path: Path) -> None:
    """A move from a lost pointer says that nothing was current before, as one of a first publication that died does."""
    root = tmp_path / "root"
    a, b, c = map(version_of, bundles)

    def lose() -> None:
        (root / "current").unlink()
        if damage == "damaged":
            (root / "current").write_text("nonsense\n")
        elif damage == "a link":
            (root / "current").symlink_to("nowhere")

    publish(bundles[0], root)
    publish(bundles[1], root)
    lose()
    publish(bundles[2], root)
    lose()
    assert {one.version: one.published is not None for one in published(root)} == {a: True, b: True, c: True}
    publish(bundles[0], root)
    assert [move.version for move in history(root)] == [a, b, c, a]
    assert rollback(root).version == c


def test_a_damaged_pointer_does_not_undo_the_first_publication(bundles: list[Path], tmp_path: Path) -> None:
    """A process that dies leaves no pointer, and never a damaged one."""
    root = tmp_path / "root"
    publish(bundles[0], root)
    (root / "current").write_text("nonsense\n")
    (one,) = published(root)
    assert one.published is not None
    publish(bundles[1], root)
    assert rollback(root).version == version_of(bundles[0])


def test_a_move_to_a_version_that_is_gone_does_not_count(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(bundles[0], root)
    (root / "current").write_text("nonsense\n")
    remove_folder(root / "versions" / version_of(bundles[0]))
    publish(bundles[1], root)
    assert [move.version for move in history(root)] == [version_of(bundles[1])]


def test_what_is_no_bundle_is_not_published(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        outcome = dvib_export("publish", folder, tmp_path / "root")
        assert (outcome.code, outcome.out) == (2, "")
        assert str(folder) in outcome.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_history_is_named(bundles: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(bundles[0], root)
    with (root / "history.jsonl").open("a") as stream:
        stream.write('{"time": 1}\n')
    for arguments in (("publish", bundles[1], root), ("rollback", root), ("list", root)):
        outcome = dvib_export(*arguments)
        assert outcome.code == 2
        assert "history.jsonl, line 2" in outcome.complaint
    assert current(root).name == version_of(bundles[0])
    (root / "history.jsonl").unlink()
    publish(bundles[1], root)
    assert current(root).name == version_of(bundles[1])
