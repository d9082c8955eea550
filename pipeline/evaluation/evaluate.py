"""Checkpoints and bicubic, compared on regions that are taken for the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime

import torch
import xarray as xr

from model import SSPSR, Card, inference
from model.checkpoint import weights_digest
from pipeline.errors import SceneError, UsageError
from pipeline.evaluation.degraded import degradation_of
from pipeline.evaluation.regions import Region
from pipeline.evaluation.result import (
    BICUBIC,
    FEWEST_SCENES,
    LONGEST_NAME,
    LONGEST_TEXT,
    Evaluation,
    Method,
    SceneResult,
)
from pipeline.evaluation.trial import Contender, Trial, score
from pipeline.provenance import package_versions
from pipeline.readers import open_scene
from pipeline.readers.boundary import boundary
from pipeline.scene_job import OutputOptions
from pipeline.settings import Degrading, RunSettings

Progress = Callable[[str], None]


def default_options() -> OutputOptions:
    """The options of a run that is given none; the environment counts, as for a run."""
    return OutputOptions.of(RunSettings.from_options({"source": "-", "output": "-"}))


def evaluate_regions(
    checkpoints: Mapping[str, tuple[SSPSR, Card]],
    regions: Sequence[Region],
    *,
    degradation: Degrading = "bicubic",
    mtf: float | None = None,
    options: OutputOptions | None = None,
    peak: float | None = None,
    protocol: str = "wald",
    opened: Callable[[str], xr.Dataset] = open_scene,
    progress: Progress | None = None,
) -> Evaluation:
    """Degrade each region, super-resolve it as the archive job would, and compare with the truth.

    Everything that the job measures or decides for a scene is measured or decided here of the
    degraded scene: bands, gains, attention, fill. Values are not rounded to the source's type.

    Args:
        checkpoints: by a name for tables; all of one scale.
        regions: with names of their own.
        degradation: `bicubic` as published, or `mtf`.
        mtf: of the latter, at Nyquist.
        options: of the archive job; None: its defaults.
        peak: physical value that counts as 1 in all figures; None: each truth's 99.9th percentile.
        protocol: its name, for the record.
        opened: opens a scene by its address.
        progress: is told each region's name before it is evaluated.

    Returns:
        The figures. A region that cannot be evaluated is in `failed`, for all checkpoints alike.

    Raises:
        UsageError: the checkpoints cannot be compared, a name occurs twice, the degradation is no
            such thing, or no region can be evaluated.
    """
    scale = _check(checkpoints, [region.name for region in regions])
    options = options or default_options()
    kernel = degradation_of(degradation, scale, mtf)
    contenders = [_contender(name, *checkpoints[name], options) for name in checkpoints]
    _check_bands(contenders, options)
    scenes: list[SceneResult] = []
    failed: dict[str, str] = {}
    cells = len(regions) < FEWEST_SCENES
    for region in regions:
        if progress is not None:
            progress(region.name)
        try:
            with boundary(region.uri, "cannot evaluate the scene"):
                trial = Trial(region, contenders, kernel, options, opened)
                scenes.append(score(trial, peak, cells=cells))
        except SceneError as error:
            failed[region.name] = str(error)[:LONGEST_TEXT]
    if not scenes:
        first = next(iter(failed.items()), None)
        reason = "there is none" if first is None else f"{first[0]}: {first[1]}"
        raise UsageError(f"no region can be evaluated: {reason}")
    return Evaluation(
        protocol=protocol,
        degradation=f"{kernel.name} x{scale}",
        scale=scale,
        methods=(Method(BICUBIC), *map(_method, contenders)),
        scenes=tuple(scenes),
        failed=failed,
        options={name: str(value) for name, value in asdict(options).items()},
        made=_made(contenders),
    )


def _check(checkpoints: Mapping[str, tuple[SSPSR, Card]], names: Sequence[str]) -> int:
    """The scale that all checkpoints have."""
    if not checkpoints or BICUBIC in checkpoints:
        raise UsageError("give at least one checkpoint, and none the name bicubic")
    if wrong := [name for name in (*checkpoints, *names) if not 0 < len(name) <= LONGEST_NAME]:
        raise UsageError(f"names have 1 to {LONGEST_NAME} characters, not {len(wrong[0])}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two regions are called {twice[0]}: give each a name of its own")
    scales = {name: net.config.scale for name, (net, _) in checkpoints.items()}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UsageError(f"checkpoints of different scales cannot be compared: {listed}")
    return next(iter(scales.values()))


def _check_bands(contenders: Sequence[Contender], options: OutputOptions) -> None:
    bands = {(tuple(c.card.wavelengths or ()), tuple(c.card.fwhm or ())) for c in contenders}
    if options.bands == "resample" and len(bands) > 1:
        raise UsageError(
            "--bands resample: the checkpoints are of different bands, so their results are too; "
            "compare them with --bands windows"
        )


def _contender(name: str, net: SSPSR, card: Card, options: OutputOptions) -> Contender:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = deepcopy(net).to(device)  # the caller's may be in training, and stays so
    engine = inference.compile(own, precision=options.precision)
    return Contender(name, engine, card, weights_digest(net))


def _method(contender: Contender) -> Method:
    return Method(contender.name, contender.card.name, contender.digest, contender.engine.precision)


def _made(contenders: Sequence[Contender]) -> dict[str, str]:
    packages = " ".join(f"{name} {found}" for name, found in package_versions().items())
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": contenders[0].engine.device.type,
        "packages": packages,
    }
