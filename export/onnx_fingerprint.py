"""A hash of an ONNX graph's architecture. Needs only the ``onnx`` package.

The graph is walked from its outputs, operands in order, and every node and tensor gets the number at which the walk
first meets it. Outputs and operands are ordered, so that two graphs get the same listing exactly if one is the other
under other names: who uses which tensor counts, and in which place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_SMALL_CONSTANT = 64
"""Integer constants up to so many elements (axes, shapes) belong to the architecture; larger ones are data."""

Part = tuple[object, ...]


def fingerprint(model: ModelProto, learned: Iterable[str] = (), *, named: bool = False) -> str:
    """Return a hash of the architecture: operators, attributes, edges, shapes, types, and what is learned.

    It ignores names, the order of independent nodes, and the values of tensors (except small integer constants such as
    axes and shapes, and constants written into a node, which determine what is computed).

    Args:
        model: A parsed model.
        learned: Names of the initialisers that training determines: a learned tensor and a constant of the same shape
            are not the same.
        named: Count the names of initialisers too. Two learned tensors of one shape, each used once, may change places
            without a change to the architecture; that hash sees it.

    Returns:
        64 hex digits.

    Raises:
        ValueError: A tensor's or attribute's content does not fit its type.
    """
    opsets = sorted((str(entry.domain), entry.version) for entry in model.opset_import)
    functions = []
    for function in model.functions:
        inputs = dict.fromkeys(function.input, ("parameter",))
        walk = _Walk(function.node, inputs, {}, {})
        functions.append(_digest(function.domain, function.name, *walk.listing([(name,) for name in function.output])))
    return _digest(opsets, sorted(functions), _graph(model.graph, frozenset(learned), named)[0])


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _tensor(tensor: TensorProto) -> Part:
    shape = tuple(tensor.dims)
    integral = tensor.data_type in {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
    if integral and math.prod(shape) <= _SMALL_CONSTANT:
        return "constant", tensor.data_type, shape, tuple(_content(tensor).ravel().tolist())
    return "tensor", tensor.data_type, shape


def _content(tensor: TensorProto) -> NDArray[np.generic]:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, KeyError) as error:
        raise ValueError(f"the tensor {tensor.name!r} has no type that ONNX knows") from error


def _type(value: ValueInfoProto) -> Part:
    if value.type.WhichOneof("value") != "tensor_type":
        return ("other", value.type.SerializeToString(deterministic=True))
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return (tensor.elem_type,)
    # A free dimension has a name, and names do not count; a fixed one counts.
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else "free" for dim in tensor.shape.dim)
    return tensor.elem_type, shape


def _graph(graph: GraphProto, learned: frozenset[str], named: bool) -> tuple[str, list[str]]:
    """Return a graph's hash, and the names that it takes from around it, in the order of the walk."""
    tensors: dict[str, Part] = {}
    for tensor in graph.initializer:
        role = "learned" if tensor.name in learned else "given"
        tensors[tensor.name] = (role, *_tensor(tensor), *((tensor.name,) if named else ()))
    for sparse in graph.sparse_initializer:
        tensors[sparse.values.name] = ("sparse", tuple(sparse.dims), sparse.values.data_type)
    # An input may have an initialiser for its default value.
    inputs = {value.name: (_type(value), tensors.pop(value.name, None)) for value in graph.input}
    types = {value.name: _type(value) for value in (*graph.value_info, *graph.output)}
    walk = _Walk(graph.node, inputs, tensors, types, learned, named=named)
    listing = walk.listing([(value.name, *_type(value)) for value in graph.output])
    return _digest(*listing), list(walk.captured)


