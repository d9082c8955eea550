"""Variety for training patches: what changes an image without making it another kind of image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import SSPSRConfig

Patch = TypeVar("Patch", NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class Augmentation:
    """How patches are varied.

    Attributes:
        flips: the 8 flips and rotations, equally often.
        gain: range of the random brightness factor, equally likely on a logarithmic scale, for
            scenes darker or brighter than those of the training.
        gain_chance: how many patches get such a factor.
        noise: largest standard deviation of the noise added to every value, drawn per patch
            between 0 and this; 0: none.

    Raises:
        ValueError: a value out of range.
    """

    flips: bool = True
    gain: tuple[float, float] = (0.5, 1.1)
    gain_chance: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.gain[0] <= self.gain[1] < math.inf:
            raise ValueError(f"the gain's range must be positive and rising, not {self.gain}")
        if not 0.0 <= self.gain_chance <= 1.0:
            raise ValueError(f"the gain's chance must lie between 0 and 1, not {self.gain_chance}")
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"the noise must not be negative, and finite, not {self.noise}")


NONE = Augmentation(flips=False, gain_chance=0.0)


def augment(
    patch: Patch, rng: np.random.Generator, options: Augmentation = Augmentation()
) -> Patch:
    """One patch, varied; gaps (NaN) stay gaps and turn with it.

    Args:
        patch: `[bands, H, W]` HR, floating, an array or a tensor; not changed. Square, if flips
            are on and patches are to be stacked.
        rng: draws the same numbers whatever the options, so that runs can be compared.
        options: how.

    Returns:
        The same type, `[bands, H, W]` or `[bands, W, H]`, contiguous.
    """
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    dims, gain = (
        rng.random() < options.gain_chance,
        math.exp(rng.uniform(math.log(options.gain[0]), math.log(options.gain[1]))),
    )
    deviation, seed = options.noise * rng.random(), int(rng.integers(2**63))
    values = patch if isinstance(patch, Tensor) else torch.from_numpy(patch)
    if options.flips:
        values = torch.rot90(values, turns, (1, 2))
        values = values.flip(2) if mirrored else values
    if dims:
        values = values * gain
    if deviation:
        noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
        values = values + deviation * torch.from_numpy(noise).to(values)
    values = values.contiguous()
    return values if isinstance(patch, Tensor) else values.numpy()


def shifted_groups(config: SSPSRConfig, rng: np.random.Generator) -> tuple[int, ...]:
    """First bands of as many groups as the config has, overlapping at random and covering all.

    A shared branch meets every band at every place of its group that way.
    """
    gaps = len(config.group_starts) - 1
    surplus = (gaps + 1) * config.group_size - config.bands
    overlaps = rng.multinomial(surplus, [1 / gaps] * gaps) if gaps else np.zeros(0, np.int64)
    steps = np.maximum(config.group_size - overlaps, 0)
    starts = np.concatenate([[0], np.cumsum(steps)])
    return tuple(np.minimum(starts, config.bands - config.group_size).tolist())
