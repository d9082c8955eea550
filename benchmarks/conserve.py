"""What does it do to quality to make a result consistent with its scene?

    python -m benchmarks.conserve DATA [--quick] [--model starter]

DATA holds the shared scenes: cave/test/*.npz and the folders that `attention_modes` names. Each is
taken as the truth, degraded by the model's scale with bicubic antialiasing, super-resolved as the
archive job does, and projected (`conserve`). Compared are bicubic and the result (SR), both as they
are and projected; with a longer reach; and onto a degradation that did not make the scene. What a
tile of the usual size costs is measured on noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from benchmarks.attention_modes import Case, Cases, frozen, untiled
from benchmarks.common import print_table, scenes_to_measure, seconds
from model import inference, load_checkpoint
from model.consistency import bicubic_consistency, consistency
from model.degradation import Degradation, bicubic, gaussian, upsample
from model.extent import Extent
from model.inference import Engine
from model.metrics import psnr, spectral_angle
from model.projection import TOLERANCE, conserve, reach
from pipeline.grid import Window

OTHER_MTF = 0.3  # at Nyquist; the bicubic kernel has about 0.5
TILE = 64  # LR pixels along a core's side
FINE = 1e-6  # a tolerance
RUNS = 7
FIGURES = ("PSNR dB", "SAM degrees", "consistency RMSE", "consistency SAM degrees")

Figures = tuple[float, ...]


def whole(low: Tensor) -> tuple[Extent, Extent]:
    rows, columns = low.shape[1:]
    return Extent(0, rows, True, True), Extent(0, columns, True, True)


def figures(case: Case, low: Tensor, estimate: Tensor, degradation: Degradation) -> Figures:
    """Against the truth, and against the LR scene by the degradation that made it."""
    assert case.reference is not None
    reference, result = case.reference.astype(np.float64), estimate.double().numpy()
    sums = consistency(low, estimate, *whole(low), degradation)
    return (
        psnr(reference, result),
        spectral_angle(reference, result),
        sums.overall_rmse,
        sums.sam,
    )


def compare(case: Case, engine: Engine) -> Iterator[tuple[str, Figures, float]]:
    """Per method its name, figures, and seconds."""
    low, scale = torch.from_numpy(case.low), engine.config.scale
    right, wrong = bicubic(scale), gaussian(scale, OTHER_MTF)
    rows, columns = case.low.shape[1:]
    started = time.perf_counter()
    engines = frozen(case, engine, [Window(0, rows, 0, columns)])
    sr = torch.from_numpy(untiled(case, engines))
    network = time.perf_counter() - started
    started = time.perf_counter()
    larger = upsample(low, scale)
    yield "bicubic", figures(case, low, larger, right), time.perf_counter() - started
    yield "SR", figures(case, low, sr, right), network
    for name, estimate, onto, tolerance in (
        ("bicubic, conserved", larger, right, TOLERANCE),
        ("SR, conserved", sr, right, TOLERANCE),
        (f"SR, conserved, tolerance {FINE:g}", sr, right, FINE),
        (f"SR, conserved for a Gaussian of MTF {OTHER_MTF:g}", sr, wrong, TOLERANCE),
    ):
        conserve(estimate, low, *whole(low), onto, tolerance)  # its matrices: once per scene
        started = time.perf_counter()
        result = conserve(estimate, low, *whole(low), onto, tolerance)
        yield name, figures(case, low, result, right), time.perf_counter() - started


def reaches() -> None:
    """How far a result must be known around a core."""
    tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
    rows = []
    for degradation in (
        *(bicubic(scale) for scale in (2, 3, 4, 8)),
        *(gaussian(4, mtf) for mtf in (0.15, 0.3)),
    ):
        found = [reach(degradation, tolerance) for tolerance in tolerances]
        rows.append([f"{degradation.name} x{degradation.scale}", *found])
    header = ["degradation", *(f"{tolerance:g}" for tolerance in tolerances)]
    print_table("Reach in LR pixels by tolerance", header, rows)


@torch.inference_mode()
def costs(engine: Engine, bands: int) -> None:
    """One tile in the midst of a scene."""
    scale, halo = engine.config.scale, engine.halo
    degradation = bicubic(scale)
    rows: list[list[object]] = []

    def measure(step: str, around: int, work: Callable[[], object]) -> None:
        rows.append([step, around, 1e3 * seconds(work, RUNS)])

    for tolerance in (None, TOLERANCE, FINE):
        around = 0 if tolerance is None else reach(degradation, tolerance)
        size = TILE + 2 * around
        low, extent = torch.rand(bands, size, size), Extent(around, around + TILE)
        high = torch.rand(bands, scale * size, scale * size)
        x = torch.rand(1, engine.config.bands, size + 2 * halo, size + 2 * halo)
        inner = Extent(halo, halo + size)
        measure(
            f"network, {engine.config.bands} bands", around, partial(engine.tile, x, inner, inner)
        )
        if tolerance is not None:
            work = partial(conserve, high, low, extent, extent, degradation, tolerance)
            measure(f"conserve, {bands} bands", around, work)
    low, high = torch.rand(bands, 96, 96), torch.rand(bands, scale * TILE, scale * TILE)
    core = Extent(16, 16 + TILE)
    own, bicubics = f"consistency, {bands} bands", f"consistency of bicubic, {bands} bands"
    measure(own, 0, partial(consistency, low, high, core, core, degradation))
    measure(bicubics, 0, partial(bicubic_consistency, low, core, core, degradation))
    print_table(f"A tile of {TILE} x {TILE}", ["step", "LR pixels around", "ms"], rows)


def main() -> None:
    given = scenes_to_measure(__doc__)
    reaches()
    net, card = load_checkpoint(given.model)
    engine = inference.compile(net, precision="fp32")
    costs(engine.with_statistics(engine.measure(torch.rand(1, net.config.bands, 64, 64))), 128)
    cases = Cases(given.data, card)
    rows, means = [], []
    for family in (cases.cave, cases.remote):
        of_family: dict[str, list[tuple[Figures, float]]] = {}
        for case in islice(family(), 1 if given.quick else None):
            for method, values, took in compare(case, engine):
                rows.append([case.family, case.name, method, *values, took])
                of_family.setdefault(method, []).append((values, took))
        for method, all_of in of_family.items():
            mean = np.mean([values for values, _ in all_of], axis=0)
            spent = sum(took for _, took in all_of)
            network = sum(took for _, took in of_family["SR"])
            count = f"{case.family}, mean of {len(all_of)}"
            means.append([count, method, *map(float, mean), spent / network])
    print_table("Means", ["scenes", "method", *FIGURES, "time, of SR's"], means)
    print_table("Scenes", ["set", "scene", "method", *FIGURES, "seconds"], rows)


if __name__ == "__main__":
    main()
