"""1,000 mutated bundles: no crash, no wrong answer, every refusal named.

Whatever still loads is another bundle, and must answer as brute force over its own content does, which is read here
without the code under test.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from export import bundle
from export.index import build_index
from export.index_tuning import IndexChoice
from service.engine import Engine
from tests.helpers_bundle import make_content
from tests.security.child import UNKNOWN
from tests.security.hostile import Child, assert_named, child, copy, make_bundle, manifest_of, reseal
from tests.security.mutations import MUTATIONS

KINDS = {"Flat": 400, "IVF4,Flat": 150, "IVF4,SQ8": 150, "IVF4,PQ4x4": 150, "HNSW8,Flat": 150}
K = 5
CONTENT = make_content(n_users=20, n_items=200, dimension=8, seed=11)


@pytest.fixture(scope="module", params=KINDS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("mutated") / "original", CONTENT)
    (folder / bundle.INDEX).unlink()
    choice = IndexChoice(request.param)
    entry = build_index(CONTENT.items, folder / bundle.INDEX, CONTENT.users, choice, CONTENT.seen)
    assert entry.factory == request.param
    reseal(folder, manifest_of(folder) | {"index": entry.model_dump(mode="json")})
    return folder


def content_of(folder: Path) -> dict[str, Any]:
    """Everything that answers depend on, read by the libraries' own parsers."""
    ids, seen = load_file(folder / bundle.IDS), load_file(folder / bundle.SEEN)
    table = onnx.load_model_from_string((folder / bundle.USER_TOWER).read_bytes()).graph.initializer[0]
    return {
        "users": onnx.numpy_helper.to_array(table).astype(np.float64),
        "items": np.load(folder / bundle.ITEMS).astype(np.float64),
        "popularity": np.load(folder / bundle.POPULARITY),
        "seen": np.split(seen["items"], seen["offsets"][1:-1]),
        **{name: strings(ids, name) for name in ("users_names", "items_names", "titles_names")},
    }


def strings(ids: dict[str, NDArray[Any]], name: str) -> list[str]:
    kind = name.removesuffix("_names")
    text, offsets = ids[f"{kind}.bytes"].tobytes(), ids[f"{kind}.offsets"].tolist()
    return [text[start:end].decode() for start, end in pairwise(offsets)]


def check_answers(folder: Path, answers: dict[str, list[Any]], exact: bool) -> None:
    """Compare with brute force; an approximate index may miss items, but neither scores nor orders them otherwise."""
    content = content_of(folder)
    popular = np.lexsort((np.arange(len(content["popularity"])), -content["popularity"]))[:K]
    assert set(answers) == {*content["users_names"][:20], UNKNOWN}
    for user_id, (source, items) in answers.items():
        rows = [item[0] for item in items]
        assert [item[1] for item in items] == [content["items_names"][row] for row in rows]
        assert [item[2] for item in items] == [content["titles_names"][row] or None for row in rows]
        if user_id not in content["users_names"]:
            assert (source, rows) == ("popular", popular.tolist())
            continue
        user = content["users_names"].index(user_id)
        scores = (content["items"] * content["users"][user]).sum(axis=1)
        unseen = np.setdiff1d(np.arange(len(scores)), content["seen"][user])
        best = unseen[np.lexsort((unseen, -scores[unseen]))][:K]
        assert source == "model"
        assert [item[3] for item in items] == scores[rows].tolist()
        assert rows == best.tolist() or not exact
        assert len(rows) == len(best)
        assert set(rows) <= set(unseen.tolist())
        assert rows == sorted(set(rows), key=lambda row: (-scores[row], row))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != bundle.MANIFEST}


def test_mutated_bundles(original: Path, tmp_path: Path) -> None:
    kind = manifest_of(original)["index"]["factory"]
    found: Counter[str] = Counter()
    draw = random.Random(f"mutations of {kind}")  # noqa: S311 (a seed, not a secret)
    with child(tmp_path) as loader:
        for number in range(KINDS[kind]):
            sealed = number % 2 == 1
            folder = copy(original, tmp_path / f"b{number % 4}")
            MUTATIONS[number // 2 % len(MUTATIONS)](folder, draw)
            if sealed:
                seal_if_possible(folder)
            found[outcome(folder, loader, None if sealed else original)] += 1
    assert sum(found.values()) == KINDS[kind]
    # Neither everything is refused, which would prove nothing of the answers, nor much let through.
    assert found["refused"] > 0.7 * KINDS[kind]
    assert found["answered"] > 0.03 * KINDS[kind]


def seal_if_possible(folder: Path) -> None:
    """An attacker seals what he can: a manifest that is no longer one, or a link, stays as it is."""
    try:
        document = manifest_of(folder)
    except ValueError:
        return
    reseal(folder, document)


def outcome(folder: Path, loader: Child, unsealed_copy_of: Path | None) -> str:
    reply = loader.load(folder, k=K)
    if "refused" in reply:
        assert_named(reply["refused"], folder)
        return "refused"
    manifest = manifest_of(folder)
    if unsealed_copy_of is not None:
        assert contents(folder) == contents(unsealed_copy_of)
        # One mutation makes the version fit; where it is the number of the operators' set, no answer depends on it.
        irrelevant = {"opset": 0, "version": ""}
        assert manifest | irrelevant == manifest_of(unsealed_copy_of) | irrelevant
    check_answers(folder, reply["answers"], manifest["index"]["exact"])
    return "answered"


def test_the_sound_bundle_answers_as_brute_force_does(original: Path, tmp_path: Path) -> None:
    assert Engine.load(original).manifest.n_items == len(CONTENT.items)
    with child(tmp_path) as loader:
        assert outcome(original, loader, original) == "answered"


def test_an_index_over_other_vectors(original: Path, tmp_path: Path) -> None:
    """An exact index must hold the very vectors that scores are computed from; any other must propose the best."""
    entry = manifest_of(original)["index"]
    folder = copy(original, tmp_path / "b")
    (folder / bundle.INDEX).unlink()
    build_index(-CONTENT.items, folder / bundle.INDEX, CONTENT.users, IndexChoice(entry["factory"]))
    reseal(folder)
    with child(tmp_path) as loader:
        reply = loader.load(folder, k=K)
    wanted = "holds other vectors" if entry["exact"] else "of the best items, the manifest says"
    assert wanted in reply["refused"]
