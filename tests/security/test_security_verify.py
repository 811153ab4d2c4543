"""``dvib-export verify`` on hostile bundles: it ends by itself, with one line, whatever a certificate claims."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import bundle, confine
from export.certificate import Certificate, GraphFacts, PathParity, RemovedFacts, judge
from export.certificate_text import render
from export.onnx_canonical import canonical_bytes
from tests.helpers_bundle import gather_tower
from tests.helpers_export import dvib_export, edit_json, environment, write_new_items
from tests.security.hostile import CONTENT, ROOT, assert_named, manifest_of, reseal

N_ITEMS = len(CONTENT.items)
Edit = Callable[[ModelProto], object]


def full_graph() -> ModelProto:
    """``users`` → ``scores``, as the toy's towers and index score."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "users"], ["vectors"], axis=0),
            helper.make_node("MatMul", ["vectors", "items"], ["scores"]),
        ],
        "main_graph",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", N_ITEMS])],
        [
            numpy_helper.from_array(CONTENT.users, "table"),
            numpy_helper.from_array(np.ascontiguousarray(CONTENT.items.T), "items"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def forge(folder: Path, model: ModelProto) -> None:
    """Put a graph into a bundle and a certificate beside it that vouches for it."""
    data = canonical_bytes(model)
    (folder / bundle.MODEL_ONNX).write_bytes(data)
    facts = GraphFacts.of(data, ["table"])
    perfect = PathParity(
        passed=True,
        users=len(CONTENT.users),
        max_absolute_error=0,
        max_relative_error=0,
        mean_relative_error=0,
        worst_user=0,
        top_k_differing_users=0,
    )
    parity = dict.fromkeys(("onnx", "onnx_unfolded", "program", "torchscript", "towers_index"), perfect)
    certificate = Certificate(
        model="vbpr",
        variant="none",
        dataset="toy",
        dataset_fingerprint="0" * 64,
        onnxruntime="1",
        learned=["table"],
        exported=facts,
        transplanted=facts,
        independent=facts,
        independent_source="trust me",
        parity=parity,
        removed=RemovedFacts(tensors={}, parameters=0),
        proofs=judge(facts, facts, facts, parity),
    )
    (folder / bundle.CERTIFICATE).write_text(certificate.model_dump_json(), "utf-8")
    (folder / bundle.CERTIFICATE_TEXT).write_text(render(certificate), "utf-8")
    reseal(folder)


def add_bomb(model: ModelProto, *shape: int) -> None:
    """Ask for a tensor of this shape, out of a handful of bytes, and add zero times its sum to the scores."""
    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            numpy_helper.from_array(np.array(shape), "shape"),
        ]
    )
    graph.node[-1].output[0] = "honest"
    graph.node.extend(
        [
            helper.make_node("Expand", ["one", "shape"], ["large"]),
            helper.make_node("ReduceMax", ["large"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["honest", "nothing"], ["scores"]),
        ]
    )


def test_a_forged_certificate_of_an_honest_graph_passes(spoiled: Path) -> None:
    """The forgery below is well made: a certificate proves nothing of who wrote it."""
    forge(spoiled, full_graph())
    outcome = dvib_export("verify", spoiled)
    assert (outcome.code, outcome.err) == (0, "")


def test_a_certified_graph_that_asks_for_all_memory(spoiled: Path) -> None:
    model = full_graph()
    add_bomb(model, 2**20, 2**20)
    forge(spoiled, model)
    outcome = dvib_export("verify", spoiled)
    assert (outcome.code, outcome.out) == (2, "")
    assert_named(outcome.complaint.removeprefix("dvib-export: "), spoiled)
    assert f"{bundle.MODEL_ONNX} cannot be used" in outcome.complaint


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 256 MiB were left."""
    monkeypatch.setattr(confine, "_available", lambda: 2**28)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("command", ["verify", "publish"])
def test_a_graph_that_asks_for_more_than_is_left(command: str, spoiled: Path, tmp_path: Path) -> None:
    """Half a gigabyte, which this machine has: whoever runs a stranger's graph does so within the bound."""
    model = full_graph()
    add_bomb(model, 2**13, 2**14)
    forge(spoiled, model)
    outcome = dvib_export(command, spoiled, *([tmp_path / "root", "--verify"] if command == "publish" else []))
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{bundle.MODEL_ONNX} cannot be used" in outcome.complaint
    assert not (tmp_path / "root" / "current").exists()


@pytest.mark.usefixtures("little_memory")
def test_an_item_tower_that_asks_for_more_than_is_left(spoiled: Path, tmp_path: Path) -> None:
    dimension = CONTENT.items.shape[1]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["text", "weight"], ["scores"])],
        "main_graph",
        [helper.make_tensor_value_info("text", TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", dimension])],
        [numpy_helper.from_array(np.zeros((4, dimension), np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    add_bomb(model, 2**13, 2**14)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "vectors"
    (spoiled / bundle.ITEM_TOWER).write_bytes(model.SerializeToString())
    reseal(spoiled, manifest_of(spoiled) | {"absent": {}})
    write_new_items(tmp_path / "new", ["a", "b"], {"text": np.ones((2, 4), np.float32)})
    outcome = dvib_export("add-items", spoiled, tmp_path / "new", "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{bundle.ITEM_TOWER} cannot be run" in outcome.complaint
    assert not (tmp_path / "out").exists()


BOUNDED = """
import numpy as np
from export import confine
confine._available = lambda: 2**30
try:
    with confine.bounded_memory():
        parts = [np.ones(2**25) for _ in range(8)]
except MemoryError:
    print("bounded")
parts = [np.empty(2**25) for _ in range(8)]
print("free again")
"""


def test_memory_is_bounded_while_it_verifies_and_not_after() -> None:
    """Eight pieces that each would fit."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.stdout.split("\n") == ["bounded", "free again", ""]


def named(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name


GRAPHS: dict[str, Edit] = {
    "no scores": lambda m: m.graph.node.pop(),
    "another output": lambda m: setattr(m.graph.output[0], "name", "vectors"),
    "another input": lambda m: setattr(m.graph.input[0], "name", "usars"),
    "no user fits": lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(CONTENT.users[:1], "table")),
    "no item fits": lambda m: m.graph.initializer[1].CopyFrom(numpy_helper.from_array(CONTENT.items, "items")),
    "a circle": lambda m: m.graph.node[0].input.__setitem__(0, "scores"),
    "no version": lambda m: m.ClearField("opset_import"),
    "a future version": lambda m: setattr(m.opset_import[0], "version", 9999),
    "a future format": lambda m: setattr(m, "ir_version", 9999),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_does_not_fit(name: str, spoiled: Path) -> None:
    """Its certificate vouches for the honest one."""
    forge(spoiled, full_graph())
    model = full_graph()
    GRAPHS[name](model)
    (spoiled / bundle.MODEL_ONNX).write_bytes(canonical_bytes(model))
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code in {1, 2}
    assert outcome.out.isprintable() or outcome.code == 1
    assert outcome.code == 1 or outcome.complaint.isprintable()


def test_words_of_a_certificate_do_not_control_a_terminal(spoiled: Path) -> None:
    forge(spoiled, full_graph())
    edit_json(spoiled / bundle.CERTIFICATE, lambda document: document.update(independent_source="\x1b[2J\nok  all"))
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 1
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert not any(line.startswith("ok  all") for line in outcome.out.splitlines())


CERTIFICATES: dict[str, bytes] = {
    "brackets": b"[" * 10**6,
    "many faults": b'{"proofs":{' + b",".join(b'"%d":{}' % place for place in range(10**6)) + b"}}",
    "empty": b"",
    "no number": b'{"tolerance": NaN}',
    "two lines": b'{"a\\nb": 1}',
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_that_is_none(name: str, spoiled: Path) -> None:
    (spoiled / bundle.MODEL_ONNX).write_bytes(gather_tower(CONTENT.users))
    (spoiled / bundle.CERTIFICATE).write_bytes(CERTIFICATES[name])
    reseal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert (outcome.code, outcome.out) == (2, "")
    assert bundle.CERTIFICATE in outcome.complaint
    assert_named(outcome.complaint.removeprefix("dvib-export: "), spoiled)
