"""``dvib-serve``: its options, and what it does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.process.server import end_at_sigterm, listen, run_app
from service.settings import load_settings, parse_bundles
from training.common import console

if TYPE_CHECKING:
    from service.settings import Settings

HELP = """Serve recommendations from exported bundles over HTTP.

The first bundle is the default model. Options win over `DVIB_SERVE_*` variables (`DVIB_SERVE_PORT=8080`,
`DVIB_SERVE_BUNDLES=baseline=DIR,dvib=DIR`, ...).

**Examples**

    dvib-serve --bundle runs/dvib-bundle

    dvib-serve --bundle baseline=bundles/baseline --bundle dvib=bundles/dvib --port 8080

    curl -X POST 'http://127.0.0.1:8000/recommend?user_id=196&k=5&model=dvib'
"""

app = console.make_app(HELP)


def run_server(settings: Settings) -> None:
    """Bind, load every bundle, serve until SIGTERM or Ctrl-C.

    Args:
        settings: The bundles among them.

    Raises:
        ConfigError: A bundle's name or the listening address cannot be used.
        BundleError: A bundle is missing, altered or inconsistent.
    """
    folders = parse_bundles(settings.bundles)
    end_at_sigterm()
    with listen(settings.host, settings.port) as listener:
        from export.publish import resolve
        from service.engine import Engine
        from service.http.app import create_app

        engines = {
            name: Engine.load(resolve(folder), index_threads=settings.index_threads) for name, folder in folders.items()
        }
        models = ", ".join(
            f"{name} ({engine.manifest.model} {engine.manifest.version})" for name, engine in engines.items()
        )
        application = create_app(engines, settings)
        run_app(application, listener, "dvib-serve", f"models: {models}", access_log=settings.access_log)


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
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log every request, user ids too. [default: no]")
    ] = None,
) -> None:
    """Serve recommendations from exported bundles over HTTP."""
    run_server(load_settings(bundles=tuple(bundle) if bundle else None, host=host, port=port, access_log=access_log))
