"""The command `sr-archive`, also `python -m pipeline`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipeline import cli_evaluate, cli_finetune, cli_integrity, cli_plan, cli_report
from pipeline.catalog import Reconciliation, list_scenes
from pipeline.console import INTERRUPTED, USAGE, Output
from pipeline.console import err as _err
from pipeline.console import out as _out
from pipeline.console import print_json as _print_json
from pipeline.console import print_table as _table
from pipeline.errors import StoreUnavailable, UsageError
from pipeline.options import AsJson, describe_option, settings_options
from pipeline.settings import RunSettings
from pipeline.storage import redact, without_secrets

app = typer.Typer(
    help="Super-resolve whole archives of hyperspectral scenes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_plan.app)
app.add_typer(cli_integrity.app)
app.add_typer(cli_evaluate.app)
app.add_typer(cli_finetune.app)
app.add_typer(cli_report.app)

Source = Annotated[str, typer.Argument(help="Folder, bucket prefix or scene: a path or URL.")]
Include = Annotated[list[str] | None, typer.Option(help=describe_option("include"))]
Exclude = Annotated[list[str] | None, typer.Option(help=describe_option("exclude"))]
Asset = Annotated[str | None, typer.Option(help=describe_option("asset"))]
Bucket = Annotated[str | None, typer.Option(help="Folder or prefix to compare a STAC source with.")]


@app.command()
@settings_options(RunSettings)
def run(settings: RunSettings, as_json: bool) -> None:
    """Super-resolve and publish every scene of SOURCE that OUTPUT does not hold yet.

    Exit status: 0 all well, 3 some scenes were quarantined, 2 a bad option.

    Example: sr-archive run s3://bucket/scenes s3://bucket/sr --tile 64
    """
    from pipeline import job
    from pipeline.progress import display

    try:
        with display(_err if as_json else _out) as listener:
            report = job.run(settings, [listener])
    except KeyboardInterrupt:
        _err.print("interrupted; the same command goes on where this run stopped", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        _print_json(asdict(report))
    else:
        _print_report(report)
    raise typer.Exit(report.exit_status)


def _print_report(report: Any) -> None:
    columns = ("scene_id", "status", "tiles", "tiles_kept", "seconds")
    percent = {"inconsistency": "inconsistency", "inconsistency_of_bicubic": "of bicubic"}
    rows = [
        {
            **{name: getattr(row, name) for name in columns},
            **{title: _percent(getattr(row, name)) for name, title in percent.items()},
            "reason or note": row.reason or row.note,
        }
        for row in report.rows
    ]
    _table(rows, f"run {report.run_id}, {report.seconds:.1f} s")
    kept = sum(row.tiles_kept for row in report.rows)
    _out.print(f"{report.counts}; {kept} tiles kept from earlier runs", markup=False)
    for note in report.notes:
        _out.print(f"note: {note}", markup=False, soft_wrap=True)
    published = next((row for row in report.rows if row.status == "published"), None)
    if published is not None:
        _out.print(
            f'open one with: xarray.open_zarr("{published.output}")', markup=False, soft_wrap=True
        )


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.2%}"


@app.command("list")
def list_command(
    source: Source,
    bucket: Bucket = None,
    asset: Asset = None,
    include: Include = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> None:
    """List the scenes of SOURCE; with --bucket also what a STAC catalogue and a bucket differ in.

    Example: sr-archive list s3://bucket/stac/collection.json --bucket s3://bucket/scenes
    """
    catalogue = list_scenes(source, include or [], exclude or [], asset=asset, bucket=bucket)
    rows = [
        {
            "scene_id": scene.scene_id,
            "format": scene.format,
            "megabytes": round(scene.bytes / 1e6, 2),
            "source": redact(scene.uri),
            "problem": None,
        }
        for scene in catalogue.scenes
    ]
    rows += [
        {
            "scene_id": scene_id,
            "format": None,
            "megabytes": None,
            "source": redact(uri),
            "problem": str(error),
        }
        for scene_id, uri, error in catalogue.rejected
    ]
    differences = _differences(catalogue.reconciliation)
    if as_json:
        ignored = [redact(path) for path in catalogue.ignored]
        _print_json({"scenes": rows, "ignored": ignored, "differences": differences})
        return
    _table(rows, f"{len(catalogue.scenes)} scenes, {len(catalogue.ignored)} other files")
    if differences:
        _table(differences, f"{len(differences)} differences between catalogue and bucket")
    elif differences is not None:
        _out.print("catalogue and bucket hold the same scenes", markup=False)


def _differences(found: Reconciliation | None) -> list[dict[str, Any]] | None:
    """Rows for what only one of catalogue and bucket has; None where nothing was compared."""
    if found is None:
        return None
    only = (("bucket only", found.unlisted), ("catalogue only", found.absent))
    return [
        {"where": where, "scene_id": scene_id, "source": redact(uri)}
        for where, entries in only
        for scene_id, uri in entries
    ]


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """Show what OUTPUT holds: published, unfinished and quarantined scenes."""
    from pipeline.inventory import scenes_of

    rows = [asdict(entry) for entry in scenes_of(output)]
    if as_json:
        _print_json(rows)
    else:
        _table(rows, f"{redact(output)}: {len(rows)} scenes")


@app.command()
def catalogue(
    output: Output,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make table and collection anew from the items.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the STAC catalogue of OUTPUT agree with its published scenes."""
    from pipeline.inventory import scenes_of
    from pipeline.stac.catalogue import catalogued, rebuild_catalogue
    from pipeline.stac.check import remove_foreign_items
    from pipeline.stac.publication import bring_up_to_date

    found = scenes_of(output)
    published = {
        entry.scene_id: entry.fingerprint for entry in found if entry.status == "published"
    }
    notes = []
    if rebuild:
        notes = remove_foreign_items(output, published) + rebuild_catalogue(output).notes
    report = bring_up_to_date(output, published, catalogued(output).keys() - published.keys())
    report.notes += notes
    if as_json:
        _print_json(asdict(report))
        return
    for note in report.notes:
        _out.print(f"note: {note}", markup=False, soft_wrap=True)
    _out.print(
        f"{report.items} items: {len(report.written)} written, {len(report.removed)} removed",
        markup=False,
    )


def main() -> None:
    """Run the command; a `UsageError` or a store that stays away is one line, exit status 2."""
    try:
        app()
    except (UsageError, StoreUnavailable) as error:
        _err.print(
            f"sr-archive: {without_secrets(str(error))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(USAGE) from None


if __name__ == "__main__":
    main()
