"""The Prefect flow `sr-archive`: the same job as `sr-archive run`, with artifacts.

prefect deployment run sr-archive/default -p source=... -p output=...
python -m flows.sr_archive SOURCE OUTPUT
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.artifacts import leave_artifacts, summary
from flows.console import outlive_worker
from flows.listener import Logger, PrefectListener
from flows.restarts import RESTARTS, refuse_endless_restarts
from flows.scene_tasks import SceneTasks
from flows.time_limit import TimeOver, time_limit
from pipeline.errors import StoreUnavailable, UsageError
from pipeline.job import run
from pipeline.run_report import RunReport
from pipeline.settings import (
    Attention,
    Bands,
    Borders,
    Devices,
    Fraction,
    Layout,
    LeaseSeconds,
    Mask,
    Normalise,
    Outside,
    Positive,
    Precision,
    RunSettings,
    Share,
    Tile,
    Tolerance,
)
from pipeline.storage import describe

_OPEN_SCENES = 64  # task runs that are shown as running at a time


def archive(settings: RunSettings, logger: Logger) -> RunReport:
    """One run of the job, with task runs for its scenes; begun again, it resumes."""
    tasks = SceneTasks()
    try:
        return run(settings, [PrefectListener(logger), tasks])
    finally:
        tasks.close()


def archive_with_retries(
    settings: RunSettings, logger: Logger, retries: int, delay: float
) -> RunReport:
    """Tries again after what another try may mend, which a bad option is not.

    No retries of Prefect's: they would also repeat what returns as Failed on purpose.

    Raises:
        UsageError: as `pipeline.job.run`.
    """
    while True:
        try:
            return archive(settings, logger)
        except Exception as error:
            store_is_away = isinstance(error.__cause__, StoreUnavailable)
            bad_option = isinstance(error, UsageError) and not store_is_away
            if bad_option or not retries:
                raise
            logger.warning("broke off, begun again in %g s: %s", delay, describe(error))
            retries -= 1
            time.sleep(delay)


@flow(
    name="sr-archive",
    description="Super-resolve every new scene of an archive and publish it.",
    task_runner=ThreadPoolTaskRunner(max_workers=_OPEN_SCENES),  # type: ignore[arg-type]  # invariant
)
def sr_archive(
    source: str,
    output: str,
    model: str | None = None,
    tile: Tile | None = None,
    workers: Positive | None = None,
    cpus_per_worker: Positive | None = None,
    gpus_per_worker: Share | None = None,
    devices: Devices | None = None,
    precision: Precision | None = None,
    attention: Attention | None = None,
    bands: Bands | None = None,
    outside: Outside | None = None,
    tolerance: Tolerance | None = None,
    normalise: Normalise | None = None,
    mask: list[Mask] | None = None,
    conserve: bool | None = None,
    ensemble: bool | None = None,
    uncertainty: bool | None = None,
    max_inconsistency: Fraction | None = None,
    seam_borders: Borders | None = None,
    dtype: Literal["source", "float32"] | None = None,
    layout: Layout | None = None,
    asset: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    stale: Literal["replace", "keep"] | None = None,
    max_attempts: Positive | None = None,
    lease_seconds: LeaseSeconds | None = None,
    ray_address: str | None = None,
    fail_on_quarantine: bool = False,
    retries: Annotated[int, Field(ge=0, le=20)] = RESTARTS,
    retry_delay_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0,
    time_limit_hours: Annotated[float, Field(gt=0)] | None = None,
) -> State[Any]:
    """Super-resolve every scene of an archive that is new.

    What is not given comes from SR_ARCHIVE_<NAME> in the worker's environment, then from the
    defaults of `sr-archive run`. Credentials come from the worker's environment only: never put
    them into a parameter, Prefect stores and shows those.

    Args:
        source: Folder, bucket prefix or single scene: a path or fsspec URL.
        output: Folder or bucket prefix for <scene_id>.zarr: a path or URL.
        model: Checkpoint (.safetensors or published .pth).
        tile: LR pixels along a tile's side.
        workers: Ray actors; default: one per GPU.
        cpus_per_worker: CPUs that each worker asks Ray for; default: its part of all.
        gpus_per_worker: GPU, or part of one, that each worker asks Ray for, though it may be there
            only later (autoscaling); default: its part of all.
        devices: Where tiles run: on GPUs if there are any, or as said; mixed: on GPUs and on nodes
            without one.
        precision: bf16 where the processor has matrix units for it, else fp32.
        attention: Pooling of channel attention: frozen per scene, or per tile.
        bands: What to do with bands that are not the model's.
        outside: With bands match, good bands that the model lacks: left out, or by bicubic.
        tolerance: Largest wavelength difference of a match, nm; default: half a band step.
        normalise: How values reach [0, 1]: as they are, by one factor, or one per band.
        mask: Quality flags of the source whose pixels are treated as nodata; 'none': none.
        conserve: Change results as little as makes them degrade to the scene again.
        ensemble: The result is the mean over the 8 flips and turns of each tile; takes 8 times the
            network's work.
        uncertainty: Also publish by how much the results of the 8 flips and turns of each tile
            differ, as the array reflectance_spread; takes 8 times the network's work.
        max_inconsistency: Set scenes aside whose degraded result differs from the scene by more
            than this part of its root mean square.
        seam_borders: Borders between tiles of each scene, at most, that are computed again across
            and compared before it is published; 0: none.
        dtype: Type of the output values.
        layout: plain: unsharded Zarr v2, for GDAL before 3.13.
        asset: Of a STAC source: key of the asset that is the scene.
        include: Scene ids to keep (globs).
        exclude: Scene ids to leave out (globs).
        stale: A published scene whose source, model or options changed.
        max_attempts: Tries per tile before its scene is set aside.
        lease_seconds: How long a run that stopped without a word keeps its scenes from other runs.
        ray_address: Join this Ray cluster; default: start one.
        fail_on_quarantine: End as Failed if any scene was quarantined.
        retries: How often a run that broke off or found its store away is begun again.
        retry_delay_seconds: Before each of these.
        time_limit_hours: Stop after so long, as Failed; the next run goes on from there.
    """
    options = {name: value for name, value in locals().items() if name in RunSettings.model_fields}
    outlive_worker()
    logger = get_run_logger()
    try:
        refuse_endless_restarts(retries)
        settings = RunSettings.from_options(options)
        with time_limit(time_limit_hours):
            report = archive_with_retries(settings, logger, retries, retry_delay_seconds)
    except (UsageError, TimeOver) as error:
        logger.error("%s", error)
        name = "TimedOut" if isinstance(error, TimeOver) else None
        return Failed(name=name, message=str(error))
    leave_artifacts(settings, report)
    failed = fail_on_quarantine and report.exit_status != 0
    return (Failed if failed else Completed)(message=summary(report))


def main() -> int:
    """Run the flow in this process; options other than these come from SR_ARCHIVE_<NAME>."""
    parser = argparse.ArgumentParser(prog="python -m flows.sr_archive", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("output")
    arguments = parser.parse_args()
    state = sr_archive(arguments.source, arguments.output, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
