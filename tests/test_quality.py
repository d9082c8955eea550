"""Consistency of a scene from its tiles, and results made consistent, through the tile pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model import degradation
from pipeline.calibration import Calibration, calibrate
from pipeline.encoding import ValueEncoding
from pipeline.grid import TileGrid
from pipeline.ledger import TileRecord
from pipeline.quality import TileQuality, relative_error, scene_figures, total
from pipeline.refinement import Refinement
from pipeline.resolving import scene_engines
from pipeline.tile import SceneContext, compute_tile, read_tile
from tests.test_model import make_card, make_net
from tests.test_tile import compiled, make_scene, smooth, tiled, untiled

ROWS, COLUMNS = 45, 38
CONSERVE = Refinement(conserve=True)


def holed(seed: int = 0) -> np.ndarray:
    values = smooth(9, ROWS, COLUMNS, seed)
    values[:, 30:36, 20:29] = np.nan
    values[2, :, 7] = np.nan
    return values


def records_of(
    values: np.ndarray, tile: int, *, conserve: bool = False
) -> tuple[dict[str, TileRecord], Calibration]:
    """The ledger of a scene whose tiles were computed and not written."""
    net = make_net()
    scene, engine = make_scene(values), compiled(net)
    calibration = calibrate(scene, engine, make_card(net))
    grid = TileGrid(*values.shape[1:], tile, 4)
    context = SceneContext(
        scene,
        grid,
        calibration,
        ValueEncoding("float32", fill=float("nan")),
        scene_engines(engine, calibration),
        refinement=Refinement(conserve=conserve),
    )
    records = {
        each.key: TileRecord(
            each.key,
            (),
            consistency=compute_tile(context, read_tile(context, each)).consistency.to_record(),
        )
        for each in grid
    }
    return records, calibration


def test_one_tile_is_compared_as_the_whole_scene() -> None:
    values = smooth(9, ROWS, COLUMNS)
    records, calibration = records_of(values, 64)
    found = scene_figures(records, calibration, 4)
    result = untiled(make_scene(values), calibration, make_net())
    low = degradation.downsample(torch.from_numpy(result), 4).numpy()
    plain = degradation.downsample(degradation.upsample(torch.from_numpy(values), 4), 4).numpy()
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((low - values) ** 2)), rel=1e-4)
    assert found["bicubic"]["rmse"] == pytest.approx(
        np.sqrt(np.mean((plain - values) ** 2)), rel=1e-4
    )
    assert found["rmse_per_band"] == pytest.approx(
        np.sqrt(np.mean((low - values) ** 2, axis=(1, 2))), rel=1e-4
    )
    assert found["pixels"] == ROWS * COLUMNS
    json.dumps(found, allow_nan=False)


def test_tiles_see_the_same_pixels_for_the_result_and_for_bicubic() -> None:
    records, _ = records_of(holed(), 16)
    for record in records.values():
        tile = TileQuality.from_record(record.consistency)
        assert np.array_equal(tile.result.count, tile.bicubic.count)
        assert np.allclose(tile.result.reference, tile.bicubic.reference)


def test_figures_of_tiles_are_close_to_those_of_the_whole() -> None:
    values = holed()
    whole, tiles = (scene_figures(*records_of(values, tile), 4) for tile in (64, 16))
    assert tiles["pixels"] < whole["pixels"]
    assert tiles["relative_rmse"] == pytest.approx(whole["relative_rmse"], rel=0.2)


@pytest.mark.parametrize("tile", [16, 24])
def test_conserved_tiles_meet_and_degrade_to_the_scene(tile: int) -> None:
    net = make_net()
    values = smooth(9, ROWS, COLUMNS)
    scene = make_scene(values)
    calibration = calibrate(scene, compiled(net), make_card(net))
    result = tiled(scene, calibration, net, tile, CONSERVE)
    low = degradation.downsample(torch.from_numpy(result), 4).numpy()
    assert np.abs(low - values).max() < 2e-6
    assert np.abs(result - tiled(scene, calibration, net, 64, CONSERVE)).max() < 2e-6
    plain = tiled(scene, calibration, net, tile)
    assert np.abs(result - plain).max() > 1e-4
    records, calibration = records_of(values, tile, conserve=True)
    assert scene_figures(records, calibration, 4)["relative_rmse"] < 1e-5


def test_gaps_stay_gaps_when_conserved() -> None:
    net = make_net()
    values = holed()
    scene = make_scene(values)
    calibration = calibrate(scene, compiled(net), make_card(net))
    result = tiled(scene, calibration, net, 16, CONSERVE)
    expected = np.isnan(values).repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(np.isnan(result), expected)
    assert np.nanmax(np.abs(result)) < 3


def test_a_record_that_is_none_is_refused() -> None:
    for text in ("AAAA", "not base64!", "AAAAAAAAAAA="):
        with pytest.raises(ValueError):
            TileQuality.from_record(text)
    assert total([]) is None and total([""]) is None


def test_what_could_not_be_measured_is_null() -> None:
    net = make_net()
    scene = make_scene(smooth(9, 12, 12))
    calibration = calibrate(scene, compiled(net), make_card(net))
    found = scene_figures({"0.0": TileRecord("0.0", ())}, calibration, 4)
    assert found["relative_rmse"] is None and found["rmse_per_band"] == [None] * 9
    tile = TileQuality.from_record(
        next(iter(records_of(smooth(9, 12, 12), 16)[0].values())).consistency
    )
    assert relative_error(tile.result) > 0
