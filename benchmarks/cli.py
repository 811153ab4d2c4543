"""The ``dvib-bench`` commands, put together. Each imports its heavy parts only when it runs."""

from __future__ import annotations

from benchmarks.commands import export, index, matrix, quality, speed
from training.common.console import make_app

app = make_app("Measure speed, ranking quality and latency, each beside what it should be compared with, in one run.")
for part in (speed.app, export.app, index.app, quality.app, matrix.app):
    app.registered_commands += part.registered_commands
