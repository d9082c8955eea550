"""python -m tests.chaos [--trials 200] [--seed 1] [--minutes 60] [--kinds driver,node]

The n-th trial has the seed `--seed` + n, which also chooses its kind: a series that was broken off
goes on with the next seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.harness import Outcome, possible, summary, trial
from tests.chaos.stage import Stage
from tests.chaos.strikes import KINDS


def main() -> int:
    given = _arguments()
    done: list[Outcome] = []
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        stage = Stage(Path(folder))
        try:
            kinds = _kinds(stage, given.kinds)
            for seed in range(given.seed, given.seed + given.trials):
                if time.monotonic() > deadline:
                    break
                done.append(trial(stage, kinds[seed % len(kinds)], seed))
                print("ok " if done[-1].good else "BAD", done[-1], flush=True)
        except KeyboardInterrupt:
            pass
        finally:
            stage.close()
    print(summary(done))
    return 0 if all(outcome.good for outcome in done) else 1


def _kinds(stage: Stage, wanted: str) -> list[str]:
    reasons = possible(stage)
    kinds = wanted.split(",") if wanted else sorted(reasons)
    for kind in kinds:
        if reasons[kind]:
            print(f"no {kind}: {reasons[kind]}", flush=True)
    return [kind for kind in kinds if not reasons[kind]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kinds", default="", help=f"of {','.join(KINDS)}; default: all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
