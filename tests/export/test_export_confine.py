from __future__ import annotations

import pytest

from export import confine

FREE, LIMIT, USED = "MemAvailable:    4096 kB", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        ({"/proc/meminfo": FREE}, 4096 * 1024),
        ({"/proc/meminfo": FREE, LIMIT: "max", USED: "5"}, 4096 * 1024),
        ({"/proc/meminfo": FREE, LIMIT: "3000000", USED: "1000000"}, 2_000_000),
        ({"/proc/meminfo": FREE, LIMIT: "3000000", USED: "4000000"}, 0),
        ({"/proc/meminfo": FREE, LIMIT: "9000000000", USED: "0"}, 4096 * 1024),
        ({LIMIT: "3000000", USED: "1000000"}, None),
    ],
)
def test_a_container_may_have_less_than_its_machine(
    files: dict[str, str], available: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "_lines", lambda path: files.get(path, "").splitlines())
    assert confine._available() == available
