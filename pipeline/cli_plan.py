"""The command `plan` of `sr-archive`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from pipeline.console import out, print_json, print_table
from pipeline.options import settings_options
from pipeline.settings import PlanSettings
from pipeline.storage import redact

if TYPE_CHECKING:  # they load torch
    from pipeline.estimate.extrapolation import Estimate
    from pipeline.estimate.prices import PriceSheet
    from pipeline.plan import Plan

app = typer.Typer()


@app.command()
@settings_options(PlanSettings, "max_inconsistency", "max_attempts", "lease_seconds")
def plan(settings: PlanSettings, as_json: bool) -> None:
    """Show what a run would do, without doing it; with --estimate also what it would take.

    --estimate reads, computes and writes some tiles for about a minute, into a folder of the output
    that no reader looks into and that is removed again.

    Example: sr-archive plan s3://bucket/scenes s3://bucket/sr --estimate --prices prices.toml
    """
    from pipeline.estimate.estimator import plan_and_estimate
    from pipeline.estimate.prices import load_prices
    from pipeline.job import load_model
    from pipeline.plan import make_plan

    sheet = None if settings.prices is None else load_prices(settings.prices)
    model = load_model(settings)
    if settings.estimate:
        made, estimate = plan_and_estimate(settings, model, settings.estimate_seconds)
    else:
        made, estimate = make_plan(settings, model), None
    facts = _facts(made)
    figures = None if estimate is None else _estimate_facts(estimate, sheet)
    if as_json:
        asked = {"estimate": figures} if settings.estimate else {}
        print_json({**facts, **asked, "scenes": [scene.summary() for scene in made.scenes]})
        return
    rows = [scene.summary() for scene in made.scenes]
    print_table(rows, f"plan for {redact(settings.source)} -> {redact(settings.output)}")
    out.print(
        f"{facts['tiles']} tiles to do, {facts['raw_gigabytes']} GB of float32 before "
        f"compression, about {facts['worker_memory_gigabytes']} GB per worker",
        markup=False,
    )
    if figures is not None:
        _print_estimate(figures)


def _facts(made: Plan) -> dict[str, Any]:
    return {
        "tiles": sum(scene.tiles - len(scene.done) for scene in made.work),
        "raw_gigabytes": round(sum(scene.bytes_raw for scene in made.work) / 1e9, 3),
        "worker_memory_gigabytes": round(made.worker_bytes / 1e9, 2),
        "ignored_files": len(made.ignored),
    }


def _estimate_facts(estimate: Estimate, sheet: PriceSheet | None) -> dict[str, Any]:
    """The figures of an estimate and, where there are prices, its cost."""
    from pipeline.estimate.prices import cost

    facts = estimate.to_dict()
    if sheet is None:
        return facts
    return facts | {
        "cost": cost(
            sheet,
            worker_hours=facts["worker_hours"],
            requests=facts["s3_requests"],
            received_gigabytes=facts["s3_received_gigabytes"],
            stored_gigabytes=facts["stored_gigabytes"],
        )
    }


def _print_estimate(facts: dict[str, Any]) -> None:
    rests = facts["rests_on"]
    columns = ("format", "bands", "scenes", "tiles", "scenes_measured", "tiles_measured")
    seconds = [f"{name}_seconds_per_tile" for name in ("worker", "read", "compute", "write")]
    rows = [
        {name: row[name] for name in (*columns, *seconds, "spread_percent", "bytes_per_hr_value")}
        for row in rests["groups"]
    ]
    print_table(rows, f"measured in {rests['seconds_measured']} s")
    print_table(_lines(facts), f"estimate for {facts['workers']} workers")
    if cost := facts.get("cost"):
        names = [name for name in cost if not name.startswith(("currency", "prices"))]
        title = f"cost in {cost['currency']}, prices of {cost['prices_of']} ({cost['prices_from']})"
        print_table([{"of": name, "amount": cost[name]} for name in names], title)
    for note in rests["notes"]:
        out.print(f"note: {note}", markup=False, soft_wrap=True)


def _lines(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What, how much, from and to where there is a range."""
    left_out = ("scenes", "workers", "rests_on", "cost", "s3_requests")
    shown = [name for name in facts if name not in left_out and not name.endswith(("_from", "_to"))]
    lines = [
        {
            "what": name.replace("_", " "),
            "estimate": facts[name],
            "from": facts.get(f"{name}_from"),
            "to": facts.get(f"{name}_to"),
        }
        for name in shown
    ]
    requests = facts["s3_requests"] or {}
    return lines + [
        {"what": f"s3 {kind} requests", "estimate": count, "from": None, "to": None}
        for kind, count in requests.items()
    ]
