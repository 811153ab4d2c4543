"""Re-check a bundle from its files alone. Needs neither torch nor training.

``model.ts`` and ``model.pt2`` hold pickles, which run code when they are loaded: they are hashed, and loaded only by a
loader that the caller brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import ValidationError

from export import bundle
from export.certificate import SCHEMA_VERSION, Certificate, GraphFacts, judge
from export.certificate_text import render
from export.index import exact_over, read_index
from export.index_search import RECALL_TOLERANCE, ItemIndex, Truth, sample_users
from export.onnx_canonical import blank, canonical_bytes, parse, sha256
from export.onnx_safety import check_graph
from export.parity import LargeBlocks, Scores, TowersAndIndex, compare, onnx_scores, user_blocks
from export.runtime import GRAPH_ERRORS
from export.serving import load_for_serving
from training.common.errors import BundleError, first_problem

_MALFORMED = (DecodeError, LookupError, ValueError, MemoryError, *GRAPH_ERRORS)
"""What parsing, loading or running a malformed graph can raise."""

_MAX_CERTIFICATE_BYTES = 2**21

Loader = Callable[[bytes], Scores]
"""Makes scores of a file's verified content, which its caller trusts."""


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
    content = reader.read(bundle.CERTIFICATE)
    if len(content) > _MAX_CERTIFICATE_BYTES:
        raise BundleError(f"{reader.folder}: {bundle.CERTIFICATE} is larger than {_MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = Certificate.model_validate_json(bytes(content))
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


def verify_bundle(
    folder: Path, against: Path | None = None, trusted: Mapping[str, Loader] | None = None
) -> list[Check]:
    """Re-check hashes, graph, certificate and parity.

    Args:
        folder: The bundle.
        against: Another bundle, usually the baseline's: blanked, both graphs must be the same bytes.
        trusted: File that holds pickles → its loader; see ``export.trusted``. The files' scores are compared too.

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
        data = graphs.get(bundle.MODEL_ONNX)
        certificate = read_certificate(reader)
        text = _check_text(reader, certificate)
        pickles = {name: (bytes(reader.read(name)), loader) for name, loader in (trusted or {}).items()}
    n_users, n_items = manifest.dataset.n_users, manifest.n_items
    checks = [Check("files", True, f"{len(manifest.files)} files match their hashes")]
    checks += _check_full_graph(folder, data, certificate, manifest)
    with _blaming(folder, bundle.INDEX):
        index = read_index(serving.index, manifest.index, n_items, manifest.dimension)
    with _blaming(folder, bundle.USER_TOWER):
        towers = TowersAndIndex(serving.user_tower, exact_over(index, serving.items), manifest.dataset.n_items)
        for users in user_blocks(n_users, manifest.dimension):
            shape, wanted = towers.vectors(users).shape, (len(users), manifest.dimension)
            if shape != wanted:
                raise BundleError(f"it gives {shape}, wanted {wanted}")
        checks.append(_check_index(index, serving.items, towers, n_users))
    certified = all(check.passed for check in checks if check.name in {"graph", "certificate"})
    if data is not None and certified:
        checks.append(_parity(folder, data, towers, manifest, certificate))
        for name, (content, loader) in pickles.items():
            with _blaming(folder, name):
                checks.append(_parity_of(name, loader(content), data, towers, manifest))
    else:
        # A graph that is not the certified one is not run: a hostile one can take the process down.
        held = certificate.proofs.get("parity", False)
        reason = "this is not the certified graph" if data is not None else f"there is no {bundle.MODEL_ONNX}"
        checks.append(Check("parity", None if held else False, f"not looked at: {reason}"))
    checks.append(text)
    if against is not None:
        checks.append(_same_graph(data, certificate, against))
    return checks


def _check_full_graph(
    folder: Path, data: bytes | None, certificate: Certificate, manifest: bundle.Manifest
) -> Iterator[Check]:
    """Check ``model.onnx`` against its certificate; of one that is not there, what its certificate says."""
    facts = certificate.exported
    if data is None:
        yield Check("graph", None, f"{bundle.MODEL_ONNX} is absent: {manifest.absent[bundle.MODEL_ONNX]}")
        yield Check("certificate", facts.outline, "it is of a graph that is too large for a file")
    else:
        with _blaming(folder, bundle.MODEL_ONNX):
            facts = GraphFacts.of(data, certificate.learned)
        yield Check("graph", canonical_bytes(parse(data)) == data, "model.onnx is canonical and free of metadata")
        yield Check("certificate", facts == certificate.exported, "model.onnx is the graph that was certified")
    proofs = judge(facts, certificate.transplanted, certificate.independent, {})
    for name in ("transplant", "blanked", "architecture"):
        yield Check(name, proofs[name] and certificate.proofs.get(name, False), certificate.explain(name))


def _check_index(index: ItemIndex, items: NDArray[np.float32], towers: TowersAndIndex, n_users: int) -> Check:
    """An exact index holds the items' vectors; any other finds as many of the best items as the manifest says."""
    stated = index.entry.recall
    if stated is None:
        same = np.array_equal(index.index.reconstruct_n(0, len(items)), items)
        return Check("index", same, f"{len(items)} vectors, the same as in {bundle.ITEMS}")
    users = sample_users(n_users)
    found = index.recall(items, Truth(items, towers.vectors(users)))
    as_stated = found.model_copy(update={"value": stated.value}) == stated
    return Check(
        "index",
        as_stated and abs(found.value - stated.value) <= RECALL_TOLERANCE,
        f"{index.entry.factory}: recall@{found.k} {found.value:.4f} over {found.users} users, the manifest says "
        f"recall@{stated.k} {stated.value:.4f} over {stated.users}",
    )


def _parity(
    folder: Path, data: bytes, towers: TowersAndIndex, manifest: bundle.Manifest, certificate: Certificate
) -> Check:
    with _blaming(folder, bundle.MODEL_ONNX):
        sizes = manifest.dataset.n_users, manifest.dataset.n_items
        unfolded = onnx_scores(data, *sizes, optimised=False)
        agreement = compare(onnx_scores(data, *sizes), {"unfolded": unfolded}, towers, *sizes)
    found, unfolded_found = agreement["towers_index"], agreement["unfolded"]
    return Check(
        "parity",
        found.passed and unfolded_found.passed and certificate.proofs.get("parity", False),
        f"model.onnx against towers and index, {found.users} users: error {found.max_relative:.2g}, "
        f"{found.top_k_differing} differing top-{certificate.top_k} lists; against itself without optimisations: error "
        f"{unfolded_found.max_relative:.2g}, {unfolded_found.top_k_differing} differing",
    )


def _parity_of(name: str, scores: Scores, data: bytes, towers: TowersAndIndex, manifest: bundle.Manifest) -> Check:
    sizes = manifest.dataset.n_users, manifest.dataset.n_items
    found = compare(onnx_scores(data, *sizes), {name: LargeBlocks(scores, *sizes)}, towers, *sizes)[name]
    return Check(
        f"parity of {name}",
        found.passed,
        f"model.onnx against {name}, {found.users} users: error {found.max_relative:.2g}, {found.top_k_differing} "
        "differing lists",
    )


def _check_text(reader: bundle.BundleReader, certificate: Certificate) -> Check:
    if bundle.CERTIFICATE_TEXT not in reader.manifest.files:
        return Check("text", False, f"{bundle.CERTIFICATE_TEXT} is missing")
    same = bytes(reader.read(bundle.CERTIFICATE_TEXT)) == render(certificate).encode()
    return Check("text", same, f"{bundle.CERTIFICATE_TEXT} says what {bundle.CERTIFICATE} says")


def _same_graph(data: bytes | None, certificate: Certificate, against: Path) -> Check:
    with bundle.BundleReader(against) as other:
        there = bundle.MODEL_ONNX in other.manifest.files
        theirs = bytes(other.read(bundle.MODEL_ONNX)) if there else None
        their_certificate = read_certificate(other)
    ours_blank = _blanked(data, certificate)
    with _blaming(against, bundle.MODEL_ONNX):
        theirs_blank = _blanked(theirs, their_certificate)
    said = "" if data is not None and theirs is not None else ", as certified: a graph is too large for a file"
    return Check(
        f"same graph as {against}",
        ours_blank == theirs_blank and their_certificate.learned == certificate.learned,
        f"blanked SHA-256 {ours_blank[:12]} and {theirs_blank[:12]}{said}",
    )


def _blanked(data: bytes | None, certificate: Certificate) -> str:
    return certificate.exported.blanked_sha256 if data is None else sha256(blank(data, certificate.learned))
