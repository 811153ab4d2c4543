"""Seeded mutations of a bundle's files: what a bad disk, a bad cable or a bad neighbour would do to them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from export import bundle
from tests.security.hostile import SERVED, manifest_of, seal

EXTREMES = (0, 1, -1, 2, 255, 2**16, 2**31 - 1, -(2**31), 2**31, 2**40, 2**63 - 1, -(2**63))
Mutate = Callable[[Path, random.Random], None]


def _rewrite(change: Callable[[bytearray, random.Random], object]) -> Mutate:
    def mutate(folder: Path, draw: random.Random) -> None:
        path = folder / draw.choice(SERVED)
        data = bytearray(path.read_bytes())
        change(data, draw)
        path.write_bytes(data)

    return mutate


def _flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _flip_bits_in_front(data: bytearray, draw: random.Random) -> None:
    """Headers lie in front; anywhere else most flips hit a vector."""
    data[draw.randrange(min(len(data), 128))] ^= 1 << draw.randrange(8)


def _random_bytes(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    size = min(draw.choice((1, 4, 8, 64)), len(data) - start)
    data[start : start + size] = draw.randbytes(size)


def _number(data: bytearray, draw: random.Random) -> None:
    """Write an extreme number over eight bytes at a place where one may lie."""
    start = draw.randrange(max(len(data) - 8, 1))
    data[start : start + 8] = struct.pack("<q", draw.choice(EXTREMES))


def _truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _grow(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = data[: draw.randrange(1, 64)]


def _all_random(data: bytearray, draw: random.Random) -> None:
    """Random bytes behind a true beginning."""
    kept = draw.choice((0, 4, 16, 64))
    data[kept:] = draw.randbytes(len(data) - kept)


def _swap(folder: Path, draw: random.Random) -> None:
    first, second = draw.sample(SERVED, 2)
    (folder / first).rename(folder / "aside")
    (folder / second).rename(folder / first)
    (folder / "aside").rename(folder / second)


def _number_in_an_array(folder: Path, draw: random.Random) -> None:
    """An array that stays a well-formed one, with an entry that may be impossible."""
    name = draw.choice((bundle.IDS, bundle.SEEN))
    arrays = {key: array.copy() for key, array in load_file(folder / name).items()}
    array = arrays[draw.choice(sorted(key for key in arrays if arrays[key].size))]
    limits = np.iinfo(array.dtype)
    value = draw.choice([*EXTREMES, *array.ravel().tolist()])
    array.ravel()[draw.randrange(array.size)] = min(max(value, limits.min), limits.max)
    save_file(arrays, folder / name)


def _vector_entry(folder: Path, draw: random.Random) -> None:
    items = np.load(folder / bundle.ITEMS)
    items.ravel()[draw.randrange(items.size)] = draw.choice((np.nan, np.inf, 3e38, 0.0, 1e-45))
    np.save(folder / bundle.ITEMS, items)


def _popularity_entry(folder: Path, draw: random.Random) -> None:
    popularity = np.load(folder / bundle.POPULARITY)
    popularity[draw.randrange(len(popularity))] = draw.choice(EXTREMES)
    np.save(folder / bundle.POPULARITY, popularity)


def _manifest_number(folder: Path, draw: random.Random) -> None:
    """The version fits, whatever was changed: without a new seal the hashes of the files are then still right."""
    document = manifest_of(folder)
    inner = document
    place = draw.choice(
        (("dataset", "n_users"), ("dataset", "n_items"), ("dimension",), ("index", "factory"), ("opset",))
    )
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = draw.choice((*EXTREMES, 11, 13, 7, 8, 60, "Flat", "IVF4,Flat", None))
    seal(folder, document)


def _manifest_bytes(folder: Path, draw: random.Random) -> None:
    path = folder / bundle.MANIFEST
    data = bytearray(path.read_bytes())
    draw.choice((_flip_bits, _truncate, _random_bytes))(data, draw)
    path.write_bytes(data)


def _entry(folder: Path, draw: random.Random) -> None:
    """A file is gone, is a link, or is one too many."""
    name = draw.choice(SERVED)
    match draw.randrange(3):
        case 0:
            (folder / name).unlink()
        case 1:
            (folder / name).rename(folder.parent / "moved")
            (folder / name).symlink_to(folder.parent / "moved")
        case _:
            (folder / "extra.npy").write_bytes(json.dumps(name).encode())


MUTATIONS: tuple[Mutate, ...] = (
    _rewrite(_flip_bits),
    _rewrite(_flip_bits_in_front),
    _rewrite(_random_bytes),
    _rewrite(_number),
    _rewrite(_truncate),
    _rewrite(_grow),
    _rewrite(_all_random),
    _swap,
    _number_in_an_array,
    _number_in_an_array,
    _vector_entry,
    _popularity_entry,
    _manifest_number,
    _manifest_bytes,
    _entry,
)
