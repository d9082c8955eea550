"""Progress of a fine-tuning for people: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pipeline import events
from pipeline.events import Event, Listener

_LOG_EVERY = 15.0  # seconds between lines in a log


@contextmanager
def display(console: Console) -> Iterator[Listener]:
    """The live bar where someone watches, lines where not; open while the training goes on."""
    if not console.is_terminal:
        yield LogDisplay(console)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveDisplay(progress)


def seconds_left(event: events.TrainingProgress) -> float | None:
    """At the present rate; None before anything is done."""
    if event.share <= 0:
        return None
    return event.seconds * (1 - event.share) / event.share


def state_line(event: events.TrainingProgress) -> str:
    """Steps, loss and time left, in words."""
    left = seconds_left(event)
    eta = "" if left is None else f", ETA {left:.0f} s"
    return f"step {event.steps}, {event.share:.0%}, loss {event.loss:.4f}{eta}"


def message(event: Event) -> str | None:
    """One line for events that an operator wants to see in any display."""
    match event:
        case events.TrainingPlanned():
            aside = f", {event.left_out} left out" if event.left_out else ""
            return (
                f"{event.name}: {event.scenes} scenes{aside}; by {event.by}: {event.train} train, "
                f"{event.validation} say when to stop, {event.test} prove the result"
            )
        case events.TrainingStarted():
            end = f"{event.steps} steps" if event.steps else f"{event.seconds or 0:.0f} s"
            again = f", going on after step {event.steps_done}" if event.steps_done else ""
            return f"training for {end} in {event.processes} process(es){again}"
        case events.TrainingValidated():
            better = ", the best yet" if event.best else ""
            return (
                f"step {event.steps}: loss {event.loss:.4f}, PSNR {event.psnr:.2f} dB "
                f"({event.psnr - event.bicubic:+.2f} dB over bicubic){better}"
            )
        case events.TrainingInterrupted():
            return f"interrupted, going on from the last checkpoint: {event.reason}"
        case events.TrainingSkipped():
            return f"{event.scene_id}: passed over: {event.reason}"
        case events.TrainingFinished():
            why = ", stopped early" if event.early else ""
            return f"{event.name}: {event.steps} steps in {event.seconds:.0f} s{why}; evaluating"
    return None


class LogDisplay:
    """A line per validation, and one about the whole every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        text = message(event)
        if text is not None:
            self._print(text)
        elif isinstance(event, events.TrainingProgress) and self._is_time():
            self._print(state_line(event))

    def _is_time(self) -> bool:
        return time.monotonic() - self._last > _LOG_EVERY

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


class LiveDisplay:
    """A bar over the training with loss and time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=1.0, state="", left="")

    def __call__(self, event: Event) -> None:
        text = message(event)
        if text is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        if isinstance(event, events.TrainingProgress):
            left = seconds_left(event)
            self._progress.update(
                self._task,
                completed=event.share,
                state=f"step {event.steps}, loss {event.loss:.4f}",
                left="" if left is None else f"ETA {left:.0f} s",
            )
