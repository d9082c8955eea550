"""What a trained network is worth as the start for another sensor, against training from scratch.

    python -m benchmarks.transfer SCENE [--model starter] [--steps 0 100 500] [--start transfer]

The scene's left two thirds are trained on, its right third is evaluated: PSNR and spectral angle of
the averaged weights after so many steps of one schedule. Starts: `transfer`, with the features
chosen by the training block's spectra; `transfer-smooth`, without; `bicubic` and `random`, from
scratch.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import print_table
from model import SSPSR, Card, load_checkpoint
from model.degradation import downsample
from model.pairs import make_pair
from model.trainer import Trainer, TrainingOptions
from model.training import FitOptions, evaluate, new_network, patches
from model.transfer import transfer
from pipeline import open_scene

STARTS = ["transfer", "transfer-smooth", "bicubic", "random"]
Cube = NDArray[np.float32]


def load(scene: Path, scale: int) -> tuple[Cube, Cube, list[float]]:
    """Training block, evaluation block and wavelengths of the bands that are whole."""
    dataset = open_scene(str(scene))
    values = dataset["reflectance"].values.astype(np.float32)
    whole = np.isfinite(values).all(axis=(1, 2)) & (values > 0).any(axis=(1, 2))
    values = values[whole].clip(0, 1)
    border = 2 * values.shape[2] // 3 // scale * scale
    wavelengths = dataset["wavelength"].values[whole].tolist()
    return values[..., :border], values[..., border:], wavelengths


def begin(start: str, net: SSPSR, card: Card, block: Cube, wavelengths: list[float]) -> SSPSR:
    """A network for the scene's bands."""
    config = replace(net.config, bands=len(block))
    if start in ("bicubic", "random"):
        torch.manual_seed(0)
        return new_network(config, 0) if start == "bicubic" else SSPSR(config)
    low = downsample(torch.from_numpy(block), config.scale).flatten(1).T
    spectra = low if start == "transfer" else None
    return transfer(net, config, card.wavelengths, wavelengths, spectra)


def figures(net: SSPSR, cube: Cube) -> list[str]:
    ours, bicubic = evaluate(net, cube)
    return [
        f"{ours['psnr']:.2f} ({ours['psnr'] - bicubic['psnr']:+.2f})",
        f"{ours['sam']:.2f} ({ours['sam'] - bicubic['sam']:+.2f})",
    ]


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    net, card = load_checkpoint(given.model)
    scale, last = net.config.scale, max(given.steps)
    training, held_out, wavelengths = load(given.scene, scale)
    steps = TrainingOptions(learning_rate=given.learning_rate)
    options = FitOptions(batch=given.batch, patch=given.patch, steps=steps)
    rows = []
    for start in given.start:
        trainer = Trainer(begin(start, net, card, training, wavelengths), steps)
        row = [start]
        batches = patches([torch.from_numpy(training)], len(training), scale, options)
        for step in range(last + 1):
            if step in given.steps:
                row += figures(trainer.average, held_out)
                print(start, step, *row[-2:], flush=True)
            if step == last:
                break
            high = next(batches)
            low, _ = make_pair(high, scale=scale)
            trainer.step(low, high, None, step / last)
        rows.append(row)
    header = ["start"] + [f"{what}, {n} steps" for n in given.steps for what in ("PSNR", "SAM")]
    print_table(f"{given.scene.name}, {len(training)} bands, from {card.name}", header, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 500])
    parser.add_argument("--start", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, default=8, help="LR pixels along a patch's side")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
