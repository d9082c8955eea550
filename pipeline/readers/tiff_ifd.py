"""A look at the first directory of a TIFF (TIFF 6.0, BigTIFF): does the file hold its blocks?

GDAL opens a file whose end is missing and fails at some later block; this fails at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import SceneError

_OFFSETS, _COUNTS = (273, 324), (279, 325)
_TYPES = {3: "u2", 4: "u4", 16: "u8"}
# Bytes per value of the field types 1 to 18.
_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))
_MOST_ENTRIES = 4096
_SAMPLE_BYTES = 2**20

Fetch = Callable[[int, int], bytes]


def is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_complete(fetch: Fetch, size: int) -> None:
    """Raise `SceneError("truncated")` if the first image's blocks reach beyond `size` bytes.

    `fetch(start, length)` returns bytes of the file. Of very long block tables the first and the
    last megabyte are looked at.
    """
    head = fetch(0, 16)
    if len(head) < 8:
        raise _cut(size)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if big and len(head) < 16:
        raise _cut(size)
    start = struct.unpack_from(order + "Q", head, 8)[0] if big else _u4(order, head, 4)
    word, entry, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    at = start + struct.calcsize(word)
    if start == 0 or at > size:
        raise _cut(size)
    entries = struct.unpack(order + word, fetch(start, at - start))[0]
    if entries > _MOST_ENTRIES:
        raise SceneError("bad-header", f"TIFF directory of {entries} entries: not a valid file")
    table = fetch(at, entries * entry)
    if len(table) < entries * entry:
        raise _cut(size)
    found: dict[int, list[np.ndarray[Any, Any]]] = {}
    for index in range(entries):
        record = table[index * entry : (index + 1) * entry]
        tag, kind = struct.unpack_from(order + "HH", record)
        count = struct.unpack_from(order + ("Q" if big else "I"), record, 4)[0]
        if count * _SIZES.get(kind, 0) > inline:
            place = struct.unpack(order + ("Q" if big else "I"), record[-inline:])[0]
            if place + count * _SIZES[kind] > size:
                raise _cut(size)
        if tag in _OFFSETS + _COUNTS and kind in _TYPES:
            dtype = np.dtype(order + _TYPES[kind])
            found[tag] = _values(fetch, record[-inline:], order, dtype, count)
    for offsets, counts in zip(_OFFSETS, _COUNTS, strict=True):
        for first, length in zip(found.get(offsets, []), found.get(counts, []), strict=False):
            used = min(first.size, length.size)
            if (
                used
                and int((first[:used] + length[:used])[length[:used] > 0].max(initial=0)) > size
            ):
                raise _cut(size)


def _values(
    fetch: Fetch, field: bytes, order: str, dtype: np.dtype[Any], count: int
) -> list[np.ndarray[Any, Any]]:
    """The array of one entry as unsigned 64-bit: whole, or its first and last entries."""
    length = count * dtype.itemsize
    if length <= len(field):
        return [np.frombuffer(field[:length], dtype).astype(np.uint64)]
    at = struct.unpack(order + ("Q" if len(field) == 8 else "I"), field)[0]
    # Offsets and counts may differ in type: cut both at the same entries.
    part = _SAMPLE_BYTES // 8
    if count <= 2 * part:
        return [np.frombuffer(fetch(at, length), dtype).astype(np.uint64)]
    tail = at + (count - part) * dtype.itemsize
    pieces = fetch(at, part * dtype.itemsize), fetch(tail, part * dtype.itemsize)
    return [np.frombuffer(piece, dtype).astype(np.uint64) for piece in pieces]


def _u4(order: str, data: bytes, at: int) -> int:
    return int(struct.unpack_from(order + "I", data, at)[0])


def _cut(size: int) -> SceneError:
    return SceneError("truncated", f"TIFF of {size} bytes ends before its data: copy it again")
