"""Progress for people: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline import events
from pipeline.events import Event, Listener

_LOG_EVERY = 10.0  # seconds between lines in a log


@contextmanager
def display(console: Console) -> Iterator[Listener]:
    """The live bar where someone watches, lines where not; open while the run goes on."""
    if not console.is_terminal:
        yield LogDisplay(console)
        return
    with _bar(console) as progress:
        yield LiveDisplay(progress)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("scenes {task.fields[scenes]}"),
        BarColumn(),
        TextColumn("tiles"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


class Meter:
    """Counts what has been done and how fast, from events."""

    def __init__(self) -> None:
        self.scenes = self.scenes_done = self.tiles = self.tiles_done = self.kept = 0
        self.pixel_bands = self.pixel_bands_done = 0
        self._first: float | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case events.RunPlanned():
                self.scenes, self.tiles = event.scenes, event.tiles
                self.kept = self.tiles_done = event.tiles_kept
                self.pixel_bands = event.pixel_bands
            case events.SceneStarted():
                self._first = self._first or time.monotonic()
            case events.TileFinished():
                self.tiles_done += 1
                self.pixel_bands_done += event.pixel_bands
            case events.SceneFinished():
                self.scenes_done += 1

    @property
    def rate(self) -> float:
        """HR megapixels x bands per second since the first scene started."""
        if self._first is None or not self.pixel_bands_done:
            return 0.0
        return self.pixel_bands_done / 1e6 / max(time.monotonic() - self._first, 1e-3)

    @property
    def eta(self) -> float | None:
        """Seconds left at the present rate."""
        left = (self.pixel_bands - self.pixel_bands_done) / 1e6
        return left / self.rate if self.rate else None

    def line(self) -> str:
        eta = "" if self.eta is None else f", ETA {self.eta:.0f} s"
        return (
            f"scenes {self.scenes_done}/{self.scenes}, tiles {self.tiles_done}/{self.tiles}, "
            f"{self.rate:.2f} Mpx·band/s{eta}"
        )


def message(event: Event) -> str | None:
    """One line for events that an operator wants to see in any display."""
    match event:
        case events.RunPlanned():
            kept = f", {event.tiles_kept} kept from an earlier run" if event.tiles_kept else ""
            return f"run {event.run_id}: {event.scenes} scenes, {event.tiles} tiles{kept}"
        case events.SceneStarted() if event.tiles_kept:
            return f"{event.scene_id}: resuming, {event.tiles_kept} of {event.tiles} tiles kept"
        case events.TileRetried():
            return f"{event.scene_id}: {event.tile}, attempt {event.attempt} failed: {event.reason}"
        case events.SceneFinished() if event.status == "quarantined":
            return f"{event.scene_id}: quarantined, {event.reason}"
        case events.SceneHeld():
            return f"{event.scene_id}: waiting for its lease, {event.reason}"
        case events.SceneFinished() if event.status == "published":
            return f"{event.scene_id}: published"
    return None


class LogDisplay:
    """A line per scene, and one about the whole every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._meter = Meter()
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        self._meter(event)
        text = message(event)
        if text is not None:
            self._print(text)
        elif time.monotonic() - self._last > _LOG_EVERY:
            self._last = time.monotonic()
            self._print(self._meter.line())

    def _print(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


class LiveDisplay:
    """A bar over tiles with scenes, rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self._meter = Meter()
        self._progress = progress
        self._task = self._progress.add_task("run", total=None, scenes="", rate="")

    def __call__(self, event: Event) -> None:
        self._meter(event)
        text = message(event)
        if text is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        meter = self._meter
        self._progress.update(
            self._task,
            total=meter.tiles or None,
            completed=meter.tiles_done,
            scenes=f"{meter.scenes_done}/{meter.scenes}",
            rate=f"{meter.rate:.2f} Mpx·band/s",
        )
