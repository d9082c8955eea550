"""What is measured once per scene, on a sample, before its tiles: bands, range, attention.

Attention is measured on a part of the sample, which costs as much as a few tiles (how large it must
be: docs/attention.md). A small scene is its own sample, and its frozen attention is then exactly
that of the published network on the whole scene.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model import AttentionStatistics, Card
from model.inference import Engine
from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.nodata import check_gaps, fill_gaps
from pipeline.normalisation import find_gains, measure_levels
from pipeline.sampling import PATCHES, USEFUL, sample_of, sample_windows
from pipeline.settings import Attention, Bands, Normalise, Outside
from pipeline.spectral import BandPlan, plan_bands
from pipeline.values import Values

ATTENTION_WHOLE = 64  # attention needs less: a scene up to this square is measured whole
_ATTENTION_SIDES = 16, 32  # else patches of this size: a sixteenth of the scene, within limits
ATTENTION_PIXELS = PATCHES * _ATTENTION_SIDES[1] ** 2


@dataclass(frozen=True)
class Calibration:
    """Constants of one scene that every one of its tiles uses.

    Attributes:
        bands: how bands go through the network; its `used` leaves out empty bands.
        gains: `(bands,)` network value = physical value x gain.
        gain_rule: how the gains were found, for provenance.
        background: `(bands,)` physical value deep inside gaps.
        statistics: frozen attention, one per band window; empty with per-tile attention.
        sampled_pixels: LR pixels in the sample.
    """

    bands: BandPlan
    gains: Values
    gain_rule: str
    background: Values
    statistics: tuple[AttentionStatistics, ...]
    sampled_pixels: int

    def digest(self) -> str:
        """SHA-256 of the attention statistics."""
        return hashlib.sha256("".join(s.digest() for s in self.statistics).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        tensors = {
            "background": torch.from_numpy(self.background),
            "gains": torch.from_numpy(self.gains),
        }
        for index, statistics in enumerate(self.statistics):
            tensors[f"{index}.branches"] = statistics.branches.contiguous()
            tensors[f"{index}.trunk"] = statistics.trunk.contiguous()
        facts = {
            "bands": asdict(self.bands),
            "gain_rule": self.gain_rule,
            "windows": len(self.statistics),
            "sampled_pixels": self.sampled_pixels,
        }
        data: bytes = save_tensors(tensors, metadata={"calibration": json.dumps(facts)})
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["calibration"])
        tensors = load_tensors(data)
        return cls(
            bands=BandPlan.from_dict(facts["bands"]),
            gains=tensors["gains"].numpy(),
            gain_rule=facts["gain_rule"],
            background=tensors["background"].numpy(),
            statistics=tuple(
                AttentionStatistics(tensors[f"{index}.branches"], tensors[f"{index}.trunk"])
                for index in range(facts["windows"])
            ),
            sampled_pixels=facts["sampled_pixels"],
        )


def calibrate(
    scene: xr.Dataset,
    engine: Engine,
    card: Card,
    *,
    policy: Bands = "auto",
    outside: Outside = "fill",
    tolerance: float | None = None,
    normalise: Normalise = "auto",
    pooling: Attention = "scene",
) -> Calibration:
    """Measure a scene's constants.

    Args:
        scene: keeps the Scene contract; with the policy `resample`, resampled already.
        engine: the network.
        card: its card.
        policy: what to do with bands that are not the model's.
        outside: what to do with bands that a match leaves over.
        tolerance: nm by which a scene band may miss the model's; None: `default_tolerance`.
        normalise: how values reach [0, 1].
        pooling: `scene` freezes the attention; `global` leaves it to each tile.

    Raises:
        SceneError: nothing valid, too many holes, or bands the policy refuses.
    """
    calibration, patches = constants(
        scene, card, policy=policy, outside=outside, tolerance=tolerance, normalise=normalise
    )
    if pooling == "global":
        return calibration
    pixels = scene.sizes["y"] * scene.sizes["x"]
    return replace(calibration, statistics=_attention(patches, pixels, calibration, engine))


def constants(
    scene: xr.Dataset,
    card: Card,
    *,
    policy: Bands = "auto",
    outside: Outside = "fill",
    tolerance: float | None = None,
    normalise: Normalise = "auto",
) -> tuple[Calibration, list[Values]]:
    """What is measured without the network: all but the attention; and the sample.

    Args:
        scene, card, policy, outside, tolerance, normalise: as for `calibrate`.

    Raises:
        SceneError: as `calibrate`.
    """
    stated = np.asarray(scene["good_band"].values, dtype=bool)
    if not stated.any():
        raise SceneError("too-few-bands", "every band is marked as bad")
    patches = sample_of(scene, stated)
    good = stated & np.any([np.isfinite(patch).any(axis=(1, 2)) for patch in patches], axis=0)
    plan = plan_bands(scene, card, good.tolist(), policy, outside, tolerance)
    if empty := np.count_nonzero(stated & ~good):
        note = f"{empty} band(s) hold no value in the sample and come out as fill"
        plan = replace(plan, note="; ".join(filter(None, [plan.note, note])))
    used = list(plan.used)
    _check_all(patches, used)
    background = _background(patches, list(plan.valued))
    encoding = scene["reflectance"].encoding
    gains, rule = find_gains(encoding, card, measure_levels(patches, used), plan, normalise)
    pixels = sum(patch[0].size for patch in patches)
    return Calibration(plan, gains, rule, background, (), pixels), patches


def _check_all(patches: list[Values], used: list[int]) -> None:
    """One verdict over all patches, as if they lay in one row."""
    height = max(patch.shape[1] for patch in patches)
    padded = [
        np.pad(
            patch[used],
            ((0, 0), (0, height - patch.shape[1]), (0, 0)),
            constant_values=np.nan,
        )
        for patch in patches
    ]
    check_gaps(np.concatenate(padded, axis=2))


def _background(patches: list[Values], used: list[int]) -> Values:
    count = np.sum([np.isfinite(patch).sum(axis=(1, 2)) for patch in patches], axis=0)
    total = np.sum([np.nansum(patch, axis=(1, 2), dtype=np.float64) for patch in patches], axis=0)
    means = np.zeros(len(total), dtype=np.float32)
    means[used] = (total[used] / np.maximum(count[used], 1)).astype(np.float32)
    return means


def network_input(values: Values, calibration: Calibration) -> Values:
    """What the network sees of physical values `(bands, rows, cols)`: filled, scaled to [0, 1].

    Inputs of the network whose band is not used hold what lies between the inputs beside them that
    are; windows have none of those. All other bands are zero, and nothing looks at them.
    """
    used = list(calibration.bands.used)
    result = np.zeros_like(values)
    result[used] = fill_gaps(values[used], calibration.background[used])
    result *= calibration.gains[:, None, None]
    if calibration.bands.kind != "windows":  # after scaling: an unused band has no level of its own
        _interpolate_unused(result, calibration.bands.windows[0].bands, set(used))
    return result


def _interpolate_unused(values: Values, inputs: Sequence[int], used: set[int]) -> None:
    """Fill the bands at the network's inputs that are not used, along the inputs."""
    known = [place for place, band in enumerate(inputs) if band in used]
    for place in sorted(set(range(len(inputs))) - set(known)):
        below = max((k for k in known if k < place), default=known[0])
        above = min((k for k in known if k > place), default=known[-1])
        part = 0.0 if above == below else (place - below) / (above - below)
        lower, upper = values[inputs[below]], values[inputs[above]]
        values[inputs[place]] = (1 - part) * lower + part * upper


