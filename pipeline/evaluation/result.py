"""What an evaluation found, and its form as JSON.

An evaluation decides what an archive is made with, and its file may come from anywhere: what is
read is checked as a whole, and nothing in it is believed that the rest contradicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import pydantic
from pydantic import ConfigDict, Field

from pipeline.errors import one_line
from pipeline.evaluation.interval import Difference, difference

Metric = Literal["cc", "sam", "rmse", "ergas", "psnr", "ssim"]
METRICS: tuple[Metric, ...] = get_args(Metric)
HIGHER_IS_BETTER: dict[str, bool] = {
    "cc": True,
    "sam": False,
    "rmse": False,
    "ergas": False,
    "psnr": True,
    "ssim": True,
}
BICUBIC = "bicubic"
FEWEST_SCENES = 3  # below, the spread between scenes says nothing, and parts of them are paired
LARGEST = 64 << 20  # bytes of a file
LONGEST_NAME = 200  # characters
LONGEST_TEXT = 4000

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Size = Annotated[int, Field(ge=1, le=1 << 22)]
Figure = float | None  # None: not defined, as the PSNR of a band without error
Figures = dict[Metric, Figure]


class EvaluationError(ValueError):
    """An evaluation that cannot be read or used; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True)
class Method:
    """What was compared: bicubic, or a checkpoint with its digest."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Name
    card: Annotated[str, Field(max_length=200)] = ""
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    precision: Annotated[str, Field(max_length=20)] = ""


@dataclass(frozen=True)
class Curve:
    """Per scored band: PSNR in dB and RMSE, for a peak of 1."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    psnr: tuple[Figure, ...]
    rmse: tuple[Figure, ...]


@dataclass(frozen=True)
class SceneResult:
    """One region.

    Attributes:
        name, source, window: of the region; the source without credentials.
        rows, columns: HR pixels of the truth, a multiple of the scale.
        bands: numbers of the scored ones, which all checkpoints super-resolve.
        wavelengths: of these, nm; None where the scene states none.
        peak: the physical value that counts as 1.
        valid: share of the scored pixels that have a value in all scored bands.
        sample: in words which part was scored; empty: all of it.
        figures: by method, of the whole, or the mean over the sample's blocks.
        parts: by method, of the blocks of a sample, or of cells of the whole; may be empty.
        curves: by method, over all scored pixels.
        notes: by checkpoint, how its bands went through the network.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Name
    source: Text
    window: tuple[int, int, int, int] | None
    rows: Size
    columns: Size
    bands: tuple[int, ...]
    wavelengths: tuple[float, ...] | None
    peak: Annotated[float, Field(gt=0)]
    valid: Annotated[float, Field(gt=0, le=1)]
    sample: Text
    figures: dict[Name, Figures]
    parts: dict[Name, tuple[Figures, ...]]
    curves: dict[Name, Curve]
    notes: dict[Name, Text]


@dataclass(frozen=True)
class Evaluation:
    """Checkpoints and bicubic on the same regions.

    Attributes:
        protocol: the preset, `wald` for none.
        degradation: what made the LR scenes, with its scale.
        methods: bicubic first.
        scenes: in the order of the regions.
        failed: regions that could not be evaluated, and why.
        options: of the archive job.
        made: when, with which versions, on what.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    protocol: Name
    degradation: Name
    scale: Annotated[int, Field(ge=1, le=64)]
    methods: tuple[Method, ...]
    scenes: tuple[SceneResult, ...]
    failed: dict[Name, Text] = field(default_factory=dict)
    options: dict[str, Text] = field(default_factory=dict)
    made: dict[str, Text] = field(default_factory=dict)
    version: Literal[1] = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Methods, bicubic first."""
        return tuple(method.name for method in self.methods)

    def named(self, weights_sha256: str) -> str | None:
        """The method that is the checkpoint with these weights."""
        return next((m.name for m in self.methods if m.weights_sha256 == weights_sha256), None)

    def mean(self, method: str) -> Figures:
        """Means over scenes; None where a scene's figure is not defined."""
        return {
            name: mean_of(scene.figures[method][name] for scene in self.scenes) for name in METRICS
        }

    def differences(self, method: str, against: str) -> dict[Metric, Difference]:
        """Paired by scene: method minus the other; with few scenes, by parts of them."""
        return {name: self._difference(name, method, against) for name in METRICS}

    def _difference(self, metric: Metric, method: str, against: str) -> Difference:
        by_scene = [
            (scene.figures[method][metric], scene.figures[against][metric]) for scene in self.scenes
        ]
        by_part = [
            (ours[metric], theirs[metric])
            for scene in self.scenes
            for ours, theirs in zip(scene.parts[method], scene.parts[against], strict=True)
        ]
        few = len(self.scenes) < FEWEST_SCENES
        return difference(by_scene, by_part if few else [], HIGHER_IS_BETTER[metric])

    def to_json(self) -> str:
        """One document; `from_json` reads it."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    def to_html(self, path: str | Path) -> None:
        """Write one page that needs nothing else."""
        from pipeline.evaluation.page import write_page  # builds on this module

        write_page(self, path)

    def to_png(self, path: str | Path) -> None:
        """Write curves over bands and bars over scenes.

        Raises:
            UsageError: Matplotlib is not installed.
        """
        from pipeline.evaluation.chart import draw_png  # builds on this module

        draw_png(self, path)

    @classmethod
    def from_json(cls, text: str | bytes) -> Evaluation:
        """Read a document that anybody may have written.

        Raises:
            EvaluationError: it is none, or contradicts itself; one line.
        """
        if len(text) > LARGEST:
            raise EvaluationError(f"the evaluation is larger than {LARGEST >> 20} MiB")
        try:
            found = _ADAPTER.validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:6])[:200] or "document"
            raise EvaluationError(f"no evaluation: {where}: {first['msg'][:200]}") from None
        _check(found)
        return found


_ADAPTER: pydantic.TypeAdapter[Evaluation] = pydantic.TypeAdapter(Evaluation)


def _check(found: Evaluation) -> None:
    names = found.names
    if names[:1] != (BICUBIC,) or len(set(names)) != len(names) or len(names) < 2:
        raise EvaluationError("no evaluation: methods must be bicubic and checkpoints, named once")
    if not found.scenes or len({scene.name for scene in found.scenes}) != len(found.scenes):
        raise EvaluationError("no evaluation: scenes must be some, named once")
    for scene in found.scenes:
        by_method = (scene.figures, scene.parts, scene.curves)
        figures = [*scene.figures.values(), *(f for parts in scene.parts.values() for f in parts)]
        lengths = {len(each) for c in scene.curves.values() for each in (c.psnr, c.rmse)}
        lengths |= set() if scene.wavelengths is None else {len(scene.wavelengths)}
        if (
            any(set(each) != set(names) for each in by_method)
            or any(set(each) != set(METRICS) for each in figures)
            or len({len(parts) for parts in scene.parts.values()}) != 1
            or lengths != {len(scene.bands)}
        ):
            raise EvaluationError(f"no evaluation: {scene.name[:60]!r} contradicts itself")


def mean_of(values: Iterable[Figure]) -> Figure:
    """The mean; None if there is no figure, or one is not defined."""
    given = list(values)
    known = [value for value in given if value is not None]
    return sum(known) / len(known) if known and len(known) == len(given) else None
