"""Runs and bundles from before there were categories, and data sets that have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file, save_file

from export import bundle
from export.serving import load_for_serving
from service.engine import Engine
from tests.helpers_export import digests, dvib_export, reseal

Copy = Callable[[Path], Path]


def forget_categories(path: Path) -> None:
    """Write the file anew without them."""
    arrays = {name: array for name, array in load_file(path).items() if not name.startswith("categories.")}
    path.unlink()
    save_file(arrays, path)


def test_a_bundle_from_before_there_were_categories(adaptive_bundle: Path, copy_of: Copy) -> None:
    older = copy_of(adaptive_bundle)
    forget_categories(older / bundle.IDS)
    manifest = reseal(older)
    assert manifest.version != load_for_serving(adaptive_bundle).manifest.version
    assert load_for_serving(older).categories is None
    assert list(load_for_serving(older).titles) == list(load_for_serving(adaptive_bundle).titles)
    outcome = dvib_export("verify", older)
    assert outcome.code == 0
    assert "match their hashes: 23 users, 41 items, no categories\n" in outcome.out
    assert "match their hashes: 23 users, 41 items, 3 categories\n" in dvib_export("verify", adaptive_bundle).out
    Engine.load(older)


def test_without_categories_nothing_is_written_of_them(
    baseline_bundle: Path, baseline_run: Path, copy_of: Copy, tmp_path: Path
) -> None:
    """The bytes of a bundle that a run from before there were categories gives are the same as they were then."""
    older = copy_of(baseline_run)
    forget_categories(older / "best" / bundle.IDS)
    assert dvib_export("build", older, "--out", tmp_path / "bundle").code == 0
    found = digests(tmp_path / "bundle")
    assert set(load_file(tmp_path / "bundle" / bundle.IDS)) == {
        f"{table}.{part}" for table in ("users", "items", "titles") for part in ("bytes", "offsets", "order")
    }
    differing = {name for name, digest in digests(baseline_bundle).items() if found[name] != digest}
    assert differing - {bundle.MEASUREMENTS} == {bundle.IDS, bundle.MANIFEST}
