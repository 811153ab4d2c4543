"""Re-check a bundle from its files alone. Needs neither torch nor training; never loads ``model.ts``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import ValidationError

from export import bundle
from export.certificate import SCHEMA_VERSION, Certificate, GraphFacts, judge
from export.index import read_index
from export.onnx_canonical import blank, canonical_bytes, parse, sha256
from export.onnx_safety import check_graph
from export.parity import TowersAndIndex, compare, onnx_scores, user_blocks
from export.runtime import GRAPH_ERRORS
from export.serving import load_for_serving
from training.common.errors import BundleError, first_problem

_MALFORMED = (DecodeError, KeyError, ValueError, *GRAPH_ERRORS)
"""What parsing, loading or running a malformed graph can raise."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: Whether it is as it must be; None where it was not looked at.
        detail: The evidence, in a few words.
    """

    name: str
    passed: bool | None
    detail: str


def read_certificate(reader: bundle.BundleReader) -> Certificate:
    """Read a bundle's certificate.

    Raises:
        BundleError: It is no certificate of this schema version.
    """
    try:
        certificate = Certificate.model_validate_json(bytes(reader.read(bundle.CERTIFICATE)))
    except ValidationError as error:
        raise BundleError(f"{reader.folder}: {bundle.CERTIFICATE}: {first_problem(error)}; export again") from error
    if certificate.schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{reader.folder}: certificate schema version {certificate.schema_version}, this program reads "
            f"{SCHEMA_VERSION}; export the bundle again"
        )
    return certificate


@contextmanager
def _blaming(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except _MALFORMED as error:
        raise BundleError(f"{folder}: {name} cannot be used: {error}; export the bundle again") from error
    except BundleError as error:
        raise BundleError(f"{folder}: {name}: {error}; export the bundle again") from error


def _check_graphs(folder: Path, graphs: dict[str, bytes]) -> None:
    for name, data in graphs.items():
        try:
            check_graph(data, name)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error


def verify_bundle(folder: Path, against: Path | None = None) -> list[Check]:
    """Re-check hashes, graph, certificate and parity.

    Args:
        folder: The bundle.
        against: Another bundle, usually the baseline's: blanked, both graphs must be the same bytes.

    Returns:
        What was checked, in order.

    Raises:
        BundleError: A file is missing, altered or malformed, or a graph is one that must not be run.
    """
    serving = load_for_serving(folder)
    with bundle.BundleReader(folder) as reader:
        reader.verify_all()
        manifest = reader.manifest
        graphs = {name: bytes(reader.read(name)) for name in manifest.files if name.endswith(".onnx")}
        graphs[bundle.USER_TOWER] = serving.user_tower
        _check_graphs(folder, graphs)
        data = graphs[bundle.MODEL_ONNX]
        certificate = read_certificate(reader)
    n_users, n_items = manifest.dataset.n_users, manifest.dataset.n_items
    with _blaming(folder, bundle.MODEL_ONNX):
        facts = GraphFacts.of(data, certificate.learned)
    proofs = judge(facts, certificate.transplanted, certificate.independent, {})
    checks = [
        Check("files", True, f"{len(manifest.files)} files match their hashes"),
        Check("graph", canonical_bytes(parse(data)) == data, "model.onnx is canonical and free of metadata"),
        Check("certificate", facts == certificate.exported, "model.onnx is the graph that was certified"),
    ]
    checks += [
        Check(name, proofs[name] and certificate.proofs.get(name, False), certificate.explain(name))
        for name in ("transplant", "blanked", "architecture")
    ]
    with _blaming(folder, bundle.INDEX):
        index = read_index(serving.index, n_items, manifest.dimension)
    same = np.array_equal(index.reconstruct_n(0, n_items), serving.items)
    checks.append(Check("index", same, f"{index.ntotal} vectors, the same as in {bundle.ITEMS}"))
    with _blaming(folder, bundle.USER_TOWER):
        towers = TowersAndIndex(serving.user_tower, index)
        for users in user_blocks(n_users, manifest.dimension):
            shape, wanted = towers.vectors(users).shape, (len(users), manifest.dimension)
            if shape != wanted:
                raise BundleError(f"it gives {shape}, wanted {wanted}")
    if all(check.passed for check in checks if check.name in {"graph", "certificate"}):
        checks.append(_parity(folder, data, towers, manifest, certificate))
    else:
        # A graph that is not the certified one is not run: a hostile one can take the process down.
        checks.append(Check("parity", None, "not looked at: this is not the certified graph"))
    if against is not None:
        checks.append(_same_graph(data, certificate, against))
    return checks


def _parity(
    folder: Path, data: bytes, towers: TowersAndIndex, manifest: bundle.Manifest, certificate: Certificate
) -> Check:
    with _blaming(folder, bundle.MODEL_ONNX):
        agreement = compare(onnx_scores(data), {}, towers, manifest.dataset.n_users, manifest.dataset.n_items)
    found = agreement["towers_index"]
    return Check(
        "parity",
        found.passed and certificate.proofs.get("parity", False),
        f"model.onnx against towers and index, {found.users} users: error {found.max_relative:.2g}, "
        f"{found.top_k_differing} differing top-{certificate.top_k} lists",
    )


def _same_graph(data: bytes, certificate: Certificate, against: Path) -> Check:
    with bundle.BundleReader(against) as other:
        theirs = bytes(other.read(bundle.MODEL_ONNX))
        learned = read_certificate(other).learned
    with _blaming(against, bundle.MODEL_ONNX):
        ours_blank, theirs_blank = sha256(blank(data, certificate.learned)), sha256(blank(theirs, learned))
    return Check(
        f"same graph as {against}",
        ours_blank == theirs_blank and learned == certificate.learned,
        f"blanked SHA-256 {ours_blank[:12]} and {theirs_blank[:12]}",
    )
