"""Tiles meet: a tiled scene equals the untiled one, whatever the tile, with gaps and bad bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from model import SSPSR, degradation, inference, load_checkpoint
from pipeline.calibration import Calibration, calibrate, network_input
from pipeline.encoding import ValueEncoding, ValueRange
from pipeline.errors import SceneError
from pipeline.grid import TileGrid, Window
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.resolving import scene_engines, super_resolve
from pipeline.sampling import WHOLE_SCENE, sample_windows
from pipeline.tile import SceneContext, compute_tile, read_tile
from tests.test_model import make_card, make_net


def make_scene(values: np.ndarray, bad: tuple[int, ...] = (), **encoding: object) -> xr.Dataset:
    """A scene as the readers give it, from `(bands, rows, cols)` physical values."""
    good = np.ones(len(values), dtype=bool)
    good[list(bad)] = False
    scene = xr.Dataset(
        {"reflectance": (("band", "y", "x"), values.astype(np.float32))},
        coords={"good_band": ("band", good)},
    ).chunk({"band": -1, "y": 16, "x": 16})
    scene["reflectance"].encoding = {"dtype": "float32", **encoding}
    return scene


def smooth(bands: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    noise = torch.from_numpy(
        np.random.default_rng(seed).random((bands, rows // 4 + 2, columns // 4 + 2))
    )
    return degradation.upsample(noise, 4)[:, :rows, :columns].float().numpy() * 0.6 + 0.1


def compiled(net: SSPSR) -> inference.Engine:
    return inference.compile(net, precision="fp32")


def tiled(
    scene: xr.Dataset,
    calibration: Calibration,
    net: SSPSR,
    tile: int,
    refinement: Refinement = ONE_PASS,
) -> np.ndarray:
    """The scene put together from its tiles, each read with its halo alone."""
    engine = compiled(net)
    scale = engine.config.scale
    grid = TileGrid(scene.sizes["y"], scene.sizes["x"], tile, scale)
    encoding = ValueEncoding("float32", fill=float("nan"))
    engines = scene_engines(engine, calibration)
    context = SceneContext(scene, grid, calibration, encoding, engines, refinement=refinement)
    result = np.empty((scene.sizes["band"], *grid.output_size), np.float32)
    for each in grid:
        rows, columns = grid.core(each).scaled(scale).slices
        result[:, rows, columns] = compute_tile(context, read_tile(context, each)).values
    return result


def untiled(scene: xr.Dataset, calibration: Calibration, net: SSPSR) -> np.ndarray:
    values = scene["reflectance"].values
    whole = Window(0, values.shape[1], 0, values.shape[2])
    engines = scene_engines(compiled(net), calibration)
    return super_resolve(values, whole, engines, calibration).values


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("tile", [16, 24, 48])
def test_tiled_equals_untiled(scale: int, tile: int) -> None:
    net = make_net(scale=scale, blocks=2)
    scene = make_scene(smooth(9, 53, 61))
    calibration = calibrate(scene, compiled(net), make_card(net))
    difference = np.abs(tiled(scene, calibration, net, tile) - untiled(scene, calibration, net))
    assert difference.max() <= 1e-6


@pytest.mark.parametrize("tile", [16, 24, 48])
def test_tiled_starter_is_within_half_a_step(tile: int) -> None:
    """Trained weights, int16 x 1e-4 output: half a step is 5e-5."""
    net, card = load_checkpoint("starter")
    scene = make_scene(smooth(31, 56, 50))
    calibration = calibrate(scene, compiled(net), card)
    difference = np.abs(tiled(scene, calibration, net, tile) - untiled(scene, calibration, net))
    assert difference.max() < 5e-5


def test_whole_scene_calibration_is_the_published_forward() -> None:
    net = make_net()
    scene = make_scene(smooth(9, 30, 26))
    calibration = calibrate(scene, compiled(net), make_card(net), normalise="reflectance")
    x = torch.from_numpy(scene["reflectance"].values)[None]
    with torch.no_grad():
        published = net(x, degradation.upsample(x, 4))[0].numpy()
    assert np.abs(tiled(scene, calibration, net, 16) - published).max() <= 1e-6


def test_per_tile_attention_leaves_seams() -> None:
    """Why `scene` is the default: the published pooling depends on the tile."""
    net = make_net()
    scene = make_scene(smooth(9, 48, 48))
    calibration = calibrate(scene, compiled(net), make_card(net), pooling="global")
    assert calibration.statistics == ()
    assert (
        np.abs(tiled(scene, calibration, net, 16) - untiled(scene, calibration, net)).max() > 1e-6
    )


def test_gaps_stay_gaps_and_do_not_spread() -> None:
    net = make_net()
    values = smooth(9, 50, 50)
    clean = make_scene(values)
    holed = values.copy()
    holed[:, 20:30, 12:40] = np.nan
    holed[3, :, 5] = np.nan
    scene = make_scene(holed)
    card = make_card(net)
    calibration = calibrate(clean, compiled(net), card)
    result, whole = tiled(scene, calibration, net, 16), untiled(scene, calibration, net)
    expected = np.isnan(holed).repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(np.isnan(result), expected)
    assert np.nanmax(np.abs(result - whole)) <= 1e-6
    reach = inference.compile(net).halo
    untouched = np.s_[:, (30 + reach) * 4 :, (5 + reach + 1) * 4 :]
    assert np.array_equal(result[untouched], tiled(clean, calibration, net, 16)[untouched])
    assert np.nanmax(np.abs(result)) < 3 * np.abs(whole[untouched]).max()


def test_bad_and_empty_bands_come_out_as_gaps() -> None:
    net = make_net()
    values = smooth(20, 32, 32)
    values[7] = np.nan
    scene = make_scene(values, bad=(2,))
    calibration = calibrate(scene, compiled(net), make_card(net))
    assert calibration.bands.kind == "windows"
    assert 2 not in calibration.bands.used and 7 not in calibration.bands.used
    assert "1 band(s) hold no value" in calibration.bands.note
    result = tiled(scene, calibration, net, 16)
    empty = np.isnan(result).all(axis=(1, 2))
    assert np.flatnonzero(empty).tolist() == [2, 7]
    assert np.isfinite(result[~empty]).all()


def test_a_bad_band_does_not_poison_a_direct_match() -> None:
    net = make_net()
    values = smooth(9, 32, 32)
    scene = make_scene(values)
    calibration = calibrate(scene, compiled(net), make_card(net))
    wild = values.copy()
    wild[4] = 1e6
    marked = make_scene(wild, bad=(4,))
    again = calibrate(marked, compiled(net), make_card(net))
    seen = network_input(wild, again)
    assert np.allclose(seen[4], (seen[3] + seen[5]) / 2)
    assert np.isfinite(tiled(marked, again, net, 16)[3]).all()
    assert calibration.bands.kind == again.bands.kind == "index"


def test_calibration_does_not_depend_on_reading_order_and_round_trips() -> None:
    net = make_net()
    scene = make_scene(smooth(9, 40, 40))
    first = calibrate(scene, compiled(net), make_card(net))
    again = Calibration.from_bytes(first.to_bytes())
    assert again.digest() == first.digest() and again.bands == first.bands
    assert np.array_equal(again.background, first.background) and np.array_equal(
        again.gains, first.gains
    )


def test_large_scenes_are_sampled_evenly() -> None:
    assert sample_windows(WHOLE_SCENE, WHOLE_SCENE) == [Window(0, WHOLE_SCENE, 0, WHOLE_SCENE)]
    for height, width in [(1000, 1200), (40, 5000), (5000, 30), (257, 257)]:
        windows = sample_windows(height, width)
        assert len(set(windows)) == len(windows) >= 16
        assert all(
            0 <= w.top < w.bottom <= height and 0 <= w.left < w.right <= width for w in windows
        )
        assert sum(w.pixels for w in windows) <= 100_000


def test_valid_corner_of_an_empty_scene_is_found() -> None:
    net = make_net()
    values = np.full((9, 300, 300), np.nan, np.float32)
    values[:, 5:40, 260:295] = 0.3
    calibration = calibrate(make_scene(values), compiled(net), make_card(net))
    assert calibration.bands.used == tuple(range(9))
    with pytest.raises(SceneError, match="no-valid-pixels"):
        calibrate(make_scene(np.full_like(values, np.nan)), compiled(net), make_card(net))


def test_encoding_rounds_clips_and_marks_gaps() -> None:
    source = {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -32768}
    encoding = ValueEncoding.of_scene(source, float32=False, needs_fill=False)
    values = np.array([0.12344, 0.12346, np.nan, 9.0, -9.0], np.float32)
    stored, valid = encoding.encode(values[None, None])
    assert stored.ravel().tolist() == [1234, 1235, -32768, 32767, -32767]
    assert (valid.count, valid.minimum, valid.maximum) == (4, -3.2767, 3.2767)


def test_encoding_keeps_zero_apart_from_a_zero_fill() -> None:
    encoding = ValueEncoding.of_scene(
        {"dtype": "uint16", "_FillValue": 0}, float32=False, needs_fill=False
    )
    stored, valid = encoding.encode(np.array([[[0.2, -3.0, np.nan, 7.4]]], np.float32))
    assert stored.ravel().tolist() == [1, 1, 0, 7]
    assert valid == ValueRange(3, 1.0, 7.0)


def test_encoding_declares_a_fill_only_where_needed() -> None:
    source = {"dtype": "uint16"}
    plain = ValueEncoding.of_scene(source, float32=False, needs_fill=False)
    assert plain.fill is None and plain.encode(np.array([[[65535.0]]]))[0].tolist() == [[[65535]]]
    with pytest.raises(ValueError, match="no fill value"):
        plain.encode(np.array([[[np.nan]]], np.float32))
    needed = ValueEncoding.of_scene(source, float32=False, needs_fill=True)
    assert needed.fill == 65535 and needed.encode(np.array([[[65535.0]]]))[0].tolist() == [
        [[65534]]
    ]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_the_range_is_that_of_the_stored_values(dtype: str) -> None:
    source = {"dtype": dtype, "scale_factor": 1e-4, "_FillValue": -32768}
    encoding = ValueEncoding.of_scene(source, float32=False, needs_fill=True)
    values = smooth(4, 9, 11)
    values[1, 2:5] = values[2] = np.nan
    stored, valid = encoding.encode(values)
    decoded = np.where(np.isnan(values), np.nan, stored * encoding.scale_factor)
    assert valid.count == np.isfinite(values).sum()
    assert valid.minimum == pytest.approx(np.nanmin(decoded), abs=1e-12)
    assert valid.maximum == pytest.approx(np.nanmax(decoded), abs=1e-12)
    nothing = ValueEncoding("float32", fill=float("nan")).encode(np.full_like(values, np.nan))
    assert nothing[1] == ValueRange()


def test_float_sources_stay_physical_float32() -> None:
    encoding = ValueEncoding.of_scene(
        {"dtype": "float64", "scale_factor": 1e-4}, float32=False, needs_fill=True
    )
    assert encoding.dtype == "float32" and encoding.scale_factor == 1.0
    assert (
        ValueEncoding.of_scene({"dtype": "int16"}, float32=True, needs_fill=False).dtype
        == "float32"
    )
