"""Train a checkpoint that ships with the package, and put its figures on its card.

    python -m benchmarks.train_shipped train cave OUT.safetensors DATA/cave/train --minutes 80
    python -m benchmarks.train_shipped train windows OTHER.safetensors REMOTE DATA/cave/train
    python -m benchmarks.train_shipped mean SHIPPED.safetensors OUT.safetensors OTHER.safetensors
    python -m benchmarks.train_shipped judge SHIPPED.safetensors DATA/cave

Folders hold *.npz, each with `cube` (rows, cols, bands) uint16; `benchmarks.remote_cubes` makes
them of scenes. `cave`: 31 bands, 400-700 nm; the right quarter of every scene is held out, and
options are chosen by it. The test scenes are used for the figures on the card only. `windows`: any
31 neighbouring bands, each scaled to its own 98th percentile, as a run takes scenes with more bands
than the model; whole scenes are held out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.card import Architecture, Card, Normalisation
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import SSPSRConfig
from model.sspsr import SSPSR
from model.trainer import TrainingOptions
from model.training import FitOptions, Progress, evaluate, fit, new_network

Cubes = dict[str, NDArray[np.float32]]

HELD_OUT = "cave/train x4, right quarter"
BANDS, SCALE = 31, 4
_CAVE = (
    "CAVE multispectral image database (Yasuma et al. 2010), 17 scenes, research use with citation"
)


@dataclass(frozen=True)
class Recipe:
    """What a shipped checkpoint is trained on, and what its card says of that.

    Attributes:
        levels: every band is scaled so that its 98th percentile is 0.5, as runs do for windows.
        quarter: the right quarter of every scene is held out.
    """

    data: tuple[str, ...]
    notes: tuple[str, ...]
    wavelengths: list[float] | None = None
    levels: bool = False
    quarter: bool = True


RECIPES = {
    "cave": Recipe(
        data=(_CAVE,),
        notes=(
            "CAVE shows indoor still lifes lit in the laboratory, not scenes seen from above.",
            "CAVE publishes band centres and no FWHM.",
        ),
        wavelengths=[400.0 + 10.0 * band for band in range(BANDS)],
    ),
    "windows": Recipe(
        data=(
            "ABU data set (Kang et al. 2017), six AVIRIS scenes, research use with citation",
            "EnMAP L2A over Potsdam, 2022-07-24, left 64 columns of a subset (DLR)",
            _CAVE,
        ),
        notes=(
            "Also for windows of 31 neighbouring bands of a sensor between 400 and 2500 nm, each "
            "band scaled to its own level.",
            "The AVIRIS scenes state no wavelengths: windows may reach across removed bands.",
        ),
        levels=True,
        quarter=False,
    ),
}


def load(*folders: Path) -> Cubes:
    """Cubes by name, `(bands, rows, cols)` float32 in [0, 1]."""
    cubes = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.npz")):
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


def levelled(cube: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every band's 98th percentile at 0.5; above twice that it is cut."""
    level = np.quantile(cube, 0.98, axis=(1, 2), keepdims=True)
    return np.minimum(0.5 * cube / np.maximum(level, 1e-6), 1.0).astype(np.float32)


def figures(net: SSPSR, cubes: Cubes, name: str = "cave/test x4") -> dict[str, dict[str, float]]:
    """Mean figures over the cubes, of the network and of bicubic."""
    pairs = [evaluate(net, cube) for cube in cubes.values()]
    return {
        title: {key: float(np.mean([pair[side][key] for pair in pairs])) for key in pairs[0][side]}
        for side, title in ((0, name), (1, f"{name}, bicubic"))
    }


def card(name: str, recipe: Recipe, options: FitOptions, progress: Progress, start: str) -> Card:
    """The card of the trained network, as yet without figures."""
    steps = options.steps
    return Card(
        name=name,
        architecture=Architecture(**progress.net.config.to_dict()),
        wavelengths=recipe.wavelengths,
        fwhm=None,
        normalisation=Normalisation(kind="full-scale", divisor=65535),
        training_data=list(recipe.data),
        training={
            "protocol": "MATLAB bicubic degradation of HR patches",
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "device": str(progress.net.final.weight.device.type),
            "batch": options.batch,
            "lr_patch": options.patch,
            "optimiser": f"Adam {steps.learning_rate:g}, {steps.schedule} over the budget, EMA",
            "loss": f"L1 + {steps.spatial:g} spatial TV + {steps.spectral:g} spectral TV"
            + (f" + {steps.angle:g} spectral angle" if steps.angle else ""),
            "shifted_groups": steps.shift_groups,
            "seed": steps.seed,
            "started_from": start or "bicubic",
        },
        licence="Apache-2.0",
        notes=list(recipe.notes),
    )


