"""Published ways to evaluate, so that a figure can stand beside a printed one.

The figures are those of Jiang et al. 2020, Learning Spatial-Spectral Prior for Super-Resolution of
Hyperspectral Imagery (arXiv 2005.08752); LR images by MATLAB's bicubic imresize. Where the crops
come from is said at each protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pipeline.catalog import list_scenes
from pipeline.errors import SceneError, UsageError
from pipeline.evaluation.cave import cave_folders, open_cave
from pipeline.evaluation.regions import Region
from pipeline.evaluation.result import METRICS, Figures
from pipeline.grid import Window
from pipeline.readers import open_scene
from pipeline.readers.boundary import boundary
from pipeline.settings import Protocol
from pipeline.values import read_window

_CHIKUSEI = (2517, 2335)
_CHIKUSEI_CROP = Window(106, 2410, 143, 2191)
_CHIKUSEI_SIDE = 512
_PAVIA_COLUMNS = (715, 1096)  # as cropped, and as distributed with the empty stripe
_PAVIA_SIDE = 224
_ROWS_READ = 64  # of a large scene at a time


@dataclass(frozen=True)
class Row:
    """A printed row."""

    method: str
    figures: Figures


@dataclass(frozen=True)
class Published:
    """Printed rows of one data set and scale, and in one line how that protocol differs."""

    rows: tuple[Row, ...]
    difference: str


@dataclass(frozen=True)
class Task:
    """What a protocol makes of a source.

    Attributes:
        regions: the truths.
        opened: opens one by its address.
        peak: physical value that counts as 1; None: each truth's 99.9th percentile.
        rejected: scenes that cannot be read, and why.
    """

    regions: tuple[Region, ...]
    opened: Callable[[str], xr.Dataset]
    peak: float | None
    rejected: dict[str, str]


def prepare(
    protocol: Protocol, source: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Task:
    """The regions of a source by a protocol.

    Args:
        protocol: `wald`: every scene, whole; the others as published.
        source: a folder, prefix, scene or STAC catalogue.
        include, exclude: globs of scene ids.

    Raises:
        UsageError: the source holds nothing that the protocol can use.
    """
    if protocol == "cave":
        return _cave(source, include, exclude)
    catalogue = list_scenes(source, include, exclude)
    rejected = {scene_id: str(error) for scene_id, _, error in catalogue.rejected}
    if protocol == "wald":
        if rejected and not catalogue.scenes:
            first = next(iter(rejected.items()))
            raise UsageError("none of {} scenes can be read; {}: {}".format(len(rejected), *first))
        regions = tuple(Region(scene.uri, scene.scene_id) for scene in catalogue.scenes)
        return Task(regions, open_scene, None, rejected)
    if len(catalogue.scenes) != 1:
        raise UsageError(
            f"--protocol {protocol}: the source is the one published image, and here are "
            f"{len(catalogue.scenes)} scenes; name the file"
        )
    return _single(protocol, catalogue.scenes[0].uri)


def _cave(source: str, include: Sequence[str], exclude: Sequence[str]) -> Task:
    """Whole images, divided by 65535: `_ms` folders of PNG as distributed, or cubes."""
    found = cave_folders(source, include, exclude)
    rejected: dict[str, str] = {}
    if not found:
        catalogue = list_scenes(source, include, exclude)
        found = {scene.scene_id: scene.uri for scene in catalogue.scenes}
        rejected = {scene_id: str(error) for scene_id, _, error in catalogue.rejected}
    regions = tuple(Region(uri, name) for name, uri in found.items())
    return Task(regions, open_cave, 1.0, rejected)


def _single(protocol: Protocol, uri: str) -> Task:
    try:
        with boundary(uri, "cannot open the image"):
            scene = open_scene(uri)
            windows, whole = _crops(protocol, scene.sizes["y"], scene.sizes["x"])
            peak = _maximum(scene, whole)
    except SceneError as error:
        raise UsageError(f"--protocol {protocol}: {error.message}") from None
    regions = tuple(
        Region(uri, f"{protocol}-{number}", window) for number, window in enumerate(windows, 1)
    )
    return Task(regions, open_scene, peak, {})


def _crops(protocol: Protocol, rows: int, columns: int) -> tuple[list[Window], Window]:
    return (chikusei_crops if protocol == "chikusei" else pavia_crops)(rows, columns)


def chikusei_crops(rows: int, columns: int) -> tuple[list[Window], Window]:
    """Test images and the crop whose maximum they are divided by.

    After the published preparation (`mcodes/generate_Chikusei.m` of the authors' repository): of
    2517 x 2335 pixels rows 107 to 2410 and columns 144 to 2191, counted from 1, and of these the
    first 512 rows as four images of 512 x 512.

    Raises:
        UsageError: an image of another size.
    """
    if (rows, columns) != _CHIKUSEI:
        raise UsageError(
            f"--protocol chikusei: the published image has {_CHIKUSEI[0]} x {_CHIKUSEI[1]} pixels, "
            f"this one {rows} x {columns}"
        )
    top, left, side = _CHIKUSEI_CROP.top, _CHIKUSEI_CROP.left, _CHIKUSEI_SIDE
    starts = [left + side * index for index in range(4)]
    return [Window(top, top + side, start, start + side) for start in starts], _CHIKUSEI_CROP


def pavia_crops(rows: int, columns: int) -> tuple[list[Window], Window]:
    """Test images and the crop whose maximum they are divided by.

    The paper takes four images of 224 x 224 from the left part of the 1096 x 715 pixels of Pavia
    Centre; it does not say which rows. Here they lie one below the other from the first row on.

    Raises:
        UsageError: an image of another size, or with the stripe without data.
    """
    if rows != 1096 or columns not in _PAVIA_COLUMNS:
        raise UsageError(
            "--protocol pavia: the published image has 1096 x 715 pixels, "
            f"this one {rows} x {columns}"
        )
    if columns != _PAVIA_COLUMNS[0]:
        raise UsageError(
            "--protocol pavia: this is the image of 1096 columns with the stripe without data; "
            "take the one of 715 columns"
        )
    side = _PAVIA_SIDE
    return [Window(top, top + side, 0, side) for top in range(0, 4 * side, side)], Window(
        0, rows, 0, columns
    )


def _maximum(scene: xr.Dataset, window: Window) -> float:
    """The largest value of a part of a scene, a few rows at a time."""
    largest = -np.inf
    for top in range(window.top, window.bottom, _ROWS_READ):
        bottom = min(top + _ROWS_READ, window.bottom)
        values = read_window(scene, Window(top, bottom, window.left, window.right))
        if np.isfinite(values).any():
            largest = max(largest, float(np.nanmax(values)))
    if not largest > 0:
        raise SceneError("no-valid-pixels", "no positive value in the published crop")
    return largest


def published(protocol: str, scale: int) -> Published | None:
    """The printed rows for a protocol and scale; None where there are none."""
    rows = _ROWS.get((protocol, scale))
    if rows is None:
        return None
    found = tuple(Row(name, dict(zip(METRICS, figures, strict=True))) for name, figures in rows)
    return Published(found, f"Difference in protocol: {_DIFFERENCES[protocol]}.")


_Printed = tuple[tuple[str, tuple[float, ...]], ...]
# In the order of METRICS: CC, SAM, RMSE, ERGAS, PSNR, SSIM.
_ROWS: dict[tuple[str, int], _Printed] = {
    ("cave", 4): (
        ("bicubic", (0.9868, 4.1759, 0.0212, 5.2719, 34.7214, 0.9277)),
        ("SSPSR", (0.9939, 3.1846, 0.0138, 3.3384, 39.0892, 0.9553)),
    ),
    ("cave", 8): (
        ("bicubic", (0.9666, 5.8962, 0.0346, 4.2175, 30.2056, 0.8526)),
        ("SSPSR", (0.9805, 4.4874, 0.0257, 3.0419, 33.4340, 0.9010)),
    ),
    ("chikusei", 4): (
        ("bicubic", (0.9212, 3.4040, 0.0156, 6.7564, 37.6377, 0.8949)),
        ("SSPSR", (0.9565, 2.3527, 0.0114, 4.9894, 40.3612, 0.9413)),
    ),
    ("chikusei", 8): (
        ("bicubic", (0.8314, 5.0436, 0.0224, 4.8488, 34.5049, 0.8228)),
        ("SSPSR", (0.8766, 4.0127, 0.0191, 4.3120, 35.8368, 0.8624)),
    ),
    ("pavia", 4): (
        ("bicubic", (0.8594, 6.1399, 0.0437, 6.8814, 27.5874, 0.6961)),
        ("SSPSR", (0.9003, 5.4612, 0.0362, 5.8014, 29.1581, 0.7903)),
    ),
    ("pavia", 8): (
        ("bicubic", (0.6969, 7.8478, 0.0630, 4.8280, 24.5972, 0.4725)),
        ("SSPSR", (0.7359, 7.3312, 0.0586, 4.5266, 25.1985, 0.5365)),
    ),
}
_DIFFERENCES = {
    "cave": (
        "published rows are of the paper's own test scenes at 512 x 512 and of a network of 8 "
        "blocks with groups of 4; here: the scenes given, at their size, attention frozen per scene"
    ),
    "chikusei": "crops and peak as published; here attention is frozen per scene",
    "pavia": (
        "the paper does not say which rows its four images of 224 x 224 take; here from the first "
        "on, attention frozen per scene"
    ),
}
