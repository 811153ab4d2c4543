"""The README's commands, run as they stand, with two epochs and in a temporary folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from training.data.fetch import FILES, cache_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands(section: str) -> list[str]:
    """Return the command lines of the ``sh`` blocks below a heading, continuation lines joined."""
    body = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert body, f"README has no section '{section}'"
    blocks = re.findall(r"^```sh\n(.*?)^```", body.group(1), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def environment(folder: Path) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"DVIB_DATA", "MAKEFLAGS", "MAKELEVEL"}
    }
    return {**inherited, "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}", "TMPDIR": str(folder)}


def make(folder: Path, *arguments: str) -> list[str]:
    # The interpreter that runs the tests takes the place of .venv; what make builds goes to the temporary folder.
    prefix = Path(sys.executable).parent.parent
    places = [f"{name}={folder / name.lower()}" for name in ("RUNS", "BUNDLES", "REPORTS")]
    return ["make", "-C", str(ROOT), "-o", f"{prefix}/.installed", f"VENV={prefix}", "EPOCHS=2", *places, *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    held = cache_folder() / "ml-100k"
    if not all((held / file.name).exists() for file in FILES):
        pytest.skip("ml-100k is not in the cache and tests use no network: run dvib-train fetch")
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return tmp_path_factory.mktemp("readme")


def wait_for(process: subprocess.Popen[str], address: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=1):  # noqa: S310 (our own server)
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the service did not get ready")


def stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_make_serve_trains_exports_and_answers(folder: Path) -> None:
    shown = commands("Quickstart")
    assert shown[0] == "make serve"
    request = next(line for line in shown if line.startswith("curl"))
    port = free_port()
    process = subprocess.Popen(
        make(folder, "serve", f"PORT={port}"),
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(process, f"http://127.0.0.1:{port}")
        address = next(word for word in shlex.split(request) if word.startswith("http"))
        asked = urllib.request.Request(address.replace(":8000", f":{port}"), method="POST")  # noqa: S310
        with urllib.request.urlopen(asked, timeout=10) as reply:  # noqa: S310
            answer = json.loads(reply.read())
    finally:
        stop(process)
    pasted = json.loads(re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[0])
    assert answer.keys() == pasted.keys()
    assert (answer["user_id"], answer["source"]) == ("196", "model")
    assert len(answer["items"]) == len(pasted["items"])
    assert answer["items"][0].keys() == pasted["items"][0].keys()


def test_the_commands_one_by_one(folder: Path) -> None:
    work = folder / "steps"
    work.mkdir()
    lines = commands("Step by step")
    assert [line.split()[0] for line in lines].count("dvib-train") >= 3
    for line in lines:
        words = shlex.split(line)
        if words[0] == "dvib-serve":
            port = free_port()
            process = subprocess.Popen(
                [*words, "--port", str(port)],
                cwd=work,
                env=environment(folder),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                wait_for(process, f"http://127.0.0.1:{port}", 60)
            finally:
                stop(process)
            continue
        if words[:2] == ["dvib-train", "fit"]:
            words += ["--epochs", "2"]
        done = subprocess.run(words, cwd=work, env=environment(folder), capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_every_named_command_and_option_exists(folder: Path) -> None:
    helps: dict[tuple[str, ...], str] = {}
    for line in re.findall(r"^(?:dvib-\w+ .*)$", README.replace("\\\n", " "), re.MULTILINE):
        words = shlex.split(line)
        command = (words[0], words[1]) if words[0] != "dvib-serve" else (words[0],)
        if command not in helps:
            done = subprocess.run(
                [*command, "--help"],
                env={**environment(folder), "COLUMNS": "200"},
                capture_output=True,
                text=True,
                check=True,
            )
            helps[command] = done.stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[command], (line, option)
