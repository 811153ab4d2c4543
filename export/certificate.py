"""The certificate: proofs 1 to 3 of what stripping did, and what it removed.

1. ``transplant``: the stripped model and a freshly built baseline with the same tensors export to the same bytes.
2. ``blanked``: with the learned tensors set to zero, the export equals that of an independently made baseline.
3. ``architecture``: fingerprint, wiring, tensors, operators, parameters, FLOPs and bytes equal that baseline's; nothing
   random in it.
4. ``parity``: every user's scores and top-k agree between the trained model and every way in which a bundle scores.

``export.certificate_text`` says the same for a reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from export.onnx_canonical import RANDOM_OPERATORS, blank, initializer_shapes, operators, opset, parse, sha256
from export.onnx_fingerprint import fingerprint
from export.onnx_flops import count_flops
from export.outline import blank_outline, tensor_bytes
from export.parity import TOLERANCE, TOP_K, Agreement

SCHEMA_VERSION = 2
ARCHITECTURE = (
    "fingerprint",
    "wiring",
    "tensors",
    "operators",
    "parameters",
    "constants",
    "flops_per_user",
    "matmul_flops_per_user",
    "opset",
    "size",
)
"""Facts of a graph that must equal the baseline's."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GraphFacts(_Document):
    """What can be counted of one graph."""

    sha256: str
    blanked_sha256: str = Field(description="with all learned initialisers zero")
    fingerprint: str = Field(description="hash of operators, attributes, edges, shapes and types, without names")
    wiring: str = Field(description="the same hash with the initialisers' names")
    opset: int
    operators: dict[str, int]
    random_operators: list[str]
    tensors: dict[str, list[int]] = Field(description="every initialiser and its shape")
    parameters: int = Field(description="elements of the learned initialisers")
    constants: int = Field(description="elements of all other initialisers: features, edges")
    flops_per_user: int = Field(description="all operations for one user, nothing folded; see export.onnx_flops")
    matmul_flops_per_user: int = Field(description="those of the matrix products alone")
    flops_by_operator: dict[str, int]
    uncounted: list[str] = Field(description="operators whose operations could not be counted")
    size: int = Field(description="bytes of the serialised graph")
    outline: bool = Field(
        default=False, description="the graph is too large for a file: hashes are of its outline, size is estimated"
    )

    @classmethod
    def of(cls, data: bytes, learned: Iterable[str], *, outline: bool = False) -> GraphFacts:
        """Look at a serialised graph, or at the outline of one that no file can hold; see ``export.outline``."""
        names = frozenset(learned)
        # First, before there is another copy of a large graph.
        blanked = sha256(blank_outline(data, names) if outline else blank(data, names))
        model = parse(data)
        counted, flops, shapes = operators(model), count_flops(model), initializer_shapes(model)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        return cls(
            sha256=sha256(data),
            blanked_sha256=blanked,
            outline=outline,
            fingerprint=fingerprint(model, names),
            wiring=fingerprint(model, names, named=True),
            opset=opset(model),
            operators=counted,
            random_operators=sorted(RANDOM_OPERATORS & counted.keys()),
            tensors=shapes,
            parameters=sum(size for name, size in sizes.items() if name in names),
            constants=sum(size for name, size in sizes.items() if name not in names),
            flops_per_user=flops.total,
            matmul_flops_per_user=flops.products,
            flops_by_operator=flops.by_operator,
            uncounted=flops.uncounted,
            size=len(data) + (tensor_bytes(model) if outline else 0),
        )


class PathParity(_Document):
    """How one way of scoring compares with the trained model, over every user."""

    passed: bool
    users: int
    max_absolute_error: float
    max_relative_error: float = Field(description="largest of any user, relative to that user's largest score")
    mean_relative_error: float = Field(description="mean over the users of each one's largest")
    worst_user: int | None = Field(description="row of the user with the largest relative error; null without any")
    top_k_differing_users: int = Field(description="users whose top-k differs beyond ties")

    @classmethod
    def of(cls, agreement: Agreement) -> PathParity:
        """Write an agreement down."""
        # Unchecked: what failed may be infinitely far off. No file is written of that, but an error message is.
        return cls.model_construct(
            passed=agreement.passed,
            users=agreement.users,
            max_absolute_error=agreement.max_absolute,
            max_relative_error=agreement.max_relative,
            mean_relative_error=agreement.mean_relative,
            worst_user=agreement.worst_user,
            top_k_differing_users=agreement.top_k_differing,
        )


