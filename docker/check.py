"""Do what a Dockerfile does and a container of it would, without Docker: ``python -m docker.check service|training``.

Needs the package index and minutes: run it by hand after a change to a Dockerfile, docker-compose.yml or the
dependencies. As root it runs the processes as the image's user. Ends with exit code 1 where something is not as it
should be. Distribution packages, users, limits and read-only mounts are Docker's to provide, and are not looked at;
that nothing writes where nothing can be written is.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.production import environment_size
from docker.compose import read_compose
from docker.dockerfile import read_dockerfile
from docker.replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable

    from docker.dockerfile import Stage

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-that-is-long-enough"
SECRETS = {"DVIB_API_KEY": KEY, "GRAFANA_PASSWORD": "another one"}
_DOCUMENTED = re.compile(r"^#\s+docker compose run --rm training (.+)$", re.MULTILINE)
_MINUTES = 30 * 60


class CheckError(Exception):
    """Something is not as it should be."""


def expect(condition: object, what: str) -> None:
    """Say what holds.

    Raises:
        CheckError: It does not.
    """
    if not condition:
        raise CheckError(what)
    print(f"  ok: {what}", flush=True)


def seconds(text: str) -> float:
    """Read a duration such as ``10s``."""
    return float(text.removesuffix("s"))


def check_service(replica: Replica, stage: Stage, compose: dict[str, Any], root: Path) -> None:
    """Start the service over two published bundles, ask it, publish another one, stop it."""
    # The bar is that of the wheels for the processor; those for a GPU bring CUDA.
    weigh(root, environment_size.MOST if compose["build"]["args"]["GROUP"] == "cpu" else None)
    bundles = publish_toys(root, replica)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # Another port may be free on this machine than in a container, and nobody else is to be served.
    variables = {**compose["environment"], "DVIB_SERVE_PORT": port, "DVIB_SERVE_HOST": "127.0.0.1"}
    before = replica.files("/published")
    address = f"http://127.0.0.1:{port}"
    if stage.healthcheck is None:
        raise CheckError("the service has no HEALTHCHECK")
    options, probe_command = stage.healthcheck

    def healthy() -> bool:
        return replica.run(stage, probe_command, variables, seconds(options["timeout"]), quiet=True) == 0

    print("ENTRYPOINT", stage.entrypoint, stage.command, flush=True)
    process = replica.start(stage, [*stage.entrypoint, *stage.command], variables)
    try:
        wait(healthy, seconds(options["start-period"]), "the HEALTHCHECK succeeds within its start period", process)
        expect(status(f"{address}/models", {}) == 401, "nobody is answered without the key")
        models = {one["name"]: one for one in ask(f"{address}/models")["models"]}
        expect(sorted(models) == ["baseline", "dvib"], "it serves what docker-compose.yml names")
        reply = ask(f"{address}/recommend?user_id=u-4&k=5&model=dvib", method="POST")
        print("  sessions:", models["dvib"]["providers"])
        expect(len(reply["items"]) == 5 and reply["source"] == "model", "it recommends")
        newer = bundles()
        wait(
            lambda: newer in {one["version"] for one in ask(f"{address}/models")["models"]},
            30,
            "a bundle that is published while it serves is served",
            process,
        )
        asked = time.monotonic()
        process.send_signal(getattr(signal, stage.stop_signal))
        grace = seconds(compose["stop_grace_period"])
        code = process.wait(grace)
        took = time.monotonic() - asked
        expect(code == 0, f"{stage.stop_signal} ends it with exit code 0, after {took:.1f} s of {grace:g}")
        expect(not healthy(), "the HEALTHCHECK fails where nothing runs")
        expect(replica.files("/published") == before, "it has written nothing into the image's files")
    finally:
        process.kill()
        process.wait()


def check_training(replica: Replica, stage: Stage, compose: dict[str, Any], root: Path) -> None:
    """Run the command, and what docker-compose.yml tells people to run, with two epochs."""
    weigh(root, most=None)
    before = replica.files("/work")
    variables = dict(compose.get("environment", {}))
    expect(stage.says_no_healthcheck, "a job says that it has no HEALTHCHECK")
    expect(replica.run(stage, stage.command, variables, 120) == 0, f"CMD {stage.command} ends with exit code 0")
    said = "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda, torch.cuda.is_available())"
    expect(replica.run(stage, ["python", "-c", said], variables, 120) == 0, "torch is there")
    commands = _DOCUMENTED.findall((ROOT / "docker-compose.yml").read_text("utf-8"))
    expect(len(commands) >= 6, "docker-compose.yml tells how to train, export and publish")
    for command in commands:
        words = shlex.split(command) + (["--epochs", "2"] if " fit " in command else [])
        expect(replica.run(stage, words, variables, _MINUTES) == 0, shlex.join(words))
    expect(replica.files("/work") == before, "it has written nothing into the image's files")


def weigh(root: Path, most: float | None = environment_size.MOST) -> None:
    """Print how large the environment is; hold that of the service against its bar."""
    venv = root / "opt" / "venv"
    run = environment_size.weigh(venv, venv / "bin" / "python")
    verdict = environment_size.judge(run)
    for line in environment_size.report(run, verdict):
        if most is not None or not line.strip().startswith(("files of", "torch is")):
            print(" ", line)
    if most is not None:
        expect(run.total <= most, f"{run.total / 1e6:.1f} MB, wanted at most {most / 1e6:.0f} MB")
        expect(not verdict.faults, "no torch")


def publish_toys(root: Path, replica: Replica) -> Callable[[], str]:
    """Publish two small bundles; return what publishes another version of one and names it."""
    from export.publish import publish
    from tests.helpers_bundle import make_content, write_bundle

    published = root / "published"

    def put(name: str, seed: int) -> str:
        with tempfile.TemporaryDirectory() as folder:
            write_bundle(Path(folder) / "bundle", make_content(seed=seed))
            outcome = publish(Path(folder) / "bundle", published / name)
        for path in [published, *published.rglob("*")]:
            if path.is_dir():
                replica.give(path)
            else:
                path.chmod(0o444)
        return outcome.version

    put("baseline", 0)
    put("dvib", 1)
    return lambda: put("dvib", 2)


def wait(condition: Callable[[], bool], limit: float, what: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until something holds while a process runs."""
    began = time.monotonic()
    while not condition():
        if process.poll() is not None:
            raise CheckError(f"it has ended with exit code {process.returncode} before {what}")
        if time.monotonic() > began + limit:
            raise CheckError(f"not within {limit:g} s: {what}")
        time.sleep(0.2)
    expect(True, f"{what} ({time.monotonic() - began:.1f} s)")


