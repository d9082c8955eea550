"""Train SSPSR on cubes in memory by Wald's protocol: degrade, super-resolve, compare.

Patches, augmentation, loss and optimiser follow the paper (section IV-A) except where measured
better: the skip path starts as the identity, so training begins at bicubic quality; the learning
rate follows a cosine over the time budget; weights are averaged (EMA). The steps are those of
`model.trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.augmentation import Augmentation, augment
from model.config import SSPSRConfig
from model.degradation import downsample, upsample
from model.inference import compile
from model.metrics import assess
from model.pairs import make_pair
from model.sspsr import SSPSR
from model.trainer import Trainer, TrainingOptions
from model.transfer import covariance, principal

Cube = NDArray[np.float32]


@dataclass(frozen=True)
class FitOptions:
    """How to train on cubes in memory.

    Attributes:
        minutes: wall-clock budget; the learning-rate schedule spans it.
        batch: patches per step.
        patch: LR pixels along a patch's side.
        report_every: seconds between reports.
        steps: of the optimiser.
        augmentation: of the patches.
    """

    minutes: float = 60.0
    batch: int = 8
    patch: int = 24
    report_every: float = 300.0
    steps: TrainingOptions = field(default_factory=TrainingOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Progress:
    """State of a training at a report: `net` holds the averaged weights."""

    step: int
    seconds: float
    loss: float
    net: SSPSR


def start_as_bicubic(net: SSPSR) -> None:
    """Set skip and final convolution so that the untrained network returns the bicubic image.

    With fewer features than bands the image's smooth spectra pass, as many as there are features.
    """
    bands, features = net.config.bands, net.config.features
    basis = torch.eye(bands)
    if features < bands:
        smooth = principal(covariance(np.linspace(0.0, 1.0, bands)), features)
        basis = torch.from_numpy(smooth).float()
    count = basis.shape[1]
    with torch.no_grad():
        for layer in (net.skip_conv, net.final):
            layer.weight.mul_(0.1)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        net.skip_conv.weight[:count, :, 1, 1] += basis.T.to(net.skip_conv.weight.device)
        net.final.weight[:, :count, 1, 1] += basis.to(net.final.weight.device)


def patches(
    cubes: Sequence[Tensor], bands: int, scale: int, options: FitOptions
) -> Iterator[Tensor]:
    """Endless batches `[batch, bands, scale*patch, scale*patch]` from anywhere in the cubes.

    A cube is drawn as often as it holds values.
    """
    random = np.random.default_rng(options.steps.seed)
    sizes = bands, scale * options.patch, scale * options.patch
    values = np.array([cube.numel() for cube in cubes], dtype=np.float64)
    while True:
        batch = []
        for index in random.choice(len(cubes), options.batch, p=values / values.sum()):
            patch = cubes[index]
            for axis, size in enumerate(sizes):
                first = int(random.integers(0, patch.shape[axis] - size + 1))
                patch = patch.narrow(axis, first, size)
            batch.append(augment(patch, random, options.augmentation))
        yield torch.stack(batch)


def new_network(config: SSPSRConfig, seed: int) -> SSPSR:
    """A network that starts as bicubic."""
    torch.manual_seed(seed)
    net = SSPSR(config)
    start_as_bicubic(net)
    return net


def fit(
    net: SSPSR,
    cubes: Sequence[Cube],
    options: FitOptions,
    report: Callable[[Progress], None],
    device: str | torch.device = "cpu",
) -> Progress:
    """Train a network, in place.

    Args:
        net: a new network, or a trained one to go on with; it is moved to the device.
        cubes: `(bands, rows, cols)` float32 in [0, 1], each at least one patch large; of a cube
            with more bands than the network every patch has another window of neighbouring ones.
        options: how to train.
        report: called every `options.report_every` seconds and at the end.
        device: where to train; all cubes have to fit into its memory.

    Returns:
        The last state, as reported.

    Raises:
        ValueError: a cube is smaller than a patch or has fewer bands than the network.
    """
    config = net.config
    side = config.scale * options.patch
    for cube in cubes:
        if cube.shape[0] < config.bands or min(cube.shape[1:]) < side:
            raise ValueError(f"cube {cube.shape} does not fit {config.bands} bands x {side} px")
    trainer = Trainer(net, options.steps, device)
    there = [torch.from_numpy(cube).to(device) for cube in cubes]
    batches = patches(there, config.bands, config.scale, options)
    budget = 60 * options.minutes
    reported = start = time.monotonic()
    smooth = 0.0
    with ThreadPoolExecutor(1) as pool:  # the next batch is cut while this one trains
        coming = pool.submit(next, batches)
        while (elapsed := time.monotonic() - start) < budget:
            high = coming.result()
            coming = pool.submit(next, batches)
            low, _ = make_pair(high, scale=config.scale)
            loss = trainer.step(low, high, None, elapsed / budget)
            smooth = loss if trainer.steps == 1 else 0.99 * smooth + 0.01 * loss
            if time.monotonic() - reported > options.report_every:
                reported = time.monotonic()
                report(Progress(trainer.steps, elapsed, smooth, trainer.average))
    last = Progress(trainer.steps, time.monotonic() - start, smooth, trainer.average)
    report(last)
    return last


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
    device = net.final.weight.device
    estimate = compile(net, precision="fp32")(low.to(device))[0].cpu().numpy()
    bicubic = upsample(low, scale)[0].numpy()
    return assess(reference, estimate, scale), assess(reference, bicubic, scale)
