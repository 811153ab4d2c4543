"""The ``dvib-bench`` commands, put together. Each imports its heavy parts only when it runs."""

from __future__ import annotations

from benchmarks.commands import (
    all_users,
    export,
    growth,
    index,
    latency,
    load,
    matrix,
    peers,
    production,
    quality,
    report,
    speed,
    stages,
    synth_bundle,
)
from training.common.console import make_app

app = make_app("Measure speed, ranking quality and latency, each beside what it should be compared with, in one run.")
for part in (
    speed.app,
    export.app,
    growth.app,
    index.app,
    latency.app,
    load.app,
    quality.app,
    matrix.app,
    peers.app,
    synth_bundle.app,
    stages.app,
    report.app,
    all_users.app,
    production.app,
):
    app.registered_commands += part.registered_commands
