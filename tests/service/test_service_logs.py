"""Whatever is logged is one JSON object per line."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

from tests.service.processes import run

PROGRAM = """
import asyncio, contextvars, logging, sys, threading, warnings
from service.observe.logs import ACCESS, configure_logging, request_id
from service.settings import Settings
import uvicorn

configure_logging(Settings(access_log={access_log}), "0-3")
uvicorn.Config("x:y", log_config=None, access_log=True)
log = logging.getLogger("service.anything")
log.info("plain")
log.debug("not worth it")
log.warning("two\\nlines %s", "and \\ud800 \\x00 Zo\\u00eb")
logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "POST", "/r?user_id=u-1", "1.1", 200)
logging.getLogger("uvicorn.error").info("Started server process")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger(ACCESS).info("request", extra=dict(
    method="POST", path="/recommend", query="user_id=u-1", status=200, ms=1.25, model="toy", source="model",
    version="abc", something=object()))
warnings.warn("mind this")

async def handle(name):
    request_id.set(name.encode())
    await asyncio.sleep(0.01 if name == "first" else 0)
    try:
        raise ValueError("x" * 100_000 + " the cause")
    except ValueError:
        log.exception("failed")

async def both():
    await asyncio.gather(handle("first"), handle("second"))
    asyncio.get_running_loop().call_exception_handler({{"message": "in a callback"}})

asyncio.run(both())
log.info("after")
log.info("long " + "x" * 100_000)
log.info("odd", extra=dict(status=object()))
raise RuntimeError("nobody has caught this")
"""


def lines_of(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        moment = datetime.datetime.fromisoformat(line["time"])
        assert moment.utcoffset() == datetime.timedelta(0)
        assert abs((datetime.datetime.now(datetime.UTC) - moment).total_seconds()) < 60
        assert {"level", "logger", "message", "pid", "release"} <= set(line)
        assert line["slot"] == "0-3"
    return lines


def test_every_logger_writes_json() -> None:
    done = run(sys.executable, "-c", PROGRAM.format(access_log="False"))
    assert done.returncode == 1
    assert done.stdout == ""
    lines = lines_of(done.stderr)
    by_message = {line["message"]: line for line in lines}
    assert by_message["plain"]["level"] == "INFO"
    assert by_message["plain"]["logger"] == "service.anything"
    assert "request_id" not in by_message["plain"]
    assert "two\nlines and \\ud800 \x00 Zoë" in by_message
    assert by_message["Invalid HTTP request received."]["logger"] == "uvicorn.error"
    assert any("mind this" in message for message in by_message)
    assert by_message["in a callback"]["logger"] == "asyncio"
    failed = [line for line in lines if line["message"] == "failed"]
    assert [line["request_id"] for line in failed] == ["second", "first"]
    assert all(line["exception"].endswith("x the cause") for line in failed)
    assert by_message["the process ends by an error"]["exception"].endswith("nobody has caught this")
    assert by_message["odd"]["status"].startswith("<object")
    assert max(map(len, done.stderr.splitlines())) < 20_000
    for kept_out in ("not worth it", "u-1", "1.2.3.4", "Started server"):
        assert kept_out not in done.stderr


def test_an_access_log_is_written_where_it_is_asked_for() -> None:
    done = run(sys.executable, "-c", PROGRAM.format(access_log="True"))
    (access,) = [line for line in lines_of(done.stderr) if line["logger"] == "service.access"]
    wanted = {"method": "POST", "path": "/recommend", "query": "user_id=u-1", "status": 200, "ms": 1.25}
    wanted |= {"model": "toy", "source": "model", "version": "abc"}
    assert {name: access.get(name) for name in wanted} == wanted
    assert "something" not in access
    assert "1.2.3.4" not in done.stderr  # uvicorn's own line has another form, and is not wanted
