"""What a serialised FAISS index holds, read by our own walk: every length and id is checked before FAISS parses.

FAISS trusts what it reads: ids, graph edges and list sizes become addresses. So a file is walked first, whole, and only
a few types are known here: flat vectors, scalar and product quantisers, and inverted lists or a graph over them. All
numbers are little-endian; a vector is its length (uint64) and its entries.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from training.common.errors import BundleError

KNOWN = "Flat, SQ8, SQ4, SQfp16, SQbf16, PQMx8, PQMx4, PQMx4fs; IVFn and IVFn_HNSWm over each; HNSWm over Flat and SQ"
"""The factory strings that a bundle can hold."""

_SCALAR_TYPES = {0: "SQ8", 1: "SQ4", 4: "SQfp16", 7: "SQbf16"}
_PQ_BITS = (4, 8)
_BLOCK = 32
_WIDEST = 2**16
_MOST_LEVELS = 64


@dataclass(frozen=True)
class Layout:
    """What the walk found.

    Attributes:
        factory: FAISS factory string of this very structure, spelled in one way only.
        reach: Upper bound of the Euclidean norm of any vector that the index can decode to.
        nlist: Number of inverted lists; 0 where there are none.
    """

    factory: str
    reach: float
    nlist: int = 0

    @property
    def kind(self) -> str:
        """The manifest's name for this family of indexes."""
        if self.factory == "Flat":
            return "flat"
        if self.factory.startswith("HNSW"):
            return "hnsw"
        if self.nlist:
            return "ivfpq" if ",PQ" in self.factory else "ivf"
        return "custom"


