"""Graphs that reach beyond themselves are refused before ONNX Runtime sees them, behind matching hashes too."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from export import bundle
from export.onnx_canonical import RANDOM_OPERATORS
from export.onnx_safety import check_graph
from service.engine import Engine
from tests.helpers_bundle import gather_tower, make_content, write_bundle
from tests.helpers_export import dvib_export, reseal
from tests.service.processes import command, environment
from training.common.errors import BundleError

CONTENT = make_content()
OUTSIDE = "secret.bin"
GRAPHS = (bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.ITEM_TOWER)
Edit = Callable[[ModelProto], object]


def sound() -> ModelProto:
    return onnx.load_model_from_string(gather_tower(CONTENT.users))


def outside(tensor: TensorProto) -> TensorProto:
    """Move a tensor's content into a file of the working directory."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", OUTSIDE
    return tensor


def small() -> TensorProto:
    return numpy_helper.from_array(np.ones(1, np.float32), "small")


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["planted"], value=tensor)


def branching(inner: onnx.NodeProto) -> onnx.NodeProto:
    """Hide a node two graphs deep."""
    for depth in range(2):
        graph = helper.make_graph([inner], f"depth {depth}", [], [])
        inner = helper.make_node("If", ["users"], [f"planted {depth}"], then_branch=graph, else_branch=graph)
    return inner


def external_entry_alone(model: ModelProto) -> None:
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", OUTSIDE


def tensor_list(model: ModelProto) -> None:
    attribute = AttributeProto(name="values", type=AttributeProto.TENSORS, tensors=[small(), outside(small())])
    model.graph.node[0].attribute.append(attribute)


def sparse() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    return helper.make_sparse_tensor(small(), indices, [4])


def local_function(model: ModelProto) -> None:
    opset = [helper.make_opsetid("", 18)]
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Harmless", ["a"], ["b"], [node], opset))


