"""The commands `verify`, `repair` and `replay` of `sr-archive`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.console import QUARANTINED, Output, err, out, print_json, print_table
from pipeline.errors import SceneError, UsageError
from pipeline.options import AsJson, describe_option
from pipeline.settings import RunSettings
from pipeline.storage import redact

if TYPE_CHECKING:  # they load torch
    from pipeline.integrity import Fault
    from pipeline.recompute import Source
    from pipeline.repair import Outcome
    from pipeline.replay import Replay

app = typer.Typer()

Scenes = Annotated[list[str] | None, typer.Option("--scene", help="Only these scene ids.")]
Deep = Annotated[bool, typer.Option("--deep", help="Read and decode all data, compare checksums.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help=f"As in the run. {describe_option('model')}")
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="SOURCE of the run; default: the address that each scene records. Needed where the "
        "source was a STAC catalogue, or its URL held credentials.",
    ),
]


@app.command()
def verify(
    output: Output, scene: Scenes = None, deep: Deep = False, as_json: AsJson = False
) -> None:
    """Compare the published scenes and the catalogue of OUTPUT with their records.

    Without --deep nothing but listings and small documents is read. Every fault comes with the
    command that mends it. Exit status 3 on any fault.
    """
    from pipeline.integrity import scenes_to_verify, verify_scene
    from pipeline.stac.check import verify_catalogue
    from pipeline.store import SceneStore

    there = scenes_to_verify(output)
    if unknown := sorted(set(scene or []) - there.keys()):
        raise UsageError(f"--scene: not published in {redact(output)}: {', '.join(unknown)}")
    chosen = [scene_id for scene_id in there if not scene or scene_id in scene]
    found = {scene_id: verify_scene(SceneStore(output, scene_id), deep=deep) for scene_id in chosen}
    of_catalogue = [] if scene else verify_catalogue(output, there, deep=deep)
    if as_json:
        print_json(
            {
                "scenes": {name: [each.to_dict() for each in found[name]] for name in found},
                "catalogue": [each.to_dict() for each in of_catalogue],
            }
        )
    else:
        _print_faults(output, found, of_catalogue)
    raise typer.Exit(QUARANTINED if any(found.values()) or of_catalogue else 0)


def _print_faults(
    output: str, found: dict[str, list[Fault]], of_catalogue: Sequence[Fault]
) -> None:
    rows = [
        {"scene_id": name, "faults": "; ".join(map(str, faults)) or "none"}
        for name, faults in found.items()
    ]
    if of_catalogue:
        rows.append({"scene_id": "(catalogue)", "faults": "; ".join(map(str, of_catalogue))})
    print_table(rows, f"{redact(output)}: {len(found)} published scenes")
    faults = [*(fault for each in found.values() for fault in each), *of_catalogue]
    for command in dict.fromkeys(fault.command for fault in faults):
        out.print(command, markup=False, highlight=False, soft_wrap=True)
    if any(fault.tile for fault in faults):
        err.print("add --model PATH to commands with --tile where the run had it", highlight=False)


@app.command()
def repair(
    output: Output,
    scene: Scenes = None,
    tile: Annotated[
        list[str] | None, typer.Option(help="ROW.COLUMN of tiles to compute again.")
    ] = None,
    metadata: Annotated[
        bool,
        typer.Option("--metadata", help="Restore metadata, coordinates, constants and the ledger."),
    ] = False,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Remove objects that no tile wrote.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take what differs, and change the records.")
    ] = False,
    deep: Deep = False,
    model: ModelOption = None,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Mend published scenes: recompute faulty tiles, restore metadata, remove foreign objects.

    Without --tile, --metadata or --foreign all that `verify` finds is mended. Exit status 3 if
    something could not be.

    Example: sr-archive repair s3://bucket/sr --scene SCENE --tile 3.7
    """
    from pipeline.repair import Request
    from pipeline.repair import repair as mend

    request = Request(tuple(tile or ()), metadata, foreign, accept, deep)
    outcomes = []
    for outcome in mend(output, scene or [], request, _source(output, model, source)):
        outcomes.append(outcome)
        if not as_json:
            _print_outcome(outcome)
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    raise typer.Exit(QUARANTINED if any(outcome.failed for outcome in outcomes) else 0)


def _print_outcome(outcome: Outcome) -> None:
    note = f" ({outcome.note})" if outcome.note else ""
    line = f"{outcome.scene_id}: {outcome.what}: {outcome.status}{note}"
    out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def replay(
    output: Output,
    scene: Annotated[str, typer.Option(help="Its id.")],
    tile: Annotated[str, typer.Option(help="ROW.COLUMN of the tile.")],
    model: ModelOption = None,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Compute one stored tile again and compare; nothing is written.

    Exit status 3 if it differs by more than rounding, or cannot be computed again.
    """
    from pipeline.replay import replay_tile

    try:
        result = replay_tile(output, scene, tile, _source(output, model, source))
    except SceneError as error:
        err.print(f"sr-archive: {scene}: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(QUARANTINED) from None
    if as_json:
        arrays = [array.to_dict() for array in result.arrays]
        facts = {**asdict(result), "arrays": arrays, "within_rounding": result.within_rounding}
        print_json(facts)
    else:
        _print_replay(result)
    raise typer.Exit(0 if result.within_rounding else QUARANTINED)


def _print_replay(result: Replay) -> None:
    rows: list[dict[str, Any]] = []
    for array in result.arrays:
        worst = max(array.per_band, key=lambda band: array.per_band[band], default=None)
        rows.append(
            {
                "array": array.array,
                "equal": f"{array.share_equal:.4%}",
                "largest difference": f"{array.maximum:.4g}",
                "in band": None if worst is None or not array.maximum else worst,
                "rounding": f"{array.rounding:.4g}",
                "fill in one only": array.fill_in_one,
            }
        )
    print_table(
        rows,
        f"tile {result.tile} of {result.scene_id}: {result.device}, {result.precision}; "
        f"stored: {result.recorded or 'not recorded'}",
    )
    verdict = "byte for byte the same" if result.identical else "within rounding"
    out.print(verdict if result.within_rounding else "it differs by more than rounding")


def _source(output: str, model: str | None, source: str | None) -> Source:
    """The checkpoint as a run would find it: given, from the environment, or the default."""
    from pipeline.recompute import Source

    # A run's settings need a source, which is of no use here.
    settings = RunSettings.from_options({"source": output, "output": output, "model": model})
    return Source(settings.model, source)