def ask(address: str, method: str = "GET") -> dict[str, Any]:
    """Return a reply's document."""
    request = urllib.request.Request(address, method=method, headers={"Authorization": f"Bearer {KEY}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 (our own server)
        document: dict[str, Any] = json.loads(reply.read())
        return document


def status(address: str, headers: dict[str, str]) -> int:
    """Return a reply's status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as reply:  # noqa: S310
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def base_python(stages: list[Stage], wanted: str | None) -> str:
    """Return the interpreter that stands for the image's, and say where it is of another version."""
    said = re.search(r"python(?::|)(3\.\d+)", " ".join([stages[0].image, *(s.text for s in stages[0].steps)]))
    version = said[1] if said else "3"
    for name in [wanted] if wanted else [f"python{version}", sys.executable]:
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
            note = "" if found.startswith(version + ".") else f", the image has {version}: name one with --python"
            print(f"Python {found}{note}")
            return path
    raise CheckError(f"no Python {version} here; name one with --python")


def main() -> int:
    """Check one image."""
    parser = argparse.ArgumentParser(prog="python -m docker.check", description=__doc__)
    parser.add_argument("image", choices=["service", "training"])
    parser.add_argument("--python", help="interpreter of the image's version, which the image's user can run")
    parser.add_argument("--group", choices=["cpu", "gpu"], default="cpu", help="of the service's wheels")
    parser.add_argument("--keep", type=Path, help="a new folder for the files, which stay there")
    given = parser.parse_args()
    variables = {**SECRETS, "DVIB_GROUP": given.group}
    compose = read_compose(ROOT / "docker-compose.yml", variables)["services"][given.image]
    stages = read_dockerfile(ROOT / compose["build"]["dockerfile"], compose["build"].get("args"))
    check = check_service if given.image == "service" else check_training
    with tempfile.TemporaryDirectory(prefix="dvib-image-") as temporary:
        root = given.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=bool(not given.keep))
        root.chmod(0o755)
        try:
            replica = Replica(root, ROOT, base_python(stages, given.python), lambda line: print(line, flush=True))
            replica.build(stages)
            check(replica, stages[-1], compose, root)
        except (CheckError, subprocess.SubprocessError) as error:
            print(f"FAILED: {error}")
            return 1
    print(f"{given.image}: all as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
