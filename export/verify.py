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
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import ValidationError

from export import bundle, outline
from export.certificate import SCHEMA_VERSION, Certificate, GraphFacts, PathParity, judge
from export.certificate_text import render
from export.confine import bounded_memory
from export.index import exact_over, read_index
from export.index_search import RECALL_TOLERANCE, ItemIndex, Truth, sample_users
from export.manifest import Manifest
from export.onnx_canonical import blank, canonical_bytes, parse, sha256
from export.onnx_safety import check_graph
from export.parity import (
    TOLERANCE,
    TOP_K,
    LargeBlocks,
    Scores,
    TowersAndIndex,
    compare,
    onnx_scores,
    user_blocks,
)
from export.runtime import GRAPH_ERRORS
from export.serving import ServingBundle, load_for_serving
from training.common.errors import BundleError, first_problem

_MALFORMED = (DecodeError, EncodeError, LookupError, ValueError, MemoryError, *GRAPH_ERRORS)
"""What parsing, loading or running a malformed graph can raise."""

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
    if reader.manifest.provenance.get("synthetic"):
        raise BundleError(f"{reader.folder} holds vectors drawn at random and no model: there is nothing to verify")
    content = reader.read(bundle.CERTIFICATE)
    if len(content) > bundle.MAX_CERTIFICATE_BYTES:
        raise BundleError(f"{reader.folder}: {bundle.CERTIFICATE} is larger than {bundle.MAX_CERTIFICATE_BYTES} bytes")
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
    """Re-check hashes, graph, certificate and parity, within a bound on memory.

    Args:
        folder: The bundle.
        against: Another bundle, usually the baseline's: blanked, both graphs must be the same bytes.
        trusted: File that holds pickles → its loader; see ``export.trusted``. The files' scores are compared too.

    Returns:
        What was checked, in order.

    Raises:
        BundleError: A file is missing, altered or malformed, or a graph is one that must not be run.
    """
    with bounded_memory():
        return _verify(folder, against, trusted or {})


def _verify(folder: Path, against: Path | None, trusted: Mapping[str, Loader]) -> list[Check]:
    serving = load_for_serving(folder)
    with bundle.BundleReader(folder) as reader:
        manifest = reader.manifest
        if manifest != serving.manifest:
            raise BundleError(f"{folder} was replaced while it was read; try again")
        reader.verify_all()
        graphs = {name: bytes(reader.read(name)) for name in manifest.files if name.endswith(".onnx")}
        graphs[bundle.USER_TOWER] = serving.user_tower
        _check_graphs(folder, graphs)
        data = graphs.get(bundle.MODEL_ONNX)
        certificate = read_certificate(reader)
        text = _check_text(reader, certificate)
        pickles = {name: bytes(reader.read(name)) for name in trusted if name in manifest.files}
    n_users, n_items = manifest.dataset.n_users, manifest.n_items
    categories = serving.categories.names if serving.categories else ()
    held = f"{n_users} users, {n_items} items, {len(categories) or 'no'} categories"
    checks = [Check("files", True, f"{len(manifest.files)} files match their hashes: {held}")]
    checks += _check_full_graph(folder, data, certificate, manifest)
    with _blaming(folder, bundle.INDEX):
        index = read_index(serving.index, manifest.index, n_items, manifest.dimension)
    with _blaming(folder, bundle.USER_TOWER):
        towers = TowersAndIndex(serving.user_tower, exact_over(index, serving.items), manifest.dataset.n_items)
        for users in user_blocks(n_users, manifest.dimension):
            shape, wanted = towers.vectors(users).shape, (len(users), manifest.dimension)
            if shape != wanted:
                raise BundleError(f"it gives {shape}, wanted {wanted}")
        checks.append(_check_index(index, serving, towers))
    certified = all(check.passed for check in checks if check.name in {"graph", "certificate"})
    checks.append(_parity(folder, data, towers, manifest, certificate, certified=certified))
    for name, load in trusted.items():
        if data is not None and certified and name in pickles:
            with _blaming(folder, name):
                checks.append(_parity_of(name, load(pickles[name]), data, towers, manifest))
        else:
            lacking = name if name not in pickles else f"certified {bundle.MODEL_ONNX} to compare it with"
            checks.append(Check(name, None, f"not looked at: there is no {lacking}"))
    if manifest.added is not None:
        checks.append(Check("added items", None, f"{manifest.added.count} items: no proof covers their vectors"))
    checks.append(text)
    if against is not None:
        checks.append(_same_graph(data, certificate, against))
    return checks


