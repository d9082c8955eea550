"""What a fine-tuning leaves beside its weights: the card's facts, curves, TensorBoard's events."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import Card
from pipeline import events
from pipeline.evaluation import Evaluation
from pipeline.events import Event
from pipeline.finetune.plan import Plan
from pipeline.finetune.state import Course, Validation
from pipeline.storage import describe, is_local, join, open_filesystem, redact

NEW, START = "new", "start"  # methods of the evaluation: the new model, the one it started from
_WIDTH, _HEIGHT, _MARGIN = 640, 200, 44
_MOST_SOURCES = 50


def training_facts(plan: Plan, course: Course, steps: int) -> dict[str, str | int | float | bool]:
    """What repeats the training, for the card."""
    settings, job = plan.settings, plan.job
    kernel = "MATLAB bicubic" if settings.degradation == "bicubic" else f"MTF {settings.mtf:g}"
    return {
        "protocol": f"Wald: HR patches degraded by {kernel}",
        "fine_tuned_from": plan.parent.card.name,
        "parent_weights_sha256": plan.parent.digest,
        "run": plan.fingerprint,
        "steps": steps,
        "best_step": _best(course).step,
        "minutes": round(course.seconds / 60, 1),
        "stopped_early": course.over,
        "batch": settings.batch,
        "lr_patch": job.pixels.patch,
        "optimiser": f"Adam {job.options.learning_rate:g}, {job.options.schedule}, EMA",
        "loss": f"L1 + TV + {job.options.angle:g} spectral angle",
        "bands": settings.bands,
        "normalise": settings.normalise,
        "split": f"by {plan.split.by}, guard {plan.split.guard} HR pixels",
        "seed": settings.seed,
    }


def final_card(plan: Plan, course: Course, steps: int, evaluation: Evaluation | None) -> Card:
    """The card of the new model."""
    trained = dict.fromkeys(part.uri for part in plan.job.train)
    sources = [redact(uri) for uri in trained][:_MOST_SOURCES]
    more = len(trained) - len(sources)
    return plan.card.model_copy(
        update={
            "training_data": [
                *sources,
                *([f"and {more} more scenes of {redact(plan.settings.source)}"] if more else []),
                *(f"of the parent: {each}" for each in plan.parent.card.training_data),
            ],
            "training": training_facts(plan, course, steps),
            "metrics": {} if evaluation is None else _metrics(evaluation, f"x{evaluation.scale}"),
            "notes": _notes(plan),
        }
    )


def _metrics(evaluation: Evaluation, scale: str) -> dict[str, dict[str, float]]:
    """Means over the held-out regions; what is not defined is left out."""
    found: dict[str, dict[str, float]] = {}
    for name in evaluation.names:
        title = f"held out {scale}" if name == NEW else f"held out {scale}, {name}"
        means = evaluation.mean(name)
        found[title] = {str(key): value for key, value in means.items() if value is not None}
    return found


def _notes(plan: Plan) -> list[str]:
    notes = [
        f"Fine-tuned on {len(plan.job.train)} area(s) of {len(plan.archive.members)} scene(s); "
        "figures are of areas that were held out."
    ]
    if plan.split.validation == plan.split.test:
        notes.append("The areas of the figures also said when to stop: too few for both.")
    if plan.settings.bands == "windows":
        notes.append("For windows of the spectrum: the wavelengths are those of the parent.")
    return notes


def _best(course: Course) -> Validation:
    return max(course.validations, key=lambda each: each.psnr)


def curves(course: Course) -> str:
    """Loss and PSNR over the training as an SVG picture."""
    seen = [each for each in course.validations if each.step]
    parts = [
        _panel("loss", [(v.step, v.loss) for v in seen], None, 0),
        _panel(
            "PSNR on held-out areas, dB (dashed: bicubic)",
            [(v.step, v.psnr) for v in course.validations],
            course.bicubic,
            _HEIGHT,
        ),
    ]
    size = f'width="{_WIDTH}" height="{2 * _HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"])


def _panel(title: str, points: Sequence[tuple[int, float]], level: float | None, top: int) -> str:
    """One curve with its axes' ends."""
    if not points:
        return ""
    values = [value for _, value in points] + ([] if level is None else [level])
    low, high, last = min(values), max(values), max(step for step, _ in points) or 1
    span = high - low or 1.0

    def place(step: float, value: float) -> str:
        x = _MARGIN + step / last * (_WIDTH - 1.5 * _MARGIN)
        y = top + _HEIGHT - 24 - (value - low) / span * (_HEIGHT - 56)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in points)
    text = [
        f'<text x="{_MARGIN}" y="{top + 18}">{title}</text>',
        f'<text x="2" y="{top + 36}">{high:.4g}</text>',
        f'<text x="2" y="{top + _HEIGHT - 22}">{low:.4g}</text>',
        f'<text x="{_WIDTH - 90}" y="{top + _HEIGHT - 6}">step {last}</text>',
        f'<polyline points="{line}" fill="none" stroke="#1668a5" stroke-width="2"/>',
    ]
    if level is not None:
        ends = f"{place(0, level)} {place(last, level)}"
        text.append(f'<polyline points="{ends}" stroke="#c44" stroke-dasharray="4 3"/>')
    return "\n".join(text)


class TensorBoardLog:
    """A listener that writes event files below `<out>/tensorboard/<name>`.

    Event files grow line by line, which object stores cannot do: there the file is written here and
    sent whole after every validation.

    Attributes:
        fault: why the last file was not sent; empty where it was. The training goes on.
    """

    def __init__(self, out: str, name: str) -> None:
        self._filesystem, self._path = open_filesystem(join(out, "tensorboard", name))
        self._stack = contextlib.ExitStack()
        self._local = is_local(self._filesystem)
        self._folder = (
            self._path if self._local else self._stack.enter_context(tempfile.TemporaryDirectory())
        )
        self._writer: Any = None
        self.fault = ""

    def __call__(self, event: Event) -> None:
        match event:
            case events.TrainingStarted():
                self._start(event.steps_done)
            case events.TrainingProgress():
                self._add("loss/train", event.loss, event.steps)
            case events.TrainingValidated():
                self._add("psnr/validation", event.psnr, event.steps)
                self._add("psnr/bicubic", event.bicubic, event.steps)
                self._send()

    def _start(self, steps_done: int) -> None:
        from tensorboardX import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        # What an interrupted run wrote beyond its last checkpoint is done again.
        self._writer = SummaryWriter(self._folder, purge_step=steps_done or None)

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._writer is None:
            self._start(0)
        self._writer.add_scalar(tag, value, step)

    def _send(self) -> None:
        self._writer.flush()
        if self._local:
            return
        try:
            for file in Path(self._folder).iterdir():
                self._filesystem.put_file(str(file), join(self._path, file.name))
            self.fault = ""
        except Exception as error:  # whatever a store raises
            self.fault = describe(error)

    def close(self) -> None:
        if self._writer is not None:
            self._send()
            self._writer.close()
        self._stack.close()
