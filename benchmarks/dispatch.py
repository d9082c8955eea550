"""Scenes of very many tiles, planned and dispatched to actors that do nothing.

    python -m benchmarks.dispatch [--tiles 1000000] [--scenes 1] [--rows 10]

The plan is `make_plan` on sparse ENVI files, the loop is `Dispatcher` with two real Ray actors;
what is measured is therefore all that the driver does for a tile. Memory is what the driver shares
with no other process (USS).
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import make_net, print_row, print_table, write_checkpoint
from benchmarks.processes import Processes
from benchmarks.scenes import job_settings
from pipeline.actors import ActorPool
from pipeline.dispatch import Admission, Dispatcher, Handlers
from pipeline.grid import Tile
from pipeline.job import load_model
from pipeline.ledger import TileRecord
from pipeline.plan import Plan, make_plan
from pipeline.ray_session import Share, ray_session
from pipeline.scene_job import SceneJob
from pipeline.worker import Prepared

_TILE = 8  # LR pixels along a side, the least that is allowed


class IdleActor:
    """In the place of `TileActor`: says at once that it is done."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord:
        return Prepared(job.scene_id, "") if tile is None else TileRecord(tile.key, ())


@dataclass(frozen=True)
class Mark:
    """Where a run stands: tiles done, seconds, processor seconds of the driver, processes."""

    tiles: int
    seconds: float
    processor: float
    held: Processes


@dataclass
class Meter:
    """A mark at every so many tiles, told as it is passed."""

    every: int
    passed: Callable[[Mark, Mark], None] = lambda before, after: None
    tiles: int = 0
    marks: list[Mark] = field(default_factory=list)

    def mark(self) -> None:
        clocks = time.perf_counter(), time.process_time()
        self.marks.append(Mark(self.tiles, *clocks, Processes.of()))
        if len(self.marks) > 1:
            self.passed(*self.marks[-2:])

    def prepared(self, job: SceneJob, prepared: Prepared) -> None:
        if not self.marks:
            self.mark()

    def tile(self, job: SceneJob, record: TileRecord) -> None:
        self.tiles += 1
        if not self.tiles % self.every:
            self.mark()

    def failed(self, job: SceneJob, code: str, message: str) -> None:
        raise RuntimeError(f"{code}: {message}")


def plan_scenes(folder: Path, tiles: int, scenes: int) -> tuple[bytes, Plan]:
    """The model and the plan of scenes that have that many tiles together, or a few more."""
    side = math.ceil(math.sqrt(tiles / scenes)) * _TILE
    for number in range(scenes):
        _write_sparse(folder / "scenes" / f"s{number:03d}.hdr", side)
    write_checkpoint(make_net(8, features=16, blocks=1), folder / "net.safetensors")
    settings = job_settings(
        folder / "scenes", folder / "net.safetensors", folder / "out", tile=_TILE
    )
    model = load_model(settings)
    return model.data, make_plan(settings, model)


def _write_sparse(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"samples": side, "lines": side, "bands": 8, "data type": 1, "interleave": "bsq"}
    path.write_text("\n".join(["ENVI", *(f"{name} = {value}" for name, value in fields.items())]))
    with path.with_suffix(".img").open("wb") as file:
        file.truncate(8 * side * side)


def dispatch(model: bytes, plan: Plan, meter: Meter) -> None:
    """Send every tile of the plan through the pool; Ray runs already."""
    pool = ActorPool(model, Share("cpu", 2, 1.0, 0.0), actor=IdleActor)
    handlers = Handlers(meter.prepared, meter.tile, lambda work, reason: None, meter.failed)
    dispatcher = Dispatcher(pool, handlers, 1, lambda job: Admission("go"))
    for scene in plan.work:
        assert scene.job is not None
        dispatcher.add(scene.job)
    dispatcher.run()
    pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--scenes", type=int, default=1)
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    started = time.perf_counter()
    model, plan = plan_scenes(folder, given.tiles, given.scenes)
    planned = time.perf_counter() - started
    tiles = sum(scene.tiles for scene in plan.work)
    print_table(
        f"{tiles} tiles of {len(plan.work)} scenes, planned in {planned:.2f} s",
        ["tiles", "ms per tile", "processor of the driver, ms per tile"]
        + [f"{name} MB" for name in Processes.NAMES],
        [],
    )
    meter = Meter(given.tiles // given.rows, lambda *marks: print_row(row(*marks)))
    with ray_session(None):
        dispatch(model, plan, meter)
    shutil.rmtree(folder)
    print(f"\ndispatched in {meter.marks[-1].seconds - meter.marks[0].seconds:.1f} s")


def row(before: Mark, after: Mark) -> list[object]:
    tiles = after.tiles - before.tiles
    each = (after.seconds - before.seconds) / tiles, (after.processor - before.processor) / tiles
    memory = (part.megabytes for part in after.held.parts)
    return [after.tiles, *(1000 * spent for spent in each), *memory]


if __name__ == "__main__":
    main()
