"""How should a model run on a sensor with other bands? Bicubic against windows of bands.

    python benchmarks/band_windows.py SCENE [SCENE ...] [--model CKPT]

Each scene is taken as the truth, degraded by the model's scale with bicubic antialiasing (Wald's
protocol), super-resolved, and compared over its good bands. Windows overlap by the shares given.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import xarray as xr

from model import SSPSR, Card, attention, inference, load_checkpoint
from model.degradation import downsample, upsample
from model.metrics import assess
from pipeline import open_scene
from pipeline.calibration import Values, find_gain, read_window
from pipeline.grid import Window
from pipeline.nodata import fill_gaps
from pipeline.spectral import BandPlan, window_starts

OVERLAPS = (0.0, 0.25, 0.5, 0.75)


def truth(scene: xr.Dataset, card: Card) -> Values:
    """Good bands `(bands, rows, cols)` in the network's range, filled, cropped to the scale."""
    scale = card.architecture.scale
    rows, columns = (scene.sizes[axis] // scale * scale for axis in ("y", "x"))
    values = read_window(scene, Window(0, rows, 0, columns))
    values = values[scene["good_band"].values & np.isfinite(values).any(axis=(1, 2))]
    gain, _ = find_gain(scene, card, float(np.nanpercentile(values, 99.9)), "auto")
    return fill_gaps(values, np.nanmean(values, axis=(1, 2))) * np.float32(gain)


def by_windows(net: SSPSR, low: torch.Tensor, overlap: float) -> Values:
    """The network over windows of bands, blended as the archive job does."""
    bands, size = low.shape[1], net.config.bands
    starts = window_starts(bands, size, overlap)
    plan = BandPlan(
        "windows", tuple(range(bands)), tuple(tuple(range(s, s + size)) for s in starts)
    )
    rows, columns = (side * net.config.scale for side in low.shape[2:])
    total = np.zeros((bands, rows, columns), np.float32)
    for window, weights in zip(plan.windows, plan.blend_weights(bands), strict=True):
        x = low[:, list(window)]
        y = inference.compile(net, attention.calibrate(net, x))(x)[0].numpy()
        total[list(window)] += weights[list(window), None, None] * y
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()
    net, card = load_checkpoint(arguments.model)
    scale = net.config.scale
    print("scene | bands | method | PSNR dB | SAM degrees | CC | seconds")
    print("--- | --- | --- | --- | --- | --- | ---")
    for uri in arguments.scenes:
        scene = open_scene(uri)
        reference = truth(scene, card)
        low = downsample(torch.from_numpy(reference)[None], scale)
        estimates = {"bicubic": lambda low=low: upsample(low, scale)[0].numpy()}
        for overlap in OVERLAPS:
            estimates[f"windows, overlap {overlap:g}"] = lambda low=low, overlap=overlap: (
                by_windows(net, low, overlap)
            )
        for method, estimate in estimates.items():
            started = time.perf_counter()
            figures = assess(reference, estimate(), scale)
            row = [scene.attrs["scene_id"], str(len(reference)), method]
            row += [f"{figures[name]:.4f}" for name in ("psnr", "sam", "cc")]
            print(
                " | ".join([*row, f"{time.perf_counter() - started:.1f}"]),
                flush=True,
            )


if __name__ == "__main__":
    main()
