"""``dvib-serve``: its options, and what it does with them."""

from __future__ import annotations

from typing import Annotated

import typer

from service.process.main import run_service
from service.settings import load_settings
from training.common import console

HELP = """Serve recommendations from exported bundles over HTTP.

The first bundle is the default model. Options win over `DVIB_SERVE_*` variables (`DVIB_SERVE_PORT=8080`,
`DVIB_SERVE_BUNDLES=baseline=DIR,dvib=DIR`, ...).

**Examples**

    dvib-serve --bundle runs/dvib-bundle

    dvib-serve --bundle baseline=bundles/baseline --bundle dvib=bundles/dvib --port 8080

    curl -X POST 'http://127.0.0.1:8000/recommend?user_id=196&k=5&model=dvib'

A bundle may be a root of published versions: what is published there later is served without a restart. So it is at
SIGHUP, and on demand with an admin endpoint, on 127.0.0.1 alone:

    dvib-serve --bundle shop=published/shop --workers 4

    DVIB_SERVE_ADMIN_TOKEN=$TOKEN dvib-serve --bundle shop=published/shop --admin-port 8001

    curl -X POST -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8001/reload
"""

app = console.make_app(HELP)


@app.command(help=HELP)
def serve(
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A model's name and its bundle, or its root of published versions; repeatable. DIR alone takes its "
            "name.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one. [default: 8000]")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer; they share one copy of the models. [default: 1]")
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(
            help="TCP port on 127.0.0.1 for GET /status, GET /metrics and POST /reload; 0 takes a free one. Needs "
            "DVIB_SERVE_ADMIN_TOKEN. [default: none]"
        ),
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log every request, user ids too. [default: no]")
    ] = None,
) -> None:
    """Serve recommendations from exported bundles over HTTP."""
    run_service(
        load_settings(
            bundles=tuple(bundle) if bundle else None,
            host=host,
            port=port,
            workers=workers,
            admin_port=admin_port,
            access_log=access_log,
        )
    )
