"""Whatever the size, tile, scale and mask: every HR pixel is written once, none outside."""

from __future__ import annotations

import tempfile
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from model.consistency import ConsistencySums
from pipeline.arrays import OutputScene, scene_template
from pipeline.encoding import ValueEncoding
from pipeline.grid import TileGrid
from pipeline.overviews import overview_factors
from pipeline.product import output_levels
from pipeline.quality import TileQuality
from pipeline.refinement import ONE_PASS
from pipeline.store import SceneStore
from pipeline.tile import TileOutput, write_tile
from tests.test_tile import make_scene

FILL = -1
NOTHING = TileQuality(ConsistencySums.zeros(1), ConsistencySums.zeros(1))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 41), st.integers(1, 41)),
    tile=st.integers(8, 24),
    scale=st.sampled_from([2, 3, 4, 8]),
    masked=st.sampled_from([0.0, 0.2, 1.0]),
    layout=st.sampled_from(["sharded", "plain"]),
)
def test_every_pixel_once(
    size: tuple[int, int], tile: int, scale: int, masked: float, layout: Any
) -> None:
    random = np.random.default_rng(tile)
    low = random.integers(0, 1000, (2, *size)).astype(np.float32)
    low[:, random.random(size) < masked] = np.nan
    fine = low.repeat(scale, axis=1).repeat(scale, axis=2)
    grid = TileGrid(*size, tile, scale)
    encoding = ValueEncoding("int16", fill=FILL)
    bands = SimpleNamespace(valued=(0, 1), used=(0, 1), upsampled=())
    calibration: Any = SimpleNamespace(bands=bands)
    levels = output_levels(make_scene(low), grid, calibration, encoding, ONE_PASS)
    with tempfile.TemporaryDirectory() as folder:
        store = SceneStore(folder, "scene")
        template = scene_template(levels, layout, encoding.to_xarray())
        store.prepare(template, b"", {"fingerprint": "", "tiles": len(grid)})
        output = OutputScene(store.url)
        context: Any = SimpleNamespace(
            grid=grid, encoding=encoding, overviews=overview_factors(grid)
        )
        for each in grid:
            core = grid.core(each)
            values = fine[:, *core.scaled(scale).slices]
            quality = np.isnan(low[0][core.slices]).astype(np.uint16)
            record = write_tile(context, output, each, TileOutput(values, quality, NOTHING))
            assert record.valid == np.isfinite(low[:, *core.slices]).sum()
            store.record(record)
        ledger = store.ledger()
        written = Counter(item.key for record in ledger.values() for item in record.objects)
        assert set(written.values()) == {1}  # an object belongs to one tile
        assert set(written) == set(store.objects())  # and there is no other
        store.publish({}, ledger)
        opened = xr.open_zarr(store.url)
        assert np.array_equal(opened["reflectance"].values, fine, equal_nan=True)
        assert np.array_equal(opened["quality"].values, np.isnan(fine[0]))
