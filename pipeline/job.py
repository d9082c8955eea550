"""The main job: plan, super-resolve every scene that is new, publish, report."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from pipeline import events
from pipeline.actors import ActorPool, Work
from pipeline.aftercare import Aftercare
from pipeline.dispatch import Admission, Dispatcher, Handlers
from pipeline.errors import SceneError
from pipeline.events import Event, Listener
from pipeline.lease import LeaseLost, Leases
from pipeline.ledger import TileRecord
from pipeline.metrics import RunMeters
from pipeline.plan import KEPT, Plan, ScenePlan, make_plan, standing
from pipeline.publishing import Publisher, Publishing
from pipeline.ray_session import Share, ray_session
from pipeline.registry import usable_model
from pipeline.run_report import RunReport, SceneRow
from pipeline.scene_job import Model, SceneJob
from pipeline.seams import SeamCertificate, count_borders
from pipeline.settings import RunSettings
from pipeline.storage import describe
from pipeline.store import SceneStore
from pipeline.worker import Prepared


def load_model(settings: RunSettings) -> Model:
    """The checkpoint of the settings.

    Raises:
        UsageError: it cannot be used.
    """
    return usable_model(settings.model)


def run(settings: RunSettings, listeners: Sequence[Listener] = ()) -> RunReport:
    """Super-resolve and publish every scene of the source that is not published yet.

    A bad scene is quarantined and the run goes on. Killed at any moment, the same call finishes
    the work and redoes at most the tiles that were in flight.

    Raises:
        UsageError: an option, the source, the model or the output cannot be used; nothing is
            written then.
    """
    model = load_model(settings)
    plan = make_plan(settings, model)
    return Run(settings, model, plan, listeners).execute()


class Run:
    """One execution of a plan."""

    def __init__(
        self, settings: RunSettings, model: Model, plan: Plan, listeners: Sequence[Listener]
    ) -> None:
        self._settings = settings
        self._model = model
        self._plan = plan
        self._listeners = list(listeners)
        self._began = time.monotonic()
        started = datetime.now(UTC)
        run_id = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.report = RunReport(run_id, started.isoformat(timespec="seconds"))
        self._aftercare = Aftercare(settings.output, self.report)
        self._rows: dict[str, SceneRow] = {}
        self._leases = Leases(settings.output, self.report.run_id, settings.lease_seconds)
        limit = settings.max_inconsistency
        self._publishing = Publishing(Publisher(model, self._leases, self.report, limit))
        self._held: set[str] = set()
        self._left: dict[str, int] = {}
        self._devices: Counter[str] = Counter()
        self._clock: dict[str, float] = {}

    def execute(self) -> RunReport:
        self._aftercare.check_output()
        self._announce()
        if self._plan.work:
            self._process()
        self._aftercare.catalogue(self._plan.scenes, self._rows)
        self._aftercare.sweep()
        self.report.rows = [self._rows[key] for key in sorted(self._rows)]
        self.report.seconds = round(time.monotonic() - self._began, 2)
        self._aftercare.end_report()
        self._emit(
            events.RunFinished(
                self.report.run_id,
                published=self.report.count("published"),
                skipped=self.report.count("skipped"),
                quarantined=self.report.count("quarantined"),
                seconds=self.report.seconds,
            )
        )
        return self.report

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _announce(self) -> None:
        work = self._plan.work
        kept = sum(len(scene.done) for scene in work)
        self._emit(
            events.RunPlanned(
                run_id=self.report.run_id,
                scenes=len(self._plan.scenes),
                tiles=sum(scene.tiles for scene in work),
                tiles_kept=kept,
                pixel_bands=sum(_open_pixel_bands(scene) for scene in work),
            )
        )
        for scene in self._plan.scenes:
            self._rows[scene.scene_id] = SceneRow.of(scene, self._settings.output)
            if scene.status == "quarantined":
                self._quarantine(scene.scene_id, scene.code, scene.note)
            elif scene.status in ("published", "kept"):
                reason = "published with the same fingerprint" if not scene.note else scene.note
                self._end(scene.scene_id, "skipped", reason)

    def _process(self) -> None:
        handlers = Handlers(
            self._prepared, self._tile_done, self._retried, self._failed, self._publish
        )
        with (
            ray_session(self._settings.ray_address),
            self._leases,
            ThreadPoolExecutor(1) as self._aside,
        ):
            if self._leases.note:
                self.report.notes.append(self._leases.note)
            asked = self._settings
            share = Share.of_cluster(
                asked.devices, asked.workers, asked.cpus_per_worker, asked.gpus_per_worker
            )
            pool = ActorPool(self._model.data, share, self._settings.precision)
            self._dispatcher = Dispatcher(pool, handlers, self._settings.max_attempts, self._admit)
            for scene in self._plan.work:
                assert scene.job is not None
                self._dispatcher.add(replace(scene.job, holder=self._leases.token))
            with closing(RunMeters(self._plan, self._rows)) as meters, closing(pool):
                self._listeners.append(meters)
                with closing(self._publishing):
                    self._dispatcher.run()
                self._conclude()
                self._listeners.remove(meters)
        if asked.devices == "mixed":
            parts = ", ".join(f"{count} on {name}" for name, count in sorted(self._devices.items()))
            self.report.notes.append(f"tiles by device: {parts or 'none'}")

    def _admit(self, job: SceneJob) -> Admission:
        """Take the scene's lease; what another run has done since the plan is not done again."""
        try:
            busy = self._leases.take(job.scene_id)
            if busy is None:
                return self._begin(job)
        except Exception as error:
            self._quarantine(job.scene_id, "output-failed", f"no lease: {describe(error)}")
            return Admission("no")
        if busy.alive:
            self._end(job.scene_id, "skipped", busy.reason)
            return Admission("no")
        if job.scene_id not in self._held:
            self._held.add(job.scene_id)
            self._emit(events.SceneHeld(job.scene_id, busy.reason))
        return Admission("later")

    def _begin(self, job: SceneJob) -> Admission:
        there = standing(job.store(), job.fingerprint)
        if there.status == "published":
            self._end(job.scene_id, "skipped", "published by another run meanwhile")
            return Admission("no")
        if there.status == "stale" and self._settings.stale == "keep":
            self._end(job.scene_id, "skipped", KEPT)
            return Admission("no")
        self._clock[job.scene_id] = time.monotonic()
        self._rows[job.scene_id].tiles_kept = len(there.done)
        self._left[job.scene_id] = len(job.grid) - len(there.done)
        if there.status != "resume":
            return Admission("go")
        self._emit(events.SceneStarted(job.scene_id, len(job.grid), len(there.done)))
        if self._left[job.scene_id]:
            return Admission("go", there.done)
        self._complete(job)
        return Admission("no")

    def _prepared(self, job: SceneJob, prepared: Prepared) -> None:
        self._clock[job.scene_id] = time.monotonic()
        self._rows[job.scene_id].note = prepared.note
        self._emit(events.SceneStarted(job.scene_id, len(job.grid), 0))

    def _tile_done(self, job: SceneJob, record: TileRecord) -> None:
        self._conclude()
        lost = self._leases.lost(job.scene_id)
        if lost:
            self._give_up(job, lost)
            return
        self._emit(
            events.TileFinished(
                job.scene_id,
                record.tile,
                job.pixel_bands_of(record.tile),
                round(sum(record.seconds.values()), 4),
            )
        )
        self._devices[record.device] += 1
        self._left[job.scene_id] -= 1
        if not self._left[job.scene_id]:
            self._complete(job)

    def _complete(self, job: SceneJob) -> None:
        """All tiles are done: look at their borders, then publish."""
        most = self._settings.seam_borders
        if count_borders(job.grid, most):
            self._dispatcher.certify(job, most)
        else:
            self._publish(job, SeamCertificate.uncompared(job.grid))

    def _retried(self, work: Work, reason: str) -> None:
        self._emit(events.TileRetried(work.job.scene_id, work.name, work.attempts, reason))

    def _failed(self, job: SceneJob, code: str, message: str) -> None:
        try:
            self._leases.keep(job.scene_id)
        except LeaseLost as lost:  # what another run has is not set aside here
            self._give_up(job, str(lost))
            return
        except Exception:  # the scene's own reason tells more than the store's silence
            pass
        self._quarantine(job.scene_id, code, message)

    def _give_up(self, job: SceneJob, reason: str) -> None:
        self._dispatcher.drop(job.scene_id)
        self._end(job.scene_id, "skipped", reason)

    def _publish(self, job: SceneJob, certificate: SeamCertificate) -> None:
        self._conclude()
        self._publishing.begin(job, self._rows[job.scene_id], certificate)

    def _conclude(self) -> None:
        """Tell what became of the scenes whose publishing is over."""
        for job, publishing in self._publishing.ended():
            try:
                publishing.result()
            except LeaseLost as lost:
                self._give_up(job, str(lost))
            except SceneError as error:  # its tiles and ledger are kept, here and below
                self._quarantine(job.scene_id, error.code, error.message)
            except Exception as error:
                reason = f"cannot publish: {describe(error)}"
                self._quarantine(job.scene_id, "output-failed", reason)
            else:
                self._aside.submit(self._aftercare.draw, job.scene_id)
                self._end(job.scene_id, "published")

    def _quarantine(self, scene_id: str, code: str, message: str) -> None:
        row = self._rows[scene_id]
        facts = {
            "scene_id": scene_id,
            "code": code,
            "message": message,
            "source": row.source,
            "run_id": self.report.run_id,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            SceneStore(self._settings.output, scene_id).quarantine(facts)
        except Exception as error:
            self.report.notes.append(
                f"{scene_id} is set aside, which could not be recorded: {describe(error)}"
            )
        self._end(scene_id, "quarantined", f"{code}: {message}")

    def _end(
        self,
        scene_id: str,
        status: Literal["published", "skipped", "quarantined"],
        reason: str = "",
    ) -> None:
        row = self._rows[scene_id]
        row.status, row.reason = status, reason
        if scene_id in self._clock:
            row.seconds = round(time.monotonic() - self._clock[scene_id], 2)
        self._leases.release(scene_id)
        self._emit(events.SceneFinished(scene_id, status, reason))


def _open_pixel_bands(scene: ScenePlan) -> int:
    assert scene.job is not None
    done = sum(scene.job.pixel_bands_of(key) for key in scene.done)
    return scene.job.pixel_bands - done
