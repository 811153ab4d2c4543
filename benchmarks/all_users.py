"""Lists for all users to Parquet, beside the bare product that no exact way of making them can do without."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.probe import run_probe
from benchmarks.sampling import shuffled
from benchmarks.shapes import shape_of
from benchmarks.statistics import Ratio, Samples, ratio_of_quantiles
from benchmarks.synth_bundle import Options as SyntheticOptions
from benchmarks.synth_bundle import write_bundle
from export.parity import session
from export.publish import resolve
from export.serving import ServingBundle, load_for_serving
from training.common.console import EXIT_DIFFERENT, EXIT_INCONCLUSIVE

PRODUCT_CALLS = 2
"""Products of all users in a round: each takes about as long as one command."""
_CHECKED_USERS = 200
_PARTS = ("command", "ranking", "loading")


class WrongListsError(Exception):
    """The command did not write the best items: its speed means nothing."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        k: Items per user.
        rounds: The unit of the statistics.
        threads: Of the command, and of the BLAS that it is compared with.
        seed: Draws order and resamples.
    """

    k: int = 50
    rounds: int = 5
    threads: int = 2
    seed: int = 0


def measure(
    shape: str, bundle: Path | None, options: Options, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run the command and the product in turn, each in a process of its own.

    Args:
        shape: Counts of a synthetic bundle, a key of ``benchmarks.shapes.SHAPES``.
        bundle: A bundle to be used instead.
        options: What is measured.
        on_step: Told what begins: once for the bundle, and once per round.

    Returns:
        The document that ``--json`` writes.

    Raises:
        WrongListsError: The command's file does not hold the best items.
        DvibError: No such shape, a bundle that cannot be used, or a process that failed.
    """
    with tempfile.TemporaryDirectory(prefix="dvib-all-users-") as scratch:
        on_step("bundle")
        folder = _synthetic(shape, Path(scratch) / "bundle") if bundle is None else resolve(bundle)
        content = load_for_serving(folder)
        out = Path(scratch) / "lists.parquet"
        sizes = {"users": len(content.users), "items": len(content.items), "dimension": content.manifest.dimension}
        generator = np.random.default_rng(options.seed)
        samples: dict[str, list[list[float]]] = {name: [] for name in ("product", *_PARTS)}
        for number in range(options.rounds):
            on_step(f"round {number + 1}")
            for arm in shuffled(("product", "command"), generator):
                if arm == "product":
                    samples[arm].append(_product(sizes, options.threads))
                else:
                    for name, seconds in _command(folder, out, options).items():
                        samples[name].append([seconds])
        check_lists(content, out, options.k)
    timed: dict[str, Samples] = {name: np.array(rounds) for name, rounds in samples.items()}
    ratios = {name: ratio_of_quantiles(timed["product"], timed[name], generator) for name in _PARTS}
    return {
        **sizes,
        "seen": len(content.seen.items),
        "bundle": content.manifest.version,
        "dataset": content.manifest.dataset.name,
        "k": options.k,
        "rounds": options.rounds,
        "threads": options.threads,
        "seed": options.seed,
        "seconds": {name: float(np.median(values)) for name, values in timed.items()},
        "ratios": {name: ratio.document() for name, ratio in ratios.items()},
        "samples": {name: values.tolist() for name, values in timed.items()},
    }


def _synthetic(shape: str, folder: Path) -> Path:
    counts = shape_of(shape)
    seen = round(counts.n_train / counts.n_users)
    write_bundle(SyntheticOptions(items=counts.n_items, users=counts.n_users, seen=seen), folder)
    return folder


def _product(sizes: dict[str, int], threads: int) -> list[float]:
    arguments = json.dumps({**sizes, "threads": threads, "calls": PRODUCT_CALLS})
    command = (sys.executable, "-P", "-m", "benchmarks.sgemm_probe", arguments)
    seconds: list[float] = run_probe(command, "the product's process")["seconds"]
    return seconds


