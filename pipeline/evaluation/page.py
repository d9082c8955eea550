"""An evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pipeline.evaluation.chart import COLOURS, MOST_DRAWN, curve_svg
from pipeline.evaluation.interval import CONFIDENCE, Difference
from pipeline.evaluation.protocols import published
from pipeline.evaluation.result import BICUBIC, METRICS, Evaluation, Figure, SceneResult

TITLES = {
    "cc": "CC",
    "sam": "SAM, degrees",
    "rmse": "RMSE",
    "ergas": "ERGAS",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}
_MANY = 10  # pairs; of fewer an interval holds the true mean in less than 90 % of cases
_DIGITS = {"sam": 3, "ergas": 3, "psnr": 2}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
tr.published{color:#595959;font-style:italic}
svg{width:100%;max-width:640px;height:auto;font:11px system-ui,sans-serif;display:block}
figure{margin:1.2rem 0}
.key{display:inline-block;width:1.6em;height:.5em;margin:0 .3em 0 1em}
"""


def write_page(evaluation: Evaluation, path: str | Path) -> None:
    """Write the page; every text of the evaluation is escaped."""
    Path(path).write_text(page(evaluation), encoding="utf-8")


def page(evaluation: Evaluation) -> str:
    """The page's HTML."""
    title = f"Evaluation of {', '.join(evaluation.names[1:])}"
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", *_sections(evaluation)])
    return f"{head}\n<body><main>\n{body}\n</main></body></html>\n"


def _sections(evaluation: Evaluation) -> Iterable[str]:
    made = evaluation.made.get("time", "")
    count = len(evaluation.scenes)
    yield _paragraph(
        f"Protocol {evaluation.protocol}, {evaluation.degradation}; {count} region(s). {made}"
    )
    yield _means(evaluation)
    for first, second in pairs(evaluation):
        yield _gains(evaluation, first, second)
    if evaluation.failed:
        rows = [[name, reason] for name, reason in evaluation.failed.items()]
        yield _table("Not evaluated", ["region", "reason"], rows)
    yield "<h2>Scenes</h2>"
    yield _key(evaluation.names)
    for scene in evaluation.scenes[:MOST_DRAWN]:
        yield _scene(scene, evaluation.names)
    if count > MOST_DRAWN:
        yield _paragraph(f"{count - MOST_DRAWN} more scenes are in the JSON.")


def pairs(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What is compared: each checkpoint with bicubic, the first with each other one."""
    first, *others = evaluation.names[1:]
    return [*((name, BICUBIC) for name in evaluation.names[1:]), *((first, o) for o in others)]


def shown(metric: str, value: Figure, *, sign: bool = False) -> str:
    """A figure with the digits that mean something."""
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.{_DIGITS.get(metric, 4)}f}"


def described(metric: str, found: Difference) -> str:
    """A difference with its interval."""
    text = shown(metric, found.mean, sign=True)
    if found.low is None or found.high is None:
        return text
    ends = (shown(metric, end, sign=True) for end in (found.low, found.high))
    return f"{text} [{', '.join(ends)}]"


def pairing(found: Difference) -> str:
    """What the interval is of, in words."""
    if found.unit == "none":
        return f"no interval: {found.pairs} scene(s), and too few parts of them"
    words = {
        "scene": f"{found.pairs} scenes",
        "part": f"{found.pairs} parts of the scene(s): it tells nothing of other scenes",
    }
    few = ", too narrow of so few" if found.pairs < _MANY else ""
    return f"{CONFIDENCE:.0%} bootstrap interval over {words[found.unit]}{few}"


def _means(evaluation: Evaluation) -> str:
    rows = [
        [name, *(shown(metric, evaluation.mean(name)[metric]) for metric in METRICS)]
        for name in evaluation.names
    ]
    known = published(evaluation.protocol, evaluation.scale)
    marked = [[f"published, {row.method}", *(shown(m, row.figures[m]) for m in METRICS)]
              for row in ([] if known is None else known.rows)]  # fmt: skip
    table = _table("Means over regions", ["method", *TITLES.values()], rows, marked)
    return table if known is None else table + _paragraph(known.difference)


def _gains(evaluation: Evaluation, method: str, against: str) -> str:
    found = evaluation.differences(method, against)
    rows = [
        [TITLES[metric], described(metric, found[metric]), found[metric].verdict]
        for metric in METRICS
    ]
    caption = f"{method} minus {against}; {pairing(found['psnr'])}"
    return _table(caption, ["metric", "difference", "verdict"], rows)


def _scene(scene: SceneResult, names: Sequence[str]) -> str:
    rows = [
        [name, *(shown(metric, scene.figures[name][metric]) for metric in METRICS)]
        for name in names
    ]
    size = f"{scene.rows} x {scene.columns} pixels, {len(scene.bands)} bands scored"
    valid = "" if scene.valid == 1 else f", {scene.valid:.1%} of the pixels valid"
    sample = f", sample: {scene.sample}" if scene.sample else ""
    caption = f"{scene.name}: {size}{valid}{sample}; peak {scene.peak:.6g}"
    notes = "".join(_paragraph(f"{name}: {note}") for name, note in scene.notes.items())
    curve = curve_svg(scene, names)
    figure = f"<figure>{curve}</figure>" if curve else ""
    return _table(caption, ["method", *TITLES.values()], rows) + notes + figure


def _key(names: Sequence[str]) -> str:
    marks = "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        for name, colour in zip(names, itertools.cycle(COLOURS))
    )
    return f"<p>Curves: PSNR over bands.{marks}</p>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: Iterable[Sequence[str]] = (),
) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(map(_row, rows)) + "".join(_row(row, "published") for row in marked)
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _row(cells: Sequence[str], style: str = "") -> str:
    first, *others = cells
    marks = f' class="{style}"' if style else ""
    data = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr{marks}><th scope="row">{escape(first)}</th>{data}</tr>'
