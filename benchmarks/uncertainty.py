"""What does the ensemble over all flips and turns gain, and does its spread rank the true error?

    python -m benchmarks.uncertainty DATA [--quick] [--model starter]

DATA holds the shared scenes: cave/test/*.npz and the folders in `UNSEEN`, on none of which the
shipped checkpoint was trained. Each is taken as the truth, degraded by the model's scale with
bicubic antialiasing and super-resolved as the archive job does. Pixels are ranked by the root mean
square over their bands of the spread, and of what costs nothing: how far the result is from
bicubic, and how steep bicubic is.
"""

from __future__ import annotations

from itertools import islice
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.attention_modes import Case, Cases, frozen
from benchmarks.common import print_table, scenes_to_measure, timed
from model import inference, load_checkpoint
from model.degradation import upsample
from model.inference import Engine
from model.metrics import psnr, spectral_angle
from pipeline.grid import Window
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.resolving import Resolved, super_resolve
from pipeline.values import Values

UNSEEN = (
    "jasper_ridge/*.mat",
    "pavia_centre/*.mat",
    "samson/*.npz",
    "abu/abu-beach-2.mat",
    "abu/abu-urban-4.mat",
    "abu/abu-urban-5.mat",
)
BOTH = Refinement(ensemble=True, uncertainty=True)
TENTHS = 10
RANKERS = ("spread", "distance from bicubic", "gradient of bicubic")

Plane = NDArray[np.float64]


def rms(values: Values) -> Plane:
    """Over the bands of each pixel."""
    return cast(Plane, np.sqrt(np.square(values, dtype=np.float64).mean(axis=0)))


def tenths(error: Plane, by: Plane) -> NDArray[np.float64]:
    """Mean squared error in each tenth of the pixels, in ascending order of `by`."""
    order = np.argsort(by, axis=None)
    return np.array(
        [np.square(part).mean() for part in np.array_split(error.ravel()[order], TENTHS)]
    )


def top_share(error: Plane, by: Plane) -> float:
    """Part of the squared error in the tenth of the pixels that `by` puts first."""
    squares = tenths(error, by)
    return float(squares[-1] / squares.sum())


def gradient(values: Values) -> Values:
    """How steep an image is, per band and pixel."""
    down, across = np.gradient(values, axis=(1, 2))
    return cast(Values, np.hypot(down, across))


class Scene:
    """One case super-resolved once and in all turns.

    Attributes:
        plain, mean: without and with the ensemble.
        error: of the plain result, by pixel.
        rankers: what pixels are ranked by, in the order of `RANKERS`.
        times: seconds of all turns over seconds of one.
    """

    def __init__(self, case: Case, engine: Engine) -> None:
        assert case.reference is not None
        self.reference = case.reference
        rows, columns = case.low.shape[1:]
        core = Window(0, rows, 0, columns)
        engines = frozen(case, engine, [core])
        made: dict[Refinement, Resolved] = {}

        def resolve(refinement: Refinement) -> None:
            made[refinement] = super_resolve(case.low, core, engines, case.calibration, refinement)

        resolve(ONE_PASS)  # lays out the weights
        alone = timed(lambda: resolve(ONE_PASS))
        self.times = timed(lambda: resolve(BOTH)) / alone
        self.plain, self.mean = made[ONE_PASS].values, made[BOTH].values
        spread = made[BOTH].spread
        assert spread is not None
        larger = upsample(torch.from_numpy(case.low), engine.config.scale).numpy()
        self.error = rms(self.plain - self.reference)
        self.rankers = [rms(each) for each in (spread, self.plain - larger, gradient(larger))]

    def figures(self, estimate: Values) -> tuple[float, float]:
        """PSNR and SAM."""
        reference, result = self.reference.astype(np.float64), estimate.astype(np.float64)
        return psnr(reference, result), spectral_angle(reference, result)

    def gain(self) -> list[float]:
        single, mean = self.figures(self.plain), self.figures(self.mean)
        return [*single, *(m - s for m, s in zip(mean, single, strict=True)), self.times]

    def ranking(self) -> list[float]:
        """Rank correlations with the error of the plain result, then shares of the first tenth.

        The last is the share that a ranking by the error itself would find.
        """
        error = self.error
        found = [float(spearmanr(error, each, axis=None).statistic) for each in self.rankers]
        return [*found, *(top_share(error, each) for each in (*self.rankers, error))]

    def calibration(self) -> list[float]:
        """Error over spread, both root mean squares: of all pixels and of each tenth by spread."""
        spread = self.rankers[0]
        errors, spreads = tenths(self.error, spread), tenths(spread, spread)
        whole = errors.mean() / spreads.mean()
        return [float(each) ** 0.5 for each in (whole, *errors / spreads)]


def main() -> None:
    given = scenes_to_measure(__doc__)
    net, card = load_checkpoint(given.model)
    engine = inference.compile(net, precision="fp32")
    cases = Cases(given.data, card, UNSEEN)
    tables: dict[str, list[list[object]]] = {"gain": [], "ranking": [], "calibration": []}
    for family in (cases.cave, cases.remote):
        of_family: list[tuple[list[float], ...]] = []
        for case in islice(family(), 1 if given.quick else None):
            scene = Scene(case, engine)
            of_family.append((scene.gain(), scene.ranking(), scene.calibration()))
            for rows, values in zip(tables.values(), of_family[-1], strict=True):
                rows.append([case.name, *values])
        for rows, parts in zip(tables.values(), zip(*of_family, strict=True), strict=True):
            mean = np.mean(parts, axis=0)
            rows.append([f"mean of {case.family}", *map(float, mean)])
    header = ["scene", "PSNR dB", "SAM degrees", "gain in PSNR", "in SAM", "time, of one pass's"]
    print_table("One pass, and what the mean of eight gains", header, tables["gain"])
    header = [f"{what}, {name}" for what in ("rank correlation", "share") for name in RANKERS]
    title = "Pixels by error; share of the squared error in the tenth ranked first"
    print_table(title, ["scene", *header, "share, error itself"], tables["ranking"])
    header = [f"tenth {number}" for number in range(1, TENTHS + 1)]
    title = "RMS error over RMS spread, by tenths of the pixels in order of spread"
    print_table(title, ["scene", "all", *header], tables["calibration"])


if __name__ == "__main__":
    main()
