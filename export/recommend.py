"""The lists of many users of a bundle as one Parquet file. Needs polars, and no torch.

The file is in long form, one line per user and item, because every reader of Parquet loads that without being told how:

========  =======  ==============================================================
user_id   string   external id; users in the order of the bundle
rank      int32    from 1 on, per user
item_id   string   external id; items that the user has seen in training are out
score     float64  inner product: what the service replies, to the last bit
========  =======  ==============================================================

Ids are dictionary-encoded in the file. A user has fewer than k lines where fewer items are unseen, and none where all
are seen. Every item is scored, also where the bundle's index is approximate: this file may then be better than the
service's replies. Memory does not grow with the number of users beyond what the bundle itself takes.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from export.batch_ranking import BatchRanker
from export.bundle import USER_TOWER
from export.manifest import Manifest
from export.parity import session
from export.publish import check_outside
from export.runtime import GRAPH_ERRORS
from export.serving import ServingBundle, load_for_serving
from training.common.errors import BundleError, ConfigError, DvibError, ExportError, shown
from training.common.folders import atomic_file

SCHEMA = {"user_id": pl.String, "rank": pl.Int32, "item_id": pl.String, "score": pl.Float64}
ROW_GROUP = 2**18
"""Lines of a row group: what the writer holds in memory, and what a reader reads at once."""
_BLOCKS_AHEAD = 2

OnUsers = Callable[[int, int], None]
"""Called with the number of users that are done, and of all."""
_Block = TypeVar("_Block")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        version: The bundle's.
        users: Users asked for.
        lines: Lines of the file.
        loading_seconds: Reading and checking the bundle.
        ranking_seconds: Ranking and writing.
    """

    version: str
    users: int
    lines: int
    loading_seconds: float
    ranking_seconds: float


def recommend(
    folder: Path,
    out: Path,
    k: int,
    user_ids: Sequence[str] | None = None,
    *,
    threads: int = 1,
    force: bool = False,
    on_users: OnUsers = lambda _done, _all: None,
) -> Written:
    """Write the best items of some or all users of a bundle.

    Args:
        folder: The bundle.
        out: The Parquet file: there and whole when this returns, untouched before.
        k: Items per user, at least 1.
        user_ids: External ids, repeated or not; None for all users.
        threads: How many blocks of users are ranked at a time.
        force: Replace an existing file.
        on_users: Told how far it is; called in another thread.

    Returns:
        What was written.

    Raises:
        BundleError: The bundle is altered or inconsistent.
        ConfigError: The bundle has no such user, or the file must not be written.
        ExportError: The file cannot be written.
        OSError: The file system refuses.
    """
    _check_free(out, force=force)
    started = time.perf_counter()
    source = _Source(load_for_serving(folder), k)
    rows = source.rows_of(user_ids)
    loaded = time.perf_counter()
    done = 0

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal done
        blocks = [rows[start : start + source.users_at_once] for start in range(0, len(rows), source.users_at_once)]
        for block, frame in zip(blocks, _in_order(source.frame, blocks, threads), strict=True):
            yield frame
            done += len(block)
            on_users(done, len(rows))

    with atomic_file(out, replace=force) as fresh:
        try:
            lines = _write(frames(), fresh, _metadata(source.manifest, k))
        except pl.exceptions.PolarsError as error:
            raise ExportError(f"--out {out} cannot be written: {error}") from error
    return Written(
        source.manifest.version, len(rows), lines, round(loaded - started, 6), round(time.perf_counter() - loaded, 6)
    )


def _check_free(out: Path, *, force: bool) -> None:
    check_outside(out, "--out")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file")
    if out.exists() and not out.is_file():
        # It would be replaced, and not written to: nobody wants /dev/null to become a file.
        raise ConfigError(f"--out {out} is a device or a pipe; name a file")
    if out.exists() and not force:
        raise ConfigError(f"--out {out} is there already; choose another name, or replace it with --force")


def _metadata(manifest: Manifest, k: int) -> dict[str, str]:
    """Return what the file says of itself."""
    return {
        "dvib.bundle_version": manifest.version,
        "dvib.model": manifest.model,
        "dvib.variant": manifest.variant,
        "dvib.dataset": manifest.dataset.name,
        "dvib.k": str(k),
        "dvib.version": importlib.metadata.version("dvib"),
    }


