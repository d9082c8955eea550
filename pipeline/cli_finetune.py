"""The command `finetune` of `sr-archive`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from pipeline.console import INTERRUPTED, err, out, print_json, print_table
from pipeline.finetune.settings import FinetuneSettings
from pipeline.options import settings_options

if TYPE_CHECKING:  # it loads torch
    from pipeline.finetune.driver import FinetuneReport

app = typer.Typer()


@app.command()
@settings_options(FinetuneSettings)
def finetune(settings: FinetuneSettings, as_json: bool) -> None:
    """Train a better model on scenes of SOURCE, and prove it on pixels that were held out.

    Interrupted or killed, the same command goes on from the last checkpoint. Exit status: 0 all
    well, 3 some scenes were left out, 2 a bad option.

    Example: sr-archive finetune s3://bucket/scenes --out s3://bucket/models --budget 2h
    """
    from pipeline.finetune import driver
    from pipeline.finetune.progress import display

    try:
        with display(err if as_json else out) as listener:
            report = driver.finetune(settings, [listener])
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from the last checkpoint", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
    raise typer.Exit(report.exit_status)


def _print_report(report: FinetuneReport) -> None:
    rows: list[dict[str, Any]] = [
        {"held out": name, "PSNR, dB": _figure(of["psnr"]), "SAM, degrees": _figure(of["sam"])}
        for name, of in report.figures.items()
    ]
    early = ", stopped early" if report.early else ""
    print_table(rows, f"{report.name}: {report.steps} steps, {report.seconds:.0f} s{early}")
    for scene_id, reason in report.left_out:
        _line(f"left out: {scene_id}: {reason}")
    for note in report.notes:
        _line(f"note: {note}")
    if report.verdict:
        _line(report.verdict)
    if report.promoted is not None:
        _line(f"registry: latest {'moved to it' if report.promoted else 'stays where it was'}")
    _line(f"use it with: sr-archive run SOURCE OUTPUT --model {report.checkpoint}")


def _line(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
