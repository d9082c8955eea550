"""python -m tests.chaos [--trials 200] [--seed 1] [--minutes 40]"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ray

from pipeline.ray_session import ray_session
from tests.chaos.harness import STRIKES, Outcome, Stage, trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=40.0)
    given = parser.parse_args()
    done: list[Outcome] = []
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ray_session(None):
        stage = Stage(Path(folder), ray.get_runtime_context().gcs_address)
        kinds = sorted(STRIKES)
        for number in range(given.trials):
            if time.monotonic() > deadline:
                break
            kind = kinds[number % len(kinds)]
            outcome = trial(stage, kind, STRIKES[kind], given.seed + number)
            done.append(outcome)
            print(outcome, flush=True)
    print(summary(done))
    return 0 if all(outcome.good for outcome in done) else 1


def summary(done: list[Outcome]) -> str:
    """A Markdown table of the trials by kind."""
    lines = [
        "| struck | trials | in mid-run | differences | partial | redone, most |",
        "|---" * 6 + "|",
    ]
    for kind, count in sorted(Counter(outcome.kind for outcome in done).items()):
        of_kind = [outcome for outcome in done if outcome.kind == kind]
        struck = sum(outcome.struck for outcome in of_kind)
        different = sum(not outcome.same for outcome in of_kind)
        partial = sum(bool(outcome.partial) for outcome in of_kind)
        redone = max(outcome.redone for outcome in of_kind)
        lines.append(f"| {kind} | {count} | {struck} | {different} | {partial} | {redone} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
