"""Weights for other bands: the same for the same bands, gain kept, and a start near bicubic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import SSPSR, SSPSRConfig, load_checkpoint
from model.degradation import upsample
from model.transfer import covariance, interpolation, principal, transfer
from tests.test_model import CASES, golden_net, make_net

NINE = [400.0 + 50 * band for band in range(9)]


def flat(spectra: Tensor, side: int = 6) -> Tensor:
    """Images without detail, `[N, bands, side, side]`."""
    return spectra[:, :, None, None].expand(-1, -1, side, side)


def skip_of(net: SSPSR, bicubic: Tensor) -> Tensor:
    """What skip and final make of an image, away from its border."""
    with torch.no_grad():
        return net.final(net.skip_conv(bicubic))[..., 2:-2, 2:-2]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("known", [True, False])
def test_same_bands_give_the_same_network(golden: Path, name: str, known: bool) -> None:
    net, case = golden_net(golden, name)
    wavelengths = [400.0 + 7 * band for band in range(net.config.bands)] if known else None
    again = transfer(net, net.config.bands, wavelengths, wavelengths)
    with torch.no_grad():
        assert torch.allclose(again(case["x"], case["lms"]), case["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_branches_carry_over_whole(shared: bool) -> None:
    net = make_net(shared_branch=shared)
    result = transfer(net, 14, NINE, [400.0 + 30 * band for band in range(14)])
    centres = np.array([NINE[s] + 75 for s in net.config.group_starts])
    for group, start in enumerate(result.config.group_starts):
        nearest = int(np.abs(centres - (400 + 30 * start + 45)).argmin())
        old, new = net.branch_of(nearest).state_dict(), result.branch_of(group).state_dict()
        assert all(torch.equal(value, new[key]) for key, value in old.items())


@pytest.mark.parametrize(
    "target",
    [
        [400.0 + 25 * band for band in range(17)],  # finer
        [300.0 + 150 * band for band in range(6)],  # coarser, beyond both ends
        [800.0, 425.0, 425.0, 610.0, 555.0, 400.0, 700.0],  # in no order, one twice
        [2000.0 + 10 * band for band in range(5)],  # elsewhere
        None,  # unknown
    ],
)
def test_gain_of_skip_and_final_is_kept(target: list[float] | None) -> None:
    """Flat grey comes out as it did of the old network's skip path, whatever the bands."""
    net = make_net(features=32)
    bands = len(target) if target else 20
    result = transfer(net, bands, NINE, target)
    grey = torch.full((1, 1), 0.4)
    old = skip_of(net, flat(grey.expand(1, 9)))[0, :, 0, 0].numpy()
    new = skip_of(result, flat(grey.expand(1, bands)))[0, :, 0, 0].numpy()
    axis = (np.linspace(0, 1, 9), np.linspace(0, 1, bands)) if target is None else (NINE, target)
    kept = np.interp(axis[1], axis[0], old)
    # The features that are freed for the new bands cost the old output a little.
    assert np.abs(new - kept).max() < 0.1 * np.ptp(old)


def test_interpolation_rows_sum_to_one_and_read_neighbours() -> None:
    source = np.array([500.0, 400.0, 600.0, 500.0])
    matrix = interpolation(source, np.array([300.0, 450.0, 500.0, 900.0]))
    expected = [[0, 1, 0, 0], [0.25, 0.5, 0, 0.25], [0.5, 0, 0, 0.5], [0, 0, 1, 0]]
    assert np.allclose(matrix, expected)


def test_principal_directions_are_orthonormal_and_none_without_variance() -> None:
    basis = principal(covariance(np.arange(12.0)), 5)
    assert np.allclose(basis.T @ basis, np.eye(5))
    assert principal(np.zeros((4, 4)), 3).shape == (4, 0)


def test_starter_for_more_bands_starts_near_bicubic() -> None:
    """Smooth spectra with texture, 130 bands from 400 to 1050 nm; bicubic, not random."""
    net, card = load_checkpoint("starter")
    wavelengths = np.linspace(400.0, 1050.0, 130)
    random = np.random.default_rng(0)
    peaks = [np.exp(-(((wavelengths - at) / 150) ** 2)) for at in (450, 600, 750, 1000)]
    shares = torch.from_numpy(random.random((1, 4, 5, 5))).float()
    shares = upsample(upsample(shares, 2), 2)[..., 4:16, 4:16]
    low = torch.einsum("nkhw,kb->nbhw", shares, torch.from_numpy(np.stack(peaks)).float()) / 3
    bicubic = upsample(low, 4)
    with torch.no_grad():
        errors = []
        for spectra in (None, low[0].flatten(1).T):
            result = transfer(net, 130, card.wavelengths, wavelengths.tolist(), spectra)
            errors.append(float((result(low, bicubic) - bicubic).square().mean().sqrt()))
        torch.manual_seed(0)
        scratch = SSPSR(result.config)(low, bicubic) - bicubic
    assert errors[0] < 0.02 and errors[1] < 0.015
    assert float(scratch.square().mean().sqrt()) > 5 * errors[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": 32}, "carry over to other bands"),
        ({"scale": 2}, "carry over to other bands"),
        ({"group_size": 5}, "carry over to other bands"),
    ],
)
def test_other_shapes_are_refused(change: dict[str, int], words: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=words):
        transfer(net, replace(net.config, bands=12, **change))  # type: ignore[arg-type]


def test_wavelengths_and_spectra_are_checked() -> None:
    net = make_net()
    with pytest.raises(ValueError, match="8 wavelengths for 9 bands"):
        transfer(net, 12, NINE[:8], None)
    with pytest.raises(ValueError, match="finite"):
        transfer(net, 9, NINE, [*NINE[:8], float("nan")])
    with pytest.raises(ValueError, match=r"spectra must be \[samples, 12\]"):
        transfer(net, 12, None, None, torch.rand(5, 9))
    with pytest.raises(ValueError, match="finite"):
        transfer(net, 9, None, None, torch.full((2, 9), float("nan")))


def test_overlap_may_change() -> None:
    net = make_net()
    config = replace(net.config, bands=20, group_overlap=2)
    assert isinstance(config, SSPSRConfig) and transfer(net, config).config == config
