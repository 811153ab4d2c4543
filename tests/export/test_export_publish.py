"""Publishing: versions side by side that never change, a pointer that names one of them, and the way back."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from export import bundle
from export.publish import current, publish, resolve, rollback
from service.engine import Engine
from tests.helpers_bundle import make_content, write_bundle
from tests.helpers_export import Outcome, digests, dvib_export, edit_json, reseal
from tests.helpers_publish import names
from tests.test_readme import commands
from training.common.errors import BundleError

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Four bundles of different content; never changed by a test."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(4):
        write_bundle(folder / str(seed), make_content(n_users=8, n_items=12, seed=seed), name=f"data{seed}")
    return {seed: folder / str(seed) for seed in range(4)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def version_of(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text("utf-8"))["version"])


def done(*arguments: object) -> str:
    """The command succeeds without a word on stderr."""
    outcome = dvib_export(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def refused(*arguments: object) -> str:
    """The command ends with one line and exit code 2."""
    outcome = dvib_export(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    return outcome.complaint


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree: kind, mode, inode, time of change, content."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        found = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
        seen[str(path)] = (found.st_mode, found.st_ino, found.st_mtime_ns, content)
    return seen


def moves(root: Path) -> list[tuple[str, str, str | None]]:
    lines = [json.loads(line) for line in (root / "history.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.pop("time"))
    return [(line["action"], line["version"], line["previous"]) for line in lines]


def test_the_first_publication(made: dict[int, Path], root: Path) -> None:
    version = version_of(made[0])
    assert done("publish", made[0], root) == f"{root}: version {version} published and is current\n"
    assert (root / "current").read_bytes() == f"{version}\n".encode()
    assert current(root) == root / "versions" / version
    assert digests(current(root)) == digests(made[0])
    assert names(root) == [".lock", "current", "history.jsonl", "versions"]
    assert moves(root) == [("publish", version, None)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in current(root).iterdir()} == {0o444}
    assert stat.S_IMODE(current(root).stat().st_mode) == 0o555


def test_versions_never_change(made: dict[int, Path], root: Path) -> None:
    """Whatever is done to the root: no byte, no time, no inode of a published version differs afterwards."""
    a, b, c = (version_of(made[seed]) for seed in range(3))
    published: dict[str, tuple[object, ...]] = {}
    for step in (
        ("publish", made[0], root),
        ("publish", made[1], root),
        ("publish", made[0], root),
        ("publish", made[0], root),
        ("rollback", root),
        ("publish", made[2], root),
        ("rollback", root, "--to", a),
        ("list", root),
        ("verify", root),
    ):
        dvib_export(*step)
        now = state(root / "versions")
        now.pop(str(root / "versions"))
        assert published.items() <= now.items()
        published = now
    assert {path.name for path in (root / "versions").iterdir()} == {a, b, c}


def test_publishing_again_only_moves_the_pointer(made: dict[int, Path], root: Path) -> None:
    a, b = version_of(made[0]), version_of(made[1])
    done("publish", made[0], root)
    with (root / "current").open() as opened:
        done("publish", made[1], root)
        assert opened.read() == f"{a}\n"  # replaced, not overwritten
    before = state(root)
    assert done("publish", made[1], root).endswith(f"version {b} was there already and is current already\n")
    assert state(root) == before
    assert done("publish", made[0], root).endswith(f"version {a} was there already and is current, before it {b}\n")
    assert current(root).name == a
    assert moves(root) == [("publish", a, None), ("publish", b, a), ("publish", a, b)]


def test_each_step_back_goes_further_back(made: dict[int, Path], root: Path) -> None:
    a, b, c, d = (version_of(made[seed]) for seed in range(4))
    for seed in range(3):
        publish(made[seed], root)
    assert done("rollback", root) == f"{root}: version {b} checked and is current, before it {c}\n"
    done("rollback", root)
    assert current(root).name == a
    assert "no other version was current earlier" in refused("rollback", root)
    # What was gone back from is not come back to, until it is published again.
    publish(made[3], root)
    done("rollback", root)
    assert current(root).name == a
    publish(made[2], root)
    done("rollback", root, "--to", d)
    done("rollback", root)
    assert current(root).name == c
    assert moves(root)[-3:] == [("publish", c, a), ("rollback", d, c), ("rollback", c, d)]


def test_every_way_through_history_is_undone_step_by_step(made: dict[int, Path], tmp_path: Path) -> None:
    """Publishing pushes and rolling back pops: compared with a stack, over all that can follow two publications."""
    versions = [version_of(made[seed]) for seed in range(2)]
    for number, steps in enumerate(itertools.product([0], [1], *[[0, 1, None]] * 3)):
        root, stack = tmp_path / str(number), list[str]()
        for step in steps:
            if step is not None:
                publish(made[step], root)
                if stack[-1:] != [versions[step]]:
                    stack.append(versions[step])
            elif len(stack) > 1:
                stack.pop()
                assert rollback(root).version == stack[-1]
            else:
                with pytest.raises(BundleError):
                    rollback(root)
            assert not stack or current(root).name == stack[-1]


def test_a_version_that_was_removed_is_passed_over(made: dict[int, Path], root: Path) -> None:
    for seed in range(3):
        publish(made[seed], root)
    folder = root / "versions" / version_of(made[1])
    folder.chmod(0o755)
    shutil.rmtree(folder)
    rollback(root)
    assert current(root).name == version_of(made[0])
    assert "there is no version" in refused("rollback", root, "--to", folder.name)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("name", [bundle.ITEMS, bundle.TORCHSCRIPT, bundle.CERTIFICATE, bundle.MANIFEST])
def test_an_altered_bundle_is_not_published(name: str, made: dict[int, Path], root: Path, tmp_path: Path) -> None:
    publish(made[0], root)
    before = state(root)
    shutil.copytree(made[1], tmp_path / "bundle")
    spoil(tmp_path / "bundle" / name)
    assert name in refused("publish", tmp_path / "bundle", root)
    after = state(root)
    for path in (root, root / "versions"):  # a temporary folder came and went
        before.pop(str(path)), after.pop(str(path))
    assert after == before
    # Also where the version is there already, and only its files would have to be compared.
    publish(made[1], root)
    assert name in refused("publish", tmp_path / "bundle", root)


def test_an_altered_version_does_not_become_current(made: dict[int, Path], root: Path) -> None:
    publish(made[0], root)
    publish(made[1], root)
    spoil(root / "versions" / version_of(made[0]) / bundle.MODEL_ONNX)
    for arguments in (("rollback", root), ("publish", made[0], root)):
        complaint = refused(*arguments)
        assert bundle.MODEL_ONNX in complaint
        assert "move it away and publish it again" in complaint
        assert current(root).name == version_of(made[1])


def test_a_version_under_another_name(made: dict[int, Path], root: Path) -> None:
    publish(made[0], root)
    publish(made[1], root)
    folder = root / "versions" / version_of(made[0])
    folder.rename(folder.with_name("0" * 12))
    assert "another bundle than its name says" in refused("rollback", root, "--to", "0" * 12)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"abc\n",
        b"0123456789ab",
        b"0123456789ab\r\n",
        b"0123456789ab\n\n",
        b"0123456789ab\0",
        b"0123456789AB\n",
        b"0123456789a\xff\n",
        "０123456789ab\n".encode(),
        b"../../../etc\n",
        b"../versions/0\n",
        b"/etc/shadow0\n",
        b"x" * 100_000,
    ],
)
def test_a_pointer_that_is_no_version(content: bytes, made: dict[int, Path], root: Path) -> None:
    publish(made[0], root)
    publish(made[1], root)
    (root / "current").write_bytes(content)
    with pytest.raises(BundleError, match="wanted a version"):
        current(root)
    for arguments in (("rollback", root), ("verify", root)):
        assert "wanted a version" in refused(*arguments)
    listing = dvib_export("list", root)
    assert listing.code == 2
    assert "wanted a version" in listing.complaint
    assert version_of(made[0]) in listing.out
    rollback(root, version_of(made[0]))
    assert current(root).name == version_of(made[0])


def test_links_are_not_followed(made: dict[int, Path], root: Path, tmp_path: Path) -> None:
    publish(made[0], root)
    outside = tmp_path / "outside"
    shutil.copytree(root, outside)
    version = version_of(made[0])
    for path in (root / "current", root / "versions" / version, root / "versions"):
        (path.parent / "aside").unlink(missing_ok=True)
        path.rename(path.with_name("aside"))
        path.symlink_to(outside / path.relative_to(root))
        with pytest.raises(BundleError):
            current(root)
        path.unlink()
        path.with_name("aside").rename(path)
        assert current(root).name == version
    (root / "current").unlink()
    os.mkfifo(root / "current")
    with pytest.raises(BundleError, match="wanted a version"):
        current(root)


def test_a_pointer_to_nothing(made: dict[int, Path], root: Path) -> None:
    publish(made[0], root)
    (root / "current").write_text("0123456789ab\n")
    with pytest.raises(BundleError, match="0123456789ab is not in versions"):
        current(root)
    publish(made[0], root)
    assert current(root).name == version_of(made[0])


@pytest.mark.parametrize("to", ["", "abc", "..", "../../x", "0123456789AB", "0123456789ab\n", "0123456789abc"])
def test_rolling_back_to_what_is_no_version(to: str, made: dict[int, Path], root: Path) -> None:
    publish(made[0], root)
    assert "is no version" in refused("rollback", root, "--to", to)


def test_a_version_differs_by_more_than_its_measurements(made: dict[int, Path], root: Path, tmp_path: Path) -> None:
    """Measured times may differ from one build to the next: the version stays, and so do the published files."""
    builds = []
    for seconds in (1, 2):
        folder = tmp_path / str(seconds)
        shutil.copytree(made[0], folder)
        (folder / bundle.MEASUREMENTS).write_text(json.dumps({"load_s": seconds}))
        reseal(folder)
        builds.append(folder)
    assert version_of(builds[0]) == version_of(builds[1]) == version_of(made[0])
    publish(builds[0], root)
    done("publish", builds[1], root)
    assert digests(current(root)) == digests(builds[0])
    (builds[1] / bundle.MEASUREMENTS).write_text("{}")
    assert bundle.MEASUREMENTS in refused("publish", builds[1], root)
    # Its hash is one that is checked, although the version does not depend on it.
    edit_json(builds[1] / bundle.MANIFEST, lambda manifest: manifest["files"].pop(bundle.MEASUREMENTS))
    assert bundle.MEASUREMENTS in refused("publish", builds[1], root)


def test_the_list(made: dict[int, Path], root: Path) -> None:
    for seed in (2, 0, 1):
        publish(made[seed], root)
    rollback(root)
    header, *lines = done("list", root).splitlines()
    assert header.split() == ["version", "model", "variant", "dataset", "published", "MB", "test", "ndcg@10"]
    assert [line.replace("*", "").split()[0] for line in lines] == [version_of(made[seed]) for seed in (2, 0, 1)]
    assert [line.startswith("*") for line in lines] == [False, True, False]
    for seed, line in zip((2, 0, 1), lines, strict=True):
        *_, model, variant, data, time, size, metric = line.split()
        assert (model, variant, data, metric) == ("vbpr", "none", f"data{seed}", "0.1250")
        size_of_files = sum(path.stat().st_size for path in made[seed].iterdir() if path.name != bundle.MANIFEST)
        assert float(size) == round(size_of_files / 1e6, 1)
        assert time in (root / "history.jsonl").read_text("utf-8")
    assert done("list", root, "--metric", "hr@3").splitlines()[1].split()[-1] == "-"
    spoil(root / "versions" / version_of(made[1]) / bundle.MANIFEST)
    assert f"{version_of(made[1])}  (unreadable)" in done("list", root)


def test_a_root_stands_for_its_current_version(adaptive_bundle: Path, baseline_bundle: Path, root: Path) -> None:
    publish(baseline_bundle, root)
    publish(adaptive_bundle, root)
    assert resolve(root) == current(root)
    assert resolve(adaptive_bundle) == adaptive_bundle
    assert done("verify", root) == done("verify", adaptive_bundle)
    ours, theirs = (json.loads(done("diff", baseline_bundle, one, "--json")) for one in (root, adaptive_bundle))
    assert ours == theirs
    assert done("diff", root, root)
    assert Engine.load(resolve(root)).manifest.variant == "adaptive"
    done("publish", root, root.with_name("production"))
    assert digests(current(root.with_name("production"))) == digests(adaptive_bundle)
    done("rollback", root)
    assert Engine.load(resolve(root)).manifest.variant == "none"


def test_publishing_only_what_verifies(adaptive_bundle: Path, root: Path, tmp_path: Path) -> None:
    """Hashes can be made to fit; ``--verify`` looks into the files."""
    done("publish", adaptive_bundle, root, "--verify")
    spoiled = tmp_path / "bundle"
    shutil.copytree(adaptive_bundle, spoiled)
    edit_json(spoiled / bundle.CERTIFICATE, lambda certificate: certificate["proofs"].update(blanked=False))
    reseal(spoiled)
    outcome: Outcome = dvib_export("publish", spoiled, root, "--verify")
    assert (outcome.code, outcome.out) == (1, "")
    assert "blanked failed" in outcome.err
    assert names(root / "versions") == [version_of(adaptive_bundle)]


def test_a_bundle_that_is_replaced_while_it_is_verified(
    made: dict[int, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was proven is published."""
    folder = tmp_path / "bundle"
    shutil.copytree(made[0], folder)

    def replaced(verified: Path) -> list[object]:
        assert verified == folder
        shutil.rmtree(folder)
        shutil.copytree(made[1], folder)
        return []

    monkeypatch.setattr("export.verify.verify_bundle", replaced)
    complaint = refused("publish", folder, root, "--verify")
    assert f"wanted version {version_of(made[0])}, it is {version_of(made[1])} now" in complaint
    assert not root.exists()


def test_the_readmes_commands(adaptive_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, in a folder that has nothing but the bundle; the last one would serve for ever."""
    shutil.copytree(adaptive_bundle, tmp_path / "bundles" / "dvib")
    monkeypatch.chdir(tmp_path)
    *lines, serve = [shlex.split(line) for line in commands("Publishing and going back")]
    assert [words[:2] for words in lines] == [["dvib-export", "publish"], ["dvib-export", "list"]]
    for words in lines:
        assert version_of(adaptive_bundle) in done(*words[1:])
    assert serve[:2] == ["dvib-serve", "--bundle"]
    name, _, folder = serve[2].partition("=")
    assert name == "dvib"
    assert Engine.load(resolve(Path(folder))).manifest.variant == "adaptive"
