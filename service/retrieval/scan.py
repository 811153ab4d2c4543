"""A first look at all items in 8-bit integers, with a proven bound on how far it may be off.

Reading every item vector in float32 is what an exact search costs. Here the items are kept a second time as int8, a
quarter of the bytes, and ONNX Runtime multiplies them with the user's vector, also in 8 bits, into exact int32 sums.
Those sums are not the scores, but they are close, and how close is known: whoever scores exactly all items within twice
that error of the k-th best sum has not missed one of the best k.

Derivation. Item vectors v_i, user vector u, both float32 [D]. Per dimension d let c_d be the middle of the items' range
and s_d the 127th part of its half; per item w_i = v_i - c, q_i = round(w_i / s) in int8, and rho_i = w_i / s - q_i what
rounding took away. For the user x = u * s, f = L / max|x|, y = f x and p = round(y), whole numbers up to the number of
levels L. The products are elementwise. Then

    f (u.v_i - u.c) = y.(q_i + rho_i) = p.q_i + (y - p).q_i + y.rho_i

u.c and f are the same for every item, so they do not change the order, and p.q_i is what the integer product gives.
By Cauchy and Schwarz it differs from the left side by no more than

    error = |y - p| max_i |q_i| + |y| max_i |rho_i| + f r + 1

where r bounds what float64 rounds off in u.v_i as it is scored and in w, rho, x and y: no more than
(D + 16) 2^-52 |u| (max_i |v_i| + |c| + 127 |s|); the 1 is far above what is rounded off in the error itself. Where k
items have sums of t or more, the k-th best score is at least that of t - error, and every item that reaches it has a
sum of t - 2 error or more. That holds for all items as for any part of them.

A dimension in which all items agree has s_d = 0: it adds the same to every score and nothing to the sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from export.runtime import GRAPH_ERRORS
from service.retrieval.session import Buffers, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

NEVER = np.iinfo(np.int32).min
"""Below every sum: marks items that are not wanted."""

_CHUNK = 4096
_CODE = 127
_LEVELS = (127, 63)
"""User vectors have 8 bits, or 7 where this machine adds two products in 16: 2 * 127 * 127 still fits there."""
_OPSET, _IR_VERSION = 17, 8
_LARGEST_GRAPH = 2**31 - 2**16  # bytes that a protobuf message can hold, less some for the rest of it
_BUFFER_SUMS = 2**20
_MAX_USERS = 32
_SMALLEST = 1e-100  # below every x of float32 vectors that is not 0


class Code(NamedTuple):
    """A user as a scan takes it.

    Attributes:
        levels: uint8 [D].
        error: By how much a sum may differ from score × factor + constant, both of the user's own.
    """

    levels: NDArray[np.uint8]
    error: float


class Codes(NamedTuple):
    """Some users as a scan takes them.

    Attributes:
        levels: uint8 [n, D].
        errors: float64 [n].
    """

    levels: NDArray[np.uint8]
    errors: NDArray[np.float64]

    def of(self, position: int) -> Code:
        """Return one of them."""
        return Code(self.levels[position], float(self.errors[position]))


class ScanError(Exception):
    """This machine, or these items, cannot be scanned."""


class Scan:
    """Integer sums for all items, near to the scores up to a known error. Not for concurrent use.

    Args:
        items: float32 [I, D], finite.
        threads: Of one scan.

    Attributes:
        most_users: Users of one scan.
        providers: ONNX Runtime's execution providers of the session.

    Raises:
        ScanError: ONNX Runtime cannot multiply these integers, or not correctly on this machine, or they are too many.
    """

    def __init__(self, items: NDArray[np.float32], *, threads: int) -> None:
        n_items, dimension = items.shape
        most = 2 * max(_LEVELS) + 1
        if n_items * dimension > _LARGEST_GRAPH or dimension * most * _CODE > np.iinfo(np.int32).max:
            raise ScanError(f"{n_items} items of dimension {dimension} are too many for one product of 8-bit integers")
        codes = self._encode(items)
        self.most_users = max(1, min(_MAX_USERS, _BUFFER_SUMS // n_items))
        for levels in _LEVELS:
            session = _open(codes, levels + 1, threads)
            if _is_exact(session, codes, levels, self.most_users):
                break
        else:
            raise ScanError("ONNX Runtime multiplies 8-bit integers wrongly on this machine")
        self._levels = levels
        self._codes = codes  # the session reads them where they are
        self._sums = np.empty((self.most_users, n_items), dtype=np.int32)
        self._users = np.empty((self.most_users, dimension), dtype=np.uint8)
        self._buffers = Buffers(session, self._users, self._sums)
        self.providers = self._buffers.providers

    def _encode(self, items: NDArray[np.float32]) -> NDArray[np.int8]:
        """Set scale and bounds, and return the items' codes, int8 [D, I]."""
        n_items, dimension = items.shape
        low, high = items.min(axis=0).astype(np.float64), items.max(axis=0).astype(np.float64)
        centre = (low + high) / 2
        self._scale = np.maximum(high - centre, centre - low) / _CODE
        divisor = np.where(self._scale > 0, self._scale, 1)
        codes = np.empty((dimension, n_items), dtype=np.int8)
        longest = longest_code = longest_rest = 0.0
        for start in range(0, n_items, _CHUNK):
            wide = items[start : start + _CHUNK].astype(np.float64)
            exact = (wide - centre) / divisor
            rounded = np.rint(exact)
            codes[:, start : start + len(wide)] = rounded.T
            longest = max(longest, _longest(wide))
            longest_code = max(longest_code, _longest(rounded))
            longest_rest = max(longest_rest, _longest(exact - rounded))
        self._longest_code, self._longest_rest = longest_code, longest_rest
        unit = (dimension + 16) * float(np.finfo(np.float64).eps)
        reach = longest + float(np.linalg.norm(centre)) + _CODE * float(np.linalg.norm(self._scale))
        self._rounding = unit * reach
        return codes

    def encode(self, users: NDArray[np.float32]) -> Codes:
        """Code some users, float32 [n, D], finite."""
        wide = users.astype(np.float64)
        x = wide * self._scale
        factor = self._levels / np.maximum(np.abs(x).max(axis=1), _SMALLEST)
        y = x * factor[:, None]
        p = np.rint(y)
        errors = (
            np.linalg.norm(y - p, axis=1) * self._longest_code
            + np.linalg.norm(y, axis=1) * self._longest_rest
            + factor * self._rounding * np.linalg.norm(wide, axis=1)
            + 1
        )
        return Codes((p + (self._levels + 1)).astype(np.uint8), errors)

    def __call__(self, users: Sequence[NDArray[np.uint8]]) -> NDArray[np.int32]:
        """Scan all items for some users.

        Args:
            users: Their levels, uint8 [D] each; from 1 to ``most_users``.

        Returns:
            Sums int32 [B, I], all above `NEVER`; valid until the next call, and the caller's to overwrite until then.
        """
        count = len(users)
        for row, levels in zip(self._users, users, strict=False):
            row[:] = levels
        self._buffers.run(count)
        return self._sums[:count]


