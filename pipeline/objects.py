"""Single objects of a scene: which array and tile they belong to, and their decoded content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.arrays import VARIABLE

DOCUMENTS = ("zarr.json", ".zarray", ".zattrs")
_ARRAY = re.compile(r"(?:overviews/\d+/)?[^/]+(?=/)")
# A shard, and in the plain layout a chunk, is as wide as its tile, so its place is the tile's.
_PLACE = re.compile(r"[/.](\d{1,9})[/.](\d{1,9})$")


def array_of(key: str) -> str:
    """The path of the array that an object of tiles belongs to."""
    match = _ARRAY.match(key)
    return match[0] if match else ""


def tile_of(key: str) -> str:
    """ "row.column" of the tile that writes an object; empty where its name tells none."""
    match = _PLACE.search(key)
    return f"{int(match[1])}.{int(match[2])}" if match else ""


def open_objects(
    documents: Mapping[str, bytes], name: str, objects: Mapping[str, bytes]
) -> zarr.Array[Any]:
    """An array that consists of these objects alone, in memory; the rest of it reads as fill.

    Args:
        documents: metadata of the scene's arrays by key below the scene.
        name: path of the array.
        objects: bytes by key below the scene.

    Raises:
        ValueError: there is no metadata of that array.
    """
    buffer = default_buffer_prototype().buffer.from_bytes
    members = {
        key: buffer(documents[f"{name}/{key}"]) for key in DOCUMENTS if f"{name}/{key}" in documents
    }
    if not members:
        raise ValueError(f"no metadata of the array {name}")
    members |= {
        key[len(name) + 1 :]: buffer(data) for key, data in objects.items() if array_of(key) == name
    }
    return zarr.open_array(MemoryStore(members), mode="r")


def decoded(array: zarr.Array[Any], key: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """One object's content, chunk by chunk, so that only one is decoded at a time.

    Yields:
        The chunk's first index along the array's first axis, and its content.

    Raises:
        whatever a codec raises where the bytes are not what it wrote.
    """
    first = [int(part) for part in re.findall(r"\d+", key)][-array.ndim :]
    shard = array.shards or array.chunks
    spans = [
        range(index * side, min((index + 1) * side, size), step)
        for index, side, size, step in zip(first, shard, array.shape, array.chunks, strict=True)
    ]
    if not all(spans):
        raise ValueError("it lies outside the array")
    for corner in product(*spans):
        part = tuple(slice(at, at + n) for at, n in zip(corner, array.chunks, strict=True))
        yield corner[0], np.asarray(array[part])


def grid_of(documents: Mapping[str, bytes]) -> tuple[int, int]:
    """Rows and columns of tiles, from the metadata of the values alone.

    Raises:
        ValueError: it cannot be read.
    """
    array = open_objects(documents, VARIABLE, {})
    sides = (array.shards or array.chunks)[-2:]
    rows, columns = (-(-n // side) for n, side in zip(array.shape[-2:], sides, strict=True))
    return rows, columns
