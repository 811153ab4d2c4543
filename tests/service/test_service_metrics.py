"""What is measured, in one process and in many: against prometheus_client's own metrics and against counts by hand."""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observe import cells, families
from service.observe.cells import Entry, SharedCells
from service.observe.families import FAMILIES
from service.observe.metrics import Metrics, ReloadMetrics
from service.observe.page import page
from tests.helpers_bundle import make_content, write_bundle
from tests.service.processes import run
from tests.service.scrape import samples
from training.common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from export.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_bundle(tmp_path_factory.mktemp("metrics") / "toy", make_content())


def test_a_histogram_counts_as_the_library_does(manifest: Manifest) -> None:
    metrics = Metrics({"toy": manifest})
    registry = prometheus_client.CollectorRegistry()
    reference = prometheus_client.Histogram(
        families.QUEUE.name, "x", ["model"], buckets=families.SECONDS, registry=registry
    )
    draw = np.random.default_rng(0)
    values = [*families.SECONDS, 0.0, 1e9, *(10 ** draw.uniform(-6, 2, 500)).tolist()]
    for value in values:
        metrics.models["toy"].queue.observe(value)
        reference.labels("toy").observe(value)
    wanted = samples(prometheus_client.generate_latest(registry))
    found = samples(page(metrics.cells)[0])
    wanted = {key: value for key, value in wanted.items() if "_created" not in key[0]}
    assert len(wanted) == len(families.SECONDS) + 3
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_replies_refusals_and_what_is_served(manifest: Manifest) -> None:
    metrics = Metrics({"toy": manifest, "other": manifest})
    for status, times in ((200, 3), (404, 2), (503, 1)):
        for _ in range(times):
            metrics.reply("/recommend", "toy", status, 0.25)
    metrics.reply("/models", "", 200, 0.5)
    metrics.refused("overloaded")
    metrics.models["other"].sources["popular"][0] += 4
    metrics.models["other"].depth[0] = 5
    metrics.in_flight[0] = 6
    shown, content_type = page(metrics.cells)
    assert content_type == prometheus_client.CONTENT_TYPE_LATEST
    found = samples(shown)

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    reply = {"route": "/recommend", "model": "toy"}
    assert [value("dvib_serve_replies_total", **reply, status=status) for status in ("200", "404", "503")] == [3, 2, 1]
    assert value("dvib_serve_request_seconds_count", **reply) == 3  # refusals would hide what answers take
    assert value("dvib_serve_request_seconds_sum", **reply) == 0.75
    assert value("dvib_serve_replies_total", route="/models", model="", status="200") == 1
    assert value("dvib_serve_refused_total", reason="overloaded") == 1
    assert value("dvib_serve_recommendations_total", model="other", source="popular") == 4
    assert value("dvib_serve_queue_depth", model="other") == 5
    assert value("dvib_serve_queue_depth", model="toy") == 0
    assert value("dvib_serve_requests_in_flight") == 6
    assert value("dvib_serve_workers") == value("dvib_serve_worker_starts_total") == 1
    served = {dict(labels)["model"]: dict(labels) for name, labels in found if name == "dvib_serve_model_info"}
    assert list(served) == ["other", "toy"]
    assert served["toy"]["version"] == manifest.version
    metrics.close()


def test_names_and_labels_are_those_that_prometheus_asks_for(manifest: Manifest) -> None:
    shown = page(Metrics({"toy": manifest}).cells)[0].decode()
    found = {family.name: family for family in text_string_to_metric_families(shown)}
    assert set(found) == {family.name for family in FAMILIES.values()}
    for name, family in FAMILIES.items():
        assert name.startswith("dvib_serve_")
        assert found[name].type == {"info": "gauge"}.get(family.kind, family.kind)
        assert found[name].documentation
        assert not name.endswith("_total")  # the text format appends it
        assert (family.bounds == families.SECONDS) == (family.kind == "histogram" and name.endswith("_seconds"))
        assert list(family.bounds) == sorted(set(family.bounds))
    assert (families.SECONDS[0], families.SECONDS[-1]) == (50e-6, 10)


GENERATIONS = 40
PROGRAM = f"""
import os, random, signal, sys
from pathlib import Path
from export.manifest import Manifest
from service.observe.metrics import Metrics, ReloadMetrics
from service.observe.page import page

folder, manifest = Path(sys.argv[1]), Manifest.model_validate_json(Path(sys.argv[2]).read_bytes())
supervisor = ReloadMetrics(folder)

def start(version):
    told, tell = os.pipe()
    worker = os.fork()
    if not worker:
        metrics = Metrics({{"toy": manifest.model_copy(update={{"version": version}})}}, folder)
        for _ in range(7):
            metrics.reply("/recommend", "toy", 200, 0.5)
        metrics.in_flight[0] = 3
        os.write(tell, b".")
        signal.pause()
    assert os.read(told, 1)
    os.close(told), os.close(tell)
    return worker

old = []
for generation in range({GENERATIONS}):
    new = [start(str(generation)), start(str(generation))]
    supervisor.serves(generation)
    supervisor.succeeded() if generation % 4 else supervisor.failed()
    for worker in old:
        os.kill(worker, random.choice([signal.SIGKILL, signal.SIGTERM]))
        os.waitpid(worker, 0)
    old = new
sys.stdout.write(page(supervisor.cells)[0].decode())
os.kill(old[0], signal.SIGKILL)
os.waitpid(old[0], 0)
sys.stdout.write("----" + page(supervisor.cells)[0].decode())
os.kill(old[1], signal.SIGKILL)
"""


