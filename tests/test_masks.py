"""Masked pixels become gaps; the output's quality tells what each pixel rests on."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import TileGrid, Window
from pipeline.masks import STATUS, mask_pixels, pixel_quality, quality_attributes, read_flags
from pipeline.readers.flags import FLAGS, flag_attributes
from tests.test_tile import make_scene, smooth


def flagged(rows: int = 40, columns: int = 44) -> tuple[xr.Dataset, np.ndarray]:
    flags = np.zeros((rows, columns), np.uint16)
    flags[3:9, 30:35] = FLAGS["cloud"]
    flags[5:, 17] |= FLAGS["defective"] | FLAGS["saturated"]
    scene = make_scene(smooth(5, rows, columns))
    lazy = da.from_array(flags, chunks=16)
    return scene.assign(quality_flags=(("y", "x"), lazy, flag_attributes())), flags


def test_masked_pixels_become_gaps_lazily() -> None:
    scene, flags = flagged()
    masked = mask_pixels(scene, ["cloud", "defective"])
    hidden = (flags & (FLAGS["cloud"] | FLAGS["defective"])) > 0
    assert masked["reflectance"].chunks == scene["reflectance"].chunks
    assert masked["reflectance"].encoding == scene["reflectance"].encoding
    expected = np.where(hidden, np.nan, scene["reflectance"].values)
    assert np.array_equal(masked["reflectance"].values, expected, equal_nan=True)
    part = masked["reflectance"][:, 2:21, 13:40].values
    assert np.array_equal(part, expected[:, 2:21, 13:40], equal_nan=True)
    assert "quality_flags" in masked


def test_without_layers_or_names_nothing_changes() -> None:
    scene, _ = flagged()
    assert mask_pixels(scene, []) is scene
    bare = scene.drop_vars("quality_flags")
    assert mask_pixels(bare, ["cloud"]) is bare
    assert read_flags(bare, Window(0, 4, 0, 4)) is None


def test_quality_names_every_bit() -> None:
    attributes = quality_attributes()
    names = attributes["flag_meanings"].split()
    masks = attributes["flag_masks"].tolist()
    assert len(names) == len(masks) == len(STATUS) + len(FLAGS)
    assert sum(masks) == 2 ** len(masks) - 1 <= np.iinfo(np.uint16).max


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.integers(8, 24),
    reach=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_quality_of_tiles_is_that_of_the_whole(
    size: tuple[int, int], tile: int, reach: int, seed: int
) -> None:
    """Against a plain statement of the rule, for any size, tile and mask."""
    random = np.random.default_rng(seed)
    values = np.where(random.random((3, *size)) < 0.03, np.nan, 1.0).astype(np.float32)
    values[:, random.random(size) < 0.02] = np.nan
    grid = TileGrid(*size, tile, 2)
    tiled = np.full(size, 9999, np.uint16)
    for each in grid:
        window, core = grid.window(each, reach), grid.core(each)
        part = values[:, *window.slices]
        assert (tiled[core.slices] == 9999).all()
        tiled[core.slices] = pixel_quality(part, [0, 1], core.within(window), reach, None)
    missing = np.isnan(values[:2])
    rows, columns = np.nonzero(missing.any(axis=0))
    for row in range(size[0]):
        for column in range(size[1]):
            here = missing[:, row, column]
            near = (np.abs(rows - row) <= reach) & (np.abs(columns - column) <= reach)
            expected = "filled" if here.all() else "partly_filled" if here.any() else "influenced"
            assert tiled[row, column] == (STATUS[expected] if near.any() else 0)


def test_flags_are_carried_beside_the_status() -> None:
    values = np.ones((2, 6, 6), np.float32)
    values[:, 0, 0] = np.nan
    flags = np.zeros((3, 3), np.uint16)
    flags[1, 2] = FLAGS["cloud"]
    quality = pixel_quality(values, [0, 1], Window(0, 3, 0, 3), 1, flags)
    meanings = quality_attributes()["flag_meanings"].split()
    masks = dict(zip(meanings, quality_attributes()["flag_masks"].tolist(), strict=True))
    assert quality.tolist() == [
        [masks["filled"], masks["influenced"], 0],
        [masks["influenced"], masks["influenced"], masks["cloud"]],
        [0, 0, 0],
    ]


def test_the_network_looks_no_further_than_influenced_says() -> None:
    """Outside `influenced` a gap changes not one bit of the result."""
    from pipeline.calibration import calibrate
    from tests.test_model import make_card, make_net
    from tests.test_tile import compiled, untiled

    net = make_net(blocks=1)
    values = smooth(9, 48, 48)
    holed = values.copy()
    holed[:, 20:24, 20:24] = np.nan
    calibration = calibrate(make_scene(values), compiled(net), make_card(net))
    whole, gap = (untiled(make_scene(v), calibration, net) for v in (values, holed))
    reach = compiled(net).halo
    quality = pixel_quality(holed, list(range(9)), Window(0, 48, 0, 48), reach, None)
    clear = (quality == 0).repeat(4, axis=0).repeat(4, axis=1)
    assert clear.any() and not clear.all()
    torch.testing.assert_close(whole[:, clear], gap[:, clear], rtol=0, atol=0)
    assert np.isfinite(gap[:, (quality == STATUS["influenced"]).repeat(4, 0).repeat(4, 1)]).all()


@pytest.mark.parametrize("names", [["cloud"], ["saturated"]])
def test_only_the_named_flags_mask(names: list[str]) -> None:
    scene, flags = flagged()
    missing = np.isnan(mask_pixels(scene, names)["reflectance"].values[0])
    assert np.array_equal(missing, (flags & FLAGS[names[0]]) > 0)
