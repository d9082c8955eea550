"""What an archive of many scenes costs and which part of one driver is full first.

    python -m benchmarks.scale --tile-seconds 0.1 --workers 1000

Arithmetic on constants that were measured elsewhere, and a simulation of one driver that hands
tiles to actors; no cluster and no store is used. docs/scale.md says where each constant is from.
"""

from __future__ import annotations

import argparse
import heapq
import random

from benchmarks.common import print_table
from pipeline.footprint import IN_FLIGHT

_SPREAD = 0.2  # of the time of a tile, to both sides


def busy_share(workers: int, tile_seconds: float, driver_seconds: float, tiles: int) -> float:
    """Part of the workers' time that is spent on tiles, with one driver for all of them.

    Each actor computes one tile at a time and has up to `IN_FLIGHT` with it; the driver takes
    `driver_seconds` for each tile, between its end and that a next one is at its actor.
    """
    draw = random.Random(1)
    # Ends of tiles in computation; an actor starts its next one itself while it has some.
    waiting = [IN_FLIGHT - 1] * workers
    lengths = (1 - _SPREAD, 1 + _SPREAD)
    ends = [(tile_seconds * draw.uniform(*lengths), worker) for worker in range(workers)]
    heapq.heapify(ends)
    idle: set[int] = set()
    deliveries: list[tuple[float, int]] = []
    driver_free = done = now = 0.0
    while done < tiles:
        if deliveries and (not ends or deliveries[0] <= ends[0]):
            now, worker = heapq.heappop(deliveries)
            waiting[worker] += 1
            if worker not in idle:
                continue
            idle.remove(worker)
        else:
            now, worker = heapq.heappop(ends)
            done += 1
            driver_free = max(driver_free, now) + driver_seconds
            heapq.heappush(deliveries, (driver_free, worker))
            if not waiting[worker]:
                idle.add(worker)
                continue
        waiting[worker] -= 1
        heapq.heappush(ends, (now + tile_seconds * draw.uniform(*lengths), worker))
    return done * tile_seconds / (now * workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tile-seconds", type=float, nargs="+", default=[0.05, 0.2, 1.0])
    parser.add_argument("--driver-ms", type=float, default=0.63, help="of the driver per tile")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 50, 100, 500, 1000])
    asked = parser.parse_args()
    driver = asked.driver_ms / 1000
    rows = [
        [seconds, *(busy_share(n, seconds, driver, 50 * n) for n in asked.workers)]
        for seconds in asked.tile_seconds
    ]
    title = f"Part of the workers' time that is used; the driver takes {asked.driver_ms} ms a tile"
    print_table(title, ("s per tile", *(f"{n} workers" for n in asked.workers)), rows)


if __name__ == "__main__":
    main()
