"""The plan and what it will take, in one call."""

from __future__ import annotations

import time

from pipeline.estimate.extrapolation import Estimate
from pipeline.estimate.rates import Amount
from pipeline.estimate.sample import groups_of
from pipeline.estimate.trial import rehearse
from pipeline.plan import Plan, make_plan, worker_memory
from pipeline.resolving import margin_around
from pipeline.scene_job import Model
from pipeline.settings import RunSettings
from pipeline.storage import is_local, open_filesystem
from pipeline.traffic import so_far


def plan_and_estimate(
    settings: RunSettings, model: Model, seconds: float
) -> tuple[Plan, Estimate | None]:
    """Plan, and rehearse within about so many seconds; None where nothing is to be done.

    Raises:
        UsageError: as `make_plan` and `rehearse`.
    """
    before, began = so_far(), time.monotonic()
    plan = make_plan(settings, model)
    planning = Amount(time.monotonic() - began, so_far() - before)
    scale, conserve = model.card.architecture.scale, settings.conserve
    margin = margin_around(model.halo, scale, conserve=conserve)
    groups = groups_of(plan.work, margin)
    if not groups:
        return plan, None
    trial = rehearse(settings, model, groups, margin, seconds)
    counted = all(_is_counted(url) for url in (settings.source, settings.output))
    memory = worker_memory(plan.scenes, model, trial.share.in_flight)
    facts = (margin, planning, memory, settings.seam_borders)
    return plan, Estimate.of(trial, groups, *facts, counted=counted)


def _is_counted(url: str) -> bool:
    """Whether requests to a store are counted: S3's are, and a disk gets none."""
    filesystem, _ = open_filesystem(url)
    protocols = filesystem.protocol
    names = {protocols} if isinstance(protocols, str) else set(protocols)
    return is_local(filesystem) or bool(names & {"s3", "s3a"})
