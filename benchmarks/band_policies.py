"""What `--bands match` and `--bands resample` give where a scene sees more than the model.

    python benchmarks/band_policies.py SCENE[=WAVELENGTHS.txt] ... [--model CKPT]

Each scene is taken as the truth and degraded by the model's scale with bicubic antialiasing (Wald's
protocol). Compared on the model's bands alone, made of the truth by each policy: bicubic; windows
over all bands, and the same bands made of their result; the network on these bands, by each rule of
normalisation. A text file gives wavelengths in nm, one per band, to a scene that states none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from model import Card, inference, load_checkpoint
from model.degradation import downsample, upsample
from model.inference import Engine
from model.metrics import assess
from pipeline import SceneError, open_scene
from pipeline.calibration import calibrate
from pipeline.evaluation.degraded import replaced
from pipeline.evaluation.trial import super_resolve_core
from pipeline.grid import Window
from pipeline.nodata import fill_gaps
from pipeline.resolving import scene_engines
from pipeline.settings import Bands, Normalise
from pipeline.spectral import plan_bands
from pipeline.spectral.resampling import resample
from pipeline.values import Values, read_window

RULES: tuple[Normalise, ...] = ("reflectance", "scene", "bands")


def opened(argument: str) -> xr.Dataset:
    uri, _, wavelengths = argument.partition("=")
    scene = open_scene(uri)
    if wavelengths:
        numbers = Path(wavelengths).read_text().replace(",", " ").split()
        scene = scene.assign_coords(wavelength=("band", np.array(numbers, dtype=np.float64)))
    return scene


def truth(scene: xr.Dataset, scale: int) -> xr.Dataset:
    """The scene in whole LR pixels, its gaps filled, in memory."""
    rows, columns = (scene.sizes[axis] // scale * scale for axis in ("y", "x"))
    values = read_window(scene, Window(0, rows, 0, columns))
    good = scene["good_band"].values & np.isfinite(values).any(axis=(1, 2))
    background = np.where(good, np.nanmean(np.where(np.isfinite(values), values, 0), (1, 2)), 0)
    filled = fill_gaps(values, background.astype(np.float32))
    return replaced(scene.assign_coords(good_band=("band", good)), filled)


def super_resolved(
    scene: xr.Dataset, engine: Engine, card: Card, policy: Bands, normalise: Normalise
) -> Values:
    """All bands of a scene that is one tile, as the archive job runs it."""
    calibration = calibrate(scene, engine, card, policy=policy, normalise=normalise)
    whole = Window(0, scene.sizes["y"], 0, scene.sizes["x"])
    engines = scene_engines(engine, calibration)
    return super_resolve_core(scene, whole, engines, calibration)


def compare(scene: xr.Dataset, engine: Engine, card: Card, policy: Bands) -> None:
    """Print a row per method."""
    scale = engine.config.scale
    high = truth(scene, scale)
    low = downsample(torch.from_numpy(high["reflectance"].values), scale).numpy()
    degraded = replaced(high, low)

    def own(of: xr.Dataset) -> xr.Dataset:
        return resample(of, card) if policy == "resample" else of

    plan = plan_bands(own(high), card, own(high)["good_band"].values.tolist(), policy)
    bands = list(plan.used)
    reference = own(high)["reflectance"].values[bands]
    full = np.percentile(reference, 99.9)
    seen = own(degraded)["reflectance"].values[bands]
    methods = {"bicubic": upsample(torch.from_numpy(seen), scale).numpy()}
    windows = super_resolved(degraded, engine, card, "windows", "auto")
    windows[np.isnan(windows)] = 0  # bad bands; none of them takes part
    whole = replaced(high, windows)
    methods["windows"] = own(whole)["reflectance"].values[bands]
    for rule in RULES:
        made = super_resolved(own(degraded), engine, card, policy, rule)
        methods[f"{policy}, {rule}"] = made[bands]
    for name, estimate in methods.items():
        figures = assess(reference / full, estimate / full, scale)
        row = [str(scene.attrs["scene_id"]), str(len(bands)), name]
        row += [f"{figures[figure]:.4f}" for figure in ("psnr", "sam", "cc")]
        print(" | ".join(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()
    net, card = load_checkpoint(arguments.model)
    engine = inference.compile(net, precision="fp32")
    print("scene | bands | method | PSNR dB | SAM degrees | CC")
    print("--- | --- | --- | --- | --- | ---")
    policies: tuple[Bands, ...] = ("match", "resample")
    for argument in arguments.scenes:
        scene = opened(argument)
        for policy in policies:
            try:
                compare(scene, engine, card, policy)
            except SceneError as error:
                print(f"{scene.attrs['scene_id']} | | {policy} | {error} | |")


if __name__ == "__main__":
    main()