def _command(folder: Path, out: Path, options: Options) -> dict[str, float]:
    """Return seconds: of the whole command from its start to its end, and what it says of its parts."""
    numbers = {"--k": options.k, "--threads": options.threads, "--out": out}
    flags = [str(word) for option in numbers.items() for word in option]
    command = (sys.executable, "-P", "-m", "export", "recommend", str(folder), "--all-users", "--force", "--json")
    started = time.perf_counter()
    done = run_probe([*command, *flags], "dvib-export recommend")
    whole = time.perf_counter() - started
    return {"command": whole, "ranking": done["ranking_seconds"], "loading": done["loading_seconds"]}


def check_lists(content: ServingBundle, out: Path, k: int) -> None:
    """Compare some users' lists with brute force in float64.

    Args:
        content: The bundle that they were made from.
        out: The file.
        k: Items per user.

    Raises:
        WrongListsError: A list is not the best one, or the file has too few or too many lines.
    """
    found = pl.read_parquet(out)
    unseen = len(content.items) - np.diff(content.seen.offsets)
    expected_lines = int(np.minimum(unseen, k).sum())
    if len(found) != expected_lines:
        raise WrongListsError(f"the file has {len(found)} lines, {expected_lines} were wanted")
    rows = np.linspace(0, len(content.users) - 1, min(_CHECKED_USERS, len(content.users))).astype(np.int64)
    vectors = session(content.user_tower, threads=1).run(["vectors"], {"users": rows})[0].astype(np.float64)
    lists = found.filter(pl.col("user_id").is_in([content.users[row] for row in rows])).partition_by(
        "user_id", as_dict=True
    )
    items = content.items.astype(np.float64)
    for row, vector in zip(rows.tolist(), vectors, strict=True):
        scores = (items * vector).sum(axis=1)
        scores[content.seen.of(row)] = -np.inf
        best = np.lexsort((np.arange(len(scores)), -scores))[: min(k, int(unseen[row]))]
        user_id = content.users[row]
        given = lists.get((user_id,))
        if (given["item_id"].to_list() if given is not None else []) != [content.item_ids[item] for item in best]:
            raise WrongListsError(f"user {user_id} was not given the best items")


def exit_code(result: dict[str, Any], max_ratio: float) -> int:
    """Judge the whole command, start of the interpreter and loading included, by the interval of its ratio.

    Args:
        result: From ``measure``.
        max_ratio: The most that it may take, in bare products.

    Returns:
        0 where the interval lies below, 1 where it lies above, 4 where the bar is inside.
    """
    ratio = Ratio(**result["ratios"]["command"])
    if ratio.high <= max_ratio:
        return 0
    return EXIT_DIFFERENT if ratio.low > max_ratio else EXIT_INCONCLUSIVE


def report(result: dict[str, Any], max_ratio: float) -> Iterator[str]:
    """Yield a measurement as lines."""
    yield (
        f"{result['dataset']}: {result['users']} users × {result['items']} items, dimension {result['dimension']}, "
        f"{result['seen']} seen, k {result['k']}, {result['threads']} threads on both sides, {result['rounds']} rounds"
    )
    yield f"{'bare float32 product (NumPy)':<36}{result['seconds']['product']:>8.2f} s"
    labels = {
        "command": "dvib-export recommend, as a whole",
        "ranking": "  ranking and writing",
        "loading": "  loading",
    }
    for name, label in labels.items():
        ratio = result["ratios"][name]
        yield (
            f"{label:<36}{result['seconds'][name]:>8.2f} s  = {ratio['value']:.2f} × "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
        )
    words = {0: "holds", EXIT_DIFFERENT: "is missed", EXIT_INCONCLUSIVE: "is inside the interval: measure again"}
    yield f"bar: the whole in at most {max_ratio:g} × the bare product: {words[exit_code(result, max_ratio)]}"
