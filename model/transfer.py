"""A trained network's weights for another set of bands.

The shared branch carries over whole. Everything else is resampled along wavelength: the trunk sees
the spectrum resampled to the bands it was trained with, and what it adds is resampled back. The
skip path is trained for the old bands too, and resampling there and back would leave only what the
old bands can say. So a part of the features, those that the old weights use least, carry the rest
of the bicubic spectrum past the trunk: the network starts as

    bicubic + resampled(old network - bicubic, both of the old bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, unflatten

from model.config import SSPSRConfig
from model.sspsr import SSPSR, Branch

Matrix = NDArray[np.float64]

_CORRELATED = 0.15  # share of the spectral range over which reflectances resemble each other
_NOTHING = 1e-10  # share of the variance that needs no feature of its own
_UNUSED = 5e-3  # share of what the old output is made of that its features may lose


def transfer(
    net: SSPSR,
    target: SSPSRConfig | int,
    source_wavelengths: Sequence[float] | None = None,
    target_wavelengths: Sequence[float] | None = None,
    spectra: Tensor | None = None,
) -> SSPSR:
    """A new network for other bands that starts with what this one has learnt.

    Band centres beyond those of the other side take the nearest; in any order, and repeated ones
    share. Where either side has none, bands are matched by their place in the order. Branches of
    their own (`shared_branch` off) go to the groups nearest to theirs. The same bands give the same
    network.

    Args:
        net: the trained network; not changed.
        target: the new config, which may differ in bands and group_overlap; or the number of bands.
        source_wavelengths: band centres of net, nm.
        target_wavelengths: band centres of the new network, nm.
        spectra: `[samples, bands]` of the new bands, in [0, 1], to choose the features that carry
            them by; without, spectra are taken to be smooth.

    Returns:
        The new network, on the device of the old one.

    Raises:
        ValueError: the configs do not fit each other, or wavelengths or spectra the bands.
    """
    config = replace(net.config, bands=target) if isinstance(target, int) else target
    _check(net.config, config, spectra)
    source, new = _positions(source_wavelengths, target_wavelengths, net.config.bands, config.bands)
    back, there = interpolation(source, new), interpolation(new, source)
    result = SSPSR(config).to(next(net.parameters()).device)
    with torch.no_grad():
        _carry_branches(net, result, source, new)
        _carry_trunk(net, result, torch.from_numpy(there))
        rest = np.eye(config.bands) - back @ there
        lost = rest @ covariance(new, spectra) @ rest.T
        _carry_skip(net, result, *(torch.from_numpy(m) for m in (back, there, rest, lost)))
    return result.train(net.training)


def interpolation(source: Matrix, target: Matrix) -> Matrix:
    """The matrix `[target, source]` of linear interpolation; rows sum to 1, ends are held."""
    places, inverse, counts = np.unique(source, return_inverse=True, return_counts=True)
    hats = [np.interp(target, places, row) for row in np.eye(len(places))]
    return (np.stack(hats, axis=1) / counts)[:, inverse]


def covariance(positions: Matrix, spectra: Tensor | None = None) -> Matrix:
    """How bands vary together, `[bands, bands]`: in the spectra, or as smooth spectra do.

    Args:
        positions: of the bands along the spectrum, in any unit.
        spectra: `[samples, bands]`.
    """
    if spectra is not None:
        values = spectra.detach().cpu().double().numpy()
        return cast(Matrix, values.T @ values / len(values))
    apart = np.abs(positions[:, None] - positions)
    return np.exp(-apart / (_CORRELATED * max(np.ptp(positions), 1e-9))) + 1.0


def principal(variance: Matrix, most: int) -> Matrix:
    """Orthonormal directions `[bands, k]` of the largest variance, k <= most, none without any."""
    values, vectors = np.linalg.eigh(variance)
    needed = int((values > _NOTHING * max(np.trace(variance), _NOTHING)).sum())
    return cast(Matrix, vectors[:, ::-1][:, : min(most, needed)].copy())


def _check(old: SSPSRConfig, new: SSPSRConfig, spectra: Tensor | None) -> None:
    if replace(new, bands=old.bands, group_overlap=old.group_overlap) != old:
        raise ValueError(
            "weights carry over to other bands and another group_overlap only; all else must be as "
            f"in the old network: {old}"
        )
    if spectra is not None and (spectra.ndim != 2 or spectra.shape[1] != new.bands):
        raise ValueError(f"spectra must be [samples, {new.bands}], not {list(spectra.shape)}")
    if spectra is not None and not bool(torch.isfinite(spectra).all() and len(spectra)):
        raise ValueError("spectra must be finite, and at least one")


def _positions(
    source: Sequence[float] | None, target: Sequence[float] | None, old: int, new: int
) -> tuple[Matrix, Matrix]:
    """Where the bands of both sides lie on one axis: wavelength, or their place in the order."""
    for wavelengths, bands in ((source, old), (target, new)):
        if wavelengths is not None and len(wavelengths) != bands:
            raise ValueError(f"{len(wavelengths)} wavelengths for {bands} bands")
    if source is None or target is None:
        return np.linspace(0.0, 1.0, old), np.linspace(0.0, 1.0, new)
    first, second = (np.asarray(values, dtype=np.float64) for values in (source, target))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("wavelengths must be finite")
    return first, second


def _carry_branches(net: SSPSR, result: SSPSR, source: Matrix, target: Matrix) -> None:
    if net.config.shared_branch:
        result.branch_of(0).load_state_dict(net.branch_of(0).state_dict())
        return
    old, new = (
        np.array([at[start : start + config.group_size].mean() for start in config.group_starts])
        for at, config in ((source, net.config), (target, result.config))
    )
    for group, centre in enumerate(new):
        nearest = int(np.abs(old - centre).argmin())
        result.branch_of(group).load_state_dict(net.branch_of(nearest).state_dict())


def _carry_trunk(net: SSPSR, result: SSPSR, there: Tensor) -> None:
    """The trunk sees the new bands resampled to the old ones."""
    state = net.trunk.state_dict()
    state["head.weight"] = _mixed(state["head.weight"], inputs=there)
    result.trunk.load_state_dict(state)


def _carry_skip(
    net: SSPSR, result: SSPSR, back: Tensor, there: Tensor, rest: Tensor, lost: Tensor
) -> None:
    """Skip and final: the old ones resampled, and beside them what resampling loses."""
    kept, free = _by_use(net)
    basis = torch.from_numpy(principal(lost.numpy(), free.shape[1]))
    spare = basis.shape[1]
    final = _mixed(net.final.weight, outputs=back)
    skip = _mixed(net.skip_conv.weight, inputs=there)
    skip_bias = _wide(_bias(net.skip_conv))
    if spare:
        kept = torch.cat([free[:, spare:], kept], dim=1)
        turn = torch.cat([torch.zeros_like(free[:, :spare]), kept], dim=1)
        _turn_upsampling(result.trunk, turn.T)
        final, skip = _mixed(final, inputs=turn), _mixed(skip, outputs=turn.T)
        skip_bias = turn.T @ skip_bias
        final[:, :spare, 1, 1] = basis
        skip[:spare, :, 1, 1] = basis.T @ rest
    result.final.weight.copy_(final)
    _bias(result.final).copy_(back @ _wide(_bias(net.final)))
    result.skip_conv.weight.copy_(skip)
    _bias(result.skip_conv).copy_(skip_bias)


def _by_use(net: SSPSR) -> tuple[Tensor, Tensor]:
    """Orthonormal directions of the features `[features, k]`: needed for the output, and free ones.

    What a direction matters is what the final convolution makes of what trunk and skip put there.
    The free ones, least used first, are at least an eighth and at most half of all.
    """
    features = net.config.features
    made = torch.cat(
        [
            unflatten(_wide(_last(net.trunk).weight), 0, (-1, 4)).flatten(1),
            _wide(net.skip_conv.weight).flatten(1),
        ],
        dim=1,
    )
    used = _wide(net.final.weight).transpose(0, 1).flatten(1)
    strength, axes = torch.linalg.eigh(made @ made.T)
    root = axes * strength.clamp(min=0.0).sqrt() @ axes.T
    use, directions = torch.linalg.eigh(root @ used @ used.T @ root)
    free = int((use.cumsum(0) < _UNUSED * use.sum()).sum())
    free = min(max(free, features // 8), features // 2)
    return directions[:, free:], directions[:, :free]


def _turn_upsampling(trunk: Branch, turn: Tensor) -> None:
    """Features behind the pixel shuffle, mixed by `turn` `[features, features]`."""
    for parameter in (_last(trunk).weight, _bias(_last(trunk))):
        phases = unflatten(_wide(parameter), 0, (-1, 4))
        parameter.copy_(torch.tensordot(turn, phases, dims=1).flatten(0, 1))


def _mixed(
    weight: Tensor, *, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> Tensor:
    """A convolution behind a matrix `inputs`, or in front of a matrix `outputs`; float64."""
    weight = _wide(weight)
    if inputs is not None:
        weight = torch.einsum("oikl,ij->ojkl", weight, inputs)
    return weight if outputs is None else torch.einsum("po,oikl->pikl", outputs, weight)


def _last(trunk: Branch) -> nn.Conv2d:
    """The convolution in front of the trunk's pixel shuffle."""
    return cast(nn.Conv2d, trunk.upsample[-2])


def _wide(weights: Tensor) -> Tensor:
    return weights.detach().cpu().double()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
