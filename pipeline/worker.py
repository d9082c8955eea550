"""What one worker does for the scenes and tiles it is given; knows nothing of Ray."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import xarray as xr
import zarr

from model import Card, inference
from model.checkpoint import unpack
from pipeline.arrays import OutputScene, scene_template
from pipeline.calibration import Calibration
from pipeline.changes import SOURCE_SEEN, check_as_planned
from pipeline.computing import Computer
from pipeline.errors import SceneError
from pipeline.footprint import results_held, tiles_in_flight
from pipeline.grid import Tile
from pipeline.heap import Heap
from pipeline.lease import is_holder
from pipeline.ledger import TileRecord
from pipeline.overviews import overview_factors
from pipeline.preparation import constants_of, encoding_of, read_as_asked
from pipeline.product import output_levels
from pipeline.readers import open_scene
from pipeline.resolving import scene_engines
from pipeline.scene_job import SceneJob
from pipeline.seams import SeamCertificate, certify, choose_borders
from pipeline.settings import Precision
from pipeline.storage import describe
from pipeline.tile import (
    SceneContext,
    assess_tile,
    read_tile,
    resolve_tile,
    write_tile,
)

OPEN_SCENES = 4


@dataclass(frozen=True)
class Prepared:
    """A scene whose output exists, unpublished, and whose constants are measured."""

    scene_id: str
    note: str


class Worker:
    """Holds the network and the scenes it is working on.

    Several threads may call `process` at once: reading, computing and writing of different tiles
    then overlap.

    Args:
        model: a checkpoint, packed.
        device: cpu, cuda, or any: a GPU if one can be used here. Each tile's record names it.
        threads: of the network and the codecs.
        precision: of the settings.
    """

    def __init__(self, model: bytes, device: str, threads: int, precision: Precision) -> None:
        if device == "any":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        net, self._card = unpack(model, "the job's model")
        self._engine = inference.compile(net.to(device), precision=precision)
        zarr.config.set({"threading.max_workers": threads})  # of the codecs
        self._heap = Heap()
        self._computer = Computer(threads, self._engine.device)
        in_flight = tiles_in_flight(threads, self._engine.device.type == "cuda")
        self._results = threading.BoundedSemaphore(results_held(in_flight))
        self._scenes: OrderedDict[str, tuple[SceneContext, OutputScene]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, job: SceneJob) -> Prepared:
        """Measure the scene's constants and create its output, replacing what was there.

        Raises:
            SceneError: the scene cannot be processed, is not the one that was planned, or another
                run has it; whatever was published stays as it was.
        """
        seen = check_as_planned(job)
        scene = _open(job, self._card)
        options = job.options
        calibration = self._computer.compute_alone(
            constants_of, scene, self._engine, self._card, options
        )
        self._heap.give_back()  # the sample was larger than any tile
        encoding = encoding_of(scene, calibration, options)
        levels = output_levels(scene, job.grid, calibration, encoding, options.refinement)
        template = scene_template(levels, options.layout, encoding.to_xarray())
        store, constants = job.store(), calibration.to_bytes()
        if not is_holder(job.output, job.scene_id, job.holder):
            raise SceneError("output-failed", f"another run has the lease of {job.scene_id}")
        facts = {"fingerprint": job.fingerprint, "tiles": len(job.grid), SOURCE_SEEN: seen}
        with _writing("the scene's arrays"):
            store.unpublish()
            store.prepare(template, constants, facts)
        with self._lock:
            self._keep(job, scene, constants)
        return Prepared(job.scene_id, calibration.bands.note)

    def process(self, job: SceneJob, tile: Tile) -> TileRecord:
        """Read, super-resolve and write one tile, then enter it in the ledger.

        Raises:
            SceneError: the source cannot be read there, or the output is another run's now.
        """
        context, output = self._open(job)
        with ExitStack() as held:
            with self._computer.tile():
                started = time.perf_counter()
                values = read_tile(context, tile)
                read = time.perf_counter()
                held.enter_context(self._results)
                free = time.perf_counter()
                made, wait, spent = self._computer.compute(resolve_tile, context, values)
            content = assess_tile(context, values, made)  # in this thread: the network goes on
            # A process that stood still may wake when the scene is another run's.
            if (job.store().state() or {}).get("fingerprint") != job.fingerprint:
                raise SceneError(
                    "output-failed", f"{job.scene_id} was prepared anew by another run"
                )
            with _writing(f"tile {tile.key}"):
                spans = {"read": read - started, "wait": free - read + wait, "compute": spent}
                record = write_tile(context, output, tile, content, **spans)
                engine = self._engine
                record = replace(record, device=engine.device.type, precision=engine.precision)
                job.store().record(record)
            del made, content  # before another tile may have its result
        self._heap.after_tile()
        return record

    def certify(self, job: SceneJob, most: int) -> SeamCertificate:
        """Compare some borders between tiles, all of which are written, across.

        Args:
            job: the scene.
            most: borders at most.

        Raises:
            SceneError: the source or the output cannot be read there.
        """
        context, output = self._open(job)
        borders = choose_borders(job.grid, most, job.fingerprint)
        return self._computer.compute_alone(certify, context, output, borders)

    def _open(self, job: SceneJob) -> tuple[SceneContext, OutputScene]:
        """The scene's context, from the few kept open."""
        with self._lock:
            if job.fingerprint not in self._scenes:
                constants = job.store().calibration()
                if constants is None:
                    raise SceneError(
                        "output-failed", f"the state of {job.scene_id} vanished; run again"
                    )
                self._keep(job, _open(job, self._card), constants)
            self._scenes.move_to_end(job.fingerprint)
            return self._scenes[job.fingerprint]

    def _keep(self, job: SceneJob, scene: xr.Dataset, constants: bytes) -> None:
        """Have the scene open for its tiles; constants as every worker reads them."""
        calibration = Calibration.from_bytes(constants)
        context = SceneContext(
            scene,
            job.grid,
            calibration,
            encoding_of(scene, calibration, job.options),
            scene_engines(self._engine, calibration),
            overview_factors(job.grid),
            job.options.refinement,
        )
        self._scenes[job.fingerprint] = context, OutputScene(job.store().url)
        while len(self._scenes) > OPEN_SCENES:
            self._scenes.popitem(last=False)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """An error of the output, a full disk mostly, is named as one."""
    try:
        yield
    except OSError as error:
        raise SceneError("output-failed", f"cannot write {what}: {describe(error)}") from error


def _open(job: SceneJob, card: Card) -> xr.Dataset:
    return read_as_asked(open_scene(job.uri), card, job.options)