class _Source:
    """A bundle that gives lists as data frames. ``frame`` may be called by several threads at once.

    Args:
        bundle: The bundle's content.
        k: Items per user.

    Attributes:
        manifest: The bundle's self-description.
        users_at_once: Users of a good block.
    """

    def __init__(self, bundle: ServingBundle, k: int) -> None:
        self.manifest = bundle.manifest
        self._users = bundle.users
        self._seen = bundle.seen
        self._item_ids = pl.Series("item_id", list(bundle.item_ids), dtype=pl.String)
        self._ranker = BatchRanker(bundle.items, k)
        self.users_at_once = self._ranker.users_at_once
        try:
            self._tower = session(bundle.user_tower, folded=True, threads=1)
        except GRAPH_ERRORS as error:
            raise BundleError(f"{USER_TOWER} cannot be loaded: {error}; export the bundle again") from error

    def rows_of(self, user_ids: Sequence[str] | None) -> NDArray[np.int64]:
        """Return users' rows, int64, ascending and each once; of all users for None."""
        if user_ids is None:
            return np.arange(len(self._users))
        rows = []
        for user_id in user_ids:
            row = self._users.find(user_id)
            if row is None:
                raise ConfigError(f"--user {shown(user_id)}: the bundle has no such user")
            rows.append(row)
        return np.unique(np.array(rows, dtype=np.int64))

    def frame(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """Return the lists of some users, by their rows."""
        lists = self._ranker.top(self._vectors(rows), [self._seen.of(row) for row in rows.tolist()])
        user_ids = pl.Series("user_id", [self._users[row] for row in rows.tolist()], dtype=pl.String)
        ranks = np.arange(len(lists.rows)) - np.repeat(np.cumsum(lists.counts) - lists.counts, lists.counts)
        return pl.DataFrame(
            {
                "user_id": user_ids.gather(np.repeat(np.arange(len(rows)), lists.counts)),
                "rank": ranks.astype(np.int32) + np.int32(1),
                "item_id": self._item_ids.gather(lists.rows),
                "score": lists.scores,
            },
            schema=SCHEMA,
        )

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = self._tower.run(["vectors"], {"users": rows})[0]
        except GRAPH_ERRORS as error:
            raise BundleError(f"{USER_TOWER} cannot be run: {error}; export the bundle again") from error
        if vectors.shape != (len(rows), self.manifest.dimension) or not np.isfinite(vectors).all():
            raise BundleError(f"{USER_TOWER} gives vectors of another length, or NaN; train and export the model again")
        return vectors


def _in_order(work: Callable[[_Block], _Result], blocks: Sequence[_Block], threads: int) -> Iterator[_Result]:
    """Yield the results of some work in the order of its blocks, never far ahead of who takes them."""
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in blocks:
            pending.append(pool.submit(work, block))
            if len(pending) > _BLOCKS_AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write(frames: Iterator[pl.DataFrame], path: Path, metadata: dict[str, str]) -> int:
    """Write frames to a Parquet file as they come. Returns the number of lines.

    Polars pulls the frames, in a thread of its own. It is called in another one, so that this thread can be
    interrupted: the frames end then, and polars finishes a file that nobody will see.
    """
    lines, stopped = 0, threading.Event()
    failures: list[DvibError] = []

    def pull(*_pushed_down: object) -> Iterator[pl.DataFrame]:
        nonlocal lines
        try:
            for frame in frames:
                if stopped.is_set():
                    return
                lines += len(frame)
                yield frame
        except DvibError as error:
            failures.append(error)
            raise

    def sink() -> None:
        register_io_source(pull, schema=SCHEMA).sink_parquet(
            path, row_group_size=ROW_GROUP, metadata=metadata, maintain_order=True
        )

    with ThreadPoolExecutor(1) as writer:
        try:
            writer.submit(sink).result()
        except pl.exceptions.PolarsError:
            # Older versions of polars raise an error of their own about ours.
            if failures:
                raise failures[0] from None
            raise
        finally:
            stopped.set()
    return lines
