"""What people see while a run goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import events
from pipeline.progress import Meter, display

EVENTS: list[events.Event] = [
    events.RunPlanned("r1", scenes=3, tiles=9, tiles_kept=2, pixel_bands=7_000_000),
    events.SceneFinished("old", "skipped", "published with the same fingerprint"),
    events.SceneFinished("bad", "quarantined", "truncated: copy it again"),
    events.SceneStarted("good", tiles=9, tiles_kept=2),
    events.TileFinished("good", "0.0", 1_000_000, 0.5),
    events.TileRetried("good", "tile 0.1", 1, "the network went away"),
    *(events.TileFinished("good", f"1.{n}", 1_000_000, 0.5) for n in range(6)),
    events.SceneFinished("good", "published"),
    events.RunFinished("r1", published=1, skipped=1, quarantined=1, seconds=4.0),
]


@pytest.mark.parametrize("terminal", [True, False])
def test_both_displays_tell_what_matters(terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=160, color_system=None)
    with display(console) as listener:
        for event in EVENTS:
            listener(event)
    text = screen.getvalue()
    for expected in (
        "run r1: 3 scenes, 9 tiles, 2 kept from an earlier run",
        "bad: quarantined, truncated: copy it again",
        "good: resuming, 2 of 9 tiles kept",
        "good: tile 0.1, attempt 1 failed: the network went away",
        "good: published",
    ):
        assert expected in text
    assert ("9/9" in text) == terminal


def test_the_meter_counts_kept_tiles_but_not_their_speed() -> None:
    meter = Meter()
    for event in EVENTS[:5]:
        meter(event)
    assert (meter.scenes_done, meter.tiles_done, meter.tiles) == (2, 3, 9)
    assert meter.pixel_bands_done == 1_000_000
    assert meter.eta is not None and meter.eta == pytest.approx(6 / meter.rate, rel=0.2)
    assert meter.line().startswith("scenes 2/3, tiles 3/9, ")
