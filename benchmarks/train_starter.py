"""Train the starter checkpoint: SSPSR x4 for the 31 bands of CAVE (400-700 nm, step 10 nm).

    python -m benchmarks.train_starter DATA OUT.safetensors --minutes 80 [--start starter]

DATA holds train/*.npz and test/*.npz, each with `cube` (rows, cols, 31) uint16. The right quarter
of every training scene is held out: options are chosen by it. The test scenes are used for the
figures on the card only; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.card import Architecture, Card, Normalisation
from model.checkpoint import STARTER, load_checkpoint, save_checkpoint
from model.config import SSPSRConfig
from model.sspsr import SSPSR
from model.trainer import TrainingOptions
from model.training import FitOptions, Progress, evaluate, fit, new_network

Cubes = dict[str, NDArray[np.float32]]

HELD_OUT = "cave/train x4, right quarter"
CONFIG = SSPSRConfig(bands=31, scale=4, group_size=8, group_overlap=2, features=64, blocks=3)


def load(folder: Path) -> Cubes:
    """Cubes by name, `(31, rows, cols)` float32 in [0, 1]."""
    cubes = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            cubes[path.stem] = np.ascontiguousarray(
                archive["cube"].transpose(2, 0, 1), dtype=np.float32
            ) / np.float32(65535)
    return cubes


def split(cubes: Cubes) -> tuple[Cubes, Cubes]:
    """What is trained on, and the right quarter of every scene, held out."""
    parts: tuple[Cubes, Cubes] = {}, {}
    for name, cube in cubes.items():
        border = 3 * cube.shape[2] // 4
        parts[0][name], parts[1][name] = cube[..., :border], cube[..., border:]
    return parts


def figures(net: SSPSR, cubes: Cubes, name: str = "cave/test x4") -> dict[str, dict[str, float]]:
    """Mean figures over the cubes, of the network and of bicubic."""
    pairs = [evaluate(net, cube) for cube in cubes.values()]
    return {
        title: {key: float(np.mean([pair[side][key] for pair in pairs])) for key in pairs[0][side]}
        for side, title in ((0, name), (1, f"{name}, bicubic"))
    }


def card(
    options: FitOptions, progress: Progress, metrics: dict[str, dict[str, float]], start: str
) -> Card:
    """The card of the trained network."""
    steps = options.steps
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
            "optimiser": f"Adam {steps.learning_rate:g}, {steps.schedule} over the budget, EMA",
            "loss": f"L1 + {steps.spatial:g} spatial TV + {steps.spectral:g} spectral TV"
            + (f" + {steps.angle:g} spectral angle" if steps.angle else ""),
            "seed": steps.seed,
            "started_from": start or "bicubic",
        },
        licence="Apache-2.0",
        metrics=metrics,
        notes=[
            "Trained on indoor still lifes lit in the laboratory, not on scenes seen from above.",
            "CAVE publishes band centres and no FWHM.",
        ],
    )


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    options = FitOptions(
        minutes=given.minutes,
        batch=given.batch,
        patch=given.patch,
        report_every=60 * given.report_minutes,
        steps=TrainingOptions(learning_rate=given.learning_rate, angle=given.angle),
    )
    train, held_out = split(load(given.data / "train"))
    net = load_checkpoint(given.start)[0] if given.start else new_network(CONFIG, 0)
    _print("start", figures(net, held_out, HELD_OUT))

    def report(progress: Progress) -> None:
        metrics = figures(progress.net, held_out, HELD_OUT)
        save_checkpoint(given.out, progress.net, card(options, progress, metrics, given.start))
        state = f"{progress.seconds / 60:6.1f} min  step {progress.step:6d}"
        _print(f"{state}  loss {progress.loss:.5f}", metrics)

    last = fit(net, list(train.values()), options, report)
    test = figures(last.net, load(given.data / "test"))
    metrics = test | figures(last.net, held_out, HELD_OUT)
    save_checkpoint(given.out, last.net, card(options, last, metrics, given.start))
    _print("test", test)


def _print(what: str, metrics: dict[str, dict[str, float]]) -> None:
    ours, bicubic = metrics.values()
    print(
        f"{what}  PSNR {ours['psnr']:.3f} ({ours['psnr'] - bicubic['psnr']:+.3f} dB)"
        f"  SAM {ours['sam']:.3f} ({ours['sam'] / bicubic['sam'] - 1:+.1%})",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--report-minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=24, help="LR pixels along a patch's side")
    parser.add_argument("--start", default="", help="a checkpoint to go on with")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--angle", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
