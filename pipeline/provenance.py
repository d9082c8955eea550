"""How an output was made, for its root attributes: enough to make it again."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.calibration import Calibration
from pipeline.scene_job import Model, OutputOptions, SceneJob, code_version
from pipeline.storage import open_filesystem, redact, unstrip

_PACKAGES = ("torch", "numpy", "xarray", "zarr", "dask", "ray", "rasterio", "sr-archive")


@dataclass(frozen=True)
class RunFacts:
    """What provenance says of the run that published a scene."""

    run_id: str
    started: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(
    job: SceneJob,
    model: Model,
    run: RunFacts,
    calibration: Calibration,
    consistency: dict[str, Any],
    *,
    tiles_kept: int,
) -> dict[str, Any]:
    """Root attributes `scene_id` and `sr_archive`; no credentials.

    Args:
        job: the scene.
        model: the checkpoint that was used.
        run: the run that publishes.
        calibration: the scene's constants.
        consistency: of `pipeline.quality`.
        tiles_kept: tiles that earlier runs had finished.
    """
    facts: dict[str, Any] = {
        "fingerprint": job.fingerprint,
        "source": redact(unstrip(*open_filesystem(job.uri))),
        "source_version": job.version,
        "run_id": run.run_id,
        "run_started": run.started,
        "published": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiles": len(job.grid),
        "tiles_kept_from_earlier_runs": tiles_kept,
        "device": ", ".join(run.devices),
        "precision": ", ".join(run.precisions),
    }
    facts |= making(model, job.options, calibration, consistency)
    return {"scene_id": job.scene_id, "sr_archive": facts}


def making(
    model: Model, options: OutputOptions, calibration: Calibration, consistency: dict[str, Any]
) -> dict[str, Any]:
    """How values were made, wherever they are kept; arguments as above."""
    bands = calibration.bands
    return {
        "model": model.card.name,
        "weights_sha256": model.digest,
        "card": model.card.model_dump(mode="json"),
        "scale": model.card.architecture.scale,
        "options": asdict(options),
        "code_version": code_version(),
        "packages": package_versions(),
        "bands_kind": bands.kind,
        "bands_note": bands.note,
        "bands_worst_nm": None if bands.worst_nm is None else round(bands.worst_nm, 3),
        "bands_upsampled": list(bands.upsampled),
        "normalisation": calibration.gain_rule,
        "attention_statistics_sha256": calibration.digest(),
        "calibration_pixels": calibration.sampled_pixels,
        "consistency": consistency,
    }
