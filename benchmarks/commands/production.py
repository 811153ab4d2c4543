"""``dvib-bench overload``, ``attacks``, ``soak``, ``workers``, ``reload``, ``environment``: a service in production."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import require_groups

app = typer.Typer()

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle, or its root of published versions.")]
Check = Annotated[bool, typer.Option("--check", help="Exit code 1 where a bar is missed, 4 where nothing is proved.")]
K = Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per reply.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Draws users, arrivals and resamples.")]
Workers = Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes that answer.")]
Clients = Annotated[int, typer.Option("--clients", min=1, max=64, help="Processes that ask.")]


def _run(
    name: str,
    module: ModuleType,
    measure: Callable[[Callable[[str], None]], Any],
    steps: int,
    json_file: Path | None,
    check: bool,
    first: str = "starting the service",
) -> None:
    """Measure, with progress shown at each step; show the run, write it, and end with what it says."""
    environment = begin(json_file)
    with progress_bar(steps, first) as bar:

        def show(text: str) -> None:
            bar.describe(text)
            bar.advance()

        run = measure(show)
    verdict = module.judge(run)
    for line in module.report(run, verdict):
        typer.echo(line)
    write_document(json_file, {"benchmark": name, **module.document(run, verdict), "environment": environment})
    raise typer.Exit(verdict.code(check=check))


@app.command(
    epilog="Examples: `dvib-bench synth-bundle --items 200000 --out bundles/200k`, then "
    "`dvib-bench overload bundles/200k --check --json reports/overload.json`"
)
def overload(
    bundle: Bundle,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=3600, help="Of the overload, and of the unloaded stretch before.")
    ] = 60.0,
    factor: Annotated[
        float, typer.Option("--factor", min=1.1, max=100, help="Rate as a multiple of saturation.")
    ] = 3.0,
    max_in_flight: Annotated[
        int, typer.Option("--max-in-flight", min=1, help="DVIB_SERVE_MAX_IN_FLIGHT of the service.")
    ] = 4,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="DVIB_SERVE_MAX_QUEUE of the service.")] = 4,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="DVIB_SERVE_MAX_BATCH of the service.")] = 2,
    clients: Clients = 2,
    k: K = 10,
    seed: Seed = 0,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """Offer one worker three times what it can do: who is refused, how fast, and how long do the accepted wait.

    The limits bound the latency. Whoever is let in waits, at the worst, for all others that are in: 4 in flight are
    the work of 4 requests, so that p99 stays near that of an unloaded service, where a request now and then meets one
    or two others. More in flight serve bursts better and let everybody wait longer; the service's default, 1024, is
    for catalogues of some ten thousand items, where a request takes 0.1 ms. A smaller batch begins sooner and answers
    sooner; a larger one answers more per second. Whoever is not let in gets 503 and Retry-After at once.

    Latency counts from when a request was due, from client processes of their own. Exit code 1: a wrong reply, or with
    --check a missed bar; 4 with --check: the clients could not offer the rate, or there were too few requests for a
    p99. Choose a bundle that is large enough for some hundreds of requests per second.
    """
    require_groups("service", "cpu")
    from benchmarks.production import overload as module

    options = module.Options(
        seconds=seconds,
        factor=factor,
        max_in_flight=max_in_flight,
        max_queue=max_queue,
        max_batch=max_batch,
        clients=clients,
        k=k,
        seed=seed,
    )
    _run("overload", module, partial(module.measure, bundle, options), round(2.5 * seconds) + 1, json_file, check)


@app.command(
    epilog="Examples: `dvib-bench attacks bundles/baseline --check --json reports/attacks.json`; "
    "`dvib-bench attacks bundles/baseline --attacks 100 --idle 1000`"
)
def attacks(
    bundle: Bundle,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds of calm and attack.")] = 4,
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, max=3600, help="Of each stretch.")] = 10.0,
    rate: Annotated[float, typer.Option("--attacks", min=0.1, max=1000, help="Attacks per second.")] = 20.0,
    idle: Annotated[int, typer.Option("--idle", min=0, max=10_000, help="Connections that say nothing.")] = 200,
    k: K = 10,
    seed: Seed = 0,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """What others notice of attacks: bodies of 10 MB, ids without end, broken framing, half requests, idle connections.

    Others ask for a quarter of what the service can do, in stretches with and without attacks. Exit code 1: one of
    them got no right reply, an attack was let through, a process ended, or with --check their p99 has doubled; 4 with
    --check: the clients set the pace, or there were too few requests or attacks.
    """
    require_groups("service", "cpu")
    from benchmarks.production import attacks as module

    options = module.Options(rounds=rounds, seconds=seconds, attacks=rate, idle=idle, k=k, seed=seed)
    _run("attacks", module, partial(module.measure, bundle, options), round(2 * rounds * seconds) + 1, json_file, check)


@app.command(
    epilog="Examples: `dvib-bench soak bundles/baseline --check --json reports/soak.json`; "
    "`dvib-bench soak bundles/baseline --minutes 60 --workers 2`"
)
def soak(
    bundle: Bundle,
    minutes: Annotated[float, typer.Option("--minutes", min=0.005, max=10_000, help="Length of the soak.")] = 10.0,
    warm_up: Annotated[float, typer.Option("--warm-up", min=0, max=3600, help="Seconds of the load before it.")] = 30.0,
    workers: Workers = 1,
    clients: Clients = 1,
    k: K = 10,
    seed: Seed = 0,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """Half of the service's load for ten minutes: no failed request, and memory that does not grow.

    Every process of the service is read once a second. Memory is flat if the 90 % interval of the slope of RSS reaches
    down to 0, or the slope is below 1 % per hour. Exit code 1: a wrong reply, a process that ended, or with --check
    memory that grows; 4 with --check: the interval reaches above 20 % per hour, or the clients set the pace.
    """
    require_groups("service", "cpu")
    from benchmarks.production import soak as module

    options = module.Options(seconds=60 * minutes, warm_up=warm_up, workers=workers, clients=clients, k=k, seed=seed)
    _run("soak", module, partial(module.measure, bundle, options), round(60 * minutes + warm_up) + 1, json_file, check)


@app.command(
    epilog="Examples: `dvib-bench synth-bundle --items 1000000 --out bundles/million`, then "
    "`dvib-bench workers bundles/million --workers 4 --check --json reports/workers.json`"
)
def workers(
    bundle: Bundle,
    count: Annotated[int, typer.Option("--workers", min=2, max=256, help="How many are compared with one.")] = 4,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, max=600, help="Length of each round of load.")] = 5.0,
    k: K = 10,
    seed: Seed = 0,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """What another worker costs in memory, and what it brings in requests per second.

    The service runs with one worker and then with several, each time until every worker has answered many requests.
    The PSS of all its processes, in which shared memory counts once, may be that with one worker and 90 MB for each
    other. Exit code 1: a wrong reply, or with --check a missed bar; 4 with --check: a worker
    has hardly been asked.
    """
    require_groups("service", "cpu")
    from benchmarks.production import workers as module

    options = module.Options(workers=count, seconds=seconds, k=k, seed=seed)
    _run("workers", module, partial(module.measure, bundle, options), 10, json_file, check)


@app.command(
    "reload",
    epilog="Examples: `dvib-bench reload bundles/baseline --json reports/reload.json`; "
    "`dvib-bench reload bundles/million --times 5 --every 60 --workers 2`",
)
def reload_(
    bundle: Bundle,
    times: Annotated[int, typer.Option("--times", min=1, max=10_000, help="Reloads.")] = 20,
    every: Annotated[
        float, typer.Option("--every", min=0.2, max=3600, help="Seconds from one to the next, at the least.")
    ] = 8.0,
    work: Annotated[
        Path | None, typer.Option("--work", help="Folder with space for four copies of the bundle. Default: temporary.")
    ] = None,
    workers: Workers = 1,
    clients: Clients = 1,
    k: K = 10,
    seed: Seed = 0,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """What reloads cost at half load: failed requests, latency beside that of calm times, memory for two versions.

    Two copies of the bundle are published in turn below a root of the benchmark's own; BUNDLE is not touched. Exit code
    1: a request failed; 4 with --check: the load ended before the reloads, or the clients set the pace.
    """
    require_groups("service", "cpu")
    from benchmarks.production import reload as module

    options = module.Options(times=times, every=every, workers=workers, clients=clients, k=k, seed=seed)
    _run("reload", module, partial(module.measure, bundle, options, work), times + 2, json_file, check)


@app.command(
    epilog="Examples: `dvib-bench environment --check`; `dvib-bench environment --source . --json reports/size.json`"
)
def environment(
    source: Annotated[Path, typer.Option("--source", help="The project's folder.")] = Path(),
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """Install the service into an environment of its own and weigh it: at most 350 MB, and no torch.

    Needs the package index, and some minutes. The environment goes away again. Exit code 1: torch is in it, or with
    --check it is too large.
    """
    from benchmarks.production import environment_size as module

    _run("environment", module, partial(module.measure, source), 3, json_file, check, first="making the environment")
