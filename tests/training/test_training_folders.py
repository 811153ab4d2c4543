from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from training.common import folders
from training.common.folders import atomic_folder, make_folder, write_atomically

MODES = ("exchange", "fallback")


@pytest.fixture(params=MODES)
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders in one step, and in the two steps of systems without an atomic exchange."""
    if request.param == "fallback":

        def no_exchange(first: Path, second: Path) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(folders, "_exchange", no_exchange)
    return str(request.param)


def fill(target: Path, **files: str) -> None:
    with atomic_folder(target) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_appears_whole_and_with_its_parents(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "deep" / "er" / "run"
    with atomic_folder(target) as fresh:
        assert fresh.parent == target.parent  # the same file system
        (fresh / "a").write_text("1")
        (fresh / "sub").mkdir()
        (fresh / "sub" / "b").write_text("2")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert (target / "sub" / "b").read_text() == "2"
    assert [path.name for path in target.parent.iterdir()] == ["run"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_replacement_leaves_nothing_of_the_old_folder(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "run"
    fill(target, old="1", both="1")
    fill(target, new="2", both="2")
    assert contents(target) == {"new": "2", "both": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_inside_keeps_the_old_folder(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "run"
    fill(target, old="1")

    def fail_half_way() -> None:
        with atomic_folder(target) as fresh:
            (fresh / "half").write_text("2")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_half_way()
    assert contents(target) == {"old": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_inside_leaves_no_first_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "run"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_of_the_exchange_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    fill(target, old="1")

    def denied(first: Path, second: Path) -> None:
        raise OSError(errno.EACCES, "denied")

    monkeypatch.setattr(folders, "_exchange", denied)
    with pytest.raises(OSError, match="denied"):
        fill(target, new="2")
    assert contents(target) == {"old": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_reader_sees_the_old_or_the_new_folder_but_never_none(tmp_path: Path) -> None:
    # The exchange swaps two names in one system call: an inode is there before and after.
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "a").write_text("")
    inodes = first.stat().st_ino, second.stat().st_ino
    folders._exchange(first, second)
    assert (second.stat().st_ino, first.stat().st_ino) == inodes
    assert (second / "a").exists()
    with pytest.raises(FileNotFoundError):
        folders._exchange(first, tmp_path / "missing")


@pytest.mark.parametrize("name", ["run", "run[1]", "r?n*"])
def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    (tmp_path / "neighbour").mkdir()
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from training.common.folders import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as fresh:\n"
        "    (fresh / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 2
    fill(target, new="2")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["neighbour", name])
    assert contents(target) == {"new": "2"}


def test_other_targets_unfinished_folders_are_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "best") as other:
        fill(tmp_path / "last", a="1")
        assert other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_a_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("run"), a="1")
    assert contents(tmp_path / "run") == {"a": "1"}


def test_write_atomically_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.json"
    write_atomically(path, "one")
    write_atomically(path, "zwölf")
    assert path.read_text("utf-8") == "zwölf"
    assert [found.name for found in path.parent.iterdir()] == ["log.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_write_atomically_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text("utf-8") == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["log.json"]


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    fill(target, old="1")
    events: list[str] = []
    exchange = folders._exchange

    def flush(path: Path) -> None:
        events.append("." if path.name.startswith(".run.tmp-") else path.name)

    def swap_names(first: Path, second: Path) -> None:
        events.append("exchange")
        exchange(first, second)

    monkeypatch.setattr(folders, "fsync_path", flush)
    monkeypatch.setattr(folders, "_exchange", swap_names)
    fill(target, a="1", b="2")
    place = events.index("exchange")
    assert sorted(events[:place]) == [".", "a", "b"]  # files and their folder first, the folder around them last
    assert events[place + 1 :] == [tmp_path.name]


def test_new_parents_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(folders, "fsync_path", flushed.append)
    monkeypatch.chdir(tmp_path)
    make_folder(Path("a/b/c"))
    assert flushed == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert (tmp_path / "a" / "b" / "c").is_dir()
    make_folder(Path("a/b/c"))
    assert len(flushed) == 3


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_between_the_steps_of_the_fallback(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an atomic exchange the next write, and any later one, finds its way from where the dead one stopped."""
    target = tmp_path / "run"
    fill(target, old="1")
    script = (
        "import errno, os, signal, sys\n"
        "from pathlib import Path\n"
        "from training.common import folders\n"
        "rename, left = os.rename, int(sys.argv[2])\n"
        "def no_exchange(first, second):\n"
        "    raise OSError(errno.ENOSYS, 'none')\n"
        "def counted(*arguments):\n"
        "    global left\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left -= 1\n"
        "    rename(*arguments)\n"
        "folders._exchange, os.rename = no_exchange, counted\n"
        "with folders.atomic_folder(Path(sys.argv[1])) as fresh:\n"
        "    (fresh / 'new').write_text('2')\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(target), str(renames)], check=False)
    assert died.returncode == (-signal.SIGKILL if renames < 3 else 0)

    def no_exchange(first: Path, second: Path) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(folders, "_exchange", no_exchange)
    expected = {"old": "1"} if renames < 2 else {"new": "2"}
    for text in ("3", "4"):
        with atomic_folder(target) as fresh:
            (fresh / "newer").write_text(text)
            assert contents(target) == expected
        expected = {"newer": text}
        assert contents(target) == expected
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_process_may_tidy_up_between_the_steps_of_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run"
    fill(target, old="1")
    rename = Path.rename

    def no_exchange(first: Path, second: Path) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def overtaken(path: Path, to: Path) -> Path:
        if path.name == ".run.old":
            folders.settle_retired(target)
        return rename(path, to)

    monkeypatch.setattr(folders, "_exchange", no_exchange)
    monkeypatch.setattr(Path, "rename", overtaken)
    fill(target, new="2")
    assert contents(target) == {"new": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to nothing"])
def test_what_is_there_is_not_replaced_unless_wanted(kind: str, late: bool, tmp_path: Path) -> None:
    target = tmp_path / "run"
    begun = False

    def appear() -> None:
        if "folder" in kind:
            target.mkdir()
            if kind == "folder":
                (target / "theirs").write_text("1")
        elif kind == "file":
            target.write_text("1")
        else:
            target.symlink_to("nowhere")

    def write() -> None:
        nonlocal begun
        with atomic_folder(target, replace=False) as fresh:
            begun = True
            (fresh / "ours").write_text("2")
            if late:
                appear()

    if not late:
        appear()
    with pytest.raises(FileExistsError, match="not replaced") as caught:
        write()
    assert caught.value.filename == str(target)
    assert begun == late  # no work is done in vain
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (target / "ours").exists()
    if kind == "folder":
        assert contents(target) == {"theirs": "1"}


def test_what_is_not_there_needs_no_replacing(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run", replace=False) as fresh:
        (fresh / "ours").write_text("1")
    assert contents(tmp_path / "run") == {"ours": "1"}
