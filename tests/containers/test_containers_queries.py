"""Dashboard and alerts: every metric is exported, and a real Prometheus answers every query about a real service."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from docker.compose import read_compose
from service.observe.families import FAMILIES
from tests.containers.queries import ALERTS, CONFIG, ROOT, alerts, answered, dashboard, metrics_of, shown
from tests.helpers_bundle import make_content, write_bundle
from tests.service.processes import serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.processes import Server

KEY = "0123456789abcdef"
OF_PROMETHEUS = {"up", "ALERTS"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "info": ("",)}
EXPORTED = {family.name + suffix: family for family in FAMILIES.values() for suffix in SUFFIXES[family.kind]}
QUERIES = [*shown(), *alerts()]

with_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed: apt-get install prometheus",
)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_every_metric_is_exported(query: Any) -> None:
    names = metrics_of(query.text)
    assert names
    assert names <= EXPORTED.keys() | OF_PROMETHEUS
    # A label that is misspelt would match nothing.
    for name in names - OF_PROMETHEUS:
        labels = {"instance", "job", "le", *EXPORTED[name].labels}
        assert set(labels_after(name, query.text)) <= labels


def labels_after(name: str, query: str) -> Iterator[str]:
    for part in query.split(name)[1:]:
        if part.startswith("{"):
            for matcher in part[1 : part.index("}")].split(","):
                yield re.split("[=!]", matcher)[0].strip()


def test_names_are_found_in_queries() -> None:
    assert metrics_of('sum by (a, b) (rate(x_total{c=~"d|e"}[5m])) / on (f) max(y) or vector(0)') == {"x_total", "y"}
    assert list(labels_after("x", 'x{a="1",b=~"2"} x_total')) == ["a", "b"]
    assert answered('a{i=~"$instance"}[$__rate_interval] > 0.5') == 'a{i=~".*"}[4s] > bool 0.5'


def test_the_dashboard_is_whole() -> None:
    document = dashboard()
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) < 24
    [source] = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text("utf-8"))[
        "datasources"
    ]
    for part in (*panels, *document["templating"]["list"], *document["annotations"]["list"]):
        if part.get("type") != "row":
            assert part["datasource"] == {"type": source["type"], "uid": source["uid"]}
            assert part.get("description") or "name" in part
    for panel in panels:
        assert all(target["datasource"] == panel["datasource"] for target in panel.get("targets", ()))
    # Every metric that the service has is to be seen somewhere.
    seen = {EXPORTED[name].name for query in shown() for name in metrics_of(query.text) - OF_PROMETHEUS}
    assert seen == set(FAMILIES)


@with_prometheus
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    key = config["scrape_configs"][0]["authorization"]["credentials_file"]
    (tmp_path / "key").write_text(KEY, "utf-8")
    shutil.copy(ALERTS, tmp_path)
    (tmp_path / CONFIG.name).write_text(CONFIG.read_text("utf-8").replace(key, str(tmp_path / "key")), "utf-8")
    promtool("check", "config", str(tmp_path / CONFIG.name))
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(ROOT / "tests/containers/alerts.test.yml"))


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = yaml.safe_load((ROOT / "tests/containers/alerts.test.yml").read_text("utf-8"))["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    for alert in alerts():
        mine = [check for check in checks if check["alertname"] == alert.place]
        assert any(check.get("exp_alerts") for check in mine), alert.place
        assert any(not check.get("exp_alerts") for check in mine), alert.place


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def scraping(server: Server, folder: Path) -> Iterator[httpx.Client]:
    """Run Prometheus with the project's own configuration, which looks more often and at this server."""
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    [scrape] = [one for one in config["scrape_configs"] if one["job_name"] == "dvib"]
    (folder / "key").write_text(KEY, "utf-8")
    scrape["authorization"]["credentials_file"] = str(folder / "key")
    scrape["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"] = [scrape]
    config["rule_files"] = [str(ALERTS)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    compose = read_compose(ROOT / "docker-compose.yml", {"DVIB_API_KEY": KEY, "GRAFANA_PASSWORD": "x"})
    moved = {"--config.file": folder / "prometheus.yml", "--storage.tsdb.path": folder / "data"}
    options = [option.partition("=") for option in compose["services"]["prometheus"]["command"]]
    line = [f"{name}={moved.get(name, value)}" for name, _, value in options]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(["prometheus", *line, f"--web.listen-address={place}"], stdout=log, stderr=log) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://{place}/api/v1") as client:
                yield client
        finally:
            process.terminate()
    assert process.returncode == 0, (folder / "log").read_text("utf-8")


def ready(client: httpx.Client) -> bool:
    try:
        # Before it has read its log of old data, which on a crowded machine takes a while, it answers 503.
        starting = client.get("/query", params={"query": "1"}).status_code == httpx.codes.SERVICE_UNAVAILABLE
        return not starting and bool(ask(client, 'up{job="dvib"} == 1'))
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    reply = client.get("/query", params={"query": query})
    assert reply.status_code == 200, (query, reply.text)
    result: list[dict[str, Any]] = reply.json()["data"]["result"]
    return result


def refused(server: Server) -> None:
    """Have both workers hold as many requests as they may, so that others are turned away."""
    url = httpx.URL(server.url)
    held = []
    head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\n\r\n".encode()
    for _ in range(12):
        connection = socket.create_connection((url.host, url.port or 0))
        connection.sendall(head)
        held.append(connection)
    time.sleep(0.3)
    for connection in held:
        connection.close()


@with_prometheus
def test_prometheus_answers_every_query_about_a_real_service(tmp_path: Path) -> None:
    for name in ("baseline", "dvib"):
        write_bundle(tmp_path / name, make_content(seed=len(name)))
    bundles = [word for name in ("baseline", "dvib") for word in ("--bundle", f"{name}={tmp_path / name}")]
    variables = {"DVIB_SERVE_API_KEY": KEY, "DVIB_SERVE_MAX_IN_FLIGHT": "4"}
    over = threading.Event()

    def load(server: Server) -> None:
        with httpx.Client(headers={"X-API-Key": KEY, "Connection": "close"}) as client:
            while not over.wait(0.01):
                for user in ("u-4", "a stranger"):
                    for model in ("baseline", "dvib", "none"):
                        client.post(f"{server.url}/recommend", params={"user_id": user, "model": model})

    with serving(*bundles, "--port", "0", "--workers", "2", cwd=tmp_path, **variables) as server:
        refused(server)
        asking = threading.Thread(target=load, args=(server,))
        asking.start()
        try:
            with scraping(server, tmp_path) as client:
                until(lambda: ready(client), what="a scrape")
                unanswered: dict[str, str] = {}

                def all_answered() -> bool:
                    unanswered.clear()
                    for query in QUERIES:
                        found = ask(client, answered(query.text))
                        if not found or any(one["value"][1] == "NaN" for one in found):
                            unanswered[query.place] = query.text
                    return not unanswered

                try:
                    until(all_answered, seconds=30, what="data for every query")
                except AssertionError as error:
                    raise AssertionError(f"{error}: {json.dumps(unanswered, indent=1)}") from error
                states = client.get("/rules").json()["data"]["groups"][0]["rules"]
                assert {rule["name"]: rule["health"] for rule in states} == {alert.place: "ok" for alert in alerts()}
                # Each but one has to last for a minute before it fires.
                assert "firing" not in {rule["state"] for rule in states}
                [source] = ask(client, 'count by (model) (dvib_serve_model_info{model="dvib"})')
                assert source["value"][1] == "1"
        finally:
            over.set()
            asking.join()