def _attention(
    patches: list[Values], pixels: int, calibration: Calibration, engine: Engine
) -> tuple[AttentionStatistics, ...]:
    """Frozen attention of every band window, for a scene of so many LR pixels."""
    used = list(calibration.bands.used)
    smallest, largest = _ATTENTION_SIDES
    side = min(largest, max(smallest, isqrt(pixels // PATCHES**2)))
    parts, shares = [], []
    for patch in patches:
        seen = network_input(patch, calibration)
        for window in _attention_windows(patch, side, alone=len(patches) == 1):
            parts.append(seen[:, *window.slices])
            valid = np.isfinite(patch[used][:, *window.slices]).any(axis=0)
            shares.append(float(valid.mean()))
    least = min(USEFUL, max(shares))
    useful = [part for part, share in zip(parts, shares, strict=True) if share >= least]
    shape = max((part.shape for part in useful), key=np.prod)
    alike = [part for part in useful if part.shape == shape]
    stacked = torch.from_numpy(np.stack(alike)).to(engine.device)
    return tuple(
        engine.measure(stacked[:, list(window.bands)]) for window in calibration.bands.windows
    )


def _attention_windows(patch: Values, side: int, *, alone: bool) -> list[Window]:
    """Of a whole scene, places spread over it; of one patch among others, its middle."""
    height, width = patch.shape[1:]
    if alone:
        return sample_windows(height, width, ATTENTION_WHOLE, side)
    rows, columns = min(height, side), min(width, side)
    top, left = (height - rows) // 2, (width - columns) // 2
    return [Window(top, top + rows, left, left + columns)]