def _check_full_graph(
    folder: Path, data: bytes | None, certificate: Certificate, manifest: Manifest
) -> Iterator[Check]:
    """Check ``model.onnx`` against its certificate; of one that is not there, what its certificate says."""
    facts = certificate.exported
    if data is None:
        yield Check("graph", None, f"{bundle.MODEL_ONNX} is absent: {manifest.absent[bundle.MODEL_ONNX]}")
        too_large = facts.outline and facts.size > outline.LARGEST_GRAPH_BYTES
        found = "too large for" if too_large else "which would fit into"
        yield Check("certificate", too_large, f"certified is a graph of {facts.size / 1e9:.2f} GB, {found} a file")
    else:
        with _blaming(folder, bundle.MODEL_ONNX):
            facts = GraphFacts.of(data, certificate.learned)
        yield Check("graph", canonical_bytes(parse(data)) == data, "model.onnx is canonical and free of metadata")
        yield Check("certificate", facts == certificate.exported, "model.onnx is the graph that was certified")
    seen = certificate.model_copy(update={"exported": facts})
    misfits = _misfits(certificate, manifest)
    said = f"not so: {', '.join(misfits)}" if misfits else "the certificate is of this bundle, and its parts agree"
    yield Check("about", not misfits, said)
    proofs = judge(facts, certificate.transplanted, certificate.independent, {})
    for name in ("transplant", "blanked", "architecture"):
        holds = proofs[name] and certificate.proofs.get(name, False)
        # Of a graph that is in no file there is only what certificates say, and anybody can write that.
        passed, said = (None, ", as certified") if data is None and holds else (holds, "")
        yield Check(name, passed, seen.explain(name) + said)


def _misfits(certificate: Certificate, manifest: Manifest) -> list[str]:
    """Return which fields of a certificate are not this bundle's, or do not follow from its other fields."""
    facts = certificate.exported, certificate.transplanted, certificate.independent
    wanted = {
        "model": manifest.model,
        "variant": manifest.variant,
        "dataset": manifest.dataset.name,
        "dataset_fingerprint": manifest.dataset.fingerprint,
        "tolerance": TOLERANCE,
        "top_k": TOP_K,
        "proofs": judge(*facts, certificate.parity),
    }
    found = [name for name, value in wanted.items() if getattr(certificate, name) != value]
    ways = {"towers_index"}
    if bundle.MODEL_ONNX in manifest.files:
        ways |= {"onnx", "onnx_unfolded", "program", "torchscript"}
    sound = certificate.parity.keys() == ways and all(
        entry.users == manifest.dataset.n_users and entry.passed == _agrees(entry)
        for entry in certificate.parity.values()
    )
    return found if sound else [*found, "parity"]


def _agrees(entry: PathParity) -> bool:
    return 0 <= entry.max_relative_error <= TOLERANCE and entry.top_k_differing_users == 0


def _check_index(index: ItemIndex, serving: ServingBundle, towers: TowersAndIndex) -> Check:
    """An exact index holds the items' vectors; any other finds as many of the best items as the manifest says."""
    stated, items = index.entry.recall, serving.items
    if stated is None:
        same = np.array_equal(index.index.reconstruct_n(0, len(items)), items)
        return Check("index", same, f"{len(items)} vectors, the same as in {bundle.ITEMS}")
    users = sample_users(len(serving.users))
    found = index.recall(Truth(items, towers.vectors(users), [serving.seen.of(user) for user in users]))
    as_stated = found.model_copy(update={"value": stated.value}) == stated
    return Check(
        "index",
        as_stated and abs(found.value - stated.value) <= RECALL_TOLERANCE,
        f"{index.entry.factory}: recall@{found.k} {found.value:.4f} over {found.users} users, the manifest says "
        f"recall@{stated.k} {stated.value:.4f} over {stated.users}",
    )


def _parity(
    folder: Path,
    data: bytes | None,
    towers: TowersAndIndex,
    manifest: Manifest,
    certificate: Certificate,
    *,
    certified: bool,
) -> Check:
    if data is None or not certified:
        # A graph that is not the certified one is not run: a hostile one can take the process down.
        held = certificate.proofs.get("parity", False)
        reason = "this is not the certified graph" if data is not None else f"there is no {bundle.MODEL_ONNX}"
        return Check("parity", None if held else False, f"not looked at: {reason}")
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


def _parity_of(name: str, scores: Scores, data: bytes, towers: TowersAndIndex, manifest: Manifest) -> Check:
    sizes = manifest.dataset.n_users, manifest.dataset.n_items

    def checked(users: NDArray[np.int64]) -> NDArray[np.float32]:
        found, shape = scores(users), (len(users), sizes[1])
        if found.dtype != np.float32 or found.shape != shape:
            raise BundleError(f"it gives {found.dtype} {found.shape}, wanted float32 {shape}")
        return found

    found = compare(onnx_scores(data, *sizes), {name: LargeBlocks(checked, *sizes)}, towers, *sizes)[name]
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
    if theirs is not None:
        _check_graphs(against, {bundle.MODEL_ONNX: theirs})
    ours_blank = _blanked(data, certificate)
    with _blaming(against, bundle.MODEL_ONNX):
        theirs_blank = _blanked(theirs, their_certificate)
    in_files = data is not None, theirs is not None
    same = (
        in_files[0] == in_files[1] and ours_blank == theirs_blank and their_certificate.learned == certificate.learned
    )
    said = "" if all(in_files) else f", as certified: {'one graph is' if any(in_files) else 'both are'} in no file"
    return Check(
        f"same graph as {against}",
        # Of two graphs that are in no file only the certificates were compared.
        None if same and data is None else same,
        f"blanked SHA-256 {ours_blank[:12]} and {theirs_blank[:12]}{said}",
    )


def _blanked(data: bytes | None, certificate: Certificate) -> str:
    return certificate.exported.blanked_sha256 if data is None else sha256(blank(data, certificate.learned))
