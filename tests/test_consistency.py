"""Consistency of a result with its scene, and the projection that makes it exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import inference, load_checkpoint
from model.consistency import ConsistencySums, bicubic_consistency, consistency
from model.degradation import (
    Degradation,
    bicubic,
    bicubic_enlargement,
    downsample,
    enlargement,
    gaussian,
    upsample,
)
from model.extent import Extent
from model.metrics import psnr, spectral_angle
from model.projection import conserve, pattern_pixels, reach
from tests.scenes import real

SCALES = (2, 3, 4, 8)
scales = st.sampled_from(SCALES)
degradations = st.one_of(scales.map(bicubic), scales.map(lambda scale: gaussian(scale, 0.3)))
quick = settings(deadline=None, max_examples=15)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def spans(size: int, tile: int) -> list[tuple[int, int]]:
    return [(first, min(first + tile, size)) for first in range(0, size, tile)]


def window(span: tuple[int, int], size: int, halo: int) -> tuple[slice, Extent]:
    """What a tile reads along one axis, and its core in that."""
    first, last = max(0, span[0] - halo), min(size, span[1] + halo)
    extent = Extent(span[0] - first, span[1] - first, first == 0, last == size)
    return slice(first, last), extent


def times(pixels: slice, scale: int) -> slice:
    return slice(scale * pixels.start, scale * pixels.stop)


def interior(span: tuple[int, int], size: int, degradation: Degradation) -> np.ndarray:
    """By the whole scene's matrix: LR pixels that read nothing outside the span."""
    outside = degradation.matrix(size)[0].copy()
    outside[:, degradation.scale * span[0] : degradation.scale * span[1]] = 0
    return ~outside.any(axis=1)


