"""The commands `evaluate` and `promote` of `sr-archive`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.console import QUARANTINED, err, out, print_json, print_table
from pipeline.errors import UsageError
from pipeline.options import AsJson, describe_option
from pipeline.settings import Degrading, Protocol
from pipeline.storage import redact, without_secrets

if TYPE_CHECKING:  # they load torch
    from model import SSPSR, Card
    from pipeline.evaluation.result import Evaluation

app = typer.Typer()

Checkpoint = Annotated[str, typer.Argument(help=describe_option("model"))]
Include = Annotated[list[str] | None, typer.Option(help=describe_option("include"))]
Exclude = Annotated[list[str] | None, typer.Option(help=describe_option("exclude"))]


@app.command()
def evaluate(
    ckpt: Checkpoint,
    source: Annotated[str, typer.Argument(help="Scenes that are taken for the truth.")],
    against: Annotated[
        list[str] | None, typer.Option(help="Another checkpoint, to compare with; may be repeated.")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="wald: every scene, whole; the others as published.")
    ] = "wald",
    degradation: Annotated[Degrading, typer.Option(help="What makes the LR scenes.")] = "bicubic",
    mtf: Annotated[
        float | None, typer.Option(help="With --degradation mtf, the MTF at Nyquist, e.g. 0.3.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for evaluation.json, .html and .png.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> None:
    """Degrade the scenes of SOURCE, super-resolve them as a run would, and compare with the truth.

    Bicubic is always compared too. Exit status 3 if a scene could not be evaluated.

    Example: sr-archive evaluate mine.safetensors s3://bucket/scenes --against starter --out report
    """
    from pipeline.evaluation import evaluate_regions
    from pipeline.evaluation.protocols import prepare

    if protocol != "wald" and degradation != "bicubic":
        raise UsageError(
            f"--protocol {protocol} is published with bicubic: leave out --degradation"
        )
    checkpoints = _checkpoints([ckpt, *(against or [])])
    task = prepare(protocol, source, include or [], exclude or [])
    found = evaluate_regions(
        checkpoints,
        task.regions,
        degradation=degradation,
        mtf=mtf,
        peak=task.peak,
        protocol=protocol,
        opened=task.opened,
        progress=lambda name: err.print(f"evaluating {name}", markup=False, highlight=False),
    )
    found = replace(found, failed=found.failed | task.rejected)
    if folder is not None:
        _write(found, folder)
    if as_json:
        print_json(json.loads(found.to_json()))
    else:
        _print(found)
    raise typer.Exit(QUARANTINED if found.failed else 0)


@app.command()
def promote(
    registry: Annotated[str, typer.Argument(help="Folder or bucket prefix of the registry.")],
    ckpt: Checkpoint,
    evaluation: Annotated[str, typer.Argument(help="evaluation.json of `sr-archive evaluate`.")],
    as_json: AsJson = False,
) -> None:
    """Store CKPT in REGISTRY, and make it the latest if EVALUATION shows that it has earned it.

    Exit status 3 if it has not. `--model registry:REGISTRY` of all commands takes the latest.

    Example: sr-archive promote s3://bucket/models mine.safetensors report/evaluation.json
    """
    from pipeline.evaluation.result import LARGEST, Evaluation, EvaluationError
    from pipeline.registry import promote as judge
    from pipeline.storage import describe, open_filesystem

    try:
        filesystem, path = open_filesystem(evaluation)
        with filesystem.open(path, "rb") as file:
            found = Evaluation.from_json(file.read(LARGEST + 1))
    except (EvaluationError, OSError) as error:
        raise UsageError(f"{redact(evaluation)}: {describe(error)}") from None
    made = judge(registry, ckpt, found)
    if as_json:
        print_json(asdict(made))
    else:
        verdict = "is the latest now" if made.promoted else "is stored and not the latest"
        out.print(f"{made.checkpoint} {verdict}: {made.reason}", markup=False, soft_wrap=True)
        if made.note:
            out.print(f"note: {made.note}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if made.promoted else QUARANTINED)


def _checkpoints(given: list[str]) -> dict[str, tuple[SSPSR, Card]]:
    """By the names on their cards; where two share one, by what was given."""
    from model import CheckpointError
    from pipeline.registry import load_registered

    if len(set(given)) < len(given):
        raise UsageError("--against: a checkpoint is not compared with itself")
    try:
        loaded = {text: load_registered(text) for text in given}
    except CheckpointError as error:
        raise UsageError(without_secrets(str(error))) from None
    names = [card.name for _, card in loaded.values()]
    named = {
        card.name if names.count(card.name) == 1 else redact(text)[-200:]: (net, card)
        for text, (net, card) in loaded.items()
    }
    if len(named) < len(loaded):
        raise UsageError("two checkpoints have one name: give their cards names of their own")
    return named


def _write(found: Evaluation, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(found.to_json(), encoding="utf-8")
        found.to_html(folder / "evaluation.html")
        found.to_png(folder / "evaluation.png")
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror or error}") from None
    except UsageError as error:  # no Matplotlib: the page has the same curves
        err.print(f"note: {error}", markup=False, highlight=False, soft_wrap=True)


def _print(found: Evaluation) -> None:
    from pipeline.evaluation.page import TITLES, described, pairing, pairs, shown
    from pipeline.evaluation.protocols import published
    from pipeline.evaluation.result import METRICS

    def row(method: str, figures: Any) -> dict[str, str]:
        return {"method": method, **{TITLES[m]: shown(m, figures[m]) for m in METRICS}}

    known = published(found.protocol, found.scale)
    rows = [row(name, found.mean(name)) for name in found.names]
    if known:
        rows += [row(f"published, {each.method}", each.figures) for each in known.rows]
    print_table(
        rows, f"{found.protocol}, {found.degradation}: means of {len(found.scenes)} scene(s)"
    )
    if known:
        out.print(known.difference, markup=False, highlight=False, soft_wrap=True)
    for method, against in pairs(found):
        gained = found.differences(method, against)
        cells = {TITLES[m]: described(m, gained[m]) for m in METRICS}
        print_table([cells], f"{method} minus {against}; {pairing(gained['psnr'])}")
    if len(found.scenes) > 1:
        print_table(
            [_scene_row(scene, found.names) for scene in found.scenes], "PSNR, dB / SAM, degrees"
        )
    for scene in found.scenes:
        if scene.sample:
            out.print(f"note: {scene.name}: {scene.sample}", markup=False, soft_wrap=True)
    for name, reason in found.failed.items():
        out.print(f"not evaluated: {name}: {reason}", markup=False, soft_wrap=True)


def _scene_row(scene: Any, names: tuple[str, ...]) -> dict[str, str]:
    from pipeline.evaluation.page import shown

    cells = {
        name: " / ".join(shown(m, scene.figures[name][m]) for m in ("psnr", "sam"))
        for name in names
    }
    return {"scene": scene.name, "bands": str(len(scene.bands)), **cells}
