"""A rehearsal: some tiles of a plan are read, computed, written and published as by a run.

Ray, the workers, the source and the store of the output are those of the run; only the place is
another (`pipeline.estimate.scratch`). The work of a group of scenes is done in phases, so that what
a scene takes is told from what its tiles take: prepare; the first tile of every worker, which opens
the scene; further tiles, with as many in flight as in a run; publish.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, zip_longest

import ray

from pipeline.actors import ActorPool, Failure, Work
from pipeline.errors import UsageError
from pipeline.estimate.measured import Measured, Step, Trial
from pipeline.estimate.metered import Ended, Meter, MeteredActor, MeteredPool, Phase
from pipeline.estimate.sample import RUN, Group, Load, load_of, sampled_tiles
from pipeline.estimate.scratch import bytes_below, scratch
from pipeline.lease import Leases
from pipeline.ledger import TileRecord
from pipeline.plan import ScenePlan, standing
from pipeline.publishing import Publisher
from pipeline.ray_session import Share, ray_session
from pipeline.run_report import RunReport, SceneRow
from pipeline.scene_job import Model, SceneJob
from pipeline.seams import SeamCertificate
from pipeline.settings import RunSettings
from pipeline.stac.publication import bring_up_to_date, save_quicklook
from pipeline.storage import describe
from pipeline.traffic import Traffic
from pipeline.worker import Prepared

_ENOUGH = 48  # further tiles of a group for each worker: more would tell little


def rehearse(
    settings: RunSettings, model: Model, groups: Sequence[Group], margin: int, seconds: float
) -> Trial:
    """Measure the sampled scenes of the groups, for about so many seconds after Ray's start.

    What has begun is ended: preparing the scenes and as many tiles as are in flight are the least.

    Raises:
        UsageError: the output cannot be written, there is no worker, or no scene can be measured.
    """
    began = time.monotonic()
    with scratch(settings.output) as place:
        with ray_session(settings.ray_address):
            share = Share.of_cluster(
                settings.devices,
                settings.workers,
                settings.cpus_per_worker,
                settings.gpus_per_worker,
            )
            here = _with_room(share)
            pool = ActorPool(model.data, here, settings.precision, MeteredActor)
            metered = MeteredPool(pool)
            metered.wait()
            starting = time.monotonic() - began
            rehearsal = _Rehearsal(settings, model, place, metered, margin)
            try:
                rehearsal.measure(groups, time.monotonic() + seconds)
                worker_peak = metered.meter().peak
            finally:
                pool.close()
            closing = time.monotonic()
        ending = time.monotonic() - closing
        catalogue = rehearsal.catalogue()
        other_bytes = rehearsal.other_bytes()
    return Trial(
        share=share,
        workers=here.workers,
        threads=max(1, int(here.cpus)),
        groups=tuple(rehearsal.measured),
        starting=starting,
        ending=ending,
        leasing=rehearsal.leasing,
        catalogue=catalogue,
        other_bytes=other_bytes,
        worker_peak=worker_peak,
        driver_peak=Meter.read().peak,
        notes=tuple(rehearsal.notes),
        seconds=time.monotonic() - began,
    )


def _with_room(share: Share) -> Share:
    """As much of a share as Ray has now; an autoscaler may bring the rest to a run."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = there.get("CPU", 1.0), there.get("GPU", 0.0)
    if share.gpus > gpus:
        raise UsageError("--estimate: Ray has no GPU now to measure on; use --devices cpu")
    each = min(share.cpus, cpus)
    room = min([cpus // each, *([gpus // share.gpus] if share.gpus else [])])
    return replace(share, cpus=each, workers=max(1, min(share.workers, int(room))))


class _Rehearsal:
    """The driver's side: groups one after the other, then what a run does at its end."""

    def __init__(
        self, settings: RunSettings, model: Model, place: str, pool: MeteredPool, margin: int
    ) -> None:
        self._place, self._pool, self._margin = place, pool, margin
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._leases = Leases(place, "estimate", settings.lease_seconds)
        report = RunReport("estimate", started)
        self._publisher = Publisher(model, self._leases, report, None)
        self._published: dict[str, str] = {}
        self.measured: list[Measured] = []
        self.notes: list[str] = []
        self.leasing = Step()

    def measure(self, groups: Sequence[Group], until: float) -> None:
        """Of all groups that have a sample.

        Raises:
            UsageError: none could be measured.
        """
        sampled = [group for group in groups if group.sampled]
        with ExitStack() as stack:
            self.leasing = Step.of(partial(stack.enter_context, self._leases))
            for number, group in enumerate(sampled):
                now = time.monotonic()
                self._group(group, now + max(0.0, until - now) / (len(sampled) - number))
        if not self.measured:
            raise UsageError(f"cannot estimate: {'; '.join(self.notes[:3])}")

    def catalogue(self) -> tuple[Step, Step]:
        """Make the scratch's, then once more, which tells what further scenes take."""
        found = self._published
        anew = dict.fromkeys(found, "")
        first, again = (
            self._try("catalogue", partial(bring_up_to_date, self._place, fingerprints))
            for fingerprints in (found, anew)
        )
        return replace(first, items=len(found)), replace(again, items=len(found))

    def other_bytes(self) -> float:
        """Stored beside what tiles wrote, for each scene."""
        records = [record for each in self.measured for record in each.records]
        written = sum(item.bytes for record in records for item in record.objects)
        return max(0, bytes_below(self._place) - written) / len(self._published)

    def _try(self, what: str, work: Callable[[], object]) -> Step:
        """Time the driver's work; one that fails is a note and took nothing, as in a run."""
        try:
            return Step.of(work)
        except Exception as error:  # whatever a store or a scene raises
            self.notes.append(f"{what}: {describe(error)}")
            return Step()

    def _group(self, group: Group, until: float) -> None:
        scenes = {scene.scene_id: scene for scene in group.sampled}
        lease, jobs = Step(), []
        for scene in group.sampled:
            assert scene.job is not None
            job = replace(scene.job, output=self._place, holder=self._leases.token)
            lease += self._try(job.scene_id, partial(self._leases.take, job.scene_id))
            lease += self._try(job.scene_id, partial(standing, job.store(), job.fingerprint))
            jobs.append(job)
        first = self._phase([Work(job, None) for job in jobs[:1]], Prepared)
        others = self._phase([Work(job, None) for job in jobs[1:]], Prepared)
        ready = _scene_ids(first, others)
        tiles = [
            [Work(job, tile) for tile in sampled_tiles(scenes[job.scene_id])]
            for job in jobs
            if job.scene_id in ready
        ]
        count = self._pool.workers
        opening = self._phase([work for each in tiles for work in each[:count]], TileRecord)
        further = _by_turns([each[count:] for each in tiles])[: _ENOUGH * count]
        steady = self._phase(further, TileRecord, until)
        publish = self._publish_all([job for job in jobs if job.scene_id in _scene_ids(opening)])
        if publish.items:
            self.measured.append(
                Measured(
                    group,
                    first,
                    others,
                    opening,
                    steady,
                    self._loads(opening),
                    self._loads(steady),
                    lease + publish,
                    publish.seconds / publish.items,
                )
            )

    def _phase(self, works: Sequence[Work], kind: type, until: float = float("inf")) -> Phase:
        """A phase without what failed in it, of which there are notes."""
        phase = self._pool.phase(works, until)
        failed = [each for each in phase.ended if not isinstance(each.result, kind)]
        self.notes += [_why(each) for each in failed]
        good = tuple(each for each in phase.ended if isinstance(each.result, kind))
        return replace(phase, ended=good)

    def _loads(self, phase: Phase) -> tuple[Load, ...]:
        return tuple(
            load_of(each.work.job, [each.work.tile], self._margin)
            for each in phase.ended
            if each.work.tile is not None
        )

    def _publish_all(self, jobs: Sequence[SceneJob]) -> Step:
        total = Step()
        for job in jobs:
            if not self._cut(job):
                continue
            row = SceneRow.of(ScenePlan(job.scene_id, job.uri, "new", job), self._place)
            uncertified = SeamCertificate.uncompared(job.grid)
            publish = partial(self._publisher.publish, job, row, uncertified)
            step = self._try(job.scene_id, publish)
            if step.items:
                self._published[job.scene_id] = job.fingerprint
                drawn = self._try(job.scene_id, partial(save_quicklook, self._place, job.scene_id))
                released = self._try(job.scene_id, partial(self._leases.release, job.scene_id))
                beside = drawn.traffic + released.traffic - _of_tiles(job)
                total += replace(step, traffic=step.traffic + beside)
        return total

    def _cut(self, job: SceneJob) -> bool:
        """Say in the scratch that what was done of a scene is all of it."""

        def cut() -> None:
            store = job.store()
            state = {**(store.state() or {}), "tiles": len(store.ledger())}
            store.put_state("scene.json", json.dumps(state).encode())

        return bool(self._try(job.scene_id, cut).items)


def _of_tiles(job: SceneJob) -> Traffic:
    """The requests among those of publishing that are one for each tile.

    A tile's record is read; its part of the quicklook is asked for, in vain if it was not done.
    """
    tiles, done = len(job.grid), len(job.store().ledger())
    return Traffic({"GET": done + tiles})


def _scene_ids(*phases: Phase) -> set[str]:
    return {each.work.job.scene_id for phase in phases for each in phase.ended}


def _by_turns(scenes: Sequence[Sequence[Work]]) -> list[Work]:
    """A run of neighbours of each scene, then the next of each."""
    runs = [[each[at : at + RUN] for at in range(0, len(each), RUN)] for each in scenes]
    turns = chain.from_iterable(zip_longest(*runs, fillvalue=()))
    return [work for run in turns for work in run]


def _why(ended: Ended) -> str:
    what = f"{ended.work.job.scene_id}, {ended.work.name}"
    if isinstance(ended.result, Failure):
        return f"{what}: {ended.result.code}: {ended.result.message}"
    return f"{what}: it killed its worker"
