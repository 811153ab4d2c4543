"""Arrays out of untrusted bytes: the few plain forms of ``.npy`` and safetensors that a bundle holds, and no other.

Both formats are a short header before raw numbers. The general parsers read much more (pickles, zip archives, Python
literals, every type) and allocate what a header declares; these look at the header first and allocate nothing.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from training.common.errors import first_problem

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,12})(?:,|, (\d{1,12}))\), \} *\n"
)
_NPY_TYPES = {b"<f2", b"<f4", b"<f8", b"<i4", b"<i8", b"|u1"}

_MAX_HEADER_BYTES = 2**16
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1"}

Size = Annotated[int, Field(ge=0, le=2**48)]


def read_npy(data: memoryview) -> NDArray[np.generic]:
    """Return an ``.npy`` file's array, [n] or [n, m]: a view of the bytes.

    Args:
        data: The file, version 1.0, little-endian floats or integers in C order.

    Raises:
        ValueError: It is anything else, or holds fewer or more bytes than its header declares.
    """
    if bytes(data[:8]) != _NPY_MAGIC:
        raise ValueError("it does not begin like an .npy file of version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    found = _NPY_HEADER.fullmatch(data[10:start])
    if found is None or found[1] not in _NPY_TYPES:
        raise ValueError("its header is not that of one or two dimensions of little-endian numbers in C order")
    return _array(data[start:], found[1].decode(), [int(size) for size in found.groups()[1:] if size is not None])


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: Literal["F16", "F32", "F64", "I32", "I64", "U8"]
    shape: list[Size] = Field(max_length=2)
    data_offsets: tuple[Size, Size]


_HEADER = TypeAdapter(dict[str, _Tensor])


def read_safetensors(data: memoryview) -> dict[str, NDArray[np.generic]]:
    """Return a safetensors file's arrays by name, of at most two dimensions: views of the bytes.

    Args:
        data: The file, without metadata.

    Raises:
        ValueError: It is malformed, or its tensors overlap, leave gaps or do not end where the file ends.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"its header is said to have {length} bytes")
    try:
        header = _HEADER.validate_json(bytes(data[8 : 8 + length]), strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    content, end, arrays = data[8 + length :], 0, {}
    for name, tensor in sorted(header.items(), key=lambda entry: entry[1].data_offsets):
        begin, stop = tensor.data_offsets
        if begin != end or stop < begin or stop > len(content):
            raise ValueError("its tensors overlap, leave gaps or end beyond the file")
        arrays[name] = _array(content[begin:stop], _TYPES[tensor.dtype], tensor.shape)
        end = stop
    if end != len(content):
        raise ValueError(f"{len(content) - end} bytes follow its last tensor")
    return arrays


def _array(data: memoryview, dtype: str, shape: list[int]) -> NDArray[np.generic]:
    kind = np.dtype(dtype)
    wanted = math.prod(shape) * kind.itemsize
    if wanted != len(data):
        raise ValueError(f"{wanted} bytes are declared for a shape {tuple(shape)}, {len(data)} are there")
    return np.frombuffer(data, dtype=kind).reshape(shape)
