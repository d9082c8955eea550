"""How should a model run on a sensor with other bands? Bicubic against windows of bands.

    python benchmarks/band_windows.py SCENE [SCENE ...] [--model CKPT]

Each scene is taken as the truth, degraded by the model's scale with bicubic antialiasing (Wald's
protocol), super-resolved, and compared over its good bands. Windows overlap by the shares
given and, where wavelengths are known, are also cut at gaps in the spectrum.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

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
from pipeline.spectral import BandPlan, BandWindow, band_windows

OVERLAPS = (0.0, 0.25, 0.5, 0.75)


def truth(scene: xr.Dataset, card: Card) -> tuple[Values, Values | None]:
    """Good bands `(bands, rows, cols)` in the network's range, filled, and their wavelengths."""
    scale = card.architecture.scale
    rows, columns = (scene.sizes[axis] // scale * scale for axis in ("y", "x"))
    values = read_window(scene, Window(0, rows, 0, columns))
    good = scene["good_band"].values & np.isfinite(values).any(axis=(1, 2))
    values = values[good]
    gain, _ = find_gain(scene, card, float(np.nanpercentile(values, 99.9)), "auto")
    filled = fill_gaps(values, np.nanmean(values, axis=(1, 2))) * np.float32(gain)
    return filled, scene["wavelength"].values[good] if "wavelength" in scene.coords else None


def by_windows(net: SSPSR, low: torch.Tensor, windows: tuple[BandWindow, ...]) -> Values:
    """The network over windows of bands, blended as the archive job does."""
    bands = low.shape[1]
    plan = BandPlan("windows", tuple(range(bands)), windows)
    rows, columns = (side * net.config.scale for side in low.shape[2:])
    total = np.zeros((bands, rows, columns), np.float32)
    for window, weights in zip(plan.windows, plan.blend_weights(bands), strict=True):
        x, kept = low[:, list(window.bands)], list(window.kept)
        y = inference.compile(net, attention.calibrate(net, x))(x)[0].numpy()
        total[kept] += weights[kept, None, None] * y[window.start : window.stop]
    return total


def methods(
    net: SSPSR, low: torch.Tensor, wavelengths: Values | None
) -> dict[str, Callable[[], Values]]:
    """What is compared, by name."""
    bands, size = low.shape[1], net.config.bands

    def windows(cut: bool, overlap: float) -> Callable[[], Values]:
        # Evenly spaced wavelengths know no gaps.
        axis = wavelengths if cut else np.arange(bands, dtype=np.float64)
        return lambda: by_windows(net, low, band_windows(range(bands), axis, size, overlap))

    named = {"bicubic": lambda: upsample(low, net.config.scale)[0].numpy()}
    named |= {f"windows, overlap {overlap:g}": windows(False, overlap) for overlap in OVERLAPS}
    if wavelengths is not None:
        name = "windows cut at gaps, overlap"
        named |= {f"{name} {overlap:g}": windows(True, overlap) for overlap in OVERLAPS}
    return named


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
        reference, wavelengths = truth(scene, card)
        low = downsample(torch.from_numpy(reference)[None], scale)
        for method, estimate in methods(net, low, wavelengths).items():
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
