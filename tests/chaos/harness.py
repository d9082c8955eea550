"""One trial: strike a run, run the same command again, compare with an undisturbed output."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline.storage import describe
from tests.chaos.stage import Reader, Stage
from tests.chaos.strikes import KINDS, memory_groups


@dataclass
class Outcome:
    """What one trial came to.

    Attributes:
        kind: what was struck.
        seed: of the trial; the same gives the same strike, up to the machine's timing.
        struck: whether the strike fell before the run had ended by itself.
        point: where it fell, if that is known.
        same: whether the output is that of the undisturbed run, to the byte.
        partial: scenes that a reader could see before they were whole.
        redone: pieces of work (tiles, preparations) that were begun again, over all runs.
        most: how many may be.
        runs: how many it took, the struck one included.
        faults: whatever else went wrong, in words.
    """

    kind: str
    seed: int
    most: int
    struck: bool = False
    point: str = ""
    same: bool = False
    partial: list[str] = field(default_factory=list)
    redone: int = 0
    runs: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.same and not self.partial and not self.faults and self.redone <= self.most


def possible(stage: Stage) -> dict[str, str]:
    """The kinds of strikes, each with the reason why it cannot be done here, or nothing."""
    reasons = dict.fromkeys(KINDS, "")
    if stage.small is None:
        reasons["disk"] = "a small file system can only be mounted by root"
    if not memory_groups():
        reasons["memory"] = "there is no memory group (cgroup v1) that this process may change"
    return reasons


def trial(stage: Stage, kind: str, seed: int) -> Outcome:
    """Strike one run, finish the work, compare. Whatever goes wrong stands in the outcome."""
    strike = KINDS[kind]
    outcome = Outcome(kind, seed, strike.most)
    started = time.monotonic()
    place = strike.where(stage, f"{kind}-{seed}")
    reader = Reader(stage, place)
    reader.start()
    try:
        blow = strike.strike(stage, place, random.Random(seed))
        outcome.struck, outcome.point, outcome.faults = blow.struck, blow.point, blow.faults
        outcome.runs = 1 + stage.finish(place)
        outcome.faults += [f"left behind: {path}" for path in place.leftovers()]
        outcome.same = place.contents() == stage.reference
    except Exception as error:
        outcome.faults.append(describe(error))
    finally:
        outcome.partial = reader.end()
        outcome.redone = sum(count - 1 for count in place.begun().values())
        stage.heal()
    outcome.seconds = round(time.monotonic() - started, 1)
    if outcome.good:
        shutil.rmtree(place.output, ignore_errors=True)
    return outcome


def summary(done: list[Outcome]) -> str:
    """A Markdown table of the trials by kind."""
    lines = [
        "| struck | trials | in mid-run | differences | partial | other faults "
        "| begun again, most | allowed |",
        "|---" * 8 + "|",
    ]
    for kind in sorted(Counter(outcome.kind for outcome in done)):
        of_kind = [outcome for outcome in done if outcome.kind == kind]
        figures = [
            len(of_kind),
            sum(outcome.struck for outcome in of_kind),
            sum(not outcome.same for outcome in of_kind),
            sum(bool(outcome.partial) for outcome in of_kind),
            sum(bool(outcome.faults) for outcome in of_kind),
            max(outcome.redone for outcome in of_kind),
            of_kind[0].most,
        ]
        lines.append(f"| {kind} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)
