"""The Prefect flow `sr-archive`: the same job as `sr-archive run`, with artifacts.

prefect deployment run sr-archive/default -p source=... -p output=...
python -m flows.sr_archive SOURCE OUTPUT
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.listener import PrefectListener
from pipeline.errors import UsageError
from pipeline.job import run
from pipeline.run_report import RunReport
from pipeline.settings import Mask, RunSettings
from pipeline.storage import redact

SCENES_KEY = "sr-archive-scenes"
SUMMARY_KEY = "sr-archive-summary"
_LONGEST_TABLE = 1000  # scenes; the rest is counted, quarantined scenes come first
_MOST_NAMED = 5


@flow(name="sr-archive", description="Super-resolve every new scene of an archive and publish it.")
def sr_archive(
    source: str,
    output: str,
    model: str | None = None,
    tile: int | None = None,
    workers: int | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    devices: Literal["auto", "cpu", "cuda", "mixed"] | None = None,
    precision: Literal["auto", "fp32", "bf16"] | None = None,
    attention: Literal["scene", "global"] | None = None,
    bands: Literal["auto", "match", "resample", "windows"] | None = None,
    outside: Literal["fill", "upsample"] | None = None,
    tolerance: float | None = None,
    normalise: Literal["auto", "reflectance", "scene", "bands"] | None = None,
    mask: list[Mask] | None = None,
    conserve: bool | None = None,
    max_inconsistency: float | None = None,
    dtype: Literal["source", "float32"] | None = None,
    layout: Literal["sharded", "plain"] | None = None,
    asset: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    stale: Literal["replace", "keep"] | None = None,
    max_attempts: int | None = None,
    lease_seconds: float | None = None,
    ray_address: str | None = None,
    fail_on_quarantine: bool = False,
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
        max_inconsistency: Set scenes aside whose degraded result differs from the scene by more
            than this part of its root mean square.
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
    """
    options = {name: value for name, value in locals().items() if name in RunSettings.model_fields}
    logger = get_run_logger()
    try:
        settings = RunSettings.from_options(options)
        report = run(settings, [PrefectListener(logger)])
    except UsageError as error:
        logger.error("%s", error)
        return Failed(message=str(error))
    _leave_artifacts(settings, report)
    failed = fail_on_quarantine and report.exit_status != 0
    return (Failed if failed else Completed)(message=summary(report))


def summary(report: RunReport) -> str:
    """One line: counts, and the first quarantined scenes by name."""
    text = report.counts
    named = [row.scene_id for row in report.rows if row.status == "quarantined"]
    if named:
        more = ", ..." if len(named) > _MOST_NAMED else ""
        text += f" ({', '.join(named[:_MOST_NAMED])}{more})"
    return text


def _leave_artifacts(settings: RunSettings, report: RunReport) -> None:
    rows = sorted(report.rows, key=lambda row: (row.status != "quarantined", row.scene_id))
    left_out = len(rows) - _LONGEST_TABLE
    create_table_artifact(
        key=SCENES_KEY,
        table=[
            {
                "scene": row.scene_id,
                "status": row.status,
                "reason": row.reason,
                "tiles": row.tiles,
                "kept": row.tiles_kept,
                "seconds": round(row.seconds, 1),
                "inconsistency": row.inconsistency,
                "of bicubic": row.inconsistency_of_bicubic,
                "Mpx·band": round(row.megapixel_bands, 2),
                "output": redact(row.output),
            }
            for row in rows[:_LONGEST_TABLE]
        ],
        description=summary(report) + (f"; {left_out} scenes not listed" if left_out > 0 else ""),
    )
    create_markdown_artifact(key=SUMMARY_KEY, markdown=_markdown(settings, report))


def _markdown(settings: RunSettings, report: RunReport) -> str:
    amount = sum(row.megapixel_bands for row in report.rows)
    lines = [
        f"## {summary(report)}",
        f"- run `{report.run_id}`, {report.seconds:.0f} s, {amount:.1f} Mpx·band",
        f"- from `{redact(settings.source)}`",
        f"- to `{redact(settings.output)}`",
        f"- model `{redact(settings.model)}`",
    ]
    lines += [f"- note: {redact(note)}" for note in report.notes[:_MOST_NAMED]]
    example = next((row for row in report.rows if row.status == "published"), None)
    if example is not None:
        lines += ["", "```python", f'xarray.open_zarr("{redact(example.output)}")', "```"]
    return "\n".join(lines)


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
