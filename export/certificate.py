"""The certificate: proofs 1 to 3 of what stripping did, and what it removed.

1. ``transplant``: the stripped model and a freshly built baseline with the same tensors export to the same bytes.
2. ``blanked``: with the learned tensors set to zero, the export equals that of an independently made baseline.
3. ``architecture``: fingerprint, operators, parameters, FLOPs and bytes equal the baseline's; nothing random in it.
4. ``parity``: every user's scores and top-k agree between the trained model, ONNX, TorchScript and towers + index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.onnx_canonical import (
    RANDOM_OPERATORS,
    blank,
    fingerprint,
    flops_per_user,
    initializer_sizes,
    operators,
    sha256,
)
from export.parity import TOLERANCE, TOP_K, Agreement

SCHEMA_VERSION = 1
ARCHITECTURE = ("fingerprint", "operators", "parameters", "constants", "flops_per_user", "size")


class GraphFacts(BaseModel):
    """What can be counted of one graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    blanked_sha256: str
    fingerprint: str
    operators: dict[str, int]
    random_operators: list[str]
    parameters: int = Field(description="elements of the learned initialisers")
    constants: int = Field(description="elements of all other initialisers: features, edges")
    flops_per_user: int = Field(description="of the matrix products, nothing folded")
    size: int = Field(description="bytes of the serialised graph")

    @classmethod
    def of(cls, data: bytes, learned: Iterable[str]) -> GraphFacts:
        """Look at a serialised graph."""
        counted, names = operators(data), set(learned)
        sizes = initializer_sizes(data)
        return cls(
            sha256=sha256(data),
            blanked_sha256=sha256(blank(data, learned)),
            fingerprint=fingerprint(data),
            operators=counted,
            random_operators=sorted(RANDOM_OPERATORS & counted.keys()),
            parameters=sum(size for name, size in sizes.items() if name in names),
            constants=sum(size for name, size in sizes.items() if name not in names),
            flops_per_user=flops_per_user(data),
            size=len(data),
        )


class Certificate(BaseModel):
    """Stored as ``certificate.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_name: Literal["dvib.certificate"] = "dvib.certificate"
    schema_version: int = SCHEMA_VERSION
    variant: str
    learned: list[str] = Field(description="initialisers of model.onnx that training determines")
    exported: GraphFacts
    transplanted: GraphFacts = Field(description="a fresh baseline with this checkpoint's tensors")
    independent: GraphFacts = Field(description="a baseline made without this checkpoint's tensors")
    independent_source: str = Field(description="where that baseline comes from")
    parity: dict[str, dict[str, int | float | bool]]
    tolerance: float = TOLERANCE
    top_k: int = TOP_K
    removed: dict[str, Any] = Field(description="training-only tensors, by name, and their parameters in all")
    proofs: dict[str, bool]

    def explain(self, proof: str) -> str:
        """Say in one line on what evidence a proof stands or falls."""
        if proof == "parity":
            parts = (f"{name} {entry['max_relative_error']:.2g}" for name, entry in self.parity.items())
            return f"largest error relative to a user's largest score: {', '.join(parts)}; allowed {self.tolerance}"
        if proof == "transplant":
            return f"SHA-256 {self.exported.sha256[:12]} against {self.transplanted.sha256[:12]}"
        if proof == "blanked":
            return (
                f"blanked SHA-256 {self.exported.blanked_sha256[:12]} against {self.independent.blanked_sha256[:12]}, "
                f"{self.independent_source}"
            )
        ours, theirs = self.exported, self.independent
        different = [name for name in ARCHITECTURE if getattr(ours, name) != getattr(theirs, name)]
        if different or ours.random_operators:
            return (
                f"differing: {', '.join(different) or 'nothing'}; random operators: {ours.random_operators or 'none'}"
            )
        return f"{sum(ours.operators.values())} nodes, {ours.parameters} parameters, {ours.flops_per_user} FLOPs"


def judge(
    exported: GraphFacts, transplanted: GraphFacts, independent: GraphFacts, parity: dict[str, Agreement]
) -> dict[str, bool]:
    """Return the verdict on each proof."""
    return {
        "transplant": exported.sha256 == transplanted.sha256,
        "blanked": exported.blanked_sha256 == independent.blanked_sha256,
        "architecture": not exported.random_operators
        and all(getattr(exported, name) == getattr(independent, name) for name in ARCHITECTURE),
        "parity": bool(parity) and all(agreement.passed for agreement in parity.values()),
    }
