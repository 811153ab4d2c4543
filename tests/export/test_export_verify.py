"""``dvib-export verify``: 0 for the baseline's equal, 1 for another graph or other numbers, 2 for what is no bundle."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import bundle
from export import verify as verification
from export.certificate import Certificate, GraphFacts
from export.certificate_text import render
from export.onnx_canonical import canonical_bytes
from export.serving import ServingBundle, load_for_serving
from tests.helpers_export import digests, dvib_export, edit_json, model_of, reseal, write_new_items
from training.data.dataset import Dataset

Copy = Callable[[Path], Path]
CHECKS = ["files", "graph", "certificate", "about", "transplant", "blanked", "architecture", "index", "parity"]


def verdicts(out: str) -> dict[str, bool]:
    """Return check → whether it passed or was not looked at, as printed."""
    return {name: word != "FAIL" for word, name in re.findall(r"^(ok|FAIL|skip) +([^:]+):", out, flags=re.MULTILINE)}


def failing(folder: Path, *arguments: object) -> set[str]:
    """Verify; return the names of the failing checks. The exit code must fit them."""
    outcome = dvib_export("verify", folder, *arguments)
    assert outcome.err == ""
    found = verdicts(outcome.out)
    assert list(found)[: len(CHECKS)] == CHECKS
    failed = {name for name, passed in found.items() if not passed}
    assert outcome.code == (1 if failed else 0)
    return failed


@pytest.mark.parametrize("name", ["baseline_bundle", "adaptive_bundle"])
def test_a_fresh_bundle_is_verified(name: str, request: pytest.FixtureRequest) -> None:
    assert failing(request.getfixturevalue(name)) == set()


def test_bundles_of_the_same_data_hold_the_same_graph(adaptive_bundle: Path, baseline_bundle: Path) -> None:
    for ours, theirs in ((adaptive_bundle, baseline_bundle), (baseline_bundle, adaptive_bundle)):
        outcome = dvib_export("verify", ours, "--against", theirs)
        assert (outcome.code, outcome.err) == (0, "")
        assert verdicts(outcome.out)[f"same graph as {theirs}"]
    assert failing(baseline_bundle, "--against", baseline_bundle) == set()


def test_another_architecture_is_another_graph(adaptive_bundle: Path, wide_bundle: Path) -> None:
    assert failing(adaptive_bundle, "--against", wide_bundle) == {f"same graph as {wide_bundle}"}
    assert failing(wide_bundle, "--against", adaptive_bundle) == {f"same graph as {adaptive_bundle}"}


def test_against_no_bundle(adaptive_bundle: Path, tmp_path: Path) -> None:
    outcome = dvib_export("verify", adaptive_bundle, "--against", tmp_path / "nowhere")
    assert outcome.code == 2
    assert "nowhere" in outcome.complaint


def test_against_an_altered_bundle(adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(baseline_bundle)
    content = bytearray((spoiled / bundle.MODEL_ONNX).read_bytes())
    content[-3] ^= 1
    (spoiled / bundle.MODEL_ONNX).write_bytes(content)
    outcome = dvib_export("verify", adaptive_bundle, "--against", spoiled)
    assert outcome.code == 2
    assert bundle.MODEL_ONNX in outcome.complaint


def nested(depth: int) -> bytes:
    """A graph in a node of a graph, and so on: what parses need not be what can be written again."""
    graph = onnx.GraphProto()
    for _ in range(depth):
        outer = onnx.GraphProto()
        attribute = outer.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(graph)
        graph = outer
    return bytes(onnx.ModelProto(graph=graph).SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\x08\x0aORTM", nested(30)], ids=["empty", "flatbuffer", "nested"])
def test_against_a_graph_that_is_none(
    content: bytes, adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy
) -> None:
    """Another graph is a difference; what no export writes is not looked into."""
    spoiled = copy_of(baseline_bundle)
    (spoiled / bundle.MODEL_ONNX).write_bytes(content)
    reseal(spoiled)
    outcome = dvib_export("verify", adaptive_bundle, "--against", spoiled)
    assert outcome.code == 2
    assert f"{spoiled}: {bundle.MODEL_ONNX} " in outcome.complaint


def test_a_bundle_that_is_replaced_meanwhile(
    adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = copy_of(adaptive_bundle), copy_of(baseline_bundle)

    def load_and_lose(place: Path) -> ServingBundle:
        found = load_for_serving(place)
        folder.rename(folder.with_name("old"))
        other.rename(folder)
        return found

    monkeypatch.setattr(verification, "load_for_serving", load_and_lose)
    outcome = dvib_export("verify", folder)
    assert outcome.code == 2
    assert f"{folder} was replaced while it was read" in outcome.complaint


def test_added_items_are_said_to_be_outside_of_every_proof(
    adaptive_bundle: Path, dataset: Dataset, tmp_path: Path
) -> None:
    assert "added items" not in dvib_export("verify", adaptive_bundle).out
    write_new_items(tmp_path / "new", ["a", "b"], {name: rows[:2] for name, rows in dataset.features.items()})
    assert dvib_export("add-items", adaptive_bundle, tmp_path / "new", "--out", tmp_path / "b").code == 0
    assert failing(tmp_path / "b") == set()
    assert "skip  added items: 2 items: no proof covers their vectors\n" in dvib_export("verify", tmp_path / "b").out


def replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def certificate(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the JSON, and the text with it where there still is a certificate to be told."""

    def spoil(folder: Path) -> None:
        edit_json(folder / bundle.CERTIFICATE, edit)
        with contextlib.suppress(ValueError):
            certificate = Certificate.model_validate_json((folder / bundle.CERTIFICATE).read_bytes())
            (folder / bundle.CERTIFICATE_TEXT).write_text(render(certificate), "utf-8")

    return spoil