class _Cursor:
    """Takes values off the front of a file; nothing is read beyond its end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def part(self, count: int) -> memoryview:
        if not 0 <= count <= len(self._data) - self._at:
            raise BundleError("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def name(self) -> bytes:
        return bytes(self.part(4))

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.part(struct.calcsize(f"<{kind}")))[0])

    def flag(self) -> bool:
        value = self.number("B")
        expect(value <= 1, "a flag is neither 0 nor 1")
        return bool(value)

    def array(self, kind: DTypeLike, length: int) -> NDArray[Any]:
        return np.frombuffer(self.part(length * np.dtype(kind).itemsize), dtype=kind)

    def vector(self, kind: DTypeLike, length: int | None = None, *, unit: int = 1) -> NDArray[Any]:
        """Take a vector, of this many entries if given; ``unit`` is the bytes that its length field counts in."""
        found = self.number("Q") * unit
        expect(length is None or found == length, f"a vector has {found} entries, wanted {length}")
        return self.array(kind, found)

    def end(self) -> None:
        expect(self._at == len(self._data), f"{len(self._data) - self._at} bytes follow its end")


def expect(condition: bool, message: str) -> None:
    """Refuse an index.

    Raises:
        BundleError: The condition does not hold.
    """
    if not condition:
        raise BundleError(message)


def read_layout(data: memoryview, n_items: int, dimension: int) -> Layout:
    """Walk a serialised index over all items.

    Args:
        data: The whole file.
        n_items: Vectors that it must hold, with the ids 0 … n_items - 1, each once.
        dimension: Their length.

    Returns:
        Its structure.

    Raises:
        BundleError: It is of a type that is not read here, of another shape, or inconsistent in any way.
    """
    cursor = _Cursor(data)
    layout = _index(cursor, n_items, dimension)
    cursor.end()
    return layout


def _header(cursor: _Cursor, n: int, dimension: int) -> None:
    found = cursor.number("i"), cursor.number("q")
    expect(found == (dimension, n), f"it has (dimension, vectors) {found}, wanted {(dimension, n)}")
    cursor.part(16)  # two numbers that FAISS ignores
    expect(cursor.flag(), "it is not trained")
    expect(cursor.number("i") == 0, "its metric is not the inner product")


def _index(cursor: _Cursor, n: int, dimension: int) -> Layout:
    name = cursor.name()
    expect(name in {*_STORAGES, *_LISTS, *_STORED}, f"it is of type {name!r}, which is not served; known: {KNOWN}")
    _header(cursor, n, dimension)
    if name in _STORAGES:
        return _STORAGES[name](cursor, n, dimension)
    if name in _LISTS:
        return _inverted(cursor, name, n, dimension)
    return _graph(cursor, name, n, dimension)


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    expect(bool(np.isfinite(values).all()), "it holds NaN or infinite values")
    return values.astype(np.float64)


def largest_norm(vectors: NDArray[Any]) -> float:
    """Return the Euclidean norm of the longest of float32 [n, D], a block at a time.

    Raises:
        BundleError: One is no number.
    """
    blocks = (vectors[start : start + 65536] for start in range(0, len(vectors), 65536))
    return max((float(np.linalg.norm(_finite(block), axis=1).max()) for block in blocks), default=0.0)


def _flat(cursor: _Cursor, n: int, dimension: int) -> Layout:
    codes = cursor.vector(np.uint8, 4 * n * dimension, unit=4)
    return Layout("Flat", largest_norm(codes.view("<f4").reshape(n, dimension)))


def _scalar_quantiser(cursor: _Cursor, dimension: int) -> tuple[str, int, float]:
    """Return name, bytes of a code, and norm of the longest vector that there is a code for."""
    kind = cursor.number("i")
    expect(kind in _SCALAR_TYPES, f"its scalar quantiser is of type {kind}, which is not served")
    name = _SCALAR_TYPES[kind]
    cursor.part(8)  # how the range was estimated: used in training alone
    size = {"SQ8": dimension, "SQ4": (dimension + 1) // 2}.get(name, 2 * dimension)
    expect((cursor.number("Q"), cursor.number("Q")) == (dimension, size), "its scalar quantiser is of another shape")
    trained = _finite(cursor.vector("<f4", 2 * dimension if name in {"SQ8", "SQ4"} else 0))
    if len(trained):
        return name, size, float(np.linalg.norm(np.abs(trained[:dimension]) + np.abs(trained[dimension:])))
    return name, size, np.inf  # the codes themselves decide


def _code_reach(name: str, codes: NDArray[Any], dimension: int) -> float:
    """Return an upper bound of the norms of half-precision codes, uint8 [n · 2 D]."""
    if name == "SQfp16":
        largest = float(np.abs(_finite_halves(codes)).max(initial=0))
    else:
        wide = codes.view("<u2").astype(np.uint32) << 16
        largest = float(np.abs(_finite(wide.view(np.float32))).max(initial=0))
    return largest * math.sqrt(dimension)


def _finite_halves(codes: NDArray[Any]) -> NDArray[Any]:
    halves = codes.view("<f2")
    expect(bool(np.isfinite(halves).all()), "it holds NaN or infinite values")
    return halves


def _scalar(cursor: _Cursor, n: int, dimension: int) -> Layout:
    name, size, reach = _scalar_quantiser(cursor, dimension)
    codes = cursor.vector(np.uint8, n * size)
    return Layout(name, _code_reach(name, codes, dimension) if reach == np.inf else reach)


def _product_quantiser(cursor: _Cursor, dimension: int) -> tuple[int, int, float]:
    """Return number of parts, bits of a part, and norm of the longest vector that there is a code for."""
    width, parts, bits = cursor.number("Q"), cursor.number("Q"), cursor.number("Q")
    expect(width == dimension, f"its product quantiser has dimension {width}, wanted {dimension}")
    expect(0 < parts <= dimension and dimension % parts == 0, f"{parts} parts do not divide {dimension} dimensions")
    expect(bits in _PQ_BITS, f"its product quantiser has {bits} bits, which is not served")
    centroids = _finite(cursor.vector("<f4", dimension * 2**bits)).reshape(parts, 2**bits, dimension // parts)
    return parts, bits, float(np.linalg.norm(np.linalg.norm(centroids, axis=2).max(axis=1)))


def _product(cursor: _Cursor, n: int, dimension: int) -> Layout:
    parts, bits, reach = _product_quantiser(cursor, dimension)
    cursor.vector(np.uint8, n * ((parts * bits + 7) // 8))
    expect(cursor.number("i") == 0, "its product quantiser is searched in a way that is not served")
    expect(not cursor.flag(), "its product quantiser encodes signs")
    cursor.part(4)  # a threshold of the searches that are not served
    return Layout(f"PQ{parts}x{bits}", reach)


def _fast_scan(cursor: _Cursor, n: int, dimension: int) -> Layout:
    parts, bits, reach = _product_quantiser(cursor, dimension)
    padded, even = -(-n // _BLOCK) * _BLOCK, parts + parts % 2
    found = (bits, *(cursor.number(kind) for kind in "iiiQQ"))
    expect(found == (4, 0, _BLOCK, 0, padded, even), "its blocks are of another shape")
    cursor.vector(np.uint8, padded * even // 2)
    return Layout(f"PQ{parts}x4fs", reach)


def _inverted(cursor: _Cursor, name: bytes, n: int, dimension: int) -> Layout:
    nlist, nprobe = cursor.number("Q"), cursor.number("Q")
    expect(0 < nprobe <= nlist, f"it probes {nprobe} of {nlist} lists")
    kind = cursor.name()
    expect(kind in {b"IxFI", b"IHNf"}, f"its coarse quantiser is of type {kind!r}, which is not served")
    _header(cursor, nlist, dimension)
    quantiser = _flat(cursor, nlist, dimension) if kind == b"IxFI" else _graph(cursor, kind, nlist, dimension)
    coarse = "" if kind == b"IxFI" else "_" + quantiser.factory.removesuffix(",Flat")
    expect(cursor.number("B") == 0, "it has a direct map")
    cursor.vector("<i8", 0)
    inner, reach = _LISTS[name](cursor, n, nlist, dimension)
    return Layout(f"IVF{nlist}{coarse},{inner}", quantiser.reach + reach, nlist)


def _flat_lists(cursor: _Cursor, n: int, nlist: int, dimension: int) -> tuple[str, float]:
    codes = _array_lists(cursor, n, nlist, 4 * dimension)
    return "Flat", max((largest_norm(part.view("<f4").reshape(-1, dimension)) for part in codes), default=0.0)


def _scalar_lists(cursor: _Cursor, n: int, nlist: int, dimension: int) -> tuple[str, float]:
    name, size, reach = _scalar_quantiser(cursor, dimension)
    expect(cursor.number("Q") == size, "its codes are of another size than its quantiser's")
    cursor.flag()  # whether codes are of differences to the list's centre
    codes = _array_lists(cursor, n, nlist, size)
    if reach == np.inf:
        reach = max((_code_reach(name, part, dimension) for part in codes), default=0.0)
    return name, reach


def _product_lists(cursor: _Cursor, n: int, nlist: int, dimension: int) -> tuple[str, float]:
    cursor.flag()
    size = cursor.number("Q")
    parts, bits, reach = _product_quantiser(cursor, dimension)
    expect(size == (parts * bits + 7) // 8, "its codes are of another size than its quantiser's")
    _array_lists(cursor, n, nlist, size)
    return f"PQ{parts}x{bits}", reach


def _fast_scan_lists(cursor: _Cursor, n: int, nlist: int, dimension: int) -> tuple[str, float]:
    cursor.flag()
    size, block, even, way, at_once = (cursor.number(kind) for kind in "QiQiQ")
    parts, bits, reach = _product_quantiser(cursor, dimension)
    wanted = ((parts + 1) // 2, _BLOCK, parts + parts % 2, 0, 0)
    expect(bits == 4 and (size, block, even, way, at_once) == wanted, "its blocks are of another shape")
    expect(cursor.name() == b"ilbl", "its lists are kept in a way that is not served")
    # The second is the size of a single code, which blocks have none of: FAISS writes the largest number.
    shape = (nlist, 2**64 - 1, _BLOCK, _BLOCK * even // 2)
    expect(tuple(cursor.number("Q") for _ in shape) == shape, "its lists are of another shape")
    met = []
    for _ in range(nlist):
        met.append(cursor.vector("<i8"))
        cursor.vector(np.uint8, -(-len(met[-1]) // _BLOCK) * shape[3])
    _check_ids(met, n)
    return f"PQ{parts}x4fs", reach


def _array_lists(cursor: _Cursor, n: int, nlist: int, size: int) -> list[NDArray[Any]]:
    """Return the codes of every list that is not empty, uint8 [n_l · size]."""
    expect(cursor.name() == b"ilar", "its lists are kept in a way that is not served")
    expect((cursor.number("Q"), cursor.number("Q")) == (nlist, size), "its lists are of another shape")
    layout = cursor.name()
    if layout == b"full":
        lengths = cursor.vector("<u8", nlist)
    else:
        expect(layout == b"sprs", "its lists are kept in a way that is not served")
        pairs = cursor.vector("<u8")
        expect(len(pairs) % 2 == 0 and len(pairs) <= 2 * nlist, "the sizes of its lists are no pairs")
        places, lengths = pairs[::2], pairs[1::2]
        expect(bool((places < nlist).all()), "a list beyond the last has a size")
        expect(bool((places[1:] > places[:-1]).all()), "the sizes of its lists are out of order")
    codes, met = [], []
    for length in lengths.tolist():
        if length:
            codes.append(cursor.array(np.uint8, length * size))
            met.append(cursor.array("<i8", length))
    _check_ids(met, n)
    return codes


def _check_ids(lists: list[NDArray[Any]], n: int) -> None:
    """Every vector must lie in exactly one list."""
    total = sum(len(ids) for ids in lists)
    expect(total == n, f"its lists hold {total} vectors, wanted {n}")
    ids = np.concatenate(lists).astype(np.int64) if lists else np.empty(0, np.int64)
    expect(bool(((ids >= 0) & (ids < n)).all()), f"an id lies outside 0 … {n - 1}")
    expect(bool((np.bincount(ids, minlength=n) == 1).all()), "an id occurs more than once")


def _graph(cursor: _Cursor, name: bytes, n: int, dimension: int) -> Layout:
    cursor.vector("<f8")  # chances of the levels: used when vectors are added
    slots = cursor.vector("<i4").astype(np.int64)
    # Each level costs a pass over all vectors; a graph of FAISS's has at most thirty-odd.
    expect(1 < len(slots) <= _MOST_LEVELS, f"its graph has {len(slots) - 1} levels, wanted 1 to {_MOST_LEVELS - 1}")
    expect(slots[0] == 0 and bool((np.diff(slots) > 0).all()), "its levels have no edges")
    levels = cursor.vector("<i4", n).astype(np.int64)
    expect(bool(((levels > 0) & (levels < len(slots))).all()), "a vector lies on a level that there is not")
    offsets = cursor.vector("<u8", n + 1)
    expect(bool((offsets == np.concatenate([[0], np.cumsum(slots[levels])])).all()), "its edges are out of place")
    edges = cursor.vector("<i4", int(offsets[-1]))
    entry, top, breadth, search, _ = (cursor.number("i") for _ in range(5))
    expect(0 <= entry < n and top == levels[entry] - 1, "its entry point is not on the highest level")
    expect(0 < breadth <= _WIDEST and 0 < search <= _WIDEST, f"its graph is searched {search} wide")
    _check_edges(edges, slots, levels, offsets.astype(np.int64))
    stored = _STORED[name]
    expect(cursor.name() == stored, f"its graph holds no {stored.decode()}")
    _header(cursor, n, dimension)
    storage = _STORAGES[stored](cursor, n, dimension)
    return Layout(f"HNSW{slots[1] // 2},{storage.factory}", storage.reach)


def _check_edges(
    edges: NDArray[Any], slots: NDArray[np.int64], levels: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    """An edge of a level must lead to a vector on that level: its own edges are read from there."""
    n = len(levels)
    expect(bool(((edges >= -1) & (edges < n)).all()), "an edge leads nowhere")
    for level in range(1, int(levels.max())):
        here = np.flatnonzero(levels > level)
        places = (offsets[here] + slots[level])[:, None] + np.arange(slots[level + 1] - slots[level])
        targets = edges[places]
        expect(bool((levels[targets[targets >= 0]] > level).all()), "an edge leads to a vector on a lower level")


_STORAGES = {b"IxFI": _flat, b"IxSQ": _scalar, b"IxPq": _product, b"IPfs": _fast_scan}
_STORED = {b"IHNf": b"IxFI", b"IHNs": b"IxSQ"}
_LISTS = {b"IwFl": _flat_lists, b"IwSq": _scalar_lists, b"IwPQ": _product_lists, b"IwPf": _fast_scan_lists}
