"""What a worker will take of memory, foretold before any work."""

from __future__ import annotations

from model import SSPSRConfig
from model.degradation import bicubic
from model.memory import body_bytes, tile_bytes
from model.projection import reach
from pipeline.calibration import ATTENTION_PIXELS
from pipeline.nodata import FILL_DEPTH
from pipeline.readers.decoded import KEPT_BYTES
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.sampling import SAMPLE_PIXELS

IN_FLIGHT = 4  # tiles that a worker on a CPU has: one is read, two are computed, one is written
AT_ONCE = 2  # tiles that a worker computes at once, unless on a GPU, if it has so many threads
_PROCESS = 640 << 20  # Python with torch, Ray, xarray and its readers, measured on Linux
_ELEMENT = 4  # bytes of an activation: float32, which bounds bfloat16
_COPIES = 3  # of the weights: as read, fused, laid out for the device


def tiles_in_flight(cpus: float, gpus: float) -> int:
    """How many tiles a worker has at a time.

    A GPU takes less time for a tile than a CPU for reading and writing one, so that every CPU gets
    a tile, beside the one that is computed and the one that waits for it.
    """
    return max(IN_FLIGHT, int(cpus) + 2) if gpus else IN_FLIGHT


def results_held(in_flight: int) -> int:
    """Super-resolved tiles among those in flight: one at least is still as it was read."""
    return in_flight - 1


def worker_bytes(
    config: SSPSRConfig,
    parameters: int,
    tile: int,
    bands: int,
    halo: int,
    refinement: Refinement = ONE_PASS,
    *,
    in_flight: int = IN_FLIGHT,
    at_once: int = AT_ONCE,
) -> int:
    """Upper bound of one worker's resident memory.

    The process itself with decoded chunks of the source, the weights, and the larger of two: the
    calibration of a scene, or the tiles in flight, each with its LR values (twice: as read, as
    filled) and, all but one and up to the written shard, its HR values (float32, encoded,
    compressed), beside the network's own need for each that it computes.

    Args:
        config: of the network.
        parameters: how many it has.
        tile: LR pixels along a tile's side.
        bands: of the scene with the most.
        halo: of the network.
        refinement: conserving takes the network's work on a larger core, turning it more results.
        in_flight: tiles that it has at a time.
        at_once: tiles that are computed at once.
    """
    grown = tile + (2 * reach(bicubic(config.scale)) if refinement.conserve else 0)
    low = (grown + 2 * (halo + FILL_DEPTH)) ** 2
    high = (config.scale * tile) ** 2
    written = 5 if refinement.uncertainty else 3  # the spread too, as it is and rounded
    flight = bands * (in_flight * 2 * low + results_held(in_flight) * written * high) * 4
    network = tile_bytes(config, grown, grown, _ELEMENT)
    if refinement.conserve:  # the larger result, and once more of the bands in use
        network += 2 * bands * (config.scale * grown) ** 2 * 4
    if refinement.turned:  # the first result and two sums; mean, deviation and what it is made of
        network += 6 * bands * (config.scale * grown) ** 2 * 4
    sample = 4 * bands * SAMPLE_PIXELS * 4 + body_bytes(config, ATTENTION_PIXELS, _ELEMENT)
    return (
        _PROCESS + KEPT_BYTES + _COPIES * parameters * 4 + max(sample, flight + at_once * network)
    )