Fault = Callable[[Path], object]
CERTIFICATES: list[tuple[Fault, set[str]]] = [
    (certificate(lambda document: document["exported"].update(sha256="0" * 64)), {"certificate", "about"}),
    (certificate(lambda document: document["exported"].update(parameters=1)), {"certificate", "about"}),
    (certificate(lambda document: document["transplanted"].update(sha256="0" * 64)), {"about", "transplant"}),
    (certificate(lambda document: document["independent"].update(blanked_sha256="0" * 64)), {"about", "blanked"}),
    (certificate(lambda document: document["independent"].update(flops_per_user=1)), {"about", "architecture"}),
    (certificate(lambda document: document["independent"]["operators"].update(Relu=1)), {"about", "architecture"}),
    (certificate(lambda document: document["proofs"].update(transplant=False)), {"about", "transplant"}),
    (certificate(lambda document: document["proofs"].update(parity=False)), {"about", "parity"}),
    (
        certificate(lambda document: document["proofs"].clear()),
        {"about", "transplant", "blanked", "architecture", "parity"},
    ),
    (certificate(lambda document: document["learned"].clear()), {"certificate", "blanked", "architecture"}),
]


@pytest.mark.parametrize(("fault", "failed"), CERTIFICATES, ids=range(len(CERTIFICATES)))
def test_a_changed_certificate_behind_matching_hashes(
    fault: Fault, failed: set[str], adaptive_bundle: Path, copy_of: Copy
) -> None:
    spoiled = copy_of(adaptive_bundle)
    fault(spoiled)
    reseal(spoiled)
    assert failing(spoiled) == failed


