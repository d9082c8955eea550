"""Fine-tuning from the archive to the proof: plan, train, evaluate, keep, promote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from model import SSPSR, Card, CheckpointError
from model.checkpoint import pack, unpack, weights_digest
from pipeline import events
from pipeline.errors import UsageError
from pipeline.evaluation import BICUBIC, Evaluation, Region, evaluate_regions
from pipeline.evaluation.page import page
from pipeline.events import Event, Listener
from pipeline.finetune.cluster import Outcome, fit
from pipeline.finetune.plan import Plan, make_plan
from pipeline.finetune.records import NEW, START, TensorBoardLog, curves, final_card
from pipeline.finetune.settings import FinetuneSettings
from pipeline.finetune.split import Area
from pipeline.ray_session import Share, ray_session
from pipeline.registry import Promotion, load_registered, promote
from pipeline.scene_job import OutputOptions
from pipeline.settings import RunSettings
from pipeline.storage import (
    check_reachable,
    describe,
    join,
    open_filesystem,
    read_if_present,
    redact,
    write_atomic,
)
from pipeline.store import STATE

_LATEST = "latest"
_MOST_TESTED = 24
_MOST_PROCESSES = 8  # on processors, unless asked for


@dataclass
class FinetuneReport:
    """What a fine-tuning led to.

    Attributes:
        name: of the new checkpoint.
        checkpoint, evaluation, curves: where they lie.
        fingerprint: of the training.
        steps, seconds: of training, over all restarts.
        early: it was stopped because the PSNR did not get better.
        figures: by method, means over the held-out areas.
        scenes: that took part; `left_out` are (scene_id, reason).
        promoted: whether the registry's latest is the new model now; None without a registry.
        verdict: of the evaluation or the registry, one line.
        notes: for the operator.
    """

    name: str
    checkpoint: str
    evaluation: str
    curves: str
    fingerprint: str
    steps: int
    seconds: float
    early: bool
    figures: dict[str, dict[str, float | None]]
    scenes: int
    left_out: list[tuple[str, str]]
    promoted: bool | None = None
    verdict: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        return 3 if self.left_out else 0


def finetune(settings: FinetuneSettings, listeners: Sequence[Listener] = ()) -> FinetuneReport:
    """Train on scenes of the source, evaluate on what was held out, keep the result.

    Killed at any moment, the same call goes on from the last checkpoint; finished, it returns what
    was found then.

    Raises:
        UsageError: an option, the source, the checkpoint or the output cannot be used, or the
            training failed again and again.
    """
    plan = make_plan(settings)
    run = _Run(plan, listeners)
    if (found := run.finished()) is not None:
        return found
    return run.execute()


class _Run:
    """One execution of a plan."""

    def __init__(self, plan: Plan, listeners: Sequence[Listener]) -> None:
        self._plan, self._settings = plan, plan.settings
        self._listeners = list(listeners)
        check_reachable(self._settings.out, "the output")
        self._filesystem, self._out = open_filesystem(self._settings.out)
        self._notes: list[str] = []

    def finished(self) -> FinetuneReport | None:
        """The report of the same fine-tuning, if it ended; the registry is asked again.

        Raises:
            UsageError: another training's checkpoint has the name.
        """
        weights = read_if_present(self._filesystem, self._path("safetensors"))
        if weights is None:
            return None
        if _run_of(weights) != self._plan.fingerprint:
            place = redact(self._address("safetensors"))
            raise UsageError(f"{place} is there, of another training: give --name or another --out")
        data = read_if_present(self._filesystem, self._path("report.json"))
        if data is None:
            return None
        report = FinetuneReport(**json.loads(data))
        evaluation = read_if_present(self._filesystem, self._path("evaluation.json"))
        if self._settings.registry and not report.promoted and evaluation is not None:
            self._promote(report, Evaluation.from_json(evaluation))
        report.notes.append("this training was finished before; nothing was trained")
        return report

    def execute(self) -> FinetuneReport:
        """Train, evaluate, and write what came out, the report last."""
        self._announce()
        outcome = self._train()
        course, steps = outcome.course, outcome.steps
        self._emit(
            events.TrainingFinished(self._plan.name, steps, course.seconds, early=course.over)
        )
        net = self._best(outcome)
        evaluation = self._evaluate(net)
        card = final_card(self._plan, course, steps, evaluation)
        self._write("safetensors", pack(net, card))
        self._write("evaluation.json", evaluation.to_json().encode())
        self._write("evaluation.html", page(evaluation).encode())
        self._write("curves.svg", curves(course).encode())
        report = self._report(outcome, evaluation)
        if self._settings.registry:
            self._promote(report, evaluation)
        self._write("report.json", json.dumps(asdict(report), indent=1).encode())
        return report

    def _announce(self) -> None:
        plan, split = self._plan, self._plan.split
        self._emit(
            events.TrainingPlanned(
                plan.name,
                scenes=len(plan.archive.members) - len(split.too_small),
                left_out=len(plan.left_out),
                train=len(plan.job.train),
                validation=len(split.validation),
                test=len(split.test),
                by=split.by,
            )
        )

    def _train(self) -> Outcome:
        settings, plan = self._settings, self._plan
        log = TensorBoardLog(settings.out, plan.name)
        self._listeners.append(log)
        try:
            with ray_session(settings.ray_address):
                share = _share(settings)
                job = plan.job_for(share.workers, max(1, int(share.cpus)))
                place = join(settings.out, STATE, "training")
                return fit(job, share, place, plan.fingerprint, settings.max_failures, self._emit)
        finally:
            self._listeners.remove(log)
            log.close()
            if log.fault:
                self._notes.append(f"TensorBoard's events were not sent: {log.fault}")

    def _best(self, outcome: Outcome) -> SSPSR:
        net, _ = unpack(self._plan.job.model, "the model to start from")
        net.load_state_dict(outcome.best)
        return net.eval()

    def _evaluate(self, net: SSPSR) -> Evaluation:
        """The new model, the one it started from where it can, and the registry's latest."""
        plan, settings = self._plan, self._settings
        where = {m.ref.scene_id: m.ref.uri for m in plan.archive.members}
        regions = [
            Region(where[area.scene_id], area.scene_id, area.window)
            for area in self._tested(plan.split.test)
        ]
        options = OutputOptions.of(
            RunSettings.from_options(
                {"source": "-", "output": "-", "normalise": settings.normalise}
                | {"mask": settings.mask}
            )
        )
        rivals = self._rivals()
        new = {NEW: (net, plan.card)}
        arguments: dict[str, Any] = {
            "degradation": settings.degradation,
            "mtf": settings.mtf,
            "options": options,
        }
        try:
            evaluation = evaluate_regions(new | rivals, regions, **arguments)
            if not evaluation.failed:
                return evaluation
            why = next(iter(evaluation.failed.values()))
        except UsageError as error:
            why = str(error)
        if rivals:
            self._notes.append(f"not compared with {', '.join(rivals)}: {why}")
        return evaluate_regions(new, regions, **arguments)

    def _tested(self, areas: Sequence[Area]) -> list[Area]:
        """All test areas, or as many as are enough, spread evenly over the archive."""
        if len(areas) <= _MOST_TESTED:
            return list(areas)
        self._notes.append(f"{_MOST_TESTED} of {len(areas)} held-out areas were evaluated")
        return [areas[place * len(areas) // _MOST_TESTED] for place in range(_MOST_TESTED)]

    def _rivals(self) -> dict[str, tuple[SSPSR, Card]]:
        """Other checkpoints of the same scale, by what they are."""
        parent, scale = self._plan.parent, self._plan.card.architecture.scale
        found: dict[str, tuple[SSPSR, Card]] = {}
        if parent.net.config.scale == scale:
            found[START] = (parent.net, parent.card)
        if self._settings.registry:
            try:
                latest = load_registered(f"registry:{self._settings.registry}")
            except CheckpointError:
                return found  # nothing is promoted yet
            if latest[0].config.scale == scale and weights_digest(latest[0]) != parent.digest:
                found[_LATEST] = latest
        return found

    def _report(self, outcome: Outcome, evaluation: Evaluation) -> FinetuneReport:
        plan = self._plan
        return FinetuneReport(
            name=plan.name,
            checkpoint=redact(self._address("safetensors")),
            evaluation=redact(self._address("evaluation.json")),
            curves=redact(self._address("curves.svg")),
            fingerprint=plan.fingerprint,
            steps=outcome.steps,
            seconds=round(outcome.course.seconds, 1),
            early=outcome.course.over,
            figures={
                name: {str(key): value for key, value in evaluation.mean(name).items()}
                for name in evaluation.names
            },
            scenes=len(plan.archive.members),
            left_out=list(plan.left_out),
            verdict=_verdict(evaluation),
            notes=self._notes,
        )

    def _promote(self, report: FinetuneReport, evaluation: Evaluation) -> None:
        assert self._settings.registry is not None
        made: Promotion = promote(self._settings.registry, self._address("safetensors"), evaluation)
        report.promoted, report.verdict = made.promoted, made.reason
        if made.note:
            report.notes.append(made.note)

    def _address(self, suffix: str) -> str:
        return join(self._settings.out, f"{self._plan.name}.{suffix}")

    def _path(self, suffix: str) -> str:
        return join(self._out, f"{self._plan.name}.{suffix}")

    def _write(self, suffix: str, data: bytes) -> None:
        try:
            write_atomic(self._filesystem, self._path(suffix), data)
        except OSError as error:
            place = redact(self._address(suffix))
            raise UsageError(f"cannot write {place}: {describe(error)}") from error

    def _emit(self, event: Event) -> None:
        if isinstance(event, events.TrainingSkipped):
            note = f"{event.scene_id}: passed over in training: {event.reason}"
            self._notes += [] if note in self._notes else [note]
        for listener in self._listeners:
            listener(event)


def _run_of(weights: bytes) -> str:
    """The fingerprint of the training that a checkpoint comes from; empty where it has none."""
    try:
        return str(unpack(weights, "the checkpoint")[1].training.get("run", ""))
    except CheckpointError:
        return ""


def _share(settings: FinetuneSettings) -> Share:
    """One process per GPU; without, one per processor: small convolutions share threads badly."""
    if settings.use_gpu or settings.workers is not None:
        return Share.of_cluster("cuda" if settings.use_gpu else "cpu", settings.workers)
    alone = Share.of_cluster("cpu", None, cpus=1)
    return alone if alone.workers <= _MOST_PROCESSES else Share.of_cluster("cpu", _MOST_PROCESSES)


def _verdict(evaluation: Evaluation) -> str:
    """What the held-out areas say of the new model against each other method."""
    ours = evaluation.mean(NEW)
    parts = []
    for name in evaluation.names:
        theirs = evaluation.mean(name)
        if name == NEW or ours["psnr"] is None or theirs["psnr"] is None:
            continue
        angle = (ours["sam"] or 0.0) - (theirs["sam"] or 0.0)
        title = name if name == BICUBIC else f"the {name} checkpoint"
        parts.append(f"{ours['psnr'] - theirs['psnr']:+.2f} dB, SAM {angle:+.3f} against {title}")
    return "; ".join(parts)
