"""The ``dvib-export`` commands, put together. Each imports its heavy parts only when it runs."""

from __future__ import annotations

from export.commands import add_items, build, diff, publish, recommend, verify
from training.common.console import make_app

app = make_app("Export checkpoints into certified bundles, and verify bundles.")
for part in (add_items.app, build.app, diff.app, publish.app, recommend.app, verify.app):
    app.registered_commands += part.registered_commands
