from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import synth_bundle
from benchmarks.synth_bundle import Options, write_bundle
from export import bundle
from export.serving import ServingBundle, load_for_serving
from service.engine import Engine
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_export import digests, dvib_export

SMALL = Options(items=400, users=30, dimension=16, seen=7, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "made"
    write_bundle(SMALL, folder)
    return folder


def user_vectors(serving: ServingBundle) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Take the table out of the tower without running it."""
    (table,) = onnx.load_model_from_string(serving.user_tower).graph.initializer
    return onnx.numpy_helper.to_array(table)


@pytest.mark.parametrize("index", ["flat", "SQ8", "IVF4,SQ8", "HNSW8,Flat"])
def test_the_service_answers_from_it(bench: Bench, tmp_path: Path, index: str) -> None:
    """Exactly from a flat index; from any other the items' scores are exact, and nothing seen comes back."""
    place = tmp_path / "made"
    options = ("--items", "400", "--users", "30", "--dimension", "16", "--seen", "7", "--index", index)
    assert bench("synth-bundle", *options, "--out", place) == 0
    serving = load_for_serving(place)
    scores = user_vectors(serving).astype(np.float64) @ serving.items.astype(np.float64).T
    engine = Engine.load(place)
    for user in range(30):
        seen = serving.seen.of(user)
        assert len(np.unique(seen)) == 7
        answer = engine.recommend(serving.users[user], 10)
        rows = [item.row for item in answer.items]
        assert answer.source == "model"
        assert not set(rows) & set(seen.tolist())
        np.testing.assert_allclose([item.score for item in answer.items], scores[user][rows], rtol=1e-12)
        if index == "flat":
            wanted = scores[user].copy()
            wanted[seen] = -np.inf
            assert rows == np.argsort(-wanted, kind="stable")[:10].tolist()


def test_it_says_everywhere_what_it_is(made: Path, tmp_path: Path) -> None:
    manifest = read_json(made / bundle.MANIFEST)
    assert manifest["model"] == manifest["preset"] == "synthetic"
    assert manifest["dataset"]["name"] == "synthetic-400x30-seed3"
    assert manifest["provenance"]["synthetic"] is True
    assert manifest["provenance"]["option.seen"] == 7
    assert set(manifest["absent"]) == {bundle.MODEL_ONNX, bundle.TORCHSCRIPT, bundle.PROGRAM, bundle.ITEM_TOWER}
    assert all("no model" in reason for reason in manifest["absent"].values())
    for command in (("verify", made), ("diff", made, made)):
        done = dvib_export(*command)
        assert done.code == 2
        assert "drawn at random and no model" in done.complaint
    with bundle.BundleReader(made) as reader:
        reader.verify_all()


def test_the_same_options_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_bundle(SMALL, tmp_path / "again")
    write_bundle(Options(**{**vars(SMALL), "seed": 4}), tmp_path / "other")
    assert digests(tmp_path / "again") == digests(made)
    other = digests(tmp_path / "other")
    assert {name for name, digest in digests(made).items() if digest == other[name]} == {
        bundle.IDS,
        bundle.CERTIFICATE,
    }


def test_blocks_meet_without_gap_or_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no block wrote would be zeros; rows of two blocks, repeats."""
    monkeypatch.setattr(synth_bundle, "BLOCK", 64)
    steps: list[str] = []
    options = Options(items=321, users=129, dimension=8, seen=5)
    write_bundle(options, tmp_path / "made", steps.append)
    serving = load_for_serving(tmp_path / "made")
    for vectors in (serving.items, user_vectors(serving)):
        assert np.linalg.norm(vectors, axis=1).min() > 0.1
        assert len(np.unique(vectors, axis=0)) == len(vectors)
    assert len(steps) == options.steps
    assert "drawing item 321 of 321" in steps


def test_users_have_seen_what_is_near_them(tmp_path: Path) -> None:
    """Otherwise seen items would never be in the way of a search; and the first rows are the popular ones."""
    write_bundle(Options(items=5000, users=400, dimension=32, seen=30), tmp_path / "made")
    serving = load_for_serving(tmp_path / "made")
    scores = user_vectors(serving) @ serving.items.T
    seen = np.mean([scores[user][serving.seen.of(user)].mean() for user in range(400)])
    assert seen > scores.mean() + 0.2 * scores.std()
    assert serving.popularity.sum() == 400 * 30
    assert serving.popularity[:1250].sum() > 2 * serving.popularity[-1250:].sum()


@pytest.mark.parametrize("seen", [0, 9, 60])
def test_any_number_of_seen_items(tmp_path: Path, seen: int) -> None:
    write_bundle(Options(items=60, users=5, dimension=4, seen=seen), tmp_path / "made")
    serving = load_for_serving(tmp_path / "made")
    lengths = np.diff(serving.seen.offsets).tolist()
    # A data set has at least one interaction.
    assert lengths == ([0, 0, 0, 0, 1] if seen == 0 else [seen] * 5)
    assert serving.manifest.dataset.n_train == max(5 * seen, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--items", "10", "--seen", "11"), "--seen 11: there are only 10 items"),
        (("--items", "10", "--seen", "1", "--users", "3000000"), "at most 2929687 users of dimension 128"),
        (("--items", "50", "--seen", "1", "--index", "IVF4096,SQ8"), "--index IVF4096,SQ8: FAISS cannot make it"),
        (("--items", "50", "--seen", "1", "--index", "LSH"), "--index LSH"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert bench("synth-bundle", *options, "--out", tmp_path / "made") == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_stays(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter").write_text("dear")
    assert bench("synth-bundle", "--items", "50", "--out", tmp_path) == 2
    assert "is no bundle and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "letter").read_text() == "dear"


def test_help_shows_examples(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("synth-bundle", "--help") == 0
    assert "dvib-bench synth-bundle --items 7000" in " ".join(capsys.readouterr().out.split())
