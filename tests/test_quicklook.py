"""Quicklooks: natural colours where there are such bands, transparent where nothing is."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from pipeline.grid import TileGrid
from pipeline.overviews import overview_factors, overview_name
from pipeline.quicklook import composite_bands, draw_quicklook


def test_natural_colours_from_good_bands_only() -> None:
    wavelengths = np.linspace(400, 1000, 61)
    good = np.ones(61, bool)
    assert composite_bands(wavelengths, good) == (25, 15, 6)
    good[25] = False
    assert composite_bands(wavelengths, good)[0] in (24, 26)


def test_without_visible_bands_the_spectrum_is_spread() -> None:
    good = np.ones(50, bool)
    infrared = composite_bands(np.linspace(1000, 2400, 50), good)
    assert infrared == composite_bands(None, good) == (39, 24, 9)
    assert composite_bands(None, np.arange(50) == 7) == (7, 7, 7)
    with pytest.raises(ValueError, match="no good band"):
        composite_bands(None, np.zeros(50, bool))


@pytest.mark.parametrize(("rows", "level"), [(60, 1), (700, 2), (1400, 4)])
def test_drawn_from_the_level_that_fits(tmp_path: Path, rows: int, level: int) -> None:
    grid = TileGrid(rows // 4, 40, 16, 4)
    factors = [factor for factor in (1, *overview_factors(grid)) if factor <= 4]
    layout = [
        {"asset": "reflectance"},
        *({"asset": f"overviews/{f}/reflectance"} for f in factors[1:]),
    ]
    for factor in factors:
        height, width = -(-rows // factor), 160 // factor
        ramp = np.linspace(0.1, 0.9, height)[:, None] * np.ones(width)
        values = np.stack([ramp, ramp[::-1], np.full_like(ramp, 0.3)]).astype(np.float32)
        values[:, :10, :10] = np.nan
        xr.Dataset(
            {"reflectance": (("band", "y", "x"), values)},
            {"good_band": ("band", [True] * 3), "wavelength": ("band", [650.0, 550.0, 450.0])},
            {"multiscales": {"layout": layout}} if factor == 1 else {},
        ).to_zarr(
            tmp_path / "s.zarr",
            group=None if factor == 1 else overview_name(factor),
            mode="a",
            consolidated=False,
        )
    picture = Image.open(BytesIO(draw_quicklook(str(tmp_path / "s.zarr"))))
    assert (picture.format, picture.mode) == ("PNG", "RGBA")
    red, green, blue, alpha = np.asarray(picture).transpose(2, 0, 1)
    height = rows // level
    assert red.shape == (height, 160 // level)
    assert (alpha[:10, :10] == 0).all() and (alpha[10:] == 255).all()
    top, bottom = height // 5, height - height // 5
    assert red[top, 30] < 60 < 190 < red[bottom, 30]
    assert green[top, 30] > 190
    assert (blue == 128).all()
