"""What super-resolution changed: figures against bicubic, and a picture of before and after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files; needs no display
import numpy as np
import torch
import xarray as xr
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from model.degradation import downsample, upsample
from model.metrics import psnr, rmse, spectral_angle
from pipeline.readers import open_scene

Cube = NDArray[np.float32]
Mask = NDArray[np.bool_]

LARGEST = 128  # LR pixels of a side that are read; the middle of a larger scene stands for it
RGB = (650.0, 550.0, 450.0)
RGB_TOLERANCE = 25.0  # nm
KERNEL = 5  # LR pixels that one bicubic value depends on, along a side
COLOURS = ("tab:red", "tab:green", "tab:blue")


@dataclass(frozen=True)
class Comparison:
    """One scene before and after, `[band, row, column]`; NaN is nodata.

    `truth` is there for simulated scenes only; `wavelength` where the scene knows it.
    """

    scene_id: str
    scale: int
    low: Cube
    bicubic: Cube
    high: Cube
    good: Mask
    wavelength: NDArray[np.float64] | None
    truth: Cube | None
    part: bool

    @property
    def valid(self) -> Mask:
        """LR pixels whose bicubic neighbourhood lies in valid data."""
        finite = np.isfinite(self.low[self.good]).all(axis=0)
        holes = ~np.isfinite(self.high[self.good]).all(axis=0)
        rows, columns = finite.shape
        blocks = holes.reshape(rows, self.scale, columns, self.scale).any(axis=(1, 3))
        return np.asarray(
            binary_erosion(finite & ~blocks, np.ones((KERNEL, KERNEL)), border_value=1)
        )


@dataclass(frozen=True)
class Figure:
    """One figure of merit for the super-resolved scene and for bicubic."""

    name: str
    high: float
    bicubic: float
    higher_is_better: bool = False

    @property
    def better(self) -> str:
        if np.isclose(self.high, self.bicubic, rtol=1e-4):
            return "equal"
        won = (self.high > self.bicubic) == self.higher_is_better
        return "super-resolved" if won else "bicubic"


def compare(scene_id: str, source: str, output: str, truth: Path | None = None) -> Comparison:
    """Read a scene and its super-resolved store, both by address; at most the middle 128x128."""
    before, after = open_scene(source), xr.open_zarr(output)
    scale = after.sizes["y"] // before.sizes["y"]
    rows, columns = (_middle(before.sizes[name]) for name in ("y", "x"))
    low = before["reflectance"].isel(y=rows, x=columns).values.astype(np.float32)
    fine = {"y": _scaled(rows, scale), "x": _scaled(columns, scale)}
    high = after["reflectance"].isel(fine).values.astype(np.float32)
    known = None if truth is None else np.load(truth)[:, fine["y"], fine["x"]]
    return Comparison(
        scene_id=scene_id,
        scale=scale,
        low=low,
        bicubic=_bicubic(low, scale),
        high=high,
        good=np.asarray(after["good_band"].values, dtype=bool),
        wavelength=after["wavelength"].values if "wavelength" in after.coords else None,
        truth=known,
        part=low.shape[1:] != (before.sizes["y"], before.sizes["x"]),
    )


def _middle(size: int) -> slice:
    kept = min(size, LARGEST)
    start = (size - kept) // 2
    return slice(start, start + kept)


def _scaled(piece: slice, scale: int) -> slice:
    return slice(piece.start * scale, piece.stop * scale)


def _filled(cube: Cube) -> torch.Tensor:
    """Nodata replaced by its band's mean, so that resampling does not spread NaN."""
    finite = np.isfinite(cube)
    totals = np.where(finite, cube, 0.0).sum(axis=(1, 2), keepdims=True)
    means = totals / np.maximum(finite.sum(axis=(1, 2), keepdims=True), 1)
    return torch.from_numpy(np.where(finite, cube, means).astype(np.float32))


def _bicubic(low: Cube, scale: int) -> Cube:
    enlarged = upsample(_filled(low), scale).numpy()
    holes = ~np.isfinite(low).repeat(scale, axis=1).repeat(scale, axis=2)
    enlarged[holes] = np.nan
    return np.asarray(enlarged, dtype=np.float32)


def figures(scene: Comparison) -> list[Figure]:
    """Against the truth where there is one; and how well the scene explains its source.

    The consistency is the RMSE between the source and the result degraded to LR again.
    """
    valid = scene.valid
    if not valid.any() or not scene.good.any():
        return []
    rows: list[Figure] = []
    if scene.truth is not None:
        fine = valid.repeat(scene.scale, axis=0).repeat(scene.scale, axis=1)
        truth, high, bicubic = (
            _pixels(cube, scene.good, fine) for cube in (scene.truth, scene.high, scene.bicubic)
        )
        rows.append(Figure("PSNR, dB", psnr(truth, high), psnr(truth, bicubic), True))
        rows.append(Figure("SAM, degrees", spectral_angle(truth, high),
                           spectral_angle(truth, bicubic)))  # fmt: skip
    low = _pixels(scene.low, scene.good, valid)
    high, bicubic = (
        _pixels(downsample(_filled(cube), scene.scale).numpy(), scene.good, valid)
        for cube in (scene.high, scene.bicubic)
    )
    rows.append(Figure("consistency RMSE", rmse(low, high), rmse(low, bicubic)))
    return rows


def _pixels(cube: Cube, good: Mask, valid: Mask) -> NDArray[np.float64]:
    """The valid pixels of the good bands as a cube of one column."""
    return cube[good][:, valid][:, :, None].astype(np.float64)


