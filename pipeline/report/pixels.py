"""The pixels of one scene's page: images of some bands, and spectra of all, as scripts.

Bicubic enlargement is not stored: the pages compute it from LR by the same kernel
(`model.degradation.bicubic_enlargement`), which is a part of the scene's facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.banded import Banded, where_known
from model.degradation import bicubic, bicubic_enlargement
from pipeline.arrays import VARIABLE
from pipeline.enlarging import REACH, enlarge
from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.nodata import fill_gaps
from pipeline.report.extent import Extent
from pipeline.report.origin import Origin
from pipeline.report.packing import NODATA, Codes, Lattice, Quantiser, pack, script
from pipeline.spread import SPREAD
from pipeline.storage import describe, without_secrets
from pipeline.values import Values

_ROWS = 16  # of the blocks of an operator

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Low:
    """LR values of the shown window.

    Attributes:
        values: `(bands, rows, columns)`, NaN in gaps.
        padded: the same without gaps, with `REACH` pixels around, mirrored where the scene ends.
    """

    values: Values
    padded: Values

    @classmethod
    def of(cls, scene: xr.DataArray, window: Window) -> Low:
        """Read of the whole LR scene what the window needs."""
        shape = (scene.sizes["y"], scene.sizes["x"])
        outer = window.grown(REACH, shape)
        values = _read(scene, outer)
        filled = fill_gaps(values, _means(values)) if np.isnan(values).any() else values
        missing = (
            (REACH - window.top + outer.top, REACH - outer.bottom + window.bottom),
            (REACH - window.left + outer.left, REACH - outer.right + window.right),
        )
        inside = window.within(outer).slices
        padded = np.pad(filled, ((0, 0), *missing), mode="symmetric")
        return cls(values[:, *inside], padded)


@dataclass(frozen=True)
class Pixels:
    """What a page shows of a scene, in memory.

    Attributes:
        high: codes of the result, `(bands, scale * rows, scale * columns)`.
        low: LR values; None where the source cannot be shown.
        quantisers: by band, for result and LR alike.
        extent: of the page.
        scale: HR pixels along an LR pixel.
        size: rows and columns of the whole LR scene.
        spread: how far the results of all turns spread, of the part that has spectra, and the size
            of one code; None where the result holds no such array.
    """

    high: Codes
    low: Low | None
    quantisers: tuple[Quantiser, ...]
    extent: Extent
    scale: int
    size: tuple[int, int]
    spread: tuple[Codes, float] | None = None

    @classmethod
    def read(cls, result: xr.Dataset, low: Low | None, extent: Extent, scale: int) -> Pixels:
        """Read the shown window of a result."""
        values = _read(result[VARIABLE], extent.images.scaled(scale))
        lattice = _lattice(result[VARIABLE])
        codes, quantisers = np.empty(values.shape, np.uint16), []
        for band, plane in enumerate(values):
            beside = [] if low is None else [low.padded[band]]
            quantisers.append(Quantiser.of(plane, *beside, lattice=lattice))
            codes[band] = quantisers[-1].codes(plane)
        size = (result.sizes["y"] // scale, result.sizes["x"] // scale)
        spread = _spread(result, extent.spectra.scaled(scale))
        return cls(codes, low, tuple(quantisers), extent, scale, size, spread)

    def facts(self) -> dict[str, Any]:
        """What the pages need to make values of the codes."""
        window, spectra = self.extent.images, self.extent.spectra.within(self.extent.images)
        return {
            "scale": self.scale,
            "size": list(self.size),
            "window": [window.top, window.bottom, window.left, window.right],
            "spectra": [spectra.top, spectra.bottom, spectra.left, spectra.right],
            "block": self.extent.block,
            "bands": list(self.extent.bands),
            "composite": list(self.extent.composite),
            "offset": [each.offset for each in self.quantisers],
            "step": [each.step for each in self.quantisers],
            "exact": all(each.exact for each in self.quantisers),
            "kernel": list(bicubic_enlargement(self.scale).weights),
            "reach": REACH,
            "has_low": self.low is not None,
            "spread_step": None if self.spread is None else self.spread[1],
        }

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Name and script of every band that has an image."""
        for band in self.extent.bands:
            payload: dict[str, Any] = {"high": pack(self.high[band])}
            if self.low is not None:
                payload |= self._low_image(self.low, band)
            yield f"bands/{band}.js", script(f"bands/{band}", payload)

    def _low_image(self, low: Low, band: int) -> dict[str, Any]:
        errors = [_error(self, low, band, plane) for plane in self._both(low, band)]
        quantiser = Quantiser.of(*errors)
        return {
            "low": pack(self.quantisers[band].codes(low.padded[band])),
            "gaps": pack(np.isnan(low.values[band]).astype(np.uint16)),
            "error": {
                "high": pack(quantiser.codes(errors[0])),
                "bicubic": pack(quantiser.codes(errors[1])),
                "offset": quantiser.offset,
                "step": quantiser.step,
                "rms": [_rms(error) for error in errors],
            },
        }

    def _both(self, low: Low, band: int) -> tuple[Plane, Plane]:
        """Result and bicubic enlargement of a band, in the scene's units."""
        quantiser = self.quantisers[band]
        codes = self.high[band]
        high = np.where(codes == NODATA, np.nan, quantiser.offset + quantiser.step * codes)
        rows, columns = low.values.shape[1:]
        core = Window(REACH, REACH + rows, REACH, REACH + columns)
        plain = enlarge(low.padded[[band]], core, self.scale, torch.device("cpu"))[0]
        return high, np.where(np.isnan(high), np.nan, plain.astype(np.float64))

    def spectra(self) -> Iterator[tuple[str, bytes]]:
        """Name and script of every block of spectra."""
        part, block = self.extent.spectra.within(self.extent.images), self.extent.block
        for row, top in enumerate(range(part.top, part.bottom, block)):
            for column, left in enumerate(range(part.left, part.right, block)):
                window = Window(
                    top, min(top + block, part.bottom), left, min(left + block, part.right)
                )
                name = f"spectra/{row}.{column}"
                yield f"{name}.js", script(name, self._block(window))

    def _block(self, window: Window) -> dict[str, Any]:
        payload: dict[str, Any] = {"high": pack(self.high[:, *window.scaled(self.scale).slices])}
        if self.spread is not None:
            inside = window.within(self.extent.spectra.within(self.extent.images))
            payload["spread"] = pack(self.spread[0][:, *inside.scaled(self.scale).slices])
        if self.low is None:
            return payload
        around = Window(
            window.top, window.bottom + 2 * REACH, window.left, window.right + 2 * REACH
        )
        padded, values = self.low.padded[:, *around.slices], self.low.values[:, *window.slices]
        codes = [each.codes(plane) for each, plane in zip(self.quantisers, padded, strict=True)]
        payload["low"] = pack(np.stack(codes))
        payload["gaps"] = pack(np.isnan(values).astype(np.uint16))
        return payload


