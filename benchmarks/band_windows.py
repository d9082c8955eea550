"""How should a model run on a sensor with other bands? Bicubic against windows of bands.

    python benchmarks/band_windows.py SCENE [SCENE ...] [--model CKPT]

Each scene is taken as the truth, degraded by the model's scale with bicubic antialiasing (Wald's
protocol), super-resolved, and compared over its good bands. Compared are: one factor for all bands
or one per band to reach [0, 1]; windows that stop at gaps in the spectrum (where wavelengths are
known) or reach across them; and how far windows overlap.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model import SSPSR, Card, attention, inference, load_checkpoint
from model.degradation import downsample, upsample
from model.metrics import assess
from pipeline import open_scene
from pipeline.calibration import Calibration
from pipeline.grid import Window
from pipeline.nodata import fill_gaps
from pipeline.normalisation import find_gains, measure_levels
from pipeline.resolving import scene_engines, super_resolve
from pipeline.settings import Normalise
from pipeline.spectral import OVERLAP, BandPlan, BandWindow, band_windows
from pipeline.values import Values, read_window

Axis = NDArray[np.float64]

OVERLAPS = (0.0, 0.25, 0.75, 0.5)


def truth(scene: xr.Dataset, scale: int) -> tuple[Values, Axis | None]:
    """Good bands `(bands, rows, cols)` over their 99.9th percentile, filled; their wavelengths."""
    rows, columns = (scene.sizes[axis] // scale * scale for axis in ("y", "x"))
    values = read_window(scene, Window(0, rows, 0, columns))
    good = scene["good_band"].values & np.isfinite(values).any(axis=(1, 2))
    values = values[good]
    filled = fill_gaps(values, np.nanmean(values, axis=(1, 2)))
    filled /= np.float32(np.nanpercentile(values, 99.9))
    return filled, scene["wavelength"].values[good] if "wavelength" in scene.coords else None


def without_attention(
    low: Values, card: Card, windows: tuple[BandWindow, ...], normalise: Normalise
) -> Calibration:
    """Bands and gains of a scene, as the archive job finds them on the whole scene."""
    bands = len(low)
    plan = BandPlan("windows", tuple(range(bands)), windows)
    levels = measure_levels([low], list(plan.used))
    gains, rule = find_gains({"dtype": "float32"}, card, levels, plan, normalise)
    return Calibration(plan, gains, rule, np.zeros(bands, np.float32), (), low[0].size)


def by_windows(
    net: SSPSR, card: Card, low: Values, windows: tuple[BandWindow, ...], normalise: Normalise
) -> Values:
    """The network over windows of bands, as the archive job runs it on a scene of one tile."""
    calibration = without_attention(low, card, windows, normalise)
    x = torch.from_numpy(low * calibration.gains[:, None, None])[None]
    statistics = tuple(attention.calibrate(net, x[:, list(w.bands)]) for w in windows)
    calibration = replace(calibration, statistics=statistics)
    whole = Window(0, low.shape[1], 0, low.shape[2])
    return super_resolve(
        low,
        whole,
        scene_engines(inference.compile(net, precision="fp32"), calibration),
        calibration,
    ).values


def methods(
    net: SSPSR, card: Card, low: Values, wavelengths: Axis | None
) -> dict[str, Callable[[], Values]]:
    """What is compared, by name; the last is the archive job's default."""
    bands, size = len(low), net.config.bands
    numbers = np.arange(bands, dtype=np.float64)  # evenly spaced: no gaps

    def windows(axis: Axis, overlap: float, normalise: Normalise) -> Callable[[], Values]:
        chosen = band_windows(range(bands), axis, size, overlap)
        return lambda: by_windows(net, card, low, chosen, normalise)

    axis = numbers if wavelengths is None else wavelengths
    named = {"bicubic": lambda: upsample(torch.from_numpy(low), net.config.scale).numpy()}
    named["one factor, across gaps"] = windows(numbers, OVERLAP, "reflectance")
    named["one factor"] = windows(axis, OVERLAP, "reflectance")
    for overlap in OVERLAPS:
        named[f"factor per band, overlap {overlap:g}"] = windows(axis, overlap, "bands")
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
        reference, wavelengths = truth(scene, scale)
        low = downsample(torch.from_numpy(reference), scale).numpy()
        for method, estimate in methods(net, card, low, wavelengths).items():
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