def composite_bands(wavelength: NDArray[np.float64] | None, good: Mask) -> tuple[list[int], str]:
    """Three bands for red, green and blue, and how to call them.

    The good bands nearest to 650, 550 and 450 nm, or three spread ones where the scene has no
    wavelengths or none near these.
    """
    usable = np.flatnonzero(good) if good.any() else np.arange(len(good))
    if wavelength is not None:
        chosen = [int(usable[np.abs(wavelength[usable] - target).argmin()]) for target in RGB]
        offset = max(abs(wavelength[b] - t) for b, t in zip(chosen, RGB, strict=True))
        if offset <= RGB_TOLERANCE:
            return chosen, "RGB " + ", ".join(f"{wavelength[b]:.0f}" for b in chosen) + " nm"
    chosen = [int(usable[int(len(usable) * share)]) for share in (5 / 6, 1 / 2, 1 / 6)]
    names = ", ".join(str(band + 1) for band in chosen)
    return chosen, f"false colour: bands {names}"


def draw(scenes: Sequence[Comparison], path: Path) -> None:
    """One row per scene: LR, bicubic and super-resolved in one stretch, and three spectra."""
    grid, axes = plt.subplots(
        len(scenes), 4, figsize=(22, 5.6 * len(scenes)), squeeze=False, layout="constrained"
    )
    for row, scene in zip(axes, scenes, strict=True):
        _draw_scene(row, scene)
    grid.savefig(path, dpi=100)
    plt.close(grid)


def _draw_scene(row: Any, scene: Comparison) -> None:
    bands, label = composite_bands(scene.wavelength, scene.good)
    limits = np.nanpercentile(scene.low[bands], (1, 99), axis=(1, 2))
    pixels = choose_pixels(scene)
    cubes = {"LR": scene.low, "bicubic": scene.bicubic, "super-resolved": scene.high}
    part = f", middle {LARGEST} px" if scene.part else ""
    for axis, (name, cube) in zip(row, cubes.items(), strict=False):
        axis.imshow(_stretched(cube[bands], limits), interpolation="nearest")
        axis.set_title(f"{name} {cube.shape[2]} x {cube.shape[1]}\n{label}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        factor = cube.shape[1] // scene.low.shape[1]
        for (r, c), colour in zip(pixels, COLOURS, strict=False):
            place = ((c + 0.5) * factor - 0.5, (r + 0.5) * factor - 0.5)
            axis.plot(*place, "o", ms=9, mfc="none", mec="white", mew=2.5)
            axis.plot(*place, "o", ms=9, mfc="none", mec=colour, mew=1.2)
    row[0].set_ylabel(scene.scene_id + part, fontsize=10)
    _draw_spectra(row[3], scene, pixels)


def _stretched(channels: Cube, limits: NDArray[Any]) -> Cube:
    low, high = (limit[:, None, None] for limit in limits)
    scaled = np.clip((channels - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    holes = ~np.isfinite(channels).all(axis=0)
    scaled[:, holes] = 0.85
    return np.asarray(scaled.transpose(1, 2, 0), dtype=np.float32)


def choose_pixels(scene: Comparison, count: int = 3) -> list[tuple[int, int]]:
    """LR pixels whose spectra differ most: each next one lies farthest from those before."""
    places = np.argwhere(scene.valid)
    if len(places) == 0:
        return []
    spectra = scene.low[scene.good][:, places[:, 0], places[:, 1]].T
    light = np.linalg.norm(spectra, axis=1)
    shapes = spectra / np.maximum(light, 1e-6)[:, None]
    usual = (light >= np.percentile(light, 5)) & (light <= np.percentile(light, 99))
    chosen = [int(np.argsort(light)[len(light) // 2])]
    while len(chosen) < min(count, len(places)):
        distance = np.min([np.linalg.norm(shapes - shapes[i], axis=1) for i in chosen], axis=0)
        chosen.append(int(np.where(usual, distance, -1.0).argmax()))
    return [(int(places[i, 0]), int(places[i, 1])) for i in chosen]


def _pieces(along: NDArray[Any]) -> list[slice]:
    """Where a line through the bands must break: at a gap, and where a second detector begins."""
    steps = np.diff(along)
    usual = np.median(np.abs(steps)) if len(steps) else 0.0
    breaks = np.flatnonzero((steps <= 0) | (steps > 4 * usual)) + 1
    edges = [0, *(int(place) for place in breaks), len(along)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _draw_spectra(axis: Any, scene: Comparison, pixels: Sequence[tuple[int, int]]) -> None:
    numbers = np.arange(1, len(scene.good) + 1)
    along = numbers if scene.wavelength is None else scene.wavelength
    half = scene.scale // 2
    for index, ((r, c), colour) in enumerate(zip(pixels, COLOURS, strict=False)):
        fine = (r * scene.scale + half, c * scene.scale + half)
        lines = [("LR", scene.low, (r, c), "-"), ("super-resolved", scene.high, fine, "--")]
        if scene.truth is not None:
            lines.append(("truth", scene.truth, fine, ":"))
        for name, cube, (row, column), style in lines:
            values = np.where(scene.good, cube[:, row, column], np.nan)  # a gap at a bad band
            for number, piece in enumerate(_pieces(along)):
                label = name if index == number == 0 else None
                axis.plot(along[piece], values[piece], style, color=colour, lw=1.3, label=label)
    axis.set_xlabel("band" if scene.wavelength is None else "wavelength, nm")
    axis.set_ylabel("reflectance")
    axis.set_title(f"three LR pixels and the HR pixel\nat the centre of each, {scene.scene_id}",
                   fontsize=10)  # fmt: skip
    if pixels:
        axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