class RemovedFacts(_Document):
    """What training had and the export has not: the training-time inference, less the exported graph."""

    tensors: dict[str, list[int]] = Field(description="training-only tensors of the checkpoint and their shapes")
    parameters: int = Field(description="their elements")
    inputs: dict[str, list[int]] = Field(
        default_factory=dict, description="model tensors that only the second pass reads, and their shapes"
    )
    operators: dict[str, int] = Field(default_factory=dict, description="operator to number of nodes more")
    random_operators: dict[str, int] = Field(default_factory=dict, description="the random ones among them")
    flops_per_user: int = 0
    matmul_flops_per_user: int = 0
    flops_by_operator: dict[str, int] = Field(default_factory=dict)
    uncounted: list[str] = Field(default_factory=list, description="operators whose operations could not be counted")
    noise: str | None = Field(default=None, description="what the perturbation draws; null for a plain model")


class Certificate(_Document):
    """Stored as ``certificate.json``."""

    schema_name: Literal["dvib.certificate"] = "dvib.certificate"
    schema_version: int = SCHEMA_VERSION
    model: str
    variant: str
    dataset: str
    dataset_fingerprint: str
    onnxruntime: str = Field(description="version that the parity was proven with")
    learned: list[str] = Field(description="initialisers of model.onnx that training determines")
    exported: GraphFacts
    transplanted: GraphFacts = Field(description="a fresh baseline with this checkpoint's tensors")
    independent: GraphFacts = Field(description="a baseline made without this checkpoint's tensors")
    independent_source: str = Field(description="where that baseline comes from")
    parity: dict[str, PathParity] = Field(description="way of scoring to how it compares with the trained model")
    tolerance: float = TOLERANCE
    top_k: int = TOP_K
    removed: RemovedFacts
    proofs: dict[str, bool]

    def explain(self, proof: str) -> str:
        """Say in one line on what evidence a proof stands or falls."""
        ours, theirs = self.exported, self.independent
        if proof == "parity":
            parts = (f"{name} {entry.max_relative_error:.2g}" for name, entry in self.parity.items())
            return f"largest error relative to a user's largest score: {', '.join(parts)}; allowed {self.tolerance}"
        if proof == "transplant":
            return f"SHA-256 {ours.sha256[:12]} against {self.transplanted.sha256[:12]}"
        if proof == "blanked":
            return (
                f"blanked SHA-256 {ours.blanked_sha256[:12]} against {theirs.blanked_sha256[:12]}, "
                f"{self.independent_source}"
            )
        different = differing(ours, theirs)
        if different or ours.random_operators:
            added = sorted(ours.tensors.keys() - theirs.tensors.keys())
            return (
                f"differing: {', '.join(different) or 'nothing'}; random operators: {ours.random_operators or 'none'}; "
                f"tensors that the baseline lacks: {', '.join(added) or 'none'}"
            )
        return (
            f"fingerprint {ours.fingerprint[:12]}, {sum(ours.operators.values())} nodes, {ours.parameters} parameters, "
            f"{ours.flops_per_user} FLOPs"
        )


def differing(ours: GraphFacts, theirs: GraphFacts) -> list[str]:
    """Return the names of the facts in which two architectures differ."""
    return [name for name in ARCHITECTURE if getattr(ours, name) != getattr(theirs, name)]


def judge(
    exported: GraphFacts,
    transplanted: GraphFacts,
    independent: GraphFacts,
    parity: Mapping[str, Agreement | PathParity],
) -> dict[str, bool]:
    """Return the verdict on each proof."""
    return {
        "transplant": exported.sha256 == transplanted.sha256,
        "blanked": exported.blanked_sha256 == independent.blanked_sha256,
        "architecture": not exported.random_operators and not differing(exported, independent),
        "parity": bool(parity) and all(agreement.passed for agreement in parity.values()),
    }