def read_low(origin: Origin, extent: Extent) -> tuple[Low | None, str]:
    """LR values of the shown window, or none and why."""
    if origin.values is None:
        return None, origin.reason
    try:
        return Low.of(origin.values, extent.images), ""
    except SceneError as error:
        return None, without_secrets(str(error))
    except Exception as error:  # whatever a store or a library raises, it cannot be shown
        return None, describe(error)


def _spread(result: xr.Dataset, window: Window) -> tuple[Codes, float] | None:
    if SPREAD not in result:
        return None
    values = _read(result[SPREAD], window)
    quantiser = Quantiser.of(values, np.zeros(1))
    return quantiser.codes(values), quantiser.step


def _error(pixels: Pixels, low: Low, band: int, high: Plane) -> Plane:
    """Degraded result minus LR; NaN where that reads a gap or beyond the window."""
    window = pixels.extent.images
    down, rows = _degrading(pixels.scale, window.top, window.bottom, pixels.size[0])
    right, columns = _degrading(pixels.scale, window.left, window.right, pixels.size[1])
    degraded, unknown = where_known(down, right, torch.from_numpy(high[None].copy()))
    error: Plane = degraded[0].numpy() - low.values[band]
    error[~np.logical_and.outer(rows, columns)] = np.nan
    if unknown is not None:
        error[unknown[0].numpy()] = np.nan
    return error


def _degrading(scale: int, first: int, last: int, size: int) -> tuple[Banded, NDArray[np.bool_]]:
    """The operator along one axis, and which LR pixels of the window it makes whole."""
    matrix, inside = bicubic(scale).matrix(last - first, first == 0, last == size)
    return Banded.of(matrix, _ROWS, torch.float64, torch.device("cpu")), inside


def _rms(error: Plane) -> float | None:
    known = error[np.isfinite(error)]
    return float(f"{np.sqrt(np.mean(np.square(known))):.6g}") if known.size else None


def _read(array: xr.DataArray, window: Window) -> Values:
    rows, columns = window.slices
    lazy = array.isel(y=rows, x=columns).transpose("band", "y", "x").astype(np.float32)
    return np.asarray(lazy.values)


def _means(values: Values) -> Values:
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis=(1, 2), dtype=np.float64)
    means: Values = (total / np.maximum(counted.sum(axis=(1, 2)), 1)).astype(np.float32)
    return means


def _lattice(array: xr.DataArray) -> Lattice | None:
    """Scale and offset of a store of integers of 16 bits or fewer."""
    dtype = np.dtype(array.encoding.get("dtype", array.dtype))
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return None
    scale = float(array.encoding.get("scale_factor", 1.0))
    offset = float(array.encoding.get("add_offset", 0.0))
    return (scale, offset) if np.isfinite([scale, offset]).all() and scale != 0 else None
