"""The Prefect flow `sr-finetune`: the same as `sr-archive finetune`, with artifacts.

prefect deployment run sr-finetune/default -p source=... -p out=...
python -m flows.sr_finetune SOURCE OUT
"""

from __future__ import annotations

import argparse
import base64
import sys
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.console import outlive_worker
from flows.listener import FinetuneListener
from flows.restarts import refuse_endless_restarts
from pipeline.errors import UsageError
from pipeline.finetune.driver import FinetuneReport, finetune
from pipeline.finetune.settings import FinetuneSettings
from pipeline.settings import Mask
from pipeline.storage import open_filesystem, redact

CURVES_KEY = "sr-finetune-curves"
SUMMARY_KEY = "sr-finetune-summary"
_MOST_NAMED = 5


@flow(name="sr-finetune", description="Train a better model on an archive's scenes and prove it.")
def sr_finetune(
    source: str,
    out: str,
    parent: str | None = None,
    name: str | None = None,
    scale: Literal[2, 4, 8] | None = None,
    bands: Literal["auto", "sensor", "windows"] | None = None,
    budget: str | None = None,
    epochs: int | None = None,
    workers: int | None = None,
    use_gpu: bool | None = None,
    degradation: Literal["bicubic", "mtf"] | None = None,
    mtf: float | None = None,
    normalise: Literal["auto", "reflectance", "scene", "bands"] | None = None,
    mask: list[Mask] | None = None,
    holdout: float | None = None,
    holdout_scene: list[str] | None = None,
    seed: int | None = None,
    batch: int | None = None,
    patch: int | None = None,
    learning_rate: float | None = None,
    angle: float | None = None,
    patience: int | None = None,
    report_seconds: float | None = None,
    report_steps: int | None = None,
    memory: float | None = None,
    max_failures: int | None = None,
    registry: str | None = None,
    licence: str | None = None,
    asset: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    ray_address: str | None = None,
) -> State[Any]:
    """Train a better model on scenes of an archive, and prove it on pixels that were held out.

    What is not given comes from SR_ARCHIVE_FINETUNE_<NAME> in the worker's environment, then from
    the defaults of `sr-archive finetune`. Credentials come from the worker's environment only.

    Args:
        source: Folder, bucket prefix or single scene: a path or fsspec URL.
        parent: Checkpoint to start from (.safetensors or published .pth).
        out: Folder or prefix of the new checkpoint, its records and state.
        name: Name of the new checkpoint; default: made of the two sources'.
        scale: Upsampling factor of the new model; default: that of --from.
        bands: Bands of the new model: all of the sensor's, or as many as --from has, which then
            runs over windows of the spectrum; auto: windows where the sensor has more.
        budget: How long to train: 600s, 30m or 2h; default: 30m.
        epochs: Train for so many passes over the training pixels instead.
        workers: Training processes; default: one per GPU, or per processor.
        use_gpu: Train on GPUs.
        degradation: How LR is made of HR: as published, or by the sensor's MTF.
        mtf: With mtf: the sensor's MTF at Nyquist, e.g. 0.3.
        normalise: How values reach [0, 1]; give a run the same. auto suits both.
        mask: Quality flags of the source whose pixels are treated as nodata; 'none': none.
        holdout: Share that is never trained on: of scenes, or of each.
        holdout_scene: Hold out these scene ids (globs) instead.
        seed: Of split, patches and augmentation.
        batch: Patches per step and process.
        patch: LR pixels along a patch's side; less where scenes are small.
        learning_rate: Peak of the schedule.
        angle: Weight of the spectral angle's loss.
        patience: Stop after so many validations without a better PSNR.
        report_seconds: Between two validations and checkpoints.
        report_steps: Validate and checkpoint every so many steps instead.
        memory: GB of pixels that a process keeps at most.
        max_failures: Deaths of a process to go on after.
        registry: Folder of models whose `latest` moves there if the new one is better.
        licence: SPDX name of the licence of the new weights.
        asset: Of a STAC source: key of the asset that is the scene.
        include: Scene ids to keep (globs).
        exclude: Scene ids to leave out (globs).
        ray_address: Join this Ray cluster; default: start one.
    """
    options = {
        key: value for key, value in locals().items() if key in FinetuneSettings.model_fields
    }
    outlive_worker()
    logger = get_run_logger()
    try:
        refuse_endless_restarts()
        report = finetune(FinetuneSettings.from_options(options), [FinetuneListener(logger)])
    except UsageError as error:
        logger.error("%s", error)
        return Failed(message=str(error))
    _leave_artifacts(report)
    return Completed(message=summary(report))


def summary(report: FinetuneReport) -> str:
    """One line: what was made and what it is worth."""
    return f"{report.name}, {report.steps} steps: {report.verdict}"


def _leave_artifacts(report: FinetuneReport) -> None:
    filesystem, path = open_filesystem(report.curves)
    picture = base64.b64encode(filesystem.cat_file(path)).decode()
    create_image_artifact(
        key=CURVES_KEY,
        image_url=f"data:image/svg+xml;base64,{picture}",
        description=f"loss and PSNR of {report.name}",
    )
    create_markdown_artifact(key=SUMMARY_KEY, markdown=_markdown(report))


def _markdown(report: FinetuneReport) -> str:
    lines = [
        f"## {summary(report)}",
        f"- checkpoint `{report.checkpoint}`",
        f"- evaluation `{report.evaluation}`",
        f"- {report.scenes} scenes, {report.seconds:.0f} s of training",
        "",
        "| held out | PSNR, dB | SAM, degrees |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {of['psnr']} | {of['sam']} |" for name, of in report.figures.items()]
    left_out = report.left_out[:_MOST_NAMED]
    lines += ["", *(f"- left out: {scene_id}: {redact(why)}" for scene_id, why in left_out)]
    lines += [f"- note: {redact(note)}" for note in report.notes[:_MOST_NAMED]]
    return "\n".join(lines)


def main() -> int:
    """Run the flow in this process; other options come from SR_ARCHIVE_FINETUNE_<NAME>."""
    parser = argparse.ArgumentParser(prog="python -m flows.sr_finetune", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("out")
    arguments = parser.parse_args()
    state = sr_finetune(arguments.source, arguments.out, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