def test_many_generations_lose_no_count_and_leave_few_files(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    folder = tmp_path / "metrics"
    done = run(sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "manifest.json"))
    assert done.returncode == 0, done.stderr
    two, one = (samples(shown.encode()) for shown in done.stdout.split("----"))
    reply = frozenset({"route": "/recommend", "model": "toy"}.items())
    for found, living in ((two, 2), (one, 1)):
        assert found["dvib_serve_replies_total", reply | {("status", "200")}] == 7 * 2 * GENERATIONS
        assert found["dvib_serve_request_seconds_sum", reply] == 0.5 * 7 * 2 * GENERATIONS
        assert found["dvib_serve_worker_starts_total", frozenset()] == 2 * GENERATIONS
        assert found["dvib_serve_workers", frozenset()] == living
        assert found["dvib_serve_requests_in_flight", frozenset()] == 3 * living
        versions = [dict(labels)["version"] for name, labels in found if name == "dvib_serve_model_info"]
        assert versions == [str(GENERATIONS - 1)]
        assert found["dvib_serve_reloads_total", frozenset({("outcome", "failure")})] == GENERATIONS / 4
        assert found["dvib_serve_generation", frozenset()] == GENERATIONS - 1
    slots = {"supervisor", "0", "1", "2", "3"}  # two workers that begin beside two that end
    assert {path.name for path in folder.iterdir()} == {
        f"{slot}.{kind}" for slot in slots for kind in ("lock", "cells")
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) <= len(slots) * 2**16


def test_a_reader_sees_whole_entries_after_every_single_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SharedCells(tmp_path)
    seen: list[int] = []

    class Watched(mmap.mmap):
        def __setitem__(self, place: Any, value: Any) -> None:
            super().__setitem__(place, value)
            found = [entry for _, entries in reader.read() for entry in entries]
            whole = [Entry(name, True, (7.0,) * len(name)) for name in names[: len(found)]]
            assert found == whole or found == [
                *whole[:-1],
                Entry(names[len(found) - 1], True, (0.0,) * len(found[-1].name)),
            ]
            seen.append(len(found))

    monkeypatch.setattr(mmap, "mmap", Watched)
    monkeypatch.setattr(cells, "_CAPACITY", 2**12)
    names = [b"n" * (number % 40) + b"%d" % number for number in range(50)]
    writer = SharedCells(tmp_path)
    for name in names:
        view = writer.view(name, len(name), lasting=True)
        for place in range(len(view)):
            view[place] = 7
    assert sorted(set(seen)) == list(range(len(names) + 1))
    assert (tmp_path / "1.cells").stat().st_size > 2**12
    writer.close()
    reader.close()


def test_a_supervisor_begins_anew_and_leaves_living_workers_alone(manifest: Manifest, tmp_path: Path) -> None:
    first = ReloadMetrics(tmp_path)
    first.failed()
    first.close()
    living, dead = Metrics({"toy": manifest}, tmp_path), Metrics({"toy": manifest}, tmp_path)
    dead.reply("/recommend", "toy", 500, 1.0)
    dead.close()
    living.reply("/recommend", "toy", 200, 1.0)
    second = ReloadMetrics(tmp_path)
    found = samples(page(second.cells)[0])
    replies = [dict(labels)["status"] for name, labels in found if name == "dvib_serve_replies_total"]
    assert replies == ["200"]
    assert found["dvib_serve_reloads_total", frozenset({("outcome", "failure")})] == 0
    second.close()
    living.close()


def test_what_another_version_of_the_service_has_left_is_not_added_up(manifest: Manifest, tmp_path: Path) -> None:
    strange = SharedCells(tmp_path)
    strange.view(b'["dvib_serve_gone","x"]', 1, lasting=True)[0] = 1
    strange.view(b'["dvib_serve_queue_seconds","toy"]', 5, lasting=True)[0] = 1
    strange.view(b'["dvib_serve_replies","toy"]', 1, lasting=True)[0] = 1
    strange.close()
    (tmp_path / "7.cells").write_bytes(b"something else, from somewhere")
    (tmp_path / "8.cells").write_bytes(b"")
    metrics = Metrics({"toy": manifest}, tmp_path)
    found = samples(page(metrics.cells)[0])
    assert not [key for key in found if "gone" in key[0] or key[0].startswith("dvib_serve_replies")]
    assert found["dvib_serve_queue_seconds_count", frozenset({("model", "toy")})] == 0
    metrics.close()


def test_two_services_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_CLAIM_S", 0.05)
    first = ReloadMetrics(tmp_path)
    with pytest.raises(ConfigError, match="in use by another service"):
        ReloadMetrics(tmp_path)
    first.close()
    ReloadMetrics(tmp_path).close()