def external_in_training(model: ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(outside(small()))


def planted(operator: str, **attributes: Any) -> Edit:
    return lambda model: model.graph.node.append(helper.make_node(operator, ["users"], ["planted"], **attributes))


def deep(levels: int) -> bytes:
    """Graphs within graphs: a walk that follows them must not run out of stack."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    graph = b""
    for _ in range(levels):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))  # node, op_type, attribute, g
    return field(7, graph)


def varint(number: int) -> bytes:
    return (bytes([number & 0x7F | 0x80]) + varint(number >> 7)) if number > 0x7F else bytes([number])


def sequence(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))


def more_than_declared(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data += bytes(4)


def typed_data(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * CONTENT.users.size)


def declares(*dims: int) -> Edit:
    def edit(model: ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return edit


def foreign_node() -> onnx.NodeProto:
    return helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")


def random_node() -> onnx.NodeProto:
    return helper.make_node("RandomNormal", [], ["noise"], shape=[1])


EDITS: dict[str, tuple[Edit, str]] = {
    "external initialiser": (lambda m: outside(m.graph.initializer[0]), "tensor 'table' in another file"),
    "external entry alone": (external_entry_alone, "tensor 'table' in another file"),
    "external location alone": (
        lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL),
        "in another file",
    ),
    "external constant": (lambda m: m.graph.node.append(constant(outside(small()))), "in another file"),
    "external in a branch": (lambda m: m.graph.node.append(branching(constant(outside(small())))), "operator 'If'"),
    "external in a list": (tensor_list, "the operator 'Gather' the attribute 'values'"),
    "sparse initialiser": (lambda m: m.graph.sparse_initializer.append(sparse()), "sparse tensor 'small'"),
    "sparse constant": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse())),
        "the operator 'Constant' the attribute 'sparse_value'",
    ),
    "local function": (local_function, "local function 'Harmless'"),
    "training": (lambda m: m.training_info.add(), "training information"),
    "external in training": (external_in_training, "training information"),
    "foreign domain": (
        lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        "operator domain 'com.microsoft'",
    ),
    "foreign node": (lambda m: m.graph.node.append(foreign_node()), "'Gelu' of the domain 'com.microsoft'"),
    "foreign node in a branch": (lambda m: m.graph.node.append(branching(foreign_node())), "operator 'If'"),
    "a domain of two lines": (
        lambda m: m.opset_import.append(helper.make_opsetid("a\nb" + 999 * "c", 1)),
        r"'a\nb" + 57 * "c" + "'…;",
    ),
    "random": (lambda m: m.graph.node.append(random_node()), "random operator RandomNormal"),
    "random in a branch": (lambda m: m.graph.node.append(branching(random_node())), "operator 'If'"),
    "loop": (planted("Loop", body=helper.make_graph([], "body", [], [])), "operator 'Loop'"),
    "scan": (planted("Scan", body=helper.make_graph([], "body", [], []), num_scan_inputs=1), "operator 'Scan'"),
    "if": (planted("If", then_branch=helper.make_graph([], "then", [], [])), "operator 'If'"),
    "a graph where none belongs": (
        planted("Cast", to=helper.make_graph([], "to", [], [])),
        "the operator 'Cast' the attribute 'to'",
    ),
    "an unknown attribute": (planted("Cast", to=1, round_mode="up"), "the attribute 'round_mode'"),
    "a reference to a function's attribute": (
        lambda m: m.graph.node[0].attribute.append(
            AttributeProto(name="axis", ref_attr_name="a", type=AttributeProto.INT)
        ),
        "the attribute 'axis'",
    ),
    "a bomb": (planted("Tile"), "operator 'Tile'"),
    "a range": (planted("Range"), "operator 'Range'"),
    "a decoder": (planted("ImageDecoder"), "operator 'ImageDecoder'"),
    "no operator": (planted(""), "operator ''"),
    "a sequence": (sequence, "'s' a type that no export needs"),
    "an exabyte": (declares(2**60), "declares 4611686018427387904 bytes for the tensor 'table' and carries 336"),
    "wrapping": (declares(2**32, 2**32), "declares 73786976294838206464 bytes"),
    "negative": (declares(-12, -7), "of an impossible shape"),
    "nine dimensions": (declares(*[1] * 9), "of an impossible shape"),
    "more than declared": (more_than_declared, "declares 336 bytes for the tensor 'table' and carries 340"),
    "text": (lambda m: m.graph.initializer[0].string_data.append(b"a"), "in a way that no export does"),
    "typed data": (typed_data, "in a way that no export does"),
    "a segment": (lambda m: m.graph.initializer[0].segment.SetInParent(), "in a way that no export does"),
    "quantised": (lambda m: m.graph.quantization_annotation.add(tensor_name="table"), "annotates the tensor 'table'"),
    "no graph": (lambda m: m.ClearField("graph"), "holds no graph"),
}


def polyglot() -> bytes:
    """The sound graph again, for a protobuf parser; for ONNX Runtime a file in its own format."""
    data = b"\x08\x0a\x12\x04ORTM" + gather_tower(CONTENT.users)
    assert onnx.load_model_from_string(data).graph.node[0].op_type == "Gather"
    with pytest.raises(Exception, match="ORT model verification failed"):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data


def attack_by(edit: Edit) -> Callable[[], bytes]:
    return lambda: edited(edit)


def edited(edit: Edit) -> bytes:
    model = sound()
    edit(model)
    return bytes(model.SerializeToString())


ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    **{name: (attack_by(edit), reason) for name, (edit, reason) in EDITS.items()},
    "graphs within graphs": (lambda: deep(10), "operator 'If'"),
    "too many graphs within graphs": (lambda: deep(100), "no ONNX model"),
    "groups within groups": (lambda: b"\x0b" * 10**6, "no ONNX model"),
    "nonsense": (lambda: b"nonsense", "no ONNX model"),
    "nothing": (lambda: b"", "holds no graph"),
    "cut": (lambda: gather_tower(CONTENT.users)[:-3], "no ONNX model"),
    "text that is no UTF-8": (
        lambda: edited(lambda m: m.opset_import.append(helper.make_opsetid(50 * "z", 1))).replace(b"z", b"\xff"),
        "imports the operator domain",
    ),
    "unknown field": (lambda: gather_tower(CONTENT.users) + b"\xb8\x3e\x01", "field that this program does not know"),
    "unknown place of a tensor": (
        lambda: edited(lambda m: m.graph.node.append(constant(TensorProto.FromString(b"\x70\x07")))),
        "field that this program does not know, in a TensorProto",
    ),
    "ONNX Runtime's format": (polyglot, "ONNX Runtime's own format"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with three sound graphs and a certificate that is none, which verifying reads after the graphs."""
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    write_bundle(folder, CONTENT)
    for name in GRAPHS:
        (folder / name).write_bytes(gather_tower(CONTENT.users))
    reseal(folder)
    return folder


@pytest.fixture
def spoil(original: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Puts other bytes into one file of a copy; the hashes fit again."""

    def replace(name: str, data: bytes) -> Path:
        folder = tmp_path / "b"
        shutil.copytree(original, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(data)
        reseal(folder)
        return folder

    return replace


def test_the_sound_graphs_are_not_refused(original: Path) -> None:
    check_graph(gather_tower(CONTENT.users), "a")
    named = sound()
    named.opset_import[0].domain = named.graph.node[0].domain = "ai.onnx"
    check_graph(bytes(named.SerializeToString()), "a")
    assert Engine.load(original).recommend("u-1", 3).items
    outcome = dvib_export("verify", original)
    assert outcome.code == 2
    assert bundle.CERTIFICATE in outcome.complaint


@pytest.mark.parametrize("attack", ATTACKS)
def test_verify_refuses_it_in_every_file(attack: str, spoil: Callable[[str, bytes], Path], original: Path) -> None:
    make, reason = ATTACKS[attack]
    data = make()
    for name in GRAPHS:
        folder = spoil(name, data)
        outcome = dvib_export("verify", folder)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"{folder}: {name} " in outcome.complaint
        assert reason in outcome.complaint
        spoil(name, (original / name).read_bytes())


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_engine_refuses_it(
    attack: str, spoil: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = ATTACKS[attack]
    folder = spoil(bundle.USER_TOWER, make())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(BundleError) as caught:
        Engine.load(folder)
    assert str(caught.value).startswith(f"{folder}: {bundle.USER_TOWER} ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operator", sorted(RANDOM_OPERATORS))
def test_every_random_operator(operator: str) -> None:
    model = sound()
    model.graph.node.append(helper.make_node(operator, ["vectors"], ["noise"]))
    with pytest.raises(BundleError, match=f"a uses the random operator {operator};"):
        check_graph(bytes(model.SerializeToString()), "a")


TOWERS: dict[str, tuple[Edit, str]] = {
    "an honest computation": (planted("Identity"), "2 nodes and 1 tables"),
    "a second table": (lambda m: m.graph.initializer.append(small()), "1 nodes and 2 tables"),
    "another operator": (lambda m: setattr(m.graph.node[0], "op_type", "GatherND"), "attribute 'axis'"),
    "columns": (lambda m: setattr(m.graph.node[0].attribute[0], "i", 1), "does not look vectors float32 up"),
    "swapped": (lambda m: m.graph.node[0].input.reverse(), "does not look vectors float32 up"),
    "another input": (lambda m: setattr(m.graph.input[0], "name", "usars"), "does not look vectors float32 up"),
    "another input type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT32),
        "does not look vectors float32 up",
    ),
    "a second input": (lambda m: m.graph.input.append(m.graph.input[0]), "does not look vectors float32 up"),
    "a second output": (lambda m: m.graph.output.append(m.graph.output[0]), "does not look vectors float32 up"),
    "a scalar input": (
        lambda m: m.graph.input[0].type.tensor_type.shape.ClearField("dim"),
        "does not look vectors float32 up",
    ),
    "a user fewer": (
        lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(CONTENT.users[:-1], "table")),
        "shape (11, 7), wanted float32 (12, 7)",
    ),
    "float64": (
        lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(CONTENT.users.astype(np.float64), "table")),
        "table of type 11",
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_service_runs_one_look_up_and_nothing_else(name: str, spoil: Callable[[str, bytes], Path]) -> None:
    edit, reason = TOWERS[name]
    folder = spoil(bundle.USER_TOWER, edited(edit))
    with pytest.raises(BundleError) as caught:
        Engine.load(folder)
    assert str(caught.value).startswith(f"{folder}: {bundle.USER_TOWER} ")
    assert reason in str(caught.value)
    outcome = dvib_export("verify", folder)
    assert outcome.code == 2
    assert reason in outcome.complaint


def test_external_data_in_a_function() -> None:
    """Functions are refused anyway; their tensors are found by the same walk."""
    model = sound()
    local_function(model)
    model.functions[0].node.append(constant(outside(small())))
    with pytest.raises(BundleError, match="local function"):
        check_graph(bytes(model.SerializeToString()), "a")


def test_no_file_of_the_working_directory_is_served(spoil: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    """The attack from end to end: ONNX Runtime itself would read the file, and answer from it."""
    data = edited(EDITS["external initialiser"][0])
    folder = spoil(bundle.USER_TOWER, data)
    secret = np.random.default_rng(7).standard_normal(CONTENT.users.shape).astype(np.float32)
    (tmp_path / OUTSIDE).write_bytes(secret.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        opened = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        read = opened.run(["vectors"], {"users": np.arange(len(secret))})[0]
        assert np.array_equal(read, secret)
    done = subprocess.run(
        command("--bundle", f"toy={folder}", "--port", "0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"dvib-serve: {folder}: {bundle.USER_TOWER} keeps the tensor 'table' in another file")
    assert done.stderr.count("\n") == 1
