"""Pixels of training scenes as the network sees them, read block by block in bounded memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model import Card
from pipeline.calibration import Calibration, constants, network_input
from pipeline.errors import SceneError
from pipeline.finetune.archive import open_masked
from pipeline.finetune.job import Part, Pixels
from pipeline.grid import Window
from pipeline.spectral import band_windows
from pipeline.values import read_window

LEAST_VALID = 0.5  # share of valid values below which a patch is of little use
_OPEN_SCENES = 8
_BLOCK_PATCHES = 2  # patches along a block's side
_WINDOW_OVERLAP = 0.9  # of the spectral windows that patches are taken from

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """A part of a training area that is read at once; `window` is in the scene's own pixels."""

    part: Part
    window: Window


@dataclass(frozen=True)
class Content:
    """What a block holds.

    Attributes:
        values: `(bands, rows, cols)` as the network sees them, gaps filled.
        valid: the same shape, where there is a measured value; everywhere in bands not used.
        used: `(bands,)`, False where a band holds nothing but what is interpolated from others.
        bands: the bands of the scene at the network's inputs, one tuple per spectral window.
    """

    values: Values
    valid: Mask
    used: Mask
    bands: tuple[tuple[int, ...], ...]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.valid.nbytes

    def share(self, rows: slice = slice(None), columns: slice = slice(None)) -> float:
        """Of the pixels there, how many have a measured value in some band."""
        return float(self.valid[self.used][:, rows, columns].any(axis=0).mean())


def cut_blocks(parts: Sequence[Part], side: int) -> list[Block]:
    """Every area in blocks of a few patches, the last of a row moved back to end with the area.

    Args:
        parts: areas, each at least one patch large.
        side: HR pixels along a patch's side.
    """
    return [
        Block(part, Window(top, top + rows, left, left + columns))
        for part in parts
        for top, rows in _steps(part.window.top, part.window.bottom, side)
        for left, columns in _steps(part.window.left, part.window.right, side)
    ]


def block_bytes(bands: int, side: int) -> int:
    """Of the content of one block of a scene of so many bands."""
    return bands * (_BLOCK_PATCHES * side) ** 2 * (np.dtype(np.float32).itemsize + 1)


def _steps(start: int, stop: int, side: int) -> Iterator[tuple[int, int]]:
    """Starts and sizes of blocks along an axis."""
    length = stop - start
    size = min(length, _BLOCK_PATCHES * side)
    count = math.ceil(length / size)
    for place in range(count):
        yield start + min(place * size, length - size), size


class BlockReader:
    """Reads blocks; keeps a few scenes open, and what was read last up to a number of bytes.

    Safe for two threads: the one that trains and the one that reads ahead.
    """

    def __init__(self, card: Card, pixels: Pixels) -> None:
        self._card, self._pixels = card, pixels
        self._lock = threading.Lock()
        self._scenes: OrderedDict[Part, xr.Dataset] = OrderedDict()
        self._constants: dict[Part, Calibration] = {}
        self._kept: OrderedDict[Block, Content] = OrderedDict()
        self.bytes_kept = 0
        self.failures: dict[str, str] = {}

    def read(self, block: Block) -> Content | None:
        """The block, or None where its scene cannot be read, which `failures` then tells."""
        with self._lock:
            if block in self._kept:
                self._kept.move_to_end(block)
                return self._kept[block]
            try:
                content = self._load(block)
            except SceneError as error:
                self.failures[block.part.scene_id] = str(error)
                return None
            self._keep(block, content)
            return content

    def _load(self, block: Block) -> Content:
        scene, calibration = self._open(block.part)
        area = block.part.window
        values = read_window(scene, block.window.within(area))
        used = np.zeros(len(values), dtype=bool)
        used[list(calibration.bands.used)] = True
        valid = np.isfinite(values) | ~used[:, None, None]
        bands = self._bands(scene, calibration)
        return Content(network_input(values, calibration), valid, used, bands)

    def _open(self, part: Part) -> tuple[xr.Dataset, Calibration]:
        """The area as a scene of its own, whose constants know nothing of what lies outside."""
        if part not in self._scenes:
            rows, columns = part.window.slices
            whole = open_masked(part.uri, self._pixels.mask)
            self._scenes[part] = whole.isel(y=rows, x=columns)
            while len(self._scenes) > _OPEN_SCENES:
                self._scenes.popitem(last=False)
        self._scenes.move_to_end(part)
        scene = self._scenes[part]
        if part not in self._constants:
            self._constants[part], _ = constants(
                scene,
                self._card,
                policy="windows" if self._pixels.bands == "windows" else "auto",
                normalise=self._pixels.normalise,
            )
        return scene, self._constants[part]

    def _bands(self, scene: xr.Dataset, calibration: Calibration) -> tuple[tuple[int, ...], ...]:
        plan = calibration.bands
        if plan.kind != "windows":
            return tuple(window.bands for window in plan.windows)
        wavelengths = scene["wavelength"].values if "wavelength" in scene.coords else None
        size = self._card.architecture.bands
        dense = band_windows(plan.used, wavelengths, size, _WINDOW_OVERLAP)
        return tuple(window.bands for window in dense)

    def _keep(self, block: Block, content: Content) -> None:
        self._kept[block] = content
        self.bytes_kept += content.nbytes
        while self.bytes_kept > self._pixels.cache_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self.bytes_kept -= dropped.nbytes
