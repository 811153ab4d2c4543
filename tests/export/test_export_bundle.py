"""The bundle as a contract: what is in it, and that nothing altered gets out of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from export import bundle
from export.manifest import DatasetEntry, IndexEntry, Manifest
from export.serving import load_for_serving
from service.engine import Engine
from tests.helpers_export import digests, dvib_export, edit_json, reseal
from training.checkpoint import load_checkpoint
from training.common.errors import BundleError
from training.common.strings import StringTable
from training.data.dataset import Dataset

Copy = Callable[[Path], Path]
ALL = sorted({*bundle.REQUIRED, *bundle.EXCUSABLE, bundle.CERTIFICATE_TEXT, bundle.MEASUREMENTS})
SERVED = bundle.REQUIRED


def refused(folder: Path, *words: str) -> None:
    """The folder is refused by reader and command line, in one line that says all the words."""
    with pytest.raises(BundleError) as caught:
        verify_by_hash(folder)
    outcome = dvib_export("verify", folder)
    assert outcome.code == 2
    for word in (str(folder), *words):
        assert word in str(caught.value)
        assert word in outcome.complaint


def verify_by_hash(folder: Path) -> None:
    load_for_serving(folder)
    with bundle.BundleReader(folder) as reader:
        reader.verify_all()


def test_the_manifest_lists_every_file(adaptive_bundle: Path) -> None:
    manifest = json.loads((adaptive_bundle / bundle.MANIFEST).read_text("utf-8"))
    present = digests(adaptive_bundle)
    del present[bundle.MANIFEST]
    assert sorted(present) == ALL
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == present
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        name: (adaptive_bundle / name).stat().st_size for name in present
    }
    version = manifest.pop("version")
    del manifest["files"][bundle.MEASUREMENTS]
    listing = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert version == hashlib.sha256(listing.encode()).hexdigest()[:12]


def test_the_manifest_describes_the_run(adaptive_bundle: Path, adaptive_run: Path, dataset: Dataset) -> None:
    with bundle.BundleReader(adaptive_bundle) as reader:
        manifest = reader.manifest
    info = load_checkpoint(adaptive_run).info
    assert (manifest.model, manifest.variant, manifest.preset) == ("vbpr", "adaptive", "paper")
    assert manifest.dataset == DatasetEntry(
        name="planted",
        fingerprint=dataset.fingerprint(),
        n_users=23,
        n_items=41,
        n_train=23 * 12,
        modalities={"image": 5, "text": 7},
    )
    assert manifest.dimension == 16
    assert manifest.index == IndexEntry(factory="Flat", exact=True)
    assert manifest.metrics == info.metrics
    assert manifest.metrics.keys() == {"valid", "test"}
    assert manifest.provenance["epoch"] == info.epoch
    assert manifest.provenance["epochs_trained"] == 2
    assert manifest.provenance["seed"] == 2


def test_what_is_loaded_is_what_was_trained_on(adaptive_bundle: Path, dataset: Dataset) -> None:
    loaded = load_for_serving(adaptive_bundle)
    assert list(loaded.users) == list(dataset.user_ids)
    assert list(loaded.item_ids) == list(dataset.item_ids)
    assert list(loaded.titles) == list(dataset.titles)
    assert "" in list(loaded.titles)
    assert loaded.categories is not None
    assert loaded.categories.names == ("early", "even", "ungerade ü")
    for name, rows in (("early", range(7)), ("even", range(0, 40, 2)), ("ungerade ü", range(1, 40, 2))):
        np.testing.assert_array_equal(loaded.categories.rows(name), np.array(rows, dtype=np.int32), strict=True)
    assert loaded.certificate == (adaptive_bundle / bundle.CERTIFICATE).read_bytes()
    for user in range(dataset.n_users):
        assert loaded.seen.of(user).tolist() == sorted(dataset.train.items[dataset.train.users == user].tolist())
    np.testing.assert_array_equal(loaded.popularity, dataset.popularity(), strict=True)
    assert loaded.popularity.sum() == len(dataset.train)
    np.testing.assert_array_equal(loaded.items, np.load(adaptive_bundle / bundle.ITEMS), strict=True)


def test_files_are_readable_by_others(adaptive_bundle: Path) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in adaptive_bundle.iterdir()} == {"0o644"}
    assert oct(adaptive_bundle.stat().st_mode & 0o777) == "0o755"


@pytest.mark.parametrize("name", ALL)
def test_one_byte_changed(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    content = bytearray((spoiled / name).read_bytes())
    content[len(content) // 2] ^= 1
    (spoiled / name).write_bytes(content)
    refused(spoiled, name, "hash")
    if name in SERVED:
        with pytest.raises(BundleError, match=name):
            load_for_serving(spoiled)


@pytest.mark.parametrize("change", [b"", b"x"], ids=["cut", "grown"])
def test_another_size(change: bytes, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    path = spoiled / bundle.CERTIFICATE
    path.write_bytes(path.read_bytes()[:-1] + change * 2)
    refused(spoiled, bundle.CERTIFICATE, "bytes")


def test_an_empty_file(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.ITEMS).write_bytes(b"")
    refused(spoiled, bundle.ITEMS)
    reseal(spoiled)
    refused(spoiled, bundle.ITEMS)


@pytest.mark.parametrize("name", [*ALL, bundle.MANIFEST])
def test_a_missing_file(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).unlink()
    refused(spoiled, name)


@pytest.mark.parametrize("name", bundle.REQUIRED)
def test_a_required_file_missing_with_matching_hashes(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).unlink()
    reseal(spoiled)
    refused(spoiled, name, "missing")


def test_the_item_tower_may_lack_with_a_reason(adaptive_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(adaptive_bundle)
    (folder / bundle.ITEM_TOWER).unlink()
    reseal(folder)
    refused(folder, bundle.ITEM_TOWER, "missing")
    reseal(folder, absent={bundle.ITEM_TOWER: "no content path"})
    assert dvib_export("verify", folder).code == 0


def test_nobody_can_excuse_what_every_bundle_has(adaptive_bundle: Path, copy_of: Copy) -> None:
    folder = copy_of(adaptive_bundle)
    (folder / bundle.CERTIFICATE).unlink()
    reseal(folder, absent={bundle.CERTIFICATE: "trust me"})
    refused(folder, bundle.CERTIFICATE, "no bundle may lack")
    reseal(folder, absent={"readme.txt": "never was"})
    refused(folder, "readme.txt", "no bundle may lack")


@pytest.mark.parametrize("kind", ["file", "hidden", "folder", "link"])
def test_an_extra_entry(kind: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    name = ".hidden" if kind == "hidden" else "extra.bin"
    if kind == "folder":
        (spoiled / name).mkdir()
    elif kind == "link":
        (spoiled / name).symlink_to("/nowhere")
    else:
        (spoiled / name).write_bytes(b"?")
    refused(spoiled, name, "not listed")


@pytest.mark.parametrize("name", [*ALL, bundle.MANIFEST])
def test_a_link_in_place_of_a_file(name: str, adaptive_bundle: Path, copy_of: Copy, tmp_path: Path) -> None:
    """Even to the very same content."""
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).replace(tmp_path / "moved")
    (spoiled / name).symlink_to(tmp_path / "moved")
    refused(spoiled, name)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_no_regular_file(kind: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    path = spoiled / bundle.POPULARITY
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    refused(spoiled, bundle.POPULARITY, "not a regular file")


@pytest.mark.parametrize("name", ["..", ".", "", "../secret", "/etc/passwd", "sub/file", "nul\0byte", bundle.MANIFEST])
def test_impossible_names_in_the_manifest(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)

    def add(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"][bundle.ITEMS]
        document["version"] = bundle.content_version(Manifest.model_validate(document))

    edit_json(spoiled / bundle.MANIFEST, add)
    refused(spoiled, "impossible file name")


Edit = Callable[[dict[str, Any]], object]
MANIFESTS: list[tuple[Edit, str]] = [
    (lambda document: document.update(schema_version=3), "schema version 3"),
    (lambda document: document.update(schema_version=0), "schema version 0"),
    (lambda document: document.update(schema_name="other"), "schema_name"),
    (lambda document: document.update(version="0" * 12), "version"),
    (lambda document: document.update(version="../../secret"), "version"),
    (lambda document: document.update(surprise=1), "surprise"),
    (lambda document: document.pop("dimension"), "dimension"),
    (lambda document: document.update(dimension=17), bundle.ITEMS),
    (lambda document: document["dataset"].update(n_users=24), bundle.IDS),
    (lambda document: document["dataset"].update(n_items=40), bundle.ITEMS),
    (lambda document: document["files"][bundle.ITEMS].update(sha256="0" * 64), "version"),
    (lambda document: document["files"][bundle.ITEMS].update(sha256="x"), "sha256"),
    (lambda document: document["files"][bundle.ITEMS].update(size=1), bundle.ITEMS),
    (lambda document: document["files"][bundle.ITEMS].update(size=-1), "size"),
]


@pytest.mark.parametrize(("edit", "word"), MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_wrong_manifest(edit: Edit, word: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)

    def edit_and_seal(document: dict[str, Any]) -> None:
        edit(document)
        if word != "version":
            with contextlib.suppress(ValidationError):
                document["version"] = bundle.content_version(Manifest.model_validate(document))

    edit_json(spoiled / bundle.MANIFEST, edit_and_seal)
    refused(spoiled, word)


def test_no_byte_of_the_manifest_can_change_unnoticed(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    content = (adaptive_bundle / bundle.MANIFEST).read_bytes()
    # Each word once; between words there is only white space, which says nothing.
    for match in re.finditer(rb"[^\s]+", content):
        for place in {match.start(), match.end() - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            (spoiled / bundle.MANIFEST).write_bytes(changed)
            # What is said of the measured times is no part of the version; that file's hash is looked at by itself.
            with pytest.raises(BundleError), bundle.BundleReader(spoiled) as reader:
                reader.read(bundle.MEASUREMENTS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_manifest_that_is_none(content: bytes, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.MANIFEST).write_bytes(content)
    refused(spoiled, bundle.MANIFEST)


def test_no_bundle_at_all(tmp_path: Path, adaptive_bundle: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, adaptive_bundle / bundle.ITEMS):
        refused(path)


# Faults behind matching hashes: whoever changed the file also wrote a manifest that fits.


def bad_items(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / bundle.ITEMS, change(np.load(folder / bundle.ITEMS)))


def not_finite(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(items: np.ndarray) -> np.ndarray:
        items[3, 2] = value
        return items

    return change


def pickled(folder: Path) -> None:
    np.save(folder / bundle.ITEMS, np.array([object()]), allow_pickle=True)


def repeated_id(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = load_file(folder / bundle.IDS)
        names = list(StringTable.from_arrays(arrays, kind))
        names[4] = names[9]
        save_file({**arrays, **StringTable.of(names).to_arrays(kind)}, folder / bundle.IDS)

    return change


def bad_tensors(name: str, edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = {key: array.copy() for key, array in load_file(folder / name).items()}
        edit(arrays)
        save_file(arrays, folder / name)

    return change


def fill(name: str, place: int, value: int) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays[name].__setitem__(place, value)


def two_names_alike(arrays: dict[str, np.ndarray]) -> None:
    arrays.update(StringTable.of(["a", "b", "b"]).to_arrays("categories.names"))


CONSISTENT: list[tuple[str, Callable[[Path], object], str]] = [
    ("NaN", bad_items(not_finite(np.nan)), "NaN"),
    ("infinite", bad_items(not_finite(np.inf)), "infinite"),
    ("float64", bad_items(lambda items: items.astype(np.float64)), "float64"),
    ("rows", bad_items(lambda items: items[:-1].copy()), bundle.ITEMS),
    ("pickle", pickled, bundle.ITEMS),
    ("no npy", lambda folder: (folder / bundle.ITEMS).write_bytes(b"zzzz"), bundle.ITEMS),
    ("popularity", lambda folder: np.save(folder / bundle.POPULARITY, np.zeros(40, np.int64)), bundle.POPULARITY),
    ("user twice", repeated_id("users"), "user 9"),
    ("item twice", repeated_id("items"), "item-9-ü"),
    ("order", bad_tensors(bundle.IDS, lambda arrays: arrays["users.order"].sort()), "must sort its rows"),
    ("title missing", bad_tensors(bundle.IDS, lambda arrays: arrays.pop("titles.bytes")), bundle.IDS),
    ("offsets", bad_tensors(bundle.SEEN, fill("offsets", 3, 10**6)), bundle.SEEN),
    ("offset start", bad_tensors(bundle.SEEN, fill("offsets", 0, 1)), bundle.SEEN),
    ("row too large", bad_tensors(bundle.SEEN, fill("items", 0, 41)), bundle.SEEN),
    ("row negative", bad_tensors(bundle.SEEN, fill("items", 0, -1)), bundle.SEEN),
    ("seen missing", bad_tensors(bundle.SEEN, lambda arrays: arrays.pop("items")), bundle.SEEN),
    ("category name twice", bad_tensors(bundle.IDS, two_names_alike), "sorted and distinct"),
    ("category beyond", bad_tensors(bundle.IDS, fill("categories.items", -1, 41)), "items that are not there"),
    ("category missing", bad_tensors(bundle.IDS, lambda arrays: arrays.pop("categories.items")), bundle.IDS),
    ("certificate", lambda folder: (folder / bundle.CERTIFICATE).write_bytes(b"[]"), "no JSON object"),
    ("no safetensors", lambda folder: (folder / bundle.SEEN).write_bytes(b"zzzz"), bundle.SEEN),
]


@pytest.mark.parametrize(
    ("change", "word"), [entry[1:] for entry in CONSISTENT], ids=[entry[0] for entry in CONSISTENT]
)
def test_inconsistent_content_behind_matching_hashes(
    change: Callable[[Path], object], word: str, adaptive_bundle: Path, copy_of: Copy
) -> None:
    spoiled = copy_of(adaptive_bundle)
    change(spoiled)
    reseal(spoiled)
    refused(spoiled, word)


@pytest.mark.parametrize("dimension", [15, 17])
def test_an_index_of_another_dimension(dimension: int, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    index = faiss.IndexFlatIP(dimension)
    index.add(np.zeros((41, dimension), dtype=np.float32))
    faiss.write_index(index, str(spoiled / bundle.INDEX))
    reseal(spoiled)
    with pytest.raises(BundleError, match="index"):
        Engine.load(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 2
    assert bundle.INDEX in outcome.complaint
