"""The ``dvib-train`` commands, put together."""

from __future__ import annotations

from training.commands import compare, evaluate, fetch, fit, listing, plot, sweep, tune
from training.common.console import make_app

app = make_app("Train multimodal recommenders, plain or with DVIB, evaluate, compare and tune them.")
for part in (fit.app, evaluate.app, compare.app, sweep.app, tune.app, plot.app, listing.app, fetch.app):
    app.registered_commands += part.registered_commands