def _longest(rows: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(rows, axis=1).max())


def _open(codes: NDArray[np.int8], zero: int, threads: int) -> InferenceSession:
    """Return a session of ``users`` uint8 [B, D] → ``sums`` int32 [B, I], the products of users - zero and codes."""
    dimension, n_items = codes.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["users", "codes", "zero"], ["sums"])],
        "scan",
        [helper.make_tensor_value_info("users", TensorProto.UINT8, ["B", dimension])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, ["B", n_items])],
        [_elsewhere("codes", codes), numpy_helper.from_array(np.array(zero, dtype=np.uint8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    try:
        return open_session(model.SerializeToString(), threads=threads, tables={"codes": codes})
    except GRAPH_ERRORS as error:
        raise ScanError("ONNX Runtime cannot multiply 8-bit integers on this machine") from error


def _elsewhere(name: str, table: NDArray[np.int8]) -> TensorProto:
    """Return a graph's constant without its numbers, which the session is given beside the graph."""
    constant = TensorProto(name=name, data_type=TensorProto.INT8, dims=table.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", "0"), ("length", str(table.nbytes))):
        constant.external_data.add(key=key, value=value)
    return constant


def _trials(dimension: int, levels: int) -> NDArray[np.uint8]:
    """Return user codes that try a kernel's limits, uint8 [n, D].

    Kernels for processors without 8-bit dot products add two products in 16 bits and saturate. Items are signed and
    users are not, so two products of the same sign add up to most where the user's codes are largest: whatever
    saturates with other codes does so with the largest, too. There what one pair loses another may only make up for in
    more than 500 dimensions, which the random codes are for.
    """
    most = 2 * levels + 1
    draw = np.random.default_rng(0)
    alternating = np.where(np.arange(dimension) % 2, most, 1)
    random = draw.integers(1, most, (2, dimension), endpoint=True)
    return np.vstack([np.full(dimension, most), np.ones(dimension), alternating, random]).astype(np.uint8)


def _is_exact(session: InferenceSession, codes: NDArray[np.int8], levels: int, most_users: int) -> bool:
    """Compare the session with NumPy for every item and every number of users: kernels differ in how many they take."""
    users = _trials(len(codes), levels)
    wanted = np.empty((len(users), codes.shape[1]), dtype=np.int32)
    for start in range(0, codes.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        # Whole numbers far below 2^53: float64 is exact.
        wanted[:, part] = (users.astype(np.float64) - (levels + 1)) @ codes[:, part].astype(np.float64)
    alone = [np.array([user]) for user in range(len(users))]
    together = [np.arange(count) % len(users) for count in range(2, most_users + 1)]
    try:
        return all(
            np.array_equal(session.run(["sums"], {"users": users[rows]})[0], wanted[rows]) for rows in alone + together
        )
    except GRAPH_ERRORS:
        return False
