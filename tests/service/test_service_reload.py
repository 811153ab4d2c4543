"""A published version is served without one failed request; a bad one never."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from export import bundle
from export.bundle import BundleReader
from export.publish import CURRENT, VERSIONS, publish
from tests.helpers_bundle import make_content, write_bundle
from tests.service.load import under_load
from tests.service.processes import Server, generations, until
from training.common.folders import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.load import Load
    from tests.service.processes import StartServer

TOKEN = "a-token-of-this-test"  # noqa: S105
ADMIN = {"DVIB_SERVE_ADMIN_TOKEN": TOKEN, "DVIB_SERVE_ADMIN_PORT": "0", "DVIB_SERVE_WATCH_S": "0.1"}
N_RELOADS, N_BROKEN = 20, 5


class Operator:
    """Who publishes bundles below a root, and asks the admin endpoint."""

    def __init__(self, server: Server, root: Path) -> None:
        assert server.process.stderr is not None
        self.server, self.root = server, root
        self.log: list[dict[str, Any]] = []
        while not (said := self.read_log()).startswith("admin endpoint on "):
            pass
        self.client = httpx.Client(
            base_url=said.removeprefix("admin endpoint on "), headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        )

    def read_log(self) -> str:
        assert self.server.process.stderr is not None
        self.log.append(json.loads(self.server.process.stderr.readline()))
        return str(self.log[-1]["message"])

    def point_to(self, version: str) -> None:
        write_atomically(self.root / CURRENT, f"{version}\n")

    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/status").json())

    def version(self) -> str:
        return str(self.status()["models"][0]["version"])

    def reload(self) -> httpx.Response:
        return self.client.post("/reload")

    def hang_up(self) -> None:
        self.server.process.send_signal(signal.SIGHUP)

    def until_state(self, state: str, version: str) -> None:
        def reached() -> bool:
            status = self.status()
            return (status["last_reload"]["state"], status["models"][0]["version"]) == (state, version)

        until(reached, what=f"{state} {version}")


@contextmanager
def operated(serve: StartServer, root: Path, *arguments: str, **extra: str) -> Iterator[Operator]:
    """Serve what is published below a root, with an admin endpoint."""
    with serve("--bundle", f"toy={root}", "--port", "0", *arguments, **ADMIN | extra) as server:
        operator = Operator(server, root)
        with operator.client:
            yield operator


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / str(seed) for seed in range(3)]
    for seed, path in enumerate(paths):
        write_bundle(path, make_content(seed=seed))
    return paths


@pytest.fixture
def root(bundles: list[Path], tmp_path: Path) -> Path:
    """Three published versions, the last of them current."""
    for path in bundles:
        publish(path, tmp_path / "root")
    return tmp_path / "root"


def versions(root: Path) -> list[str]:
    return sorted(path.name for path in (root / VERSIONS).iterdir())


def damage(folder: Path, name: str) -> None:
    (folder / name).chmod(0o644)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def break_(how: int, root: Path, good: str) -> tuple[str, str]:
    """Make a version that cannot be served out of a good one; return its name and what is to be said of it."""
    name = f"{how:012x}"
    folder = root / VERSIONS / name
    if how:
        shutil.copytree(root / VERSIONS / good, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
    if how == 1:
        (folder / bundle.ITEMS).unlink()
        return name, f"{bundle.ITEMS} is missing"
    if how == 2:
        damage(folder, bundle.INDEX)
        return name, f"{bundle.INDEX} differs from its hash"
    if how == 3:
        damage(folder, bundle.MANIFEST)
        return name, bundle.MANIFEST
    if how == 4:  # whole, but another version than its name says
        return name, f"wanted {name}"
    return name, f"the current version {name} is not in {VERSIONS}"


def check_versions(load: Load, steps: list[tuple[float, float, str, str]]) -> None:
    """Compare each answer with what was to be served then.

    Args:
        load: The answers.
        steps: Of each reload: when the pointer was moved, when it was done, the version before and after.
    """
    ends = [*(began for began, *_ in steps[1:]), float("inf")]
    for (began, done, before, after), end in zip(steps, ends, strict=True):
        during = {answer.version for answer in load.answers if answer.answered >= began and answer.asked < done}
        assert during <= {before, after}
        settled = {answer.version for answer in load.answers if answer.asked >= done and answer.answered < end}
        assert settled == {after}


def test_reloads_under_load_fail_nobody(serve: StartServer, root: Path) -> None:
    """By the pointer alone, by SIGHUP and by the admin endpoint in turn; a quarter of the versions is broken."""
    names = versions(root)
    good = itertools.cycle(names)
    broken = [break_(how, root, names[0]) for how in range(N_BROKEN)]
    steps = []
    with operated(serve, root, "--workers", "2") as operator, under_load(operator.server.url, pause_s=0.05) as load:
        before = operator.version()
        for turn in range(N_RELOADS):
            began, bad = time.monotonic(), turn % 4 == 3
            reason = ""
            if bad:
                wanted, reason = broken[turn // 4]
            else:
                wanted = next(version for version in good if version != before)
            operator.point_to(wanted)
            if turn % 3 == 1:
                operator.hang_up()
            elif turn % 3 == 2:
                operator.reload()
            after = before if bad else wanted
            operator.until_state("failed" if bad else "succeeded", after)
            assert reason in operator.status()["last_reload"]["reason"]
            done = time.monotonic()
            time.sleep(0.1)  # some answers of this version alone
            steps.append((began, done, before, after))
            before = after
        until(lambda: len(generations(operator.server)) == 1, what="the end of all others")
    assert load.failures == []
    assert load.refused == 0
    check_versions(load, steps)


def test_who_is_killed_while_loading_takes_nothing_over_and_is_not_tried_again(serve: StartServer, root: Path) -> None:
    first, second, _ = versions(root)
    (root / CURRENT).write_text(f"{first}\n")
    with operated(serve, root) as operator:
        operator.point_to(second)
        until(lambda: len(generations(operator.server)) == 2, what="a second generation")
        generations(operator.server)[1].send_signal(signal.SIGKILL)
        operator.until_state("failed", first)
        assert "was ended by SIGKILL" in operator.status()["last_reload"]["reason"]
        assert "reload failed" in operator.read_log()
        attempt = operator.status()["last_reload"]
        time.sleep(0.5)  # several looks at the pointer
        assert operator.status()["last_reload"] == attempt
        assert len(generations(operator.server)) == 1
        assert operator.reload().json()["models"][0]["version"] == second
        assert operator.version() == second


def test_a_pointer_that_comes_back_needs_no_reload(serve: StartServer, root: Path) -> None:
    first = versions(root)[0]
    (root / CURRENT).write_text(f"{first}\n")
    with operated(serve, root) as operator:
        before = operator.status()
        operator.point_to("0" * 12)
        operator.until_state("failed", first)
        assert operator.status()["workers"] == before["workers"]
        reply = operator.reload()
        assert reply.status_code == 409
        assert reply.json()["error"]["code"] == "reload_failed"
        assert "0" * 12 in reply.json()["error"]["message"]
        operator.point_to(first)
        operator.until_state("succeeded", first)
        assert operator.status()["workers"] == before["workers"]


def test_demands_during_a_reload_are_one_more_reload(serve: StartServer, root: Path) -> None:
    with operated(serve, root) as operator:
        number = operator.status()["generation"]
        operator.hang_up()
        until(lambda: len(generations(operator.server)) == 2, what="a second generation")
        for _ in range(5):
            operator.hang_up()
        reply = operator.reload()
        assert reply.status_code == 200
        assert operator.status()["generation"] == number + 2


def test_a_bundle_without_a_root_is_watched_too(serve: StartServer, bundles: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(bundles[0], place)
    with operated(serve, place) as operator:
        shutil.copytree(bundles[1], tmp_path / "next")
        place.rename(tmp_path / "old")
        (tmp_path / "next").rename(place)
        with BundleReader(place) as reader:
            version = reader.manifest.version
        operator.until_state("succeeded", version)
        assert httpx.post(f"{operator.server.url}/recommend?user_id=u-1").json()["version"] == version


@pytest.mark.parametrize("moment", ["loading", "reloading"])
def test_sigterm_while_models_are_loaded(serve: StartServer, root: Path, moment: str) -> None:
    with operated(serve, root) as operator:
        process = operator.server.process
        if moment == "reloading":
            operator.hang_up()
            until(lambda: len(generations(operator.server)) == 2, what="a second generation")
        else:
            [generation] = generations(operator.server)
            generation.kill()
            until(lambda: generations(operator.server) not in ([], [generation]), what="a new generation")
        parts = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not [part for part in parts if part.is_running() and part.status() != psutil.STATUS_ZOMBIE]
