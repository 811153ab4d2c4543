"""What Python and libraries do in every forked child must not keep a worker from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import StartServer

HOOK = """
import os, signal, threading
def forget():
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
os.register_at_fork(after_in_child=forget)
"""


def test_a_worker_starts_where_asyncio_has_taken_the_wakeup_descriptor_away(
    serve: StartServer, folder: Path, tmp_path: Path
) -> None:
    """As it does from Python 3.12 on; on an older one, a hook of the test's own does so."""
    (tmp_path / "sitecustomize.py").write_text(HOOK, "utf-8")
    with serve("--bundle", f"toy={folder}", "--port", "0", "--workers", "2", PYTHONPATH=str(tmp_path)) as server:
        assert httpx.post(f"{server.url}/recommend", params={"user_id": "u-4"}).status_code == 200
