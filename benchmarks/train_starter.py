"""Train the starter checkpoint: SSPSR x4 for the 31 bands of CAVE (400-700 nm, step 10 nm).

    python benchmarks/train_starter.py DATA OUT.safetensors --minutes 80

DATA holds train/*.npz and test/*.npz, each with `cube` (rows, cols, 31) uint16. The test scenes
are used for the figures on the card only; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.card import Architecture, Card, Normalisation
from model.checkpoint import STARTER, save_checkpoint
from model.config import SSPSRConfig
from model.sspsr import SSPSR
from model.training import Progress, TrainingOptions, evaluate, fit

CONFIG = SSPSRConfig(bands=31, scale=4, group_size=8, group_overlap=2, features=64, blocks=3)


def load(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Cubes by name, `(31, rows, cols)` float32 in [0, 1]."""
    cubes = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            cubes[path.stem] = np.ascontiguousarray(
                archive["cube"].transpose(2, 0, 1), dtype=np.float32
            ) / np.float32(65535)
    return cubes


def figures(net: SSPSR, cubes: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, float]]:
    """Mean figures over the cubes, of the network and of bicubic."""
    pairs = [evaluate(net, cube) for cube in cubes.values()]
    return {
        name: {key: float(np.mean([pair[side][key] for pair in pairs])) for key in pairs[0][side]}
        for side, name in ((0, "cave/test x4"), (1, "cave/test x4, bicubic"))
    }


def card(
    options: TrainingOptions, progress: Progress, metrics: dict[str, dict[str, float]]
) -> Card:
    """The card of the trained network."""
    return Card(
        name=STARTER,
        architecture=Architecture(**CONFIG.to_dict()),
        wavelengths=[400.0 + 10.0 * band for band in range(31)],
        fwhm=None,
        normalisation=Normalisation(kind="full-scale", divisor=65535),
        training_data=[
            "CAVE multispectral image database (Yasuma et al. 2010), 17 scenes, research use with "
            "citation"
        ],
        training={
            "protocol": "MATLAB bicubic degradation of HR patches",
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "batch": options.batch,
            "lr_patch": options.patch,
            "optimiser": f"Adam {options.learning_rate:g}, cosine over the budget, EMA",
            "loss": "L1 + 1e-3 spatial TV + 1e-3 spectral TV",
            "seed": options.seed,
        },
        licence="Apache-2.0",
        metrics=metrics,
        notes=[
            "Trained on indoor still lifes lit in the laboratory, not on scenes seen from above.",
            "CAVE publishes band centres and no FWHM.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = TrainingOptions(minutes=arguments.minutes)
    train, test = load(arguments.data / "train"), load(arguments.data / "test")

    def report(progress: Progress) -> None:
        metrics = figures(progress.net, test)
        save_checkpoint(arguments.out, progress.net, card(options, progress, metrics))
        ours, bicubic = metrics.values()
        print(
            f"{progress.seconds / 60:6.1f} min  step {progress.step:6d}  loss {progress.loss:.5f}"
            f"  PSNR {ours['psnr']:.3f} ({ours['psnr'] - bicubic['psnr']:+.3f} dB)"
            f"  SAM {ours['sam']:.3f} (bicubic {bicubic['sam']:.3f})",
            flush=True,
        )

    fit(CONFIG, list(train.values()), options, report)


if __name__ == "__main__":
    main()
