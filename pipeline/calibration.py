"""What is measured once per scene, on a sample, before its tiles: bands, range, attention.

The sample depends on the scene alone, never on the tile size, so a scene cut into other tiles gives
the same values. Attention is measured on a part of it, which costs as much as a few tiles (how
large it must be: docs/attention.md). A small scene is its own sample, and its frozen attention is
then exactly that of the published network on the whole scene.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model import AttentionStatistics, Card
from model.inference import Engine
from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.nodata import check_gaps, fill_gaps
from pipeline.normalisation import find_gains, measure_levels
from pipeline.settings import Attention, Bands, Normalise, Outside
from pipeline.spectral import BandPlan, plan_bands
from pipeline.values import Values

WHOLE_SCENE = 256  # LR pixels; a scene up to this square is sampled whole
PATCH = 64  # LR pixels along a sample's side
PATCHES = 16  # together as many pixels as the largest scene that is sampled whole
SAMPLE_PIXELS = WHOLE_SCENE**2
ATTENTION_WHOLE = 64  # attention needs less: a scene up to this square is measured whole
_ATTENTION_SIDES = 16, 32  # else patches of this size: a sixteenth of the scene, within limits
ATTENTION_PIXELS = PATCHES * _ATTENTION_SIDES[1] ** 2
_USEFUL = 0.1  # share of valid pixels below which a patch is left out


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


def sample_windows(
    height: int, width: int, whole: int = WHOLE_SCENE, patch: int = PATCH
) -> list[Window]:
    """Where to look: all of a scene up to `whole` squared, else patches spread evenly over it."""
    if height * width <= whole**2:
        return [Window(0, height, 0, width)]
    rows = min(round(PATCHES**0.5), -(-height // patch))
    columns = min(-(-PATCHES // rows), -(-width // patch))
    rows = min(-(-PATCHES // columns), -(-height // patch))  # a narrow scene gets more rows
    return [
        Window(top, top + min(patch, height), left, left + min(patch, width))
        for top in _spread(height, rows, patch)
        for left in _spread(width, columns, patch)
    ]


def _spread(size: int, count: int, patch: int) -> list[int]:
    """Starts of `count` patches, each in the middle of its share of the axis."""
    share = size / count
    last = max(0, size - patch)
    return [min(last, max(0, round((index + 0.5) * share - patch / 2))) for index in range(count)]


def _all_windows(height: int, width: int) -> Iterator[Window]:
    for top in range(0, height, PATCH):
        for left in range(0, width, PATCH):
            yield Window(top, min(top + PATCH, height), left, min(left + PATCH, width))


def read_window(scene: xr.Dataset, window: Window) -> Values:
    """Physical values `(bands, rows, cols)` float32 of one window, NaN where there are none.

    Raises:
        SceneError: the source cannot be read there.
    """
    rows, columns = window.slices
    lazy = scene["reflectance"].isel(y=rows, x=columns).data
    values = np.asarray(lazy.compute(scheduler="synchronous"), dtype=np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def _sample(scene: xr.Dataset, good: NDArray[np.bool_]) -> list[Values]:
    """Patches with enough valid pixels; all patches are searched before giving up."""
    height, width = scene.sizes["y"], scene.sizes["x"]

    def valid_share(values: Values) -> float:
        return float(np.isfinite(values[good]).any(axis=0).mean())

    patches = [read_window(scene, window) for window in sample_windows(height, width)]
    if useful := [patch for patch in patches if valid_share(patch) >= _USEFUL]:
        return useful
    fallback = [patch for patch in patches if valid_share(patch) > 0]
    for window in _all_windows(height, width):
        values = read_window(scene, window)
        if valid_share(values) >= _USEFUL:
            return [values]
        if valid_share(values) > 0 and len(fallback) < PATCHES:
            fallback.append(values)
    if not fallback:
        raise SceneError("no-valid-pixels", "every pixel of every good band is nodata")
    return fallback


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
    patches = _sample(scene, stated)
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
    least = min(_USEFUL, max(shares))
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
