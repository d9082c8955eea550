"""Cubes for `benchmarks.train_shipped` of remote-sensing scenes.

    python -m benchmarks.remote_cubes OUT SCENE [SCENE ...] [--columns 64]

Of every scene its good bands, one file per stretch without a gap in the spectrum where wavelengths
are known, each band with its 98th percentile at 0.5, as uint16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.band_windows import truth
from benchmarks.train_shipped import BANDS, SCALE, levelled
from pipeline import open_scene
from pipeline.spectral.windows import stretches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--columns", type=int, help="of each scene only the first")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for uri in given.scenes:
        scene = open_scene(uri).isel(x=slice(given.columns))
        values, axis = truth(scene, SCALE)
        axis = np.arange(len(values), dtype=np.float64) if axis is None else axis
        parts = [part for part in stretches(range(len(axis)), axis) if len(part) >= BANDS]
        for number, bands in enumerate(parts):
            cube = levelled(values[list(bands)]) * 65535
            path = given.out / f"{scene.attrs['scene_id']}-{number}.npz"
            np.savez_compressed(path, cube=cube.round().astype(np.uint16).transpose(1, 2, 0))
            print(path.name, len(bands), "bands,", values.shape[1:], flush=True)


if __name__ == "__main__":
    main()
