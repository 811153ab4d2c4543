"""docker-compose.yml: what its schema says, and what this project asks of every container."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from docker.compose import ComposeError, read_compose
from docker.dockerfile import read_dockerfile
from service.process import launch
from service.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SCHEMA = Path(__file__).parent / "schema" / "compose-spec.json"
SECRETS = {"DVIB_API_KEY": "0123456789abcdef", "GRAFANA_PASSWORD": "another"}
SERVICES: dict[str, dict[str, Any]] = read_compose(FILE, SECRETS)["services"]
JOBS = {"training", "training-gpu"}
LASTING = sorted(set(SERVICES) - JOBS)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_schema_is_the_one_that_is_named() -> None:
    notice = (SCHEMA.parent / "NOTICE").read_text("utf-8")
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() in notice
    assert "Apache License" in (SCHEMA.parent / "LICENSE").read_text("utf-8")


@pytest.mark.parametrize("document", [yaml.safe_load(FILE.read_text("utf-8")), read_compose(FILE, SECRETS)])
def test_the_file_is_valid(document: Any) -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.validators.validator_for(schema).check_schema(schema)
    jsonschema.validate(document, schema)
    document["services"]["service"]["read_onyl"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_what_is_started_without_a_profile() -> None:
    assert LASTING == ["grafana", "prometheus", "service"]
    assert all(SERVICES[name]["profiles"] == ["training"] for name in JOBS)
    assert SERVICES["training-gpu"]["gpus"] == "all"


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_named(missing: str) -> None:
    with pytest.raises(ComposeError, match=f"{missing} is missing a value: is not set: .*docker-compose.yml"):
        read_compose(FILE, {**SECRETS, missing: ""})
    # No secret has a value in the file, and the file in which people keep them is in no commit and no image.
    text = FILE.read_text("utf-8")
    assert all(how.startswith(":?") for how in re.findall(rf"\${{{missing}(.*?)}}", text))
    assert "/.env" in (ROOT / ".gitignore").read_text("utf-8").split()
    assert (ROOT / ".dockerignore").read_text("utf-8").startswith("*\n")


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_guarded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & set(service)
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    assert all(address.startswith("127.0.0.1:") for address in service.get("ports", []))
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("./docker/"):
            assert mode == ["ro"]
            assert (ROOT / source).is_dir()
    assert all("size=" in place or name in JOBS for place in service["tmpfs"])
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", LASTING)
def test_every_lasting_container_is_asked_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    if "build" in service:
        image = read_dockerfile(ROOT / service["build"]["dockerfile"])[-1]
        assert image.healthcheck is not None
        assert "healthcheck" not in service
    else:
        check = service["healthcheck"]
        assert check["test"][0] == "CMD"
        assert {"interval", "timeout", "start_period", "retries"} <= set(check)


def test_a_job_is_not_asked_and_not_started_again() -> None:
    for name in JOBS:
        assert SERVICES[name]["healthcheck"] == {"disable": True}
        assert SERVICES[name]["restart"] == "no"


def test_the_service_is_given_longer_than_its_end_takes() -> None:
    environment = SERVICES["service"]["environment"]
    drain_s = float(environment.get(f"{PREFIX}DRAIN_S", Settings().drain_s))
    assert seconds(SERVICES["service"]["stop_grace_period"]) > drain_s + launch._MARGIN_S


def test_the_service_understands_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES["service"]
    image = read_dockerfile(ROOT / service["build"]["dockerfile"], service["build"]["args"])[-1]
    for name, value in {**image.environment, **service["environment"]}.items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.workers == 2
    assert settings.api_key is not None
    assert settings.bundles == ("baseline=/published/baseline", "dvib=/published/dvib")
    # Published where training publishes, and only read.
    [source, target, mode] = service["volumes"][0].split(":")
    assert (target, mode) == ("/published", "ro")
    assert f"{source}:/work/published" in SERVICES["training"]["volumes"]
    assert service["user"] == SERVICES["training"]["user"] == image.user
    assert service["ports"][0].endswith(f":{settings.port}")


def test_prometheus_gets_the_key_as_a_file_and_is_what_grafana_asks() -> None:
    prometheus = SERVICES["prometheus"]
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text("utf-8"))
    [scrape] = [one for one in config["scrape_configs"] if one["job_name"] == "dvib"]
    file = scrape["authorization"]["credentials_file"]
    assert f'printf %s "$DVIB_API_KEY" > {file} && exec /bin/prometheus "$@"' in prometheus["entrypoint"][2]
    [place] = prometheus["tmpfs"]
    assert place.startswith(str(Path(file).parent) + ":mode=0700,uid=65534,")
    assert prometheus["environment"]["DVIB_API_KEY"] == SERVICES["service"]["environment"][f"{PREFIX}API_KEY"]
    assert scrape["static_configs"] == [{"targets": ["service:8000"]}]
    assert f"--config.file={prometheus['volumes'][0].split(':')[1]}/prometheus.yml" in prometheus["command"]
    [source] = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text("utf-8"))[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/dvib.yml").read_text("utf-8"))[
        "providers"
    ]
    assert any(volume.endswith(f":{provider['options']['path']}:ro") for volume in SERVICES["grafana"]["volumes"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "docker/grafana/dashboards" / Path(home).name).is_file()
    shared = {name: set(SERVICES[name]["networks"]) for name in LASTING}
    assert shared["service"] & shared["prometheus"]
    assert shared["prometheus"] & shared["grafana"]
    assert not shared["service"] & shared["grafana"]
