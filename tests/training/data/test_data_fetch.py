"""The packaged default data set, from a local wheel: pip runs for real but looks at no index."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from training.common.errors import DataError
from training.data import fetch
from training.data.fetch import FILES, PinnedFile, cache_folder, fetch_default
from training.data.options import DataOptions
from training.data.recbole import read_recbole

CONTENT = {
    "ml-100k.inter": b"user_id:token\titem_id:token\nu\ta\nu\tb\nu\tc\n",
    "ml-100k.item": b"item_id:token\tmovie_title:token_seq\na\tToy Story\n",
}
PINNED = tuple(PinnedFile(name, len(text), hashlib.sha256(text).hexdigest()) for name, text in CONTENT.items())


def make_wheel(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/__init__.py", "raise SystemExit('the wheel was run')")
        for name, text in content.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", text)
        archive.writestr("recbole-1.2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        archive.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("recbole-1.2.1.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for the package index: a folder of wheels, empty at first."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: Path) -> Path:
        raise AssertionError("pip was called")

    monkeypatch.setattr(fetch, "_download", refuse)


def test_fetched_once_and_then_taken_from_the_cache(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, CONTENT)
    folder = fetch_default(PINNED)
    assert folder == cache_folder() / "ml-100k"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in cache_folder().iterdir()] == ["ml-100k"]
    forbid_pip(monkeypatch)
    assert fetch_default(PINNED) == folder
    data = read_recbole("ml-100k", folder, DataOptions())
    assert list(data.titles) == ["Toy Story", "", ""]


def test_a_spoilt_cache_is_fetched_again(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_wheel(index, CONTENT)
    folder = fetch_default(PINNED)
    for spoil in (b"", CONTENT["ml-100k.inter"].replace(b"u\ta", b"u\tq")):
        (folder / "ml-100k.inter").write_bytes(spoil)
        fetch_default(PINNED)
        assert (folder / "ml-100k.inter").read_bytes() == CONTENT["ml-100k.inter"]
    assert "is not the pinned data set" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**CONTENT, "ml-100k.item": CONTENT["ml-100k.item"].replace(b"Toy", b"Joy")},
            "does not have the pinned SHA-256",
        ),
        ({**CONTENT, "ml-100k.item": CONTENT["ml-100k.item"] * 1000}, "does not have the pinned SHA-256"),
        ({"ml-100k.inter": CONTENT["ml-100k.inter"]}, "is not the wheel expected .*ml-100k.item"),
    ],
)
def test_another_wheel_is_refused_and_leaves_nothing(index: Path, content: dict[str, bytes], message: str) -> None:
    make_wheel(index, content)
    with pytest.raises(DataError, match=message) as caught:
        fetch_default(PINNED)
    assert "\n" not in str(caught.value)
    assert not cache_folder().exists()


def test_a_refused_wheel_leaves_the_old_cache_as_it_was(index: Path) -> None:
    make_wheel(index, CONTENT)
    folder = fetch_default(PINNED)
    (folder / "ml-100k.item").write_bytes(b"spoilt")
    make_wheel(index, {**CONTENT, "ml-100k.item": b"wrong"})
    with pytest.raises(DataError, match="pinned SHA-256"):
        fetch_default(PINNED)
    assert (folder / "ml-100k.item").read_bytes() == b"spoilt"


def test_no_index_is_one_clear_line(index: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch_default(PINNED)
    message = str(caught.value)
    assert message.startswith("could not fetch ml-100k: pip download recbole==1.2.1 failed (ERROR: ")
    assert message.endswith("or try again with access to the package index")
    assert "\n" not in message
    assert not cache_folder().exists()


def test_source_archives_are_never_built(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="timed out"):
        fetch_default(PINNED)
    (command,) = commands
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert "--no-deps" in command
    assert command[-1] == "recbole==1.2.1"


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, CONTENT)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("DVIB_CACHE", str(blocked))
    with pytest.raises(DataError, match=r"cannot write the data cache .*set DVIB_CACHE"):
        fetch_default(PINNED)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dvib"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "dvib"


def test_the_pinned_hashes() -> None:
    assert [(file.name, file.sha256[:8], file.sha256[-8:]) for file in FILES] == [
        ("ml-100k.inter", "4edb74e2", "a0935eff"),
        ("ml-100k.item", "51d7cdf7", "56064532"),
    ]
