"""The command `report` of `sr-archive`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import Output, err, out, print_json
from pipeline.options import AsJson

if TYPE_CHECKING:  # it loads torch
    from pipeline.report.site import Report

app = typer.Typer()

To = Annotated[
    str | None, typer.Option("--to", help="Folder or bucket prefix; default: OUTPUT/report.")
]
Scenes = Annotated[
    list[str] | None, typer.Option("--scene", help="Only the pages of these scene ids.")
]
MaxSide = Annotated[
    int, typer.Option(min=16, max=4096, help="HR pixels along the sides of the shown window.")
]
AllBands = Annotated[bool, typer.Option("--all-bands", help="An image of every good band.")]
Spectra = Annotated[
    float, typer.Option(min=0.01, max=4096, help="MB of values whose spectra can be asked for.")
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="SOURCE of the run; default: the address each scene records."),
]


@app.command()
def report(
    output: Output,
    to: To = None,
    scene: Scenes = None,
    max_side: MaxSide = 512,
    all_bands: AllBands = False,
    spectra_megabytes: Spectra = 8.0,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a static site that shows what OUTPUT holds; only new or changed scenes are done.

    Open its index.html, from a disk or a bucket: it needs no server.

    Example: sr-archive report s3://bucket/sr --to report
    """
    from pipeline.report.extent import Limits
    from pipeline.report.site import make_report

    limits = Limits(max_side, 0 if all_bands else Limits.max_bands, spectra_megabytes)
    say = (lambda _: None) if as_json else (lambda line: err.print(line, markup=False))
    made = make_report(output, to, scene or [], limits, source, say)
    if as_json:
        print_json(asdict(made))
    else:
        _print_report(made)


def _print_report(made: Report) -> None:
    for note in made.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    counts = f"{len(made.written)} written, {len(made.unchanged)} unchanged"
    out.print(
        f"{counts}, {len(made.removed)} removed, {made.bytes / 1e6:.1f} MB\n{made.index}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
