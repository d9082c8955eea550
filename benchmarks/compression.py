"""The blocks in which Blosc compresses a scene's chunks: its own choice against the job's.

    python -m benchmarks.compression OUTPUT/SCENE.zarr [--chunks 4] [--runs 7]

Values as a run published them, one chunk at a time and in one thread, in turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from benchmarks.common import print_table, timed
from pipeline.arrays import COMPRESSORS, VARIABLE

OURS = COMPRESSORS[0].blocksize
SIZES = (0, 1 << 16, 1 << 18, OURS, 1 << 22)  # 0: Blosc's own choice


def some_chunks(scene: Path, most: int) -> list[np.ndarray]:
    """The first chunks of a scene, along its columns."""
    array = zarr.open_group(scene, mode="r")[VARIABLE]
    assert isinstance(array, zarr.Array)
    bands, height, width = array.chunks
    count = min(most, max(1, array.shape[2] // width))
    return [
        np.ascontiguousarray(array[:bands, :height, width * at : width * (at + 1)])
        for at in range(count)
    ]


def codec(block: int) -> Any:
    ours, shuffle = COMPRESSORS[0], numcodecs.Blosc.BITSHUFFLE
    return numcodecs.Blosc(ours.cname.value, ours.clevel, shuffle, block)


def each(work: Callable[[Any], object], parts: Sequence[object]) -> None:
    for part in parts:
        work(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    numcodecs.blosc.use_threads = False
    chunks = some_chunks(given.scene, given.chunks)
    codecs = {size: codec(size) for size in SIZES}
    packed = {size: [codecs[size].encode(chunk) for chunk in chunks] for size in SIZES}
    spent: dict[tuple[str, int], list[float]] = {}
    for _ in range(given.runs):
        for size in SIZES:
            for what, work, parts in (
                ("encode", codecs[size].encode, chunks),
                ("decode", codecs[size].decode, packed[size]),
            ):
                took = timed(partial(each, work, parts))
                spent.setdefault((what, size), []).append(took)
    median = {key: statistics.median(times) for key, times in spent.items()}
    megabytes = sum(chunk.nbytes for chunk in chunks) / 1e6
    stored = {size: sum(map(len, parts)) / 1e6 for size, parts in packed.items()}
    rows = [
        [
            f"{size >> 10} KiB" if size else "Blosc's own",
            megabytes / median["encode", size],
            median["encode", 0] / median["encode", size],
            megabytes / median["decode", size],
            median["decode", 0] / median["decode", size],
            stored[size] / megabytes,
            stored[size] / stored[0],
        ]
        for size in SIZES
    ]
    shape = " x ".join(map(str, chunks[0].shape))
    print_table(
        f"{len(chunks)} chunks of {shape} {chunks[0].dtype}, one thread, median of {given.runs}",
        ["blocks", "encode MB/s", "x", "decode MB/s", "x", "of the bytes", "of Blosc's own"],
        rows,
    )


if __name__ == "__main__":
    main()