def path(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["parity"]["program"].update(changes)


MISFITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "model": lambda document: document.update(model="grcn"),
    "variant": lambda document: document.update(variant="none"),
    "dataset": lambda document: document.update(dataset="netflix"),
    "dataset_fingerprint": lambda document: document.update(dataset_fingerprint="0" * 64),
    "tolerance": lambda document: document.update(tolerance=1e9),
    "top_k": lambda document: document.update(top_k=1),
    "proofs": lambda document: document["proofs"].update({"zero cost": True}),
    "parity": lambda document: document["parity"].pop("onnx_unfolded"),
    "parity (another way)": lambda document: document["parity"].update(magic=document["parity"]["onnx"]),
    "parity (an error)": path(max_relative_error=1e-5),
    "parity (an impossible error)": path(max_relative_error=-1.0),
    "parity (other lists)": path(top_k_differing_users=1),
    "parity (users left out)": path(users=22),
    "proofs, parity": path(passed=False),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_certificate_of_something_else(name: str, adaptive_bundle: Path, copy_of: Copy) -> None:
    """Or one whose verdicts do not follow from its figures. Everything else about it holds."""
    spoiled = copy_of(adaptive_bundle)
    certificate(MISFITS[name])(spoiled)
    reseal(spoiled)
    assert failing(spoiled) == {"about"}
    assert f"FAIL  about: not so: {name.partition(' (')[0]}\n" in dvib_export("verify", spoiled).out


def test_no_parity_at_all(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    certificate(lambda document: document.update(parity={}))(spoiled)
    reseal(spoiled)
    assert failing(spoiled) == {"about"}


@pytest.mark.parametrize(
    "fault",
    [
        certificate(path(mean_relative_error=float("nan"))),
        certificate(path(max_absolute_error=float("inf"))),
        certificate(lambda document: document.update(schema_version=1)),
        certificate(lambda document: document.update(schema_name="other")),
        certificate(lambda document: document.update(surprise=1)),
        certificate(lambda document: document.pop("proofs")),
        certificate(lambda document: document["exported"].pop("sha256")),
        replace(bundle.CERTIFICATE, b"{"),
        replace(bundle.CERTIFICATE, b"\xff\xfe"),
        replace(bundle.CERTIFICATE, b""),
    ],
    ids=["no number", "no end", "version", "name", "extra key", "no proofs", "no hash", "no JSON", "no UTF-8", "empty"],
)
def test_what_is_no_certificate(fault: Fault, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    fault(spoiled)
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 2
    assert "certificate" in outcome.complaint


def test_the_model_of_another_run(adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.MODEL_ONNX).write_bytes((baseline_bundle / bundle.MODEL_ONNX).read_bytes())
    reseal(spoiled)
    assert failing(spoiled) == {"certificate", "transplant"}
    # Shown is what was found, and not what was recorded of another graph.
    (found, recorded), *_ = re.findall("transplant: SHA-256 (\\w+) against (\\w+)", dvib_export("verify", spoiled).out)
    assert found == digests(baseline_bundle)[bundle.MODEL_ONNX][:12]
    assert recorded == digests(adaptive_bundle)[bundle.MODEL_ONNX][:12]


def test_the_user_tower_of_another_run(adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.USER_TOWER).write_bytes((baseline_bundle / bundle.USER_TOWER).read_bytes())
    reseal(spoiled)
    assert failing(spoiled) == {"parity"}


def test_an_index_of_other_vectors(adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / bundle.INDEX).write_bytes((baseline_bundle / bundle.INDEX).read_bytes())
    reseal(spoiled)
    assert failing(spoiled) == {"index", "parity"}


def test_metadata_in_the_graph(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    model = model_of(spoiled / bundle.MODEL_ONNX)
    model.graph.node[0].doc_string = "here"
    (spoiled / bundle.MODEL_ONNX).write_bytes(model.SerializeToString(deterministic=True))
    reseal(spoiled)
    assert "graph" in failing(spoiled)


def plant(model: onnx.ModelProto, kind: str) -> None:
    """Put one fault between the item vectors and their transposition, without a change to any score."""
    if kind == "swap":
        swap_operands(model)
        return
    turned = next(node for node in model.graph.node if node.op_type == "Transpose")
    before = turned.input[0]
    place = list(model.graph.node).index(turned)
    if kind == "net_phi":
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "net_phi.at_fused.4.bias"))
        nodes = [helper.make_node("Add", [before, "net_phi.at_fused.4.bias"], ["planted"])]
    elif kind == "random":
        nodes = [
            helper.make_node("RandomNormalLike", [before], ["noise"], scale=1e-30),
            helper.make_node("Add", [before, "noise"], ["planted"]),
        ]
    else:
        nodes = [
            helper.make_node("Cast", [before], ["wide"], to=onnx.TensorProto.DOUBLE),
            helper.make_node("Cast", ["wide"], ["planted"], to=onnx.TensorProto.FLOAT),
        ]
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    turned.input[0] = "planted"


def swap_operands(model: onnx.ModelProto) -> None:
    """Turn the last product, P·E', into the transpose of E·P'."""
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    users, items = product.input
    place, (scores,) = list(model.graph.node).index(product), product.output
    for name in (users, items):
        model.graph.node.insert(place, helper.make_node("Transpose", [name], [f"{name} turned"], perm=[1, 0]))
    product.input[:], product.output[0] = [f"{items} turned", f"{users} turned"], "scores turned"
    model.graph.node.append(helper.make_node("Transpose", ["scores turned"], [scores], perm=[1, 0]))


@pytest.mark.parametrize("kind", ["net_phi", "random", "cast", "swap"])
def test_a_fault_planted_in_the_file(kind: str, adaptive_bundle: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    """Alone the certificate tells; with a certificate forged to fit, the baseline's bundle does.

    A graph with a random operator is refused before anything is compared.
    """
    spoiled = copy_of(adaptive_bundle)
    model = model_of(spoiled / bundle.MODEL_ONNX)
    plant(model, kind)
    data = canonical_bytes(model)
    (spoiled / bundle.MODEL_ONNX).write_bytes(data)
    reseal(spoiled)
    if kind == "random":
        outcome = dvib_export("verify", spoiled)
        assert outcome.code == 2
        assert f"{bundle.MODEL_ONNX} uses the random operator RandomNormalLike" in outcome.complaint
        return
    assert failing(spoiled) == {"certificate", "transplant", "blanked", "architecture"}

    forged = Certificate.model_validate_json((spoiled / bundle.CERTIFICATE).read_bytes())
    facts = GraphFacts.of(data, forged.learned)
    forged = forged.model_copy(update={"exported": facts, "transplanted": facts, "independent": facts})
    (spoiled / bundle.CERTIFICATE).write_text(forged.model_dump_json())
    (spoiled / bundle.CERTIFICATE_TEXT).write_text(render(forged), "utf-8")
    reseal(spoiled)
    assert f"same graph as {baseline_bundle}" in failing(spoiled, "--against", baseline_bundle)
    assert failing(spoiled) == set()


GARBAGE = b"\x0a\xff\xff\xff\xff neither a graph nor an index"


@pytest.mark.parametrize("content", [GARBAGE, b"", b"IxFI"], ids=["garbage", "empty", "cut"])
@pytest.mark.parametrize("name", [bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.INDEX])
def test_what_is_no_graph_and_no_index(name: str, content: bytes, adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    (spoiled / name).write_bytes(content)
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 2
    assert name in outcome.complaint


def test_a_graph_with_another_signature(adaptive_bundle: Path, copy_of: Copy) -> None:
    """The item tower in the place of the others: a sound graph that takes no users."""
    tower = (adaptive_bundle / bundle.ITEM_TOWER).read_bytes()
    for name in (bundle.USER_TOWER, bundle.MODEL_ONNX):
        spoiled = copy_of(adaptive_bundle)
        (spoiled / name).write_bytes(tower)
        reseal(spoiled)
        outcome = dvib_export("verify", spoiled)
        if name == bundle.MODEL_ONNX:
            # Not the certified graph: reported, and not run.
            assert outcome.code == 1
        else:
            assert outcome.code == 2
            assert name in outcome.complaint
        spoiled.rename(spoiled.with_name(f"spoiled {name}"))


def test_an_approximate_index_is_not_what_was_promised(adaptive_bundle: Path, copy_of: Copy) -> None:
    spoiled = copy_of(adaptive_bundle)
    index = faiss.IndexFlatL2(16)
    index.add(np.load(spoiled / bundle.ITEMS))
    faiss.write_index(index, str(spoiled / bundle.INDEX))
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code in {1, 2}