class _Walk:
    """The listing of what some nodes compute, in the order in which the outputs need it.

    Args:
        nodes: In any order.
        inputs: Name → description, in the order of the arguments.
        tensors: Initialisers: name → description.
        types: Declared types of values.
        learned: See ``fingerprint``; for inner graphs.
        named: See ``fingerprint``; for inner graphs.
    """

    def __init__(
        self,
        nodes: Iterable[NodeProto],
        inputs: Mapping[str, Part],
        tensors: Mapping[str, Part],
        types: Mapping[str, Part],
        learned: frozenset[str] = frozenset(),
        *,
        named: bool = False,
    ) -> None:
        self.nodes = list(nodes)
        self.inputs = list(inputs.values())
        self.positions = {name: position for position, name in enumerate(inputs)}
        self.tensors, self.types = tensors, types
        self.producers = {
            name: (index, place) for index, node in enumerate(self.nodes) for place, name in enumerate(node.output)
        }
        self.attributes: list[Part] = []
        self.uses: list[list[str]] = []
        for node in self.nodes:
            entries, taken = _attributes(node, learned, named)
            self.attributes.append(entries)
            self.uses.append([*node.input, *taken])
        self.numbers: dict[int, object] = {}
        self.read: dict[str, int] = {}
        self.captured: dict[str, int] = {}
        self.entries: list[Part] = []

    def listing(self, outputs: list[Part]) -> Part:
        """Return everything that counts; each output is its name and whatever describes it."""
        for name, *_ in outputs:
            for index in self._unnumbered(str(name)):
                self.numbers[index] = len(self.entries)
                self.entries.append(self._entry(index))
        results = [(self._operand(str(name)), *description) for name, *description in outputs]
        descriptions = [self.tensors[name] for name in self.read]
        unread = sorted(repr(tensor) for name, tensor in self.tensors.items() if name not in self.read)
        return self.inputs, descriptions, self.entries, results, unread, self._dead()

    def _dead(self) -> list[str]:
        """Return hashes of the nodes that no output needs: these have no order but that of their hashes."""
        found = []
        for name in list(self.producers):
            for index in self._unnumbered(name):
                digest = _digest(self._entry(index, live=False))
                self.numbers[index] = digest
                found.append(digest)
        # A node whose results have no name, or the names of another's, is met by no walk.
        silent = [index for index in range(len(self.nodes)) if index not in self.numbers]
        return sorted([*found, *(_digest(self._entry(index, live=False)) for index in silent)])

    def _unnumbered(self, name: str) -> Iterator[int]:
        """Yield the nodes that a value needs and that have no number yet, operands first; each must be numbered."""
        if name not in self.producers or self.producers[name][0] in self.numbers:
            return
        first = self.producers[name][0]
        begun, stack = {first}, [(first, iter(self.uses[first]))]
        while stack:
            index, operands = stack[-1]
            for operand in operands:
                needed = self.producers.get(operand, (None, 0))[0]
                # A graph that runs in a circle is no ONNX, but what is no ONNX must not keep us forever.
                if needed is not None and needed not in begun and needed not in self.numbers:
                    begun.add(needed)
                    stack.append((needed, iter(self.uses[needed])))
                    break
            else:
                stack.pop()
                yield index

    def _entry(self, index: int, *, live: bool = True) -> Part:
        node = self.nodes[index]
        operands = tuple(self._operand(name, live=live) for name in self.uses[index])
        results = tuple(self.types.get(name, bool(name)) for name in node.output)
        return node.domain, node.op_type, self.attributes[index], len(node.input), operands, results

    def _operand(self, name: str, *, live: bool = True) -> Part:
        if not name:
            return ("absent",)
        if name in self.producers:
            index, place = self.producers[name]
            return "node", self.numbers.get(index, "circle"), place
        if name in self.positions:
            return "input", self.positions[name]
        if name in self.tensors:
            if not live and name not in self.read:
                return "unread", self.tensors[name]
            return "tensor", self.read.setdefault(name, len(self.read))
        return "outer", self.captured.setdefault(name, len(self.captured))


def _attributes(node: NodeProto, learned: frozenset[str], named: bool) -> tuple[Part, list[str]]:
    """Return a node's attributes by name, and the names that its inner graphs take from around them."""
    taken: list[str] = []
    entries = []
    for attribute in sorted(node.attribute, key=lambda entry: str(entry.name)):
        graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        inner = []
        for graph in graphs:
            digest, captured = _graph(graph, learned, named)
            inner.append((digest, len(captured)))
            taken += captured
        value = tuple(inner) if inner else _value(attribute)
        entries.append((attribute.name, attribute.type, attribute.ref_attr_name, value))
    return tuple(entries), taken


def _value(attribute: AttributeProto) -> object:
    if attribute.ref_attr_name:
        return None
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        # Written into the node, not trained: its content says what is computed.
        array = _content(value)
        return value.data_type, array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    if value is None or isinstance(value, int | float | bytes):
        return value
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    return tuple(
        entry.SerializeToString(deterministic=True) if hasattr(entry, "SerializeToString") else entry for entry in value
    )
