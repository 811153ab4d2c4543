"""``dvib-export add-items``: what a bundle with added items recommends, and that nothing else about it differs."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from export import additions, bundle
from export.build import build_bundle
from export.index import build_index
from export.index_tuning import IndexChoice
from export.manifest import IndexEntry
from export.serving import ServingBundle, load_for_serving
from service.engine import Engine
from service.http.documents import describe
from tests.export.test_export_imports import loaded_after
from tests.helpers_export import digests, dvib_export, model_of, reseal, write_new_items
from tests.helpers_training import make_config, planted_blocks, with_categories
from tests.test_readme import commands
from training.checkpoint import load_checkpoint
from training.data.dataset import Dataset
from training.trainer import Trainer

Copy = Callable[[Path], Path]
MODELS = ("vbpr", "freedom")
CHANGED = {bundle.ITEMS, bundle.INDEX, bundle.IDS, bundle.POPULARITY, bundle.MANIFEST}
NEW_IDS = ["new even", "new odd", "007", "ein Käse"]
CELLS = {"new even": "even|very new", "007": "very new", "ein Käse": "ungerade ü|cheese"}


@pytest.fixture(scope="session")
def loud() -> Dataset:
    """Features that say the block loudly."""
    plain = with_categories(planted_blocks(n_users=23, n_items=41))
    features = {}
    for name, matrix in plain.features.items():
        features[name] = 0.2 * matrix
        features[name][:, 0] += np.where(np.arange(41) % 2 == 0, 2, -2).astype(np.float32)
    return replace(plain, features=features)


@pytest.fixture(scope="session")
def bundles(loud: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each model that has an item tower; never changed by a test."""
    root, made = tmp_path_factory.mktemp("towers"), {}
    for name in MODELS:
        config = make_config("none", "training.epochs=15", "training.learning_rate=0.03", model=name)
        Trainer(config, loud, root / f"run-{name}").fit()
        made[name] = root / name
        build_bundle(load_checkpoint(root / f"run-{name}"), made[name])
    return made


def features_of(loud: Dataset, blocks: list[int]) -> dict[str, NDArray[np.float32]]:
    """The mean features of an even or an odd item, once for each of some blocks."""
    return {
        name: np.stack([matrix[block % 2 :: 2].mean(axis=0) + 0.01 * place for place, block in enumerate(blocks)])
        for name, matrix in loud.features.items()
    }