def train(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    recipe: Recipe = RECIPES[given.recipe]
    options = FitOptions(
        minutes=given.minutes,
        batch=given.batch,
        patch=given.patch,
        report_every=60 * given.report_minutes,
        steps=TrainingOptions(
            learning_rate=given.learning_rate, angle=given.angle, shift_groups=given.shift_groups
        ),
    )
    cubes, held_out = load(*given.data), Cubes()
    if recipe.quarter and not given.whole:
        cubes, held_out = split(cubes)
    if recipe.levels:
        cubes = {name: levelled(cube) for name, cube in cubes.items()}
    config = SSPSRConfig(BANDS, SCALE, features=given.features, blocks=given.blocks)
    net = load_checkpoint(given.start)[0] if given.start else new_network(config, 0)

    def report(progress: Progress) -> None:
        about = card(given.out.stem, recipe, options, progress, given.start)
        save_checkpoint(given.out, progress.net, about)
        _print_progress(progress)
        if held_out and not given.no_figures:
            _print_figures(figures(progress.net, held_out, HELD_OUT))

    fit(net, list(cubes.values()), options, report, given.device)


def mean(given: argparse.Namespace) -> None:
    """The mean of weights that were trained from the same start; bands are those of the first."""
    nets, cards = zip(*(load_checkpoint(path) for path in given.checkpoints), strict=True)
    weights = [net.state_dict() for net in nets]
    net = nets[0]
    net.load_state_dict({k: torch.stack([w[k] for w in weights]).mean(0) for k in weights[0]})
    training: dict[str, str | int | float | bool] = {
        "weights": f"mean of {len(nets)} trainings from the same start"
    }
    for number, about in enumerate(cards, start=1):
        training |= {f"{number}.{key}": value for key, value in about.training.items()}
    merged = {
        "name": given.out.stem,
        "training": training,
        "training_data": list(dict.fromkeys(t for c in cards for t in c.training_data)),
        "notes": list(dict.fromkeys(note for about in cards for note in about.notes)),
        "metrics": {},
    }
    save_checkpoint(given.out, net, cards[0].model_copy(update=merged))


def judge(given: argparse.Namespace) -> None:
    """Both figures of a CAVE checkpoint, onto its card."""
    net, about = load_checkpoint(given.checkpoint)
    _, held_out = split(load(given.data / "train"))
    tested = figures(net, load(given.data / "test"))
    _print_figures(tested)
    validated = figures(net, held_out, HELD_OUT)
    _print_figures(validated)
    update = {"metrics": tested | validated}
    save_checkpoint(given.checkpoint, net, about.model_copy(update=update))


def _print_progress(progress: Progress) -> None:
    minutes = progress.seconds / 60
    print(f"{minutes:6.1f} min  step {progress.step:6d}  loss {progress.loss:.5f}", flush=True)


def _print_figures(metrics: dict[str, dict[str, float]]) -> None:
    ours, bicubic = metrics.values()
    gain = ours["psnr"] - bicubic["psnr"]
    print(
        f"{next(iter(metrics))}:  PSNR {ours['psnr']:.3f} ({gain:+.3f} dB)"
        f"  SAM {ours['sam']:.3f} ({ours['sam'] / bicubic['sam'] - 1:+.1%})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.set_defaults(run=train)
    training.add_argument("recipe", choices=RECIPES)
    training.add_argument("out", type=Path)
    training.add_argument("data", type=Path, nargs="+")
    training.add_argument("--minutes", type=float, default=80.0)
    training.add_argument("--report-minutes", type=float, default=5.0)
    training.add_argument("--whole", action="store_true", help="hold no quarter out, as cut before")
    training.add_argument("--no-figures", action="store_true", help="none while training")
    training.add_argument("--features", type=int, default=64)
    training.add_argument("--blocks", type=int, default=3)
    training.add_argument("--batch", type=int, default=8)
    training.add_argument("--patch", type=int, default=24, help="LR pixels along a patch's side")
    training.add_argument("--start", default="", help="a checkpoint to go on with")
    training.add_argument("--learning-rate", type=float, default=6e-4)
    training.add_argument("--angle", type=float, default=0.0)
    training.add_argument("--shift-groups", action="store_true")
    training.add_argument("--device", default="cpu")
    training.add_argument("--threads", type=int, default=torch.get_num_threads())
    averaging = commands.add_parser("mean")
    averaging.set_defaults(run=mean)
    averaging.add_argument("out", type=Path)
    averaging.add_argument("checkpoints", type=Path, nargs="+")
    judging = commands.add_parser("judge")
    judging.set_defaults(run=judge)
    judging.add_argument("checkpoint", type=Path)
    judging.add_argument("data", type=Path, help="the folder that holds train and test")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
