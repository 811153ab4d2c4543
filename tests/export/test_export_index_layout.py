"""A stranger's index: only known types, whole and consistent, ever reach FAISS; the rest is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import faiss
import numpy as np
import pytest

from export.index import read_index
from export.index_layout import read_layout
from tests.helpers_index import SERVED, entry_of, faiss_index, serialised, vectors
from training.common.errors import BundleError

N, D = 300, 8
ITEMS = vectors(N, D)
HEADER = 4 + 33
"""Type, and header of an inner-product index."""


@cache
def sound(factory: str) -> bytes:
    return serialised(faiss_index(factory, ITEMS))


def refused(data: bytes, factory: str) -> str:
    """Return why it is refused."""
    with pytest.raises(BundleError) as caught:
        read_index(memoryview(data), entry_of(factory), N, D)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("factory", SERVED)
def test_a_sound_index_is_read_and_named(factory: str) -> None:
    layout = read_layout(memoryview(sound(factory)), N, D)
    assert layout.factory == factory
    assert layout.kind == entry_of(factory).kind
    read = read_index(memoryview(sound(factory)), entry_of(factory), N, D)
    rows = read.candidates(ITEMS[0], 10)
    assert len(rows) == len(set(rows.tolist())) > 0


@pytest.mark.parametrize("factory", SERVED)
def test_no_vector_decodes_beyond_the_reach(factory: str) -> None:
    index = faiss_index(factory, ITEMS)
    if isinstance(index, faiss.IndexIVF):
        index.make_direct_map()
    decoded = np.vstack([index.reconstruct(row) for row in range(N)])
    longest = np.linalg.norm(decoded.astype(np.float64), axis=1).max()
    assert longest <= read_layout(memoryview(sound(factory)), N, D).reach * (1 + 1e-6)


@pytest.mark.parametrize("factory", SERVED)
def test_a_cut_anywhere_and_a_surplus_are_refused(factory: str) -> None:
    data = sound(factory)
    for end in {*range(0, len(data), max(1, len(data) // 150)), len(data) - 1}:
        refused(data[:end], factory)
    assert "1 bytes follow" in refused(data + b"\0", factory)


@pytest.mark.parametrize("factory", SERVED)
def test_changed_bytes_are_refused_or_harmless(factory: str) -> None:
    """With every hash made to match: a changed file is refused, or its search gives rows that there are, each once."""
    draw = np.random.default_rng(sum(factory.encode()))
    data, queries = sound(factory), vectors(3, D, seed=1)
    outcomes = {True: 0, False: 0}
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            place = int(draw.integers(len(data) if draw.random() < 0.5 else min(len(data), 300)))
            width = int(draw.choice([1, 4, 8]))
            value = (0, 1, N - 1, N, 2**31 - 1, 2**63, 2**64 - 1, int(draw.integers(2**40)))[int(draw.integers(8))]
            fresh = value.to_bytes(8, "little")[:width]
            changed[place : place + width] = fresh[: len(data) - place]
        try:
            index = read_index(memoryview(bytes(changed)), entry_of(factory), N, D)
            index.check_norm(10.0)
        except BundleError:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        for query in queries:
            rows = index.candidates(query, 10, np.arange(5, dtype=np.int32))
            assert len(np.unique(rows)) == len(rows)
            assert not np.isin(rows, np.arange(5)).any()
            assert ((rows >= 0) & (rows < N)).all()
    assert outcomes[False] > 0


def replaced(data: bytes, kind: str, place: int, value: float) -> bytes:
    changed = bytearray(data)
    struct.pack_into(f"<{kind}", changed, place, value)
    return bytes(changed)


def place_of(data: bytes, values: Any) -> int:
    """Return where an array lies in a file: it must lie there once."""
    found = data.find(values.tobytes())
    assert found > 0
    assert data.find(values.tobytes(), found + 1) < 0
    return found


def graph_attack(edit: Callable[[Any], None]) -> bytes:
    index = faiss_index("HNSW4,Flat", ITEMS)
    edit(index.hnsw)
    return serialised(index)


def filled(vector: Any, place: int, value: int) -> None:
    array = faiss.vector_to_array(vector)
    array[place] = value
    faiss.copy_array_to_vector(array, vector)


def lower(hnsw: Any) -> None:
    """Let an edge of the second level lead to a vector that has none there."""
    levels, offsets = faiss.vector_to_array(hnsw.levels), faiss.vector_to_array(hnsw.offsets)
    filled(hnsw.neighbors, int(offsets[np.flatnonzero(levels > 1)[0]]) + 8, int(np.flatnonzero(levels == 1)[0]))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda hnsw: filled(hnsw.neighbors, 5, N), "an edge leads nowhere"),
        (lambda hnsw: filled(hnsw.neighbors, 5, -2), "an edge leads nowhere"),
        (lambda hnsw: filled(hnsw.levels, 7, 99), "a level that there is not"),
        (lambda hnsw: filled(hnsw.levels, 7, 0), "a level that there is not"),
        (lambda hnsw: filled(hnsw.offsets, 7, 2**40), "out of place"),
        (lower, "on a lower level"),
        (lambda hnsw: setattr(hnsw, "entry_point", N), "entry point"),
        (lambda hnsw: setattr(hnsw, "entry_point", -1), "entry point"),
        (lambda hnsw: setattr(hnsw, "max_level", 40), "entry point"),
        (lambda hnsw: setattr(hnsw, "efSearch", 2**31 - 1), "wide"),
    ],
)
def test_a_graph_that_leads_out_of_itself(edit: Callable[[Any], None], said: str) -> None:
    assert said in refused(graph_attack(edit), "HNSW4,Flat")


def test_a_graph_of_countless_levels() -> None:
    """Every level costs a pass over all vectors."""

    def with_levels(count: int) -> bytes:
        def edit(hnsw: Any) -> None:
            slots = hnsw.cum_nneighbor_per_level
            known = faiss.vector_to_array(slots)
            more = known[-1] + 4 * np.arange(1, 1 + count + 1 - len(known), dtype=np.int32)
            faiss.copy_array_to_vector(np.concatenate([known, more]), slots)

        return graph_attack(edit)

    assert "its graph has 64 levels, wanted 1 to 63" in refused(with_levels(64), "HNSW4,Flat")
    read_index(memoryview(with_levels(63)), entry_of("HNSW4,Flat"), N, D)


def test_lists_with_ids_that_are_not_the_items() -> None:
    index = faiss_index("IVF6,Flat", ITEMS)
    data = sound("IVF6,Flat")
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(2), index.invlists.list_size(2)).copy()
    place = place_of(data, ids)
    assert "an id lies outside" in refused(replaced(data, "q", place, N), "IVF6,Flat")
    assert "an id lies outside" in refused(replaced(data, "q", place, -1), "IVF6,Flat")
    assert "more than once" in refused(replaced(data, "q", place, int(ids[1])), "IVF6,Flat")


def test_numbers_that_are_none() -> None:
    for factory in ("Flat", "HNSW4,Flat", "IVF6,Flat", "IVF6,SQ8", "PQ4x4", "SQ8"):
        data = bytearray(sound(factory))
        index: Any = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        inner = index.quantizer if isinstance(index, faiss.IndexIVF) else getattr(index, "storage", index)
        inner = faiss.downcast_index(inner)
        if hasattr(inner, "sq"):
            place = place_of(bytes(data), faiss.vector_to_array(inner.sq.trained))
        elif hasattr(inner, "pq"):
            place = place_of(bytes(data), faiss.vector_to_array(inner.pq.centroids))
        else:
            place = place_of(bytes(data), inner.reconstruct(0))
        for value in (float("nan"), float("inf")):
            assert "NaN" in refused(replaced(bytes(data), "f", place, value), factory)
        huge = read_index(memoryview(replaced(bytes(data), "f", place, 3e38)), entry_of(factory), N, D)
        with pytest.raises(BundleError, match="overflow"):
            huge.check_norm(2.0)


def test_half_precision_codes_that_are_no_numbers() -> None:
    data = sound("SQfp16")
    place = place_of(data, ITEMS[5].astype(np.float16))
    for word in (0x7C00, 0xFC00, 0x7E01):
        assert "NaN" in refused(replaced(data, "H", place, word), "SQfp16")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: serialised(faiss_index("IVF6,Flat", ITEMS, faiss.METRIC_L2)), "inner product"),
        (lambda: serialised(faiss_index("IVF6,Flat", ITEMS[:-1])), "wanted"),
        (lambda: serialised(faiss_index("IVF6,Flat", vectors(N, 12))), "wanted"),
        (lambda: serialised(faiss_index("IVF7,Flat", ITEMS)), "it is a IVF7,Flat index"),
        (lambda: sound("HNSW4,Flat"), "it is a HNSW4,Flat index, the manifest says IVF6,Flat"),
        (lambda: sound("Flat"), "it is a Flat index"),
        (lambda: serialised(faiss_index("OPQ4,IVF6,PQ4x4", ITEMS)), "of type b'IxPT', which is not served"),
        (lambda: serialised(faiss_index("IVF6,Flat,RFlat", ITEMS)), "of type b'IxRF', which is not served"),
        (lambda: serialised(faiss_index("NSG8,Flat", ITEMS)), "not served"),
        (lambda: serialised(faiss_index("IVF6(IVF2,Flat),Flat", ITEMS)), "its coarse quantiser is of type b'IwFl'"),
        (lambda: sound("IVF6,Flat").replace(b"ilar", b"ilod"), "kept in a way that is not served"),
        (lambda: sound("IVF6,Flat").replace(b"ilar", b"il00"), "kept in a way that is not served"),
        (lambda: replaced(sound("IVF6,Flat"), "Q", HEADER + 8, 0), "it probes 0"),
        (lambda: replaced(sound("IVF6,Flat"), "Q", HEADER, 2**60), "wanted"),
        (lambda: replaced(sound("IVF6,Flat"), "B", HEADER - 5, 0), "not trained"),
    ],
)
def test_other_types_and_shapes_are_refused_by_name(make: Callable[[], bytes], said: str) -> None:
    assert said in refused(make(), "IVF6,Flat")


@pytest.mark.parametrize("factory", SERVED)
def test_random_bytes_behind_a_true_beginning_are_refused(factory: str) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).bytes(len(sound(factory)))
        for kept in (0, 4, HEADER, HEADER + 16):
            refused(sound(factory)[:kept] + noise[kept:], factory)


@pytest.mark.parametrize(
    ("factory", "search"),
    [
        ("IVF6,Flat", {"nprobe": 7}),
        ("IVF6,Flat", {"efSearch": 3}),
        ("HNSW4,Flat", {"efSearch": N + 1}),
        ("HNSW4,Flat", {"nprobe": 1}),
        ("SQ8", {"overfetch": 2**30}),
        ("Flat", {"overfetch": 1}),
    ],
)
def test_search_parameters_that_do_not_belong(factory: str, search: dict[str, int]) -> None:
    with pytest.raises(BundleError, match="the manifest searches it with"):
        read_index(memoryview(sound(factory)), entry_of(factory, **search), N, D)