@pytest.fixture(scope="session")
def extended(bundles: dict[str, Path], loud: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same bundles with four more items, of the blocks 0, 1, 0, 1."""
    root = tmp_path_factory.mktemp("extended")
    write_new_items(root / "new", NEW_IDS, features_of(loud, [0, 1, 0, 1]), CELLS)
    for name, base in bundles.items():
        before = digests(base)
        outcome = dvib_export("add-items", base, root / "new", "--out", root / name)
        assert (outcome.code, outcome.err) == (0, "")
        assert "45 items, of which 4 were added" in outcome.out
        assert digests(base) == before
    return {name: root / name for name in bundles}


def members(serving: ServingBundle) -> dict[str, list[int]]:
    assert serving.categories is not None
    found = {name: serving.categories.rows(name) for name in serving.categories.names}
    return {name: rows.tolist() for name, rows in found.items() if rows is not None}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_new_version_holds(name: str, bundles: dict[str, Path], extended: dict[str, Path]) -> None:
    old, new = load_for_serving(bundles[name]), load_for_serving(extended[name])
    ours, theirs = digests(extended[name]), digests(bundles[name])
    assert ours.keys() == theirs.keys()
    assert {file for file in ours if ours[file] != theirs[file]} == CHANGED
    assert new.items[:41].tobytes() == old.items.tobytes()
    assert new.items.shape == (45, old.manifest.dimension)
    index = faiss.read_index(str(extended[name] / bundle.INDEX))
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), new.items, strict=True)
    assert list(new.item_ids) == [*old.item_ids, *NEW_IDS]
    assert list(new.titles) == [*old.titles, "", *(f"Title of {entry}" for entry in NEW_IDS[1:])]
    assert members(new) == {
        "cheese": [44],
        "early": [*range(7)],
        "even": [*range(0, 40, 2), 41],
        "ungerade ü": [*range(1, 40, 2), 44],
        "very new": [41, 43],
    }
    assert new.popularity.tolist() == [*old.popularity.tolist(), 0, 0, 0, 0]
    assert list(new.users) == list(old.users)
    manifests = [serving.manifest.model_dump() for serving in (old, new)]
    assert manifests[1]["added"] == {"count": 4, "base_version": old.manifest.version}
    assert manifests[1]["version"] != manifests[0]["version"]
    for field in ("added", "version", "files"):
        del manifests[0][field], manifests[1][field]
    assert manifests[0] == manifests[1]
    assert (new.manifest.n_items, new.manifest.dataset.n_items) == (45, 41)
    assert describe({"m": new.manifest}, {}, {"m": ()}, {"m": ()}, {"m": {}})["models"][0]["n_items"] == 45


@pytest.mark.parametrize("name", MODELS)
def test_every_old_score_is_the_same_to_the_last_bit(
    name: str, bundles: dict[str, Path], extended: dict[str, Path], loud: Dataset
) -> None:
    old, new = Engine.load(bundles[name]), Engine.load(extended[name])
    for user in [*loud.user_ids, "nobody"]:
        before, after = old.recommend(user, 1000), new.recommend(user, 1000)
        assert [item for item in after.items if item.item_id not in NEW_IDS] == before.items
        assert before.source == after.source
        assert {item.item_id for item in after.items} - {item.item_id for item in before.items} == set(NEW_IDS)


@pytest.mark.parametrize("name", MODELS)
def test_new_items_reach_the_users_who_like_their_kind(name: str, extended: dict[str, Path], loud: Dataset) -> None:
    """A user has at least eight unseen items of its own block: with the new ones, ten."""
    engine = Engine.load(extended[name])
    for user in range(loud.n_users):
        unseen = sum(row % 2 == user % 2 for row in range(41)) - 12
        best = engine.recommend(loud.user_ids[user], unseen + 2).items
        own = {"new even", "007"} if user % 2 == 0 else {"new odd", "ein Käse"}
        assert {item.item_id for item in best} & set(NEW_IDS) == own


def test_nobody_popular_is_displaced(extended: dict[str, Path]) -> None:
    answer = Engine.load(extended["vbpr"]).recommend("nobody", 41)
    assert not {item.item_id for item in answer.items} & set(NEW_IDS)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_version_verifies(name: str, bundles: dict[str, Path], extended: dict[str, Path]) -> None:
    outcome = dvib_export("verify", extended[name], "--against", bundles[name])
    assert (outcome.code, outcome.err) == (0, "")
    assert "45 vectors" in outcome.out
    assert "FAIL" not in outcome.out


@pytest.mark.parametrize("row", [3, 43])
def test_altered_vectors_do_not_verify(row: int, extended: dict[str, Path], copy_of: Copy) -> None:
    """Of a trained item the full graph tells; of an added one, the index."""
    folder = copy_of(extended["freedom"])
    items = np.load(folder / bundle.ITEMS)
    items[row] *= -1
    np.save(folder / bundle.ITEMS, items)
    if row < 41:
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        faiss.write_index(index, str(folder / bundle.INDEX))
    reseal(folder)
    outcome = dvib_export("verify", folder)
    assert outcome.code == 1
    (failed,) = [line for line in outcome.out.splitlines() if line.startswith("FAIL")]
    assert ("parity" if row < 41 else "index") in failed


@pytest.mark.parametrize("count", [None, 3, 5])
def test_counts_must_be_those_of_the_files(count: int | None, extended: dict[str, Path], copy_of: Copy) -> None:
    folder = copy_of(extended["vbpr"])
    base = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))["added"]["base_version"]
    reseal(folder, added=None if count is None else {"count": count, "base_version": base})
    outcome = dvib_export("verify", folder)
    assert outcome.code == 2
    assert bundle.ITEMS in outcome.complaint


def test_an_added_item_cannot_be_a_seen_one(extended: dict[str, Path], copy_of: Copy) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copy_of(extended["vbpr"])
    seen = load_file(folder / bundle.SEEN)
    seen["items"][-1] = 41
    save_file(seen, folder / bundle.SEEN)
    reseal(folder)
    assert bundle.SEEN in dvib_export("verify", folder).complaint


@pytest.mark.parametrize("name", MODELS)
def test_additions_add_up(
    name: str, bundles: dict[str, Path], extended: dict[str, Path], loud: Dataset, tmp_path: Path
) -> None:
    features = features_of(loud, [0, 1, 0, 1])
    for step, rows in enumerate((slice(0, 1), slice(1, 4))):
        part = {modality: matrix[rows] for modality, matrix in features.items()}
        write_new_items(tmp_path / f"new-{step}", NEW_IDS[rows], part, CELLS)
        base = bundles[name] if step == 0 else tmp_path / "step-0"
        outcome = dvib_export("add-items", base, tmp_path / f"new-{step}", "--out", tmp_path / f"step-{step}")
        assert (outcome.code, outcome.err) == (0, "")
    ours, theirs = load_for_serving(tmp_path / "step-1"), load_for_serving(extended[name])
    assert ours.manifest.added == theirs.manifest.added
    assert list(ours.item_ids) == list(theirs.item_ids)
    assert members(ours) == members(theirs)
    np.testing.assert_allclose(ours.items, theirs.items, rtol=0, atol=2e-6 * np.abs(theirs.items).max())
    assert dvib_export("verify", tmp_path / "step-1").code == 0


def test_the_same_items_make_the_same_version(bundles: dict[str, Path], loud: Dataset, tmp_path: Path) -> None:
    write_new_items(tmp_path / "new", NEW_IDS, features_of(loud, [0, 1, 0, 1]))
    for out in ("a", "b"):
        assert dvib_export("add-items", bundles["freedom"], tmp_path / "new", "--out", tmp_path / out).code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_approximate_index_is_built_and_measured_anew(
    bundles: dict[str, Path], loud: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[IndexChoice, list[NDArray[np.int32]]]] = []

    def spy(
        items: NDArray[np.float32],
        path: Path,
        users: NDArray[np.float32],
        choice: IndexChoice,
        seen: list[NDArray[np.int32]],
    ) -> IndexEntry:
        asked.append((choice, seen))
        return build_index(items, path, users, choice, seen)

    monkeypatch.setattr(additions, "build_index", spy)
    base = tmp_path / "base"
    run = load_checkpoint(bundles["vbpr"].parent / "run-vbpr")
    build_bundle(run, base, choice=IndexChoice("IVF4,SQ8"))
    write_new_items(tmp_path / "new", NEW_IDS, features_of(loud, [0, 1, 0, 1]))
    line = "add-items", base, tmp_path / "new", "--out", tmp_path / "more", "--min-recall", 0.5
    assert dvib_export(*line).code == 0
    ((choice, seen),) = asked
    rows = load_for_serving(base).seen
    for number in range(loud.n_users):
        np.testing.assert_array_equal(seen[number], rows.of(number))
    assert (choice.name, choice.min_recall) == ("IVF4,SQ8", 0.5)
    entry = load_for_serving(tmp_path / "more").manifest.index
    assert (entry.kind, entry.factory, entry.exact) == ("ivf", "IVF4,SQ8", False)
    assert entry.recall is not None
    assert entry.recall.users == loud.n_users
    outcome = dvib_export("verify", tmp_path / "more")
    assert (outcome.code, outcome.err) == (0, "")
    old, new = Engine.load(base), Engine.load(tmp_path / "more")
    for user in loud.user_ids:
        before = {item.item_id: item.score for item in old.recommend(user, 41).items}
        after = {item.item_id: item.score for item in new.recommend(user, 45).items}
        assert all(after[item] == score for item, score in before.items() if item in after)
        assert set(NEW_IDS) <= after.keys()


def test_the_readmes_commands(
    bundles: dict[str, Path], loud: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundles["vbpr"], tmp_path / "bundles" / "dvib")
    write_new_items(tmp_path / "new", NEW_IDS, features_of(loud, [0, 1, 0, 1]))
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for line in commands("New items without retraining")]
    assert [words[:2] for words in lines] == [["dvib-export", "add-items"], ["dvib-export", "verify"]]
    for words in lines:
        outcome = dvib_export(*words[1:])
        assert (outcome.code, outcome.err) == (0, "")


def test_vectors_are_the_towers(bundles: dict[str, Path], extended: dict[str, Path], loud: Dataset) -> None:
    """VBPR's feature half in NumPy, from the tower's own tensors."""
    from onnx.numpy_helper import to_array

    tensors = {
        tensor.name.rpartition(".")[2]: to_array(tensor).astype(np.float64)
        for tensor in model_of(bundles["vbpr"] / bundle.ITEM_TOWER).graph.initializer
    }
    features = features_of(loud, [0, 1, 0, 1])
    joined = np.hstack([features["image"], features["text"]]).astype(np.float64)
    expected = np.hstack([np.tile(tensors["id_half"], (4, 1)), joined @ tensors["weight"].T + tensors["bias"]])
    found = np.load(extended["vbpr"] / bundle.ITEMS)[41:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_adding_needs_no_torch(bundles: dict[str, Path], loud: Dataset, tmp_path: Path) -> None:
    write_new_items(tmp_path / "new", NEW_IDS[:1], features_of(loud, [0]))
    program = f"""
sys.modules["torch"] = None
sys.argv = ["dvib-export", "add-items", {str(bundles["vbpr"])!r}, {str(tmp_path / "new")!r}, "--out", "out"]
from export.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code"""
    loaded = loaded_after(program, tmp_path)
    assert "export.additions" in loaded
    assert not loaded & {"torch_geometric", "sklearn", "onnxscript", "training.models"}
    assert (tmp_path / "out" / bundle.MANIFEST).is_file()


@pytest.mark.parametrize("told", [False, True], ids=["bundle without", "items without"])
def test_categories_on_one_side_alone(
    told: bool, bundles: dict[str, Path], loud: Dataset, tmp_path: Path, copy_of: Copy
) -> None:
    """Items without a category join a bundle's others; a bundle without any does not get those of new items alone."""
    base = copy_of(bundles["vbpr"])
    if not told:
        arrays = load_file(base / bundle.IDS)
        save_file({key: array for key, array in arrays.items() if "categories" not in key}, base / bundle.IDS)
        reseal(base)
    features = features_of(loud, [0, 1, 0, 1])
    write_new_items(tmp_path / "new", NEW_IDS, features, None if told else CELLS)
    assert dvib_export("add-items", base, tmp_path / "new", "--out", tmp_path / "more").code == 0
    found = load_for_serving(tmp_path / "more")
    assert list(found.item_ids)[41:] == NEW_IDS
    if told:
        assert members(found) == members(load_for_serving(base))
    else:
        assert found.categories is None
