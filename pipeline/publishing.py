"""Publishing a scene whose tiles are all done, after a last look at what it was made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.calibration import Calibration
from pipeline.changes import check_unchanged
from pipeline.errors import SceneError
from pipeline.lease import LeaseLost, Leases
from pipeline.ledger import TileRecord
from pipeline.provenance import RunFacts, provenance
from pipeline.quality import scene_figures
from pipeline.run_report import RunReport, SceneRow
from pipeline.scene_job import Model, SceneJob
from pipeline.seams import SeamCertificate
from pipeline.store import SceneStore

_AT_ONCE = 2  # so that a large scene does not hold up the small ones


class Publisher:
    """Makes the scenes of a run visible.

    Args:
        model: of the run.
        leases: of the run.
        report: of the run; its id and start go into the scenes.
        max_inconsistency: of the run's settings.
    """

    def __init__(
        self, model: Model, leases: Leases, report: RunReport, max_inconsistency: float | None
    ) -> None:
        self._model = model
        self._leases = leases
        self._report = report
        self._max_inconsistency = max_inconsistency

    def publish(self, job: SceneJob, row: SceneRow, certificate: SeamCertificate) -> None:
        """Publish one scene; what was measured of it goes into its row.

        Args:
            job: the scene.
            row: of the report.
            certificate: how its tiles meet.

        Raises:
            LeaseLost: another run has the scene.
            SceneError: it must not be published. Whatever the store raises passes too. Its tiles
                and ledger are kept, unless the source changed.
        """
        store = job.store()
        self._check_source(job, store)
        records = store.ledger()
        facts = self._facts_of(job, store, records, certificate, row.tiles_kept)
        self._check_consistency(row, facts["sr_archive"]["consistency"])
        self._leases.keep(job.scene_id)
        self._own_state(job, store)
        store.publish(facts, records)

    def _check_source(self, job: SceneJob, store: SceneStore) -> None:
        """Drop what was made of a source that is no more, so that the next run starts anew."""
        try:
            check_unchanged(job, self._own_state(job, store))
        except SceneError as error:
            if error.code == "source-changed":
                self._leases.keep(job.scene_id)
                store.unpublish()
            raise

    def _own_state(self, job: SceneJob, store: SceneStore) -> dict[str, Any]:
        """What was recorded of the scene, if it is still this run's."""
        state = store.state()
        if state is None:
            raise SceneError("output-failed", f"the state of {job.scene_id} vanished; run again")
        if state.get("fingerprint") != job.fingerprint:
            raise LeaseLost("another run has prepared it anew with other options or source")
        return state

    def _facts_of(
        self,
        job: SceneJob,
        store: SceneStore,
        records: Mapping[str, TileRecord],
        certificate: SeamCertificate,
        tiles_kept: int,
    ) -> dict[str, Any]:
        """The root attributes to add.

        Raises:
            SceneError: `seams`, or the scene's state is gone.
        """
        data = store.calibration()
        if data is None:
            raise SceneError("output-failed", f"the state of {job.scene_id} vanished; run again")
        calibration = Calibration.from_bytes(data)
        devices = tuple(sorted({record.device for record in records.values()}))
        precisions = tuple(sorted({record.precision for record in records.values()}))
        facts = RunFacts(self._report.run_id, self._report.started, devices, precisions)
        attributes = provenance(
            job,
            self._model,
            facts,
            calibration,
            scene_figures(records, calibration, job.grid.scale),
            tiles_kept=tiles_kept,
        )
        attributes["sr_archive"]["seams"] = certificate.checked(job.options.attention, precisions)
        return attributes

    def _check_consistency(self, row: SceneRow, measured: Mapping[str, Any]) -> None:
        """Into the scene's row, and against the operator's limit.

        Raises:
            SceneError: `inconsistent`.
        """
        limit = self._max_inconsistency
        row.inconsistency = measured["relative_rmse"]
        row.inconsistency_of_bicubic = measured["bicubic"]["relative_rmse"]
        if limit is not None and row.inconsistency is not None and row.inconsistency > limit:
            raise SceneError(
                "inconsistent",
                f"degraded, the result differs from the scene by {row.inconsistency:.3g} of its "
                f"root mean square (--max-inconsistency {limit:g}); its tiles are kept: the same "
                "command with a larger limit publishes it, --conserve makes it consistent",
            )


class Publishing:
    """Publishes scenes in threads of its own, so that actors get their next tiles meanwhile."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="publishing")
        self._begun: deque[tuple[SceneJob, Future[None]]] = deque()

    def begin(self, job: SceneJob, row: SceneRow, certificate: SeamCertificate) -> None:
        publishing = self._threads.submit(self._publisher.publish, job, row, certificate)
        self._begun.append((job, publishing))

    def ended(self) -> Iterator[tuple[SceneJob, Future[None]]]:
        """Scenes whose publishing is over, in the order in which it began."""
        while self._begun and self._begun[0][1].done():
            yield self._begun.popleft()

    def close(self) -> None:
        """Wait for all."""
        self._threads.shutdown()