def degrade(sr: Tensor, degradation: Degradation) -> Tensor:
    """The whole scene, by dense matrices."""
    down, right = (
        torch.from_numpy(degradation.matrix(size // degradation.scale)[0]).to(sr.dtype)
        for size in sr.shape[1:]
    )
    return down @ sr @ right.T


def expected(low: Tensor, lr: Tensor, counted: Tensor) -> ConsistencySums:
    """The sums from their definition; the angles as the metrics have them."""
    difference = torch.where(counted, low - lr, 0).numpy()
    own = torch.where(counted, lr, 0).numpy()
    low = torch.where(counted, low, 0)
    enough = (counted.sum(dim=0) > 1).numpy()
    angles = [
        np.radians(
            spectral_angle(own[:, y : y + 1, x : x + 1], low[:, y : y + 1, x : x + 1].numpy())
        )
        for y, x in zip(*np.nonzero(enough), strict=True)
    ]
    return ConsistencySums(
        difference.sum(axis=(1, 2)),
        (difference**2).sum(axis=(1, 2)),
        (own**2).sum(axis=(1, 2)),
        counted.sum(dim=(1, 2)).double().numpy(),
        float(np.sum(angles)),
        float(len(angles)),
    )


def same(found: ConsistencySums, wanted: ConsistencySums) -> None:
    np.testing.assert_allclose(found.to_array(), wanted.to_array(), rtol=1e-9, atol=1e-6)
    assert found.pixels == wanted.pixels
    np.testing.assert_array_equal(found.count, wanted.count)


def whole(size: int) -> Extent:
    return Extent(0, size, True, True)


@pytest.mark.parametrize("scale", [1, *SCALES])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
def test_kernels_are_imresize(scale: int, size: int) -> None:
    matrix, inside = bicubic(scale).matrix(size)
    image = torch.eye(scale * size, dtype=torch.float64)[:, :, None].expand(-1, -1, scale)
    assert inside.all()
    np.testing.assert_allclose(matrix.T, downsample(image, scale)[..., 0].numpy(), atol=1e-15)
    larger, inside = bicubic_enlargement(scale).matrix((0, size), size, True, True)
    assert inside.all()
    np.testing.assert_allclose(larger, enlargement(size, scale).numpy(), atol=1e-7)


@quick
@given(
    degradation=degradations,
    shape=st.tuples(st.integers(1, 17), st.integers(1, 11)),
    tile=st.integers(3, 12),
    halo=st.integers(2, 6),
    holes=st.integers(0, 3),
)
def test_tiles_add_up_to_the_whole(
    degradation: Degradation, shape: tuple[int, int], tile: int, halo: int, holes: int
) -> None:
    """Every pixel that a tile counts has the value it has in the whole scene."""
    rows, columns = shape
    lr, sr = (
        noise(3, rows, columns),
        noise(3, *(degradation.scale * size for size in shape), seed=1),
    )
    random = np.random.default_rng(holes)
    valid = torch.ones(lr.shape, dtype=torch.bool)
    for _ in range(holes):
        valid[random.integers(3), random.integers(rows), random.integers(columns)] = False
    touched = [
        torch.from_numpy(
            (degradation.matrix(size)[0].reshape(size, size, -1) != 0).any(axis=2).astype(float)
        )
        for size in shape
    ]
    clear = touched[0] @ (~valid).double() @ touched[1].T == 0
    total, wanted = ConsistencySums.zeros(3), ConsistencySums.zeros(3)
    for y in spans(rows, tile):
        for x in spans(columns, tile):
            (down, row), (right, column) = window(y, rows, halo), window(x, columns, halo)
            core = times(slice(*y), degradation.scale), times(slice(*x), degradation.scale)
            total += consistency(
                lr[:, down, right], sr[:, *core], row, column, degradation, valid[:, down, right]
            )
            inside = np.outer(interior(y, rows, degradation), interior(x, columns, degradation))
            wanted += expected(degrade(sr, degradation), lr, clear & torch.from_numpy(inside))
    same(total, wanted)


@pytest.mark.parametrize("scale", SCALES)
def test_one_tile_is_the_whole_scene(scale: int) -> None:
    lr, sr = noise(4, 7, 5), noise(4, 7 * scale, 5 * scale, seed=1)
    sums = consistency(lr, sr, whole(7), whole(5), bicubic(scale))
    difference = (downsample(sr, scale) - lr).numpy()
    np.testing.assert_allclose(sums.bias, difference.mean(axis=(1, 2)))
    np.testing.assert_allclose(sums.rmse, np.sqrt((difference**2).mean(axis=(1, 2))))
    np.testing.assert_allclose(sums.overall_rmse, np.sqrt((difference**2).mean()))
    level = np.sqrt((lr.numpy() ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(sums.relative_rmse, sums.rmse / level)
    angle = spectral_angle(lr.numpy(), downsample(sr, scale).numpy())
    assert sums.sam == pytest.approx(angle, rel=1e-9)


@quick
@given(scale=scales, size=st.integers(1, 17), tile=st.integers(1, 9))
def test_bicubic_without_its_pixels(scale: int, size: int, tile: int) -> None:
    lr, degradation = noise(2, size, size + 2), bicubic(scale)
    high = upsample(lr, scale)
    for y in spans(size, tile):
        for x in spans(size + 2, tile):
            (down, row), (right, column) = window(y, size, 2), window(x, size + 2, 2)
            core = times(slice(*y), scale), times(slice(*x), scale)
            low = lr[:, down, right]
            same(
                bicubic_consistency(low, row, column, degradation),
                consistency(low, high[:, *core], row, column, degradation),
            )


def test_what_is_not_finite_is_not_counted() -> None:
    """Fill in the result counts like a gap in the scene, and spoils nothing beside it."""
    lr, degradation = noise(2, 12, 12), bicubic(4)
    sr = upsample(lr, 4)
    valid = torch.ones(lr.shape, dtype=torch.bool)
    valid[1, 5, 6] = False
    masked, filled = lr.clone(), sr.clone()
    masked[~valid] = torch.nan
    filled[1, 20:24, 24:28] = torch.nan
    wanted = consistency(lr, sr, whole(12), whole(12), degradation, valid)
    assert wanted.count.tolist() == [144.0, 144.0 - 25]
    same(consistency(masked, filled, whole(12), whole(12), degradation), wanted)
    same(consistency(lr, filled, whole(12), whole(12), degradation), wanted)
    same(bicubic_consistency(lr, whole(12), whole(12), degradation, valid), wanted)
    unfilled = bicubic_consistency(masked, whole(12), whole(12), degradation)
    assert unfilled.count.tolist() == [144.0, 144.0 - 49]  # 7 x 7: bicubic reads farther


def test_a_band_without_values_leaves_the_others() -> None:
    lr, sr = noise(3, 6, 6), noise(3, 12, 12, seed=1)
    sr[1] = torch.nan
    sums = consistency(lr, sr, whole(6), whole(6), bicubic(2))
    others = consistency(lr[[0, 2]], sr[[0, 2]], whole(6), whole(6), bicubic(2))
    assert sums.count.tolist() == [36, 0, 36]
    assert np.isnan(sums.rmse[1]) and np.isnan(sums.bias[1])
    assert sums.sam == pytest.approx(others.sam)
    assert sums.overall_rmse == pytest.approx(others.overall_rmse)


def test_numbers_as_large_as_float32_allows() -> None:
    lr, sr = torch.full((2, 5, 5), -3.0e38), torch.zeros(2, 10, 10)
    sums = consistency(lr, sr, whole(5), whole(5), bicubic(2))
    np.testing.assert_allclose(sums.rmse, 3.0e38, rtol=1e-6)
    assert sums.pixels == 0 and np.isnan(sums.sam)


def test_small_angles_keep_their_digits() -> None:
    lr = torch.ones(2, 4, 4)
    sr = torch.ones(2, 8, 8)
    sr[0] += 1e-5
    sums = consistency(lr, sr, whole(4), whole(4), bicubic(2))
    assert sums.sam == pytest.approx(np.degrees(0.5e-5), rel=0.02)


def test_sums_survive_the_way_through_an_array() -> None:
    sums = consistency(noise(3, 6, 6), noise(3, 12, 12), whole(6), whole(6), bicubic(2))
    same(ConsistencySums.from_array(sums.to_array()), sums)
    same(sums + ConsistencySums.zeros(3), sums)
    assert np.isnan(ConsistencySums.zeros(3).overall_rmse)


@pytest.mark.parametrize("values", [[0.0], [0.0] * 7, [np.nan] * 6, [0, -1, 0, 0, 0, 0]])
def test_other_arrays_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="consistency sums"):
        ConsistencySums.from_array(values)


def test_what_does_not_fit_is_refused() -> None:
    lr, sr, degradation = noise(2, 8, 8), noise(2, 16, 16), bicubic(2)
    with pytest.raises(ValueError, match="its core needs"):
        consistency(lr, sr, Extent(1, 7), whole(8), degradation)
    with pytest.raises(ValueError, match="not a part of 8"):
        consistency(lr, sr, Extent(4, 9), whole(8), degradation)
    with pytest.raises(ValueError, match="2 LR pixels around"):
        bicubic_consistency(lr, Extent(1, 8, True, True), Extent(1, 8), degradation)
    with pytest.raises(ValueError, match="mask"):
        consistency(lr, sr, whole(8), whole(8), degradation, torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="and of 3 cannot"):
        ConsistencySums.zeros(2) + ConsistencySums.zeros(3)
    with pytest.raises(ValueError, match="known 5 LR pixels around"):
        conserve(sr, lr, Extent(2, 6), whole(8), degradation)
    with pytest.raises(ValueError, match="its window needs"):
        conserve(sr[:, 1:], lr, whole(8), whole(8), degradation)
    with pytest.raises(ValueError, match="of one type"):
        conserve(sr.float(), lr, whole(8), whole(8), degradation)


@pytest.mark.parametrize("mtf", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("scale", SCALES)
def test_gaussian_has_its_mtf_at_nyquist(scale: int, mtf: float) -> None:
    degradation = gaussian(scale, mtf)
    place = np.arange(degradation.first, degradation.first + len(degradation.weights)) + 0.5
    response = np.sum(degradation.weights * np.cos(np.pi / scale * (place - scale / 2)))
    assert sum(degradation.weights) == pytest.approx(1)
    if scale * np.sqrt(-np.log(mtf)) > 2:  # narrower, it has few pixels to be a Gaussian with
        assert response == pytest.approx(mtf, abs=2e-3)
    assert response == pytest.approx(mtf, abs=0.03)


@pytest.mark.parametrize("mtf", [0.0, 1.0, float("nan")])
def test_an_impossible_mtf_is_refused(mtf: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        gaussian(4, mtf)


@quick
@given(
    degradation=degradations,
    shape=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 3, 4, 5, 17])),
)
def test_conserved_is_consistent(degradation: Degradation, shape: tuple[int, int]) -> None:
    """What float32 leaves is rounding: at most 5e-7 for values of order 1."""
    lr = noise(2, *shape).float()
    sr = noise(2, *(degradation.scale * size for size in shape), seed=1).float()
    result = conserve(sr, lr, *map(whole, shape), degradation, tolerance=1e-6)
    missed = degrade(result.double(), degradation) - lr
    assert missed.abs().max() < 5e-7 + (1e-6 if degradation.scale == 2 else 0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-6])
def test_tolerance_bounds_what_is_missed(scale: int, tolerance: float) -> None:
    lr, sr = noise(2, 30, 21), noise(2, 30 * scale, 21 * scale, seed=1)
    residual = (lr - downsample(sr, scale)).abs().max()
    result = conserve(sr, lr, whole(30), whole(21), bicubic(scale), tolerance)
    missed = (downsample(result, scale) - lr).abs().max()
    assert missed <= (tolerance if scale == 2 else 1e-13) * residual


@pytest.mark.parametrize("degradation", [bicubic(2), bicubic(3), bicubic(4), gaussian(4, 0.3)])
def test_the_change_is_the_smallest(degradation: Degradation) -> None:
    lr, sr = noise(1, 9, 4), noise(1, 9 * degradation.scale, 4 * degradation.scale, seed=1)
    down, right = (np.linalg.pinv(degradation.matrix(size)[0]) for size in (9, 4))
    residual = lr - degrade(sr, degradation)
    smallest = torch.from_numpy(down) @ residual @ torch.from_numpy(right).T
    for tolerance in (1e-2, 1e-4, 1e-9):
        change = conserve(sr, lr, whole(9), whole(4), degradation, tolerance) - sr
        assert change.norm() <= (1 + 2 * tolerance) * smallest.norm()
    assert (change - smallest).abs().max() < 1e-3 * residual.abs().max()


@quick
@given(
    degradation=degradations,
    shape=st.tuples(st.integers(1, 26), st.integers(1, 9)),
    tile=st.integers(4, 12),
    tolerance=st.sampled_from([1e-1, 1e-2, 1e-4]),
)
def test_conserved_tiles_meet(
    degradation: Degradation, shape: tuple[int, int], tile: int, tolerance: float
) -> None:
    lr = noise(2, *shape).float()
    sr = noise(2, *(degradation.scale * size for size in shape), seed=1).float()
    joined = conserve(sr, lr, *map(whole, shape), degradation, tolerance)
    around, scale = reach(degradation, tolerance), degradation.scale
    for y in spans(shape[0], tile):
        for x in spans(shape[1], tile):
            (down, row), (right, column) = window(y, shape[0], around), window(x, shape[1], around)
            part = conserve(
                sr[:, times(down, scale), times(right, scale)],
                lr[:, down, right],
                row,
                column,
                degradation,
                tolerance,
            )
            wanted = joined[:, times(slice(*y), scale), times(slice(*x), scale)]
            assert (part - wanted).abs().max() < 2e-6


def test_a_gap_changes_nothing_and_spoils_nothing() -> None:
    lr, degradation = noise(2, 14, 14), bicubic(4)
    sr = noise(2, 56, 56, seed=1)
    valid = torch.ones(lr.shape, dtype=torch.bool)
    valid[0, 6, 7] = False
    result = conserve(sr, lr, whole(14), whole(14), degradation, valid=valid)
    low, before = downsample(result, 4), downsample(sr, 4)
    assert (low - lr)[valid].abs().max() < 1e-12
    assert (low - before)[~valid].abs().max() < 1e-12
    masked = lr.clone()
    masked[~valid] = torch.nan
    again = conserve(sr, masked, whole(14), whole(14), degradation)
    assert torch.equal(again, result)


def test_fill_in_the_result_stays_and_does_not_spread() -> None:
    lr, known, degradation = noise(2, 14, 14), noise(2, 56, 56, seed=1), bicubic(4)
    sr = known.clone()
    sr[0, 24:28, 28:32] = torch.nan
    result = conserve(sr, lr, whole(14), whole(14), degradation)
    assert torch.equal(result.isnan(), sr.isnan())
    low = downsample(result.nan_to_num(), 4)
    far = torch.ones(14, 14, dtype=torch.bool)
    far[4:9, 5:10] = False  # the pixels that read the fill
    assert (low - lr)[0][far].abs().max() < 1e-12
    assert (low - lr)[1].abs().max() < 1e-12
    wanted = conserve(known, lr, whole(14), whole(14), degradation, valid=far.expand(2, -1, -1))
    assert (wanted - result)[0][~sr[0].isnan()].abs().max() < 1e-12


def test_reach_follows_the_tolerance() -> None:
    found = [reach(bicubic(4), tolerance) for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)]
    assert found == sorted(found) and found[-1] > found[0]
    assert reach(bicubic(4), 1e-4) == pattern_pixels(bicubic(4), 1e-4) + bicubic(4).support
    assert reach(gaussian(4, 0.15)) > reach(bicubic(4))
    with pytest.raises(ValueError, match="larger tolerance"):
        reach(gaussian(4, 0.02), 1e-9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        reach(bicubic(4), 0.0)


def test_a_real_result_gains_by_consistency() -> None:
    """Only with the degradation that made the scene."""
    with np.load(real("cave/test/sponges.npz")) as file:
        truth = torch.from_numpy(file["cube"][:128, :128].transpose(2, 0, 1) / 65535).float()
    low, at = downsample(truth, 4), (whole(32), whole(32))
    net, _ = load_checkpoint("starter")
    sr = inference.compile(net, precision="fp32")(low[None])[0]
    results = {
        "sr": sr,
        "conserved": conserve(sr, low, *at, bicubic(4)),
        "wrongly": conserve(sr, low, *at, gaussian(4, 0.3)),
        "bicubic": conserve(upsample(low, 4), low, *at, bicubic(4)),
    }
    error = {name: consistency(low, y, *at, bicubic(4)) for name, y in results.items()}
    quality = {
        name: psnr(truth.double().numpy(), y.double().numpy()) for name, y in results.items()
    }
    assert error["conserved"].overall_rmse < 1e-7 < 1e-4 < error["sr"].overall_rmse
    assert error["bicubic"].overall_rmse < 1e-7  # consistent, and not good for that
    assert error["sr"].overall_rmse < bicubic_consistency(low, *at, bicubic(4)).overall_rmse
    assert quality["bicubic"] + 1 < quality["sr"] < quality["conserved"]
    assert quality["wrongly"] < quality["sr"]
