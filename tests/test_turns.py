"""All flips and turns: the ensemble's mean and how far its members spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model import SSPSR, attention, inference
from pipeline.calibration import Calibration, calibrate
from pipeline.encoding import ValueEncoding
from pipeline.grid import TileGrid, Window
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.resolving import Resolved, scene_engines, super_resolve
from pipeline.spread import encode_spread
from pipeline.tile import SceneContext, compute_tile, read_tile
from pipeline.turns import TURNS, Moments, Turn
from tests.test_model import make_card, make_net
from tests.test_tile import compiled, make_scene, smooth

BOTH = Refinement(ensemble=True, uncertainty=True)


def whole(
    values: NDArray[np.float32], calibration: Calibration, net: SSPSR, which: Refinement
) -> Resolved:
    core = Window(0, values.shape[1], 0, values.shape[2])
    return super_resolve(
        values, core, scene_engines(compiled(net), calibration), calibration, which
    )


def calibrated(values: NDArray[np.float32], net: SSPSR, **options: str) -> Calibration:
    return calibrate(make_scene(values), compiled(net), make_card(net), **options)  # type: ignore[arg-type]


def test_eight_different_turns_the_upright_one_first() -> None:
    image = torch.arange(6).reshape(2, 3)
    seen = {(turn.of(image).shape, tuple(turn.of(image).ravel().tolist())) for turn in TURNS}
    assert len(TURNS) == len(seen) == 8
    assert TURNS[0].of(image) is image


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_and_its_inverse(turn: Turn) -> None:
    image = torch.rand(2, 5, 7)
    assert torch.equal(turn.back(turn.of(image)), image)
    window = Window(1, 3, 2, 7)
    place = turn.of_window(window, (5, 7))
    assert torch.equal(turn.back(turn.of(image)[:, *place.slices]), image[:, *window.slices])


def test_moments_are_numpys_also_of_large_values() -> None:
    results = 1e4 + torch.rand(8, 3, 4, 5)
    moments = Moments(results[0])
    for result in results[1:]:
        moments.add(result)
    wide = results.double().numpy()
    assert np.abs(moments.mean.numpy() - wide.mean(axis=0)).max() < 2e-3
    assert np.abs(moments.deviation.numpy() - wide.std(axis=0)).max() < 1e-3


def test_no_spread_where_all_results_are_equal() -> None:
    moments = Moments(torch.full((3,), 0.1))
    for _ in range(7):
        moments.add(torch.full((3,), 0.1))
    assert torch.equal(moments.deviation, torch.zeros(3))


def test_mean_and_spread_are_those_of_the_published_network_on_turned_scenes() -> None:
    """By hand: NumPy's rot90 and flip, and each turned scene a scene of its own.

    Its attention is pooled over the whole, which a turn does not change.
    """
    net, values = make_net(), smooth(9, 22, 30)
    calibration = calibrated(values, net, normalise="reflectance")
    made = []
    for quarter in range(4):
        for flipped in (False, True):
            turned = np.rot90(values, quarter, axes=(1, 2))
            turned = (turned[:, :, ::-1] if flipped else turned).copy()
            x = torch.from_numpy(turned)[None]
            statistics = attention.calibrate(net, x)
            result = inference.compile(net, statistics, precision="fp32")(x)[0].numpy()
            result = result[:, :, ::-1] if flipped else result
            made.append(np.rot90(result, -quarter, axes=(1, 2)))
    ours = whole(values, calibration, net, BOTH)
    assert ours.spread is not None
    assert np.abs(ours.values - np.mean(made, axis=0)).max() < 2e-6
    assert np.abs(ours.spread - np.std(made, axis=0)).max() < 2e-6
    assert np.std(made, axis=0).mean() > 1e-3  # there is something to be seen


def test_uncertainty_alone_leaves_the_values_as_they_are() -> None:
    net, values = make_net(), smooth(9, 24, 20)
    calibration = calibrated(values, net)
    plain = whole(values, calibration, net, ONE_PASS)
    ours = whole(values, calibration, net, Refinement(uncertainty=True))
    mean = whole(values, calibration, net, Refinement(ensemble=True))
    assert np.array_equal(ours.values, plain.values)
    assert plain.spread is mean.spread is None
    assert ours.spread is not None and ours.spread.min() >= 0 and ours.spread.max() > 0
    assert not np.array_equal(mean.values, plain.values)


def without_directions(net: SSPSR) -> SSPSR:
    """Kernels averaged over all turns; those before a pixel shuffle with the pixels they make."""
    shuffled = {
        id(sequence[i - 1])
        for sequence in net.modules()
        if isinstance(sequence, torch.nn.Sequential)
        for i, step in enumerate(sequence)
        if isinstance(step, torch.nn.PixelShuffle)
    }
    with torch.no_grad():
        for layer in net.modules():
            if not isinstance(layer, torch.nn.Conv2d):
                continue
            kernels = layer.weight.unflatten(0, (-1, 2, 2) if id(layer) in shuffled else (-1, 1, 1))
            turned = [
                turn.of(turn.of(kernels).movedim((1, 2), (-2, -1))).movedim((-2, -1), (1, 2))
                for turn in TURNS
            ]
            layer.weight.copy_(torch.stack(turned).mean(dim=0).flatten(0, 2))
            if layer.bias is not None and id(layer) in shuffled:
                layer.bias.copy_(layer.bias.unflatten(0, (-1, 4)).mean(1).repeat_interleave(4))
    return net


def test_a_network_without_directions_does_not_spread() -> None:
    net, values = without_directions(make_net()), smooth(9, 20, 26)
    made = whole(values, calibrated(values, net), net, BOTH)
    assert made.spread is not None and made.spread.max() < 2e-6
    plain = whole(values, calibrated(values, net), net, ONE_PASS)
    assert np.abs(made.values - plain.values).max() < 2e-6


@pytest.mark.parametrize("conserve", [False, True])
@pytest.mark.parametrize("tile", [16, 24])
def test_tiles_are_parts_of_the_whole_gaps_and_all(tile: int, conserve: bool) -> None:
    net, values = make_net(), smooth(9, 45, 38)
    values[:, 30:36, 20:29] = np.nan
    values[2, :, 7] = np.nan
    scene = make_scene(values)
    calibration = calibrated(np.nan_to_num(values, nan=0.3), net)
    which = Refinement(conserve, ensemble=True, uncertainty=True)
    expected = whole(values, calibration, net, which)
    grid = TileGrid(45, 38, tile, 4)
    engines = scene_engines(compiled(net), calibration)
    encoding = ValueEncoding("float32", fill=float("nan"))
    context = SceneContext(scene, grid, calibration, encoding, engines, refinement=which)
    assert expected.spread is not None
    gaps = np.isnan(values).repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(np.isnan(expected.values), gaps)
    assert np.array_equal(np.isnan(expected.spread), gaps)
    for each in grid:
        part = compute_tile(context, read_tile(context, each))
        place = (slice(None), *grid.core(each).scaled(4).slices)
        assert part.spread is not None
        assert np.nanmax(np.abs(part.values - expected.values[place])) < 2e-6
        assert np.nanmax(np.abs(part.spread - expected.spread[place])) < 2e-6


def test_what_is_stored_has_five_bits() -> None:
    payload = np.uint32([0x7FFF0000, 0xFFFFFFFF]).view(np.float32)  # NaN that rounding would carry
    spread = np.concatenate([np.float32([0.001234567, np.nan, 0.0, 1.0]), payload])
    stored = encode_spread(spread)
    assert np.isnan(stored[[1, 4, 5]]).all() and stored[2:4].tolist() == [0.0, 1.0]
    assert 0 < abs(stored[0] / spread[0] - 1) <= 2**-5
    assert not (stored[[0, 2, 3]].view(np.uint32) & 0x7FFFF).any()
