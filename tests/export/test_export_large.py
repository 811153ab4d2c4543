"""Graphs that are too large for a file: what is written, what the manifest says, and what still proves something."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import bundle, strip
from export import outline as outlines
from export.certificate import Certificate
from export.certificate_text import render
from export.graphs import FullGraph
from export.manifest import Manifest
from export.onnx_canonical import parse
from export.onnx_graph import GraphTooLargeError, onnx_of, outline_of
from export.outline import SMALL, blank_outline, outline
from export.program import trace_program
from export.serving import load_for_serving
from tests.helpers_export import dvib_export, edit_json, reseal
from training.checkpoint import Checkpoint, load_checkpoint
from training.dvib.objective import Objective
from training.models.base import Recommender

Copy = Callable[[Path], Path]
FULL = (bundle.MODEL_ONNX, bundle.TORCHSCRIPT, bundle.PROGRAM)
GRAPH_CHECKS = ("transplant", "blanked", "architecture")


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that the full graph exceeds and the towers do not."""
    monkeypatch.setattr(outlines, "LARGEST_GRAPH_BYTES", 4000)


@pytest.fixture(scope="module")
def large_bundle(baseline_run: Path, adaptive_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certified against the baseline run, its graph too large; never changed by a test."""
    out = tmp_path_factory.mktemp("bundles") / "large"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "LARGEST_GRAPH_BYTES", 4000)
        outcome = dvib_export("build", adaptive_run, "--out", out, "--baseline", baseline_run)
    assert (outcome.code, outcome.err) == (0, "")
    for name in FULL:
        assert f"no {name}: its tensors have" in outcome.out
    return out


def manifest_of(folder: Path) -> Manifest:
    with bundle.BundleReader(folder) as reader:
        return reader.manifest


def test_the_manifest_says_what_is_absent_and_why(large_bundle: Path, adaptive_bundle: Path) -> None:
    manifest = manifest_of(large_bundle)
    for name in FULL:
        assert not (large_bundle / name).exists()
        assert "protobuf ends at 2 GB" in manifest.absent[name]
    written = {path.name for path in large_bundle.iterdir()}
    assert written == {path.name for path in adaptive_bundle.iterdir()} - {*FULL, bundle.MEASUREMENTS}
    assert manifest.opset == manifest_of(adaptive_bundle).opset


def test_what_serves_is_the_same(large_bundle: Path, adaptive_bundle: Path) -> None:
    ours, theirs = load_for_serving(large_bundle), load_for_serving(adaptive_bundle)
    assert ours.user_tower == theirs.user_tower
    np.testing.assert_array_equal(ours.items, theirs.items)


def test_the_certificate_stands_on_outlines_and_on_the_towers(large_bundle: Path, adaptive_bundle: Path) -> None:
    large, small = (
        Certificate.model_validate_json((folder / bundle.CERTIFICATE).read_bytes())
        for folder in (large_bundle, adaptive_bundle)
    )
    assert all(large.proofs.values())
    assert large.parity.keys() == {"towers_index"}
    assert large.exported.outline
    assert not small.exported.outline
    assert large.exported.sha256 == large.transplanted.sha256 != large.independent.sha256
    # What is counted does not depend on whether a file holds it.
    same = {"fingerprint", "wiring", "tensors", "operators", "parameters", "constants", "flops_per_user", "opset"}
    for name in same:
        assert getattr(large.exported, name) == getattr(small.exported, name), name
    assert abs(large.exported.size - small.exported.size) < 0.1 * small.exported.size


@pytest.mark.usefixtures("small_limit")
def test_verification_says_what_it_cannot_look_at(large_bundle: Path, adaptive_bundle: Path) -> None:
    outcome = dvib_export("verify", large_bundle, "--against", large_bundle, "--trust-torchscript")
    assert (outcome.code, outcome.err) == (0, "")
    for line in ("graph: model.onnx is absent", "parity: ", "same graph as", f"{bundle.TORCHSCRIPT}: not looked at"):
        assert f"skip  {line}" in outcome.out
    for name in ("certificate", "about"):
        assert f"ok    {name}: " in outcome.out
    # Nothing but certificates was compared, and anybody can write these.
    for name in GRAPH_CHECKS:
        assert re.search(f"^skip  {name}: .*, as certified$", outcome.out, flags=re.MULTILINE)
    # A graph in a file is not the graph of an outline, whatever the certificates say.
    for ours, theirs in ((large_bundle, adaptive_bundle), (adaptive_bundle, large_bundle)):
        outcome = dvib_export("verify", ours, "--against", theirs)
        assert outcome.code == 1
        assert f"FAIL  same graph as {theirs}: " in outcome.out


def test_a_graph_that_would_fit_into_a_file_is_not_excused(large_bundle: Path) -> None:
    """The real limit is far beyond this graph."""
    outcome = dvib_export("verify", large_bundle)
    assert outcome.code == 1
    assert "FAIL  certificate: certified is a graph of 0.00 GB, which would fit into a file" in outcome.out


@pytest.mark.parametrize("size", [None, 2_000_000_000])
def test_a_bundle_without_a_graph_is_never_the_same_as_one_with_a_graph(
    size: int | None, adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy
) -> None:
    """Everything that could be looked at is gone, and the certificate says that it was too large."""
    spoiled = copy_of(adaptive_bundle)
    for name in FULL:
        (spoiled / name).unlink()

    def claim(document: dict[str, Any]) -> None:
        document["parity"] = {"towers_index": document["parity"]["towers_index"]}
        for facts in ("exported", "transplanted", "independent"):
            document[facts] |= {"outline": True} | ({} if size is None else {"size": size})

    edit_json(spoiled / bundle.CERTIFICATE, claim)
    certificate = Certificate.model_validate_json((spoiled / bundle.CERTIFICATE).read_bytes())
    (spoiled / bundle.CERTIFICATE_TEXT).write_text(render(certificate), "utf-8")
    reseal(spoiled, absent=dict.fromkeys(FULL, "too large"))
    outcome = dvib_export("verify", spoiled, "--against", baseline_bundle)
    failed = set(re.findall("^FAIL  ([^:]+): ", outcome.out, flags=re.MULTILINE))
    assert outcome.code == 1
    assert failed == {f"same graph as {baseline_bundle}"} | (set() if size else {"certificate"})
    for name in GRAPH_CHECKS:
        assert f"skip  {name}: " in outcome.out


def test_a_graph_that_was_taken_away_is_no_large_graph(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.MODEL_ONNX).unlink()
    reseal(spoiled, absent={bundle.MODEL_ONNX: "its tensors are too large, believe me"})
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert "FAIL  certificate: " in outcome.out


@pytest.mark.parametrize("proof", ["transplant", "parity"])
def test_a_failed_proof_in_the_certificate_of_a_large_graph(proof: str, large_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(large_bundle)
    edit_json(spoiled / bundle.CERTIFICATE, lambda document: document["proofs"].update({proof: False}))
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert f"FAIL  {proof}: " in outcome.out


def nudged(objective: Objective) -> Recommender:
    """One weight one unit in the last place off, in a tensor of which the outline holds the hash alone."""
    model = objective.model
    users = model.get_parameter("users").data
    users[0, 0] = torch.nextafter(users[0, 0], users[0, 0] + 1)
    return model


@pytest.mark.usefixtures("small_limit")
def test_one_bit_of_one_tensor_fails_the_transplant(
    adaptive_run: Path, baseline_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(strip, "strip", nudged)
    outcome = dvib_export("build", adaptive_run, "--out", tmp_path / "b", "--baseline", baseline_run)
    assert outcome.code == 1
    assert "proof transplant failed" in outcome.complaint
    assert list(tmp_path.iterdir()) == []


# Outlines themselves.


@pytest.fixture(scope="module")
def checkpoint(adaptive_run: Path) -> Checkpoint:
    return load_checkpoint(adaptive_run)


@pytest.fixture(scope="module")
def program(checkpoint: Checkpoint) -> torch.export.ExportedProgram:
    return trace_program(FullGraph(strip.plain_model(checkpoint, transplant=True)), [torch.arange(2)])


def test_an_outline_made_without_the_graph_is_that_of_the_graph(program: torch.export.ExportedProgram) -> None:
    data = onnx_of(program, ["users"], "scores")
    found = outline_of(program, ["users"], "scores")
    assert found == outline(parse(data))
    assert len(found) < len(data)
    sizes = {tensor.name: len(tensor.raw_data) for tensor in parse(data).graph.initializer}
    assert max(sizes.values()) > SMALL
    for tensor in parse(found).graph.initializer:
        assert len(tensor.raw_data) == (sizes[tensor.name] if sizes[tensor.name] <= SMALL else 32)


def altered(data: bytes, name: str, *, transposed: bool) -> onnx.ModelProto:
    """Change the last element of a tensor, or nothing but its shape."""
    model = parse(data)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            if transposed:
                array = array.reshape(array.T.shape)
            else:
                array.ravel()[-1] += 1
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("name", ["model.users", "model.bias", "model.features"])
def test_an_outline_knows_every_element(name: str, program: torch.export.ExportedProgram) -> None:
    data = onnx_of(program, ["users"], "scores")
    whole = outline(parse(data))
    other = outline(altered(data, name, transposed=False))
    assert other != whole
    assert blank_outline(other, [name]) == blank_outline(whole, [name])
    if name != "model.bias":
        reshaped = outline(altered(data, name, transposed=True))
        assert blank_outline(reshaped, [name]) != blank_outline(whole, [name])


@pytest.mark.parametrize("spare", [0, 1])
def test_the_limit_is_met_exactly(
    spare: int, program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*program.state_dict.values(), *constants(program)))
    monkeypatch.setattr(outlines, "LARGEST_GRAPH_BYTES", size - spare)
    if spare:
        with pytest.raises(GraphTooLargeError, match="protobuf ends at 2 GB"):
            onnx_of(program, ["users"], "scores")
    else:
        assert onnx_of(program, ["users"], "scores")


def constants(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    return [value for value in program.constants.values() if isinstance(value, torch.Tensor)]


def test_the_limit_leaves_room_below_what_protobuf_can_hold() -> None:
    assert outlines.LARGEST_GRAPH_BYTES == 1_500_000_000 < 2**31


def test_the_manifest_of_a_large_graph_is_plain_json(large_bundle: Path) -> None:
    absent = json.loads((large_bundle / bundle.MANIFEST).read_text("utf-8"))["absent"]
    assert set(absent) >= set(FULL)
