"""Two bundles side by side: where they are the same, and where they differ, by name. Needs neither torch nor training.

Everything is read from manifests and certificates, which say of both graphs what was found when they were made;
``dvib-export verify`` tells whether that is still true of the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from export import bundle
from export.certificate import Certificate
from export.manifest import Manifest
from export.verify import read_certificate

T = TypeVar("T")
Value = str | int | float | None


@dataclass(frozen=True)
class Side:
    """What is compared of one bundle.

    Attributes:
        folder: Where it is.
        manifest: What it is.
        certificate: What was found of its graph.
    """

    folder: Path
    manifest: Manifest
    certificate: Certificate

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Read a bundle's manifest and certificate.

        Raises:
            BundleError: It is no bundle, or its certificate is altered or none.
        """
        with bundle.BundleReader(folder) as reader:
            return cls(folder, reader.manifest, read_certificate(reader))

    def figures(self) -> dict[str, Value]:
        """Return what identifies the bundle and what its graph costs."""
        manifest, facts, removed = self.manifest, self.certificate.exported, self.certificate.removed
        recall = manifest.index.recall
        return {
            "version": manifest.version,
            "model": manifest.model,
            "variant": manifest.variant,
            "preset": manifest.preset,
            "dataset": manifest.dataset.name,
            "dataset fingerprint": manifest.dataset.fingerprint[:12],
            "users": manifest.dataset.n_users,
            "items": manifest.n_items,
            "dimension": manifest.dimension,
            "index": manifest.index.factory,
            "index recall": 1.0 if recall is None else recall.value,
            "operator set": facts.opset,
            "ONNX Runtime": self.certificate.onnxruntime,
            "nodes": sum(facts.operators.values()),
            "parameters": facts.parameters,
            "constants": facts.constants,
            "FLOPs per user": facts.flops_per_user,
            "FLOPs in products": facts.matmul_flops_per_user,
            "bytes": facts.size,
            "SHA-256": facts.sha256[:12],
            "removed parameters": removed.parameters,
            "removed nodes": sum(removed.operators.values()),
            "removed FLOPs": removed.flops_per_user,
            **{f"proof {name}": "holds" if held else "FAILS" for name, held in self.certificate.proofs.items()},
        }

    def metrics(self) -> dict[str, Value]:
        """Return every metric of every split."""
        return {
            f"{split} {name}": value
            for split, metrics in self.manifest.metrics.items()
            for name, value in metrics.items()
        }


@dataclass(frozen=True)
class Difference:
    """Two bundles compared.

    Attributes:
        same_fingerprint: Same operators, attributes, edges, shapes and types, whatever the names.
        same_wiring: The same with the tensors' names.
        same_blanked: Same bytes once the learned tensors are zeroed: features and edges too.
        same_bytes: Same bytes.
        figures: What → (first, second).
        metrics: Metric → (first, second), None where a bundle has none.
        operators: Operator → (first, second) number of nodes, of those whose number differs.
        tensors: Initialiser → (first, second) shape, of those that differ; None where there is none.
        removed: Training-only tensor → (first, second) shape; None where there is none.
    """

    same_fingerprint: bool
    same_wiring: bool
    same_blanked: bool
    same_bytes: bool
    figures: dict[str, tuple[Value, Value]]
    metrics: dict[str, tuple[Value, Value]]
    operators: dict[str, tuple[int, int]]
    tensors: dict[str, tuple[list[int] | None, list[int] | None]]
    removed: dict[str, tuple[list[int] | None, list[int] | None]]

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "schema_name": "dvib.diff",
            "schema_version": 1,
            "same_architecture": self.same_fingerprint,
            **vars(self),
        }


def compare_bundles(first: Path, second: Path) -> Difference:
    """Compare two bundles.

    Args:
        first: A bundle.
        second: Another.

    Returns:
        The comparison; ``same_fingerprint`` says whether the graphs have the same architecture.

    Raises:
        BundleError: One of them is no bundle.
    """
    left, right = Side.read(first), Side.read(second)
    ours, theirs = left.certificate.exported, right.certificate.exported
    return Difference(
        same_fingerprint=ours.fingerprint == theirs.fingerprint,
        same_wiring=ours.wiring == theirs.wiring,
        same_blanked=ours.blanked_sha256 == theirs.blanked_sha256,
        same_bytes=ours.sha256 == theirs.sha256,
        figures=_beside(left.figures(), right.figures()),
        metrics=_beside(left.metrics(), right.metrics()),
        operators={
            name: (ours.operators.get(name, 0), theirs.operators.get(name, 0))
            for name in sorted(Counter(ours.operators) | Counter(theirs.operators))
            if ours.operators.get(name, 0) != theirs.operators.get(name, 0)
        },
        tensors={
            name: shapes for name, shapes in _beside(ours.tensors, theirs.tensors).items() if shapes[0] != shapes[1]
        },
        removed=_beside(left.certificate.removed.tensors, right.certificate.removed.tensors),
    )


def _beside(first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, tuple[T | None, T | None]]:
    """Return name → both values, in the order of the first mapping and then of the second."""
    return {name: (first.get(name), second.get(name)) for name in {**first, **second}}
