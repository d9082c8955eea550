"""Train SSPSR on cubes in memory by Wald's protocol: degrade, super-resolve, compare.

Patches, augmentation, loss and optimiser follow the paper (section IV-A) except where measured
better: the skip path starts as the identity, so training begins at bicubic quality; the learning
rate follows a cosine over the time budget; weights are averaged (EMA).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import SSPSRConfig
from model.degradation import downsample, upsample
from model.inference import compile
from model.losses import hybrid_loss
from model.metrics import assess
from model.sspsr import SSPSR

Cube = NDArray[np.float32]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        minutes: wall-clock budget; the learning-rate schedule spans it.
        batch: patches per step.
        patch: LR pixels along a patch's side.
        learning_rate: peak of the schedule.
        gain: range of the random brightness factor, for sensors that are darker than the lab.
        ema: decay of the weight average.
        bf16: run the forward pass in bfloat16 (weights and optimiser stay float32).
        report_every: seconds between reports.
        seed: of patches and initial weights.
    """

    minutes: float = 60.0
    batch: int = 8
    patch: int = 24
    learning_rate: float = 6e-4
    gain: tuple[float, float] = (0.5, 1.1)
    ema: float = 0.999
    bf16: bool = True
    report_every: float = 300.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """State of a training at a report: `net` holds the averaged weights."""

    step: int
    seconds: float
    loss: float
    net: SSPSR


def start_as_bicubic(net: SSPSR) -> None:
    """Set skip and final convolution so that the untrained network returns the bicubic image."""
    if net.config.features < net.config.bands:
        return
    with torch.no_grad():
        for layer in (net.skip_conv, net.final):
            layer.weight.mul_(0.1)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            for band in range(net.config.bands):
                layer.weight[band, band, 1, 1] += 1.0


def _patches(cubes: Sequence[Tensor], scale: int, options: TrainingOptions) -> Iterator[Tensor]:
    """Endless batches `[batch, bands, scale*patch, scale*patch]`, flipped, rotated, dimmed."""
    random = np.random.default_rng(options.seed)
    side = scale * options.patch
    areas = np.array([cube.shape[1] * cube.shape[2] for cube in cubes], dtype=np.float64)
    low, high = (math.log(value) for value in options.gain)
    while True:
        batch = []
        for index in random.choice(len(cubes), options.batch, p=areas / areas.sum()):
            cube = cubes[index]
            row, column = (int(random.integers(0, size - side + 1)) for size in cube.shape[1:])
            patch = cube[:, row : row + side, column : column + side]
            patch = torch.rot90(patch, int(random.integers(4)), (1, 2))
            patch = patch.flip(2) if random.random() < 0.5 else patch
            gain = math.exp(random.uniform(low, high)) if random.random() < 0.5 else 1.0
            batch.append(patch * gain)
        yield torch.stack(batch)


def _learning_rate(peak: float, elapsed: float) -> float:
    """Short linear warm-up, then a cosine to 1 % of the peak; `elapsed` in [0, 1]."""
    warm = min(1.0, elapsed / 0.02)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed))))


def fit(
    config: SSPSRConfig,
    cubes: Sequence[Cube],
    options: TrainingOptions,
    report: Callable[[Progress], None],
) -> SSPSR:
    """Train a network from scratch.

    Args:
        config: the network.
        cubes: `(bands, rows, cols)` float32 in [0, 1], each at least one patch large.
        options: how to train.
        report: called every `options.report_every` seconds and at the end.

    Raises:
        ValueError: a cube is smaller than a patch or has other bands than the config.
    """
    side = config.scale * options.patch
    for cube in cubes:
        if cube.shape[0] != config.bands or min(cube.shape[1:]) < side:
            raise ValueError(f"cube {cube.shape} does not fit {config.bands} bands x {side} px")
    torch.manual_seed(options.seed)
    net = SSPSR(config)
    start_as_bicubic(net)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average: SSPSR = copy.deepcopy(net)
    average.eval()
    optimiser = torch.optim.Adam(net.parameters(), lr=options.learning_rate)
    batches = _patches([torch.from_numpy(cube) for cube in cubes], config.scale, options)
    start = time.monotonic()
    reported, step, smooth = start, 0, 0.0
    while (elapsed := time.monotonic() - start) < 60 * options.minutes:
        rate = _learning_rate(options.learning_rate, elapsed / (60 * options.minutes))
        for parameters in optimiser.param_groups:
            parameters["lr"] = rate
        loss = _step(net, optimiser, next(batches), options)
        step += 1
        smooth = loss if step == 1 else 0.99 * smooth + 0.01 * loss
        _average(average, net, min(options.ema, step / (step + 10)))
        if time.monotonic() - reported > options.report_every:
            reported = time.monotonic()
            report(Progress(step, elapsed, smooth, average))
    report(Progress(step, time.monotonic() - start, smooth, average))
    return average


def _step(
    net: SSPSR, optimiser: torch.optim.Optimizer, high: Tensor, options: TrainingOptions
) -> float:
    scale = net.config.scale
    low = downsample(high, scale)
    bicubic = upsample(low, scale)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        estimate = net(
            low.contiguous(memory_format=torch.channels_last),
            bicubic.contiguous(memory_format=torch.channels_last),
        )
    loss = hybrid_loss(estimate.float(), high)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimiser.step()
    return loss.item()


@torch.no_grad()
def _average(average: SSPSR, net: SSPSR, decay: float) -> None:
    for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - decay)


def evaluate(net: SSPSR, cube: Cube) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of the network and of bicubic on one cube, degraded as a whole.

    Args:
        net: any scale; the cube is cropped to its multiple.
        cube: `(bands, rows, cols)` float32 in [0, 1].

    Returns:
        `model.metrics.assess` of the network's and of the bicubic estimate.
    """
    scale = net.config.scale
    rows, columns = (size // scale * scale for size in cube.shape[1:])
    reference = torch.from_numpy(np.ascontiguousarray(cube[:, :rows, :columns]))
    low = downsample(reference[None].double(), scale).float()
    estimate = compile(net, precision="fp32")(low)[0].numpy()
    bicubic = upsample(low, scale)[0].numpy()
    return assess(reference, estimate, scale), assess(reference, bicubic, scale)
