"""What a flow run leaves for people: a table of scenes, a page with quicklooks, a link."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipeline.run_report import RunReport, SceneRow
from pipeline.settings import RunSettings
from pipeline.stac.publication import stored_quicklook
from pipeline.storage import redact

SCENES_KEY = "sr-archive-scenes"
SUMMARY_KEY = "sr-archive-summary"
OUTPUT_KEY = "sr-archive-output"
_LONGEST_TABLE = 1000  # scenes; the rest is counted, quarantined scenes come first
_MOST_NAMED = 5
_MOST_PICTURES = 6
_PICTURE_SIDE = 192  # pixels; a page is kept in Prefect's database


def summary(report: RunReport) -> str:
    """One line: counts, and the first quarantined scenes by name."""
    text = report.counts
    named = [row.scene_id for row in report.rows if row.status == "quarantined"]
    if named:
        more = ", ..." if len(named) > _MOST_NAMED else ""
        text += f" ({', '.join(named[:_MOST_NAMED])}{more})"
    return text


def leave_artifacts(settings: RunSettings, report: RunReport) -> None:
    """Table, page and link to the output; inside a flow run."""
    rows = sorted(report.rows, key=lambda row: (row.status != "quarantined", row.scene_id))
    left_out = len(rows) - _LONGEST_TABLE
    create_table_artifact(
        key=SCENES_KEY,
        table=[_cells(row) for row in rows[:_LONGEST_TABLE]],
        description=summary(report) + (f"; {left_out} scenes not listed" if left_out > 0 else ""),
    )
    create_markdown_artifact(key=SUMMARY_KEY, markdown=_page(settings, report))
    create_link_artifact(redact(settings.output), key=OUTPUT_KEY, link_text="output")


def _cells(row: SceneRow) -> dict[str, object]:
    return {
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


def _page(settings: RunSettings, report: RunReport) -> str:
    amount = sum(row.megapixel_bands for row in report.rows)
    lines = [
        f"## {summary(report)}",
        f"- run `{report.run_id}`, {report.seconds:.0f} s, {amount:.1f} Mpx·band",
        f"- from `{redact(settings.source)}`",
        f"- to `{redact(settings.output)}`",
        f"- model `{redact(settings.model)}`",
    ]
    lines += [f"- note: {redact(note)}" for note in report.notes[:_MOST_NAMED]]
    published = [row for row in report.rows if row.status == "published"]
    if published:
        lines += ["", "```python", f'xarray.open_zarr("{redact(published[0].output)}")', "```", ""]
    for row in published[:_MOST_PICTURES]:
        lines += _picture(settings.output, row.scene_id)
    if len(published) > _MOST_PICTURES:
        lines.append(f"and {len(published) - _MOST_PICTURES} more")
    return "\n".join(lines)


def _picture(output: str, scene_id: str) -> list[str]:
    """A quicklook as text; a picture that cannot be had is left out."""
    try:
        stored = stored_quicklook(output, scene_id)
        if stored is None:
            return []
        with Image.open(BytesIO(stored)) as picture:
            picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
            small = BytesIO()
            picture.save(small, "PNG", optimize=True)
    except Exception as error:
        # Whatever a store raises, a picture is not worth a run; its text may hold an address.
        return [f"no quicklook of {scene_id}: {type(error).__name__}"]
    data = base64.b64encode(small.getvalue()).decode()
    return [f"**{scene_id}**", "", f"![{scene_id}](data:image/png;base64,{data})", ""]
