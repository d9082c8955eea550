"""What a run will do, decided before it does anything."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.calibration import Calibration
from pipeline.catalog import Catalogue, SceneRef, list_scenes, set_twins_aside
from pipeline.documents import fingerprint_in
from pipeline.errors import SceneError, StoreUnavailable, UsageError
from pipeline.footprint import IN_FLIGHT, worker_bytes
from pipeline.grid import TileGrid
from pipeline.readers import open_scene
from pipeline.readers.boundary import boundary, failure
from pipeline.scene_job import Model, OutputOptions, SceneJob, code_version, fingerprint_of
from pipeline.settings import (
    RunSettings,
)
from pipeline.spectral import in_model_bands, plan_bands
from pipeline.storage import check_reachable, folds_case, open_filesystem, redact
from pipeline.store import SceneStore

KEPT = "source, model or options changed since; kept as asked"
_OPENERS = 8  # scenes opened at once while planning
_MOST_TILES = 2**21


Status = Literal["new", "resume", "stale", "published", "kept", "quarantined"]


@dataclass(frozen=True)
class Standing:
    """What an output holds of one scene: `new`, `resume`, `stale` or `published` of `ScenePlan`.

    Attributes:
        done: keys of finished tiles of the same fingerprint.
        fingerprint: of what is published.
    """

    status: Status
    done: frozenset[str] = frozenset()
    fingerprint: str = ""


@dataclass(frozen=True)
class ScenePlan:
    """What will happen to one scene.

    Attributes:
        status: `new`; `resume` (tiles of an earlier run are kept); `stale` (published from other
            source, weights or options, and replaced); `published` (skipped); `kept` (stale, but
            left as asked); `quarantined`.
        job: None unless there is work.
        done: keys of finished tiles.
        note: reason of a quarantine, or what the operator should know.
        code: reason code of a quarantine.
        fingerprint: of what is published or will be; empty where nothing is known.
    """

    scene_id: str
    uri: str
    status: Status
    job: SceneJob | None = None
    done: frozenset[str] = frozenset()
    note: str = ""
    code: str = ""
    fingerprint: str = ""

    @property
    def tiles(self) -> int:
        return len(self.job.grid) if self.job else 0

    @property
    def bytes_raw(self) -> int:
        """Size of the output before compression."""
        if self.job is None:
            return 0
        return self.job.pixel_bands * (8 if self.job.options.uncertainty else 4)

    def summary(self) -> dict[str, Any]:
        """Plain facts for tables and JSON."""
        size = (
            None
            if self.job is None
            else [self.job.bands, self.job.grid.height, self.job.grid.width]
        )
        return {
            "scene_id": self.scene_id,
            "status": self.status,
            "source": redact(self.uri),
            "bands_rows_cols": size,
            "tiles": self.tiles,
            "tiles_kept": len(self.done),
            "note": f"{self.code}: {self.note}" if self.code else self.note,
        }


@dataclass(frozen=True)
class Plan:
    """All scenes of a source, in listing order."""

    scenes: tuple[ScenePlan, ...]
    ignored: tuple[str, ...]
    worker_bytes: int  # upper bound of one worker's memory, on a CPU

    @property
    def work(self) -> list[ScenePlan]:
        return [scene for scene in self.scenes if scene.job is not None]


def make_plan(settings: RunSettings, model: Model) -> Plan:
    """List the source, open what is not published yet, decide.

    Raises:
        UsageError: nothing to list, an output that cannot be reached, or a model that the options
            cannot be used with.
    """
    check_reachable(settings.output, "the output")
    try:
        return _make_plan(settings, model)
    except StoreUnavailable as error:
        raise UsageError(f"cannot plan: {error}") from error


def _make_plan(settings: RunSettings, model: Model) -> Plan:
    catalogue = list_scenes(
        settings.source, settings.include, settings.exclude, asset=settings.asset
    )
    if folds_case(*open_filesystem(settings.output)):
        set_twins_aside(catalogue)
    options = OutputOptions.of(settings)

    def plan(ref: SceneRef) -> ScenePlan:
        return _plan_scene(ref, settings, model, options)

    with ThreadPoolExecutor(_OPENERS) as pool:
        planned = list(pool.map(plan, catalogue.scenes))
    scenes = sorted([*planned, *_rejected(catalogue)], key=lambda scene: scene.scene_id)
    return Plan(tuple(scenes), tuple(catalogue.ignored), worker_memory(scenes, model))


def _rejected(catalogue: Catalogue) -> list[ScenePlan]:
    return [
        ScenePlan(
            _own_id(scene_id, uri, error), uri, "quarantined", note=error.message, code=error.code
        )
        for scene_id, uri, error in catalogue.rejected
    ]


def _own_id(scene_id: str, uri: str, error: SceneError) -> str:
    """A duplicate is reported beside the scene whose id it shares, not in its place."""
    if error.code != "duplicate-id":
        return scene_id
    return f"{scene_id}.duplicate-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"


def standing(store: SceneStore, fingerprint: str) -> Standing:
    """What the output holds of a scene now, seen from a run that would make that fingerprint."""
    published = store.published()
    if published is not None:
        present = fingerprint_in(published)
        return Standing("published" if present == fingerprint else "stale", fingerprint=present)
    state = store.state()
    if state is None or state.get("fingerprint") != fingerprint or not _can_resume(store):
        return Standing("new")
    return Standing("resume", store.finished())


def _plan_scene(
    ref: SceneRef, settings: RunSettings, model: Model, options: OutputOptions
) -> ScenePlan:
    fingerprint = fingerprint_of(ref, model, options)
    store = SceneStore(settings.output, ref.scene_id)
    there = standing(store, fingerprint)
    if there.status == "published":
        return ScenePlan(ref.scene_id, ref.uri, "published", fingerprint=fingerprint)
    if there.status == "stale" and settings.stale == "keep":
        return ScenePlan(ref.scene_id, ref.uri, "kept", note=KEPT, fingerprint=there.fingerprint)
    try:
        with boundary(ref.uri, "cannot plan the scene", "bad-header"):
            job, note = open_job(ref, settings.output, model, options, fingerprint)
    except SceneError as error:
        return ScenePlan(ref.scene_id, ref.uri, "quarantined", note=error.message, code=error.code)
    return ScenePlan(
        ref.scene_id, ref.uri, there.status, job, there.done, note, fingerprint=fingerprint
    )


def _can_resume(store: SceneStore) -> bool:
    """Whether the constants that the tiles of an earlier run were made with can be read."""
    try:
        Calibration.from_bytes(store.calibration() or b"")
    except Exception:  # damaged or tampered with in whatever way: the scene is begun anew
        return False
    return True


def open_job(
    ref: SceneRef, output: str, model: Model, options: OutputOptions, fingerprint: str
) -> tuple[SceneJob, str]:
    """The job of a scene and the note of its band plan, from metadata alone.

    Raises:
        SceneError: the scene cannot be opened, or not be processed with these options.
    """
    source = open_scene(ref.uri)
    scene = in_model_bands(source, model.card, options.bands)
    good = np.asarray(scene["good_band"].values, dtype=bool).tolist()
    bands = plan_bands(scene, model.card, good, options.bands, options.outside, options.tolerance)
    grid = TileGrid(scene.sizes["y"], scene.sizes["x"], options.tile, model.card.architecture.scale)
    if len(grid) > _MOST_TILES:
        reason = f"{len(grid)} tiles, at most {_MOST_TILES} are planned: choose a larger --tile"
        raise failure("unsupported", ref.uri, reason)
    job = SceneJob(
        scene_id=ref.scene_id,
        uri=ref.uri,
        version=ref.version,
        fingerprint=fingerprint,
        output=output,
        options=options,
        grid=grid,
        bands=len(good),
        code_version=code_version(),
        source_bands=source.sizes["band"],
        parts=ref.parts,
        listed=ref.listed,
    )
    return job, bands.note


def worker_memory(scenes: Sequence[ScenePlan], model: Model, in_flight: int = IN_FLIGHT) -> int:
    """Bytes that a worker takes at most for any of the scenes; 0 where nothing is to be done."""
    jobs = [scene.job for scene in scenes if scene.job is not None]
    if not jobs:
        return 0
    # Of a scene that is resampled the source's bands are held too, while they are read.
    bands = max(max(job.bands, job.source_bands) for job in jobs)
    config = model.card.architecture.config()
    parameters = len(model.data) // 4
    options = jobs[0].options
    return worker_bytes(
        config,
        parameters,
        options.tile,
        bands,
        model.halo,
        options.refinement,
        in_flight=in_flight,
    )
