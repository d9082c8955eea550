"""Curves over bands and bars over scenes, as SVG for the page and as PNG for everything else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.evaluation.result import Evaluation, Figure, SceneResult

# Distinguishable with colour vision deficiencies (Okabe and Ito 2008), and by their dashes.
COLOURS = ("#767676", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3")
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_GAP = 4.0  # median band steps beyond which a curve breaks

Point = tuple[float, float]


def lines_of(scene: SceneResult, values: Sequence[Figure]) -> list[list[Point]]:
    """The pieces of a curve over wavelengths or band numbers: it breaks at gaps in them."""
    along = scene.wavelengths or tuple(float(band) for band in scene.bands)
    steps = np.abs(np.diff(along))
    usual = float(np.median(steps)) if len(steps) else 0.0
    pieces: list[list[Point]] = [[]]
    previous: float | None = None
    for place, value in zip(along, values, strict=True):
        if previous is not None and not 0 < place - previous <= _GAP * usual:
            pieces.append([])
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((place, value))
        previous = place
    return [piece for piece in pieces if piece]


def axis_label(scene: SceneResult) -> str:
    return "band" if scene.wavelengths is None else "wavelength, nm"


def curve_svg(scene: SceneResult, names: Sequence[str]) -> str:
    """PSNR over bands of one scene, one line per method."""
    lines = {name: lines_of(scene, scene.curves[name].psnr) for name in names}
    points = [point for pieces in lines.values() for piece in pieces for point in piece]
    if not points:
        return ""
    (left, right), (low, high) = (_limits([point[axis] for point in points]) for axis in (0, 1))

    def place(point: Point) -> str:
        x = _LEFT + (point[0] - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (point[1] - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    drawn = []
    for name, colour, dash in zip(names, itertools.cycle(COLOURS), itertools.cycle(DASHES)):
        for piece in lines[name]:
            path = " ".join(map(place, piece if len(piece) > 1 else piece * 2))
            drawn.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" '
                f'stroke-linecap="round" stroke-dasharray="{dash}"/>'
            )
    title = f"PSNR over bands, {scene.name}: {', '.join(names)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_frame(left, right, low, high, axis_label(scene))}{''.join(drawn)}</svg>"
    )


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _frame(left: float, right: float, low: float, high: float, label: str) -> str:
    """Axes with a few rounded ticks."""
    bottom, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{end}" fill="none" stroke="#444"/>']
    for tick in _ticks(left, right):
        x = _LEFT + (tick - left) / (right - left) * (end - _LEFT)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(low, high):
        y = bottom - (tick - low) / (high - low) * (bottom - _TOP)
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.0f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{end}" stroke="#ddd"/>')
    middle = (_LEFT + end) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="4" y="{_TOP + 4}">dB</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))
    first = int(np.ceil(low / step))
    return [index * step for index in range(first, int(np.floor(high / step)) + 1)]


def draw_png(evaluation: Evaluation, path: str | Path) -> None:
    """PSNR and RMSE over bands of every scene, and bars of PSNR and SAM.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UsageError(
            "a PNG needs Matplotlib: install sr-archive[demo], or take the HTML page"
        ) from None
    shown = evaluation.scenes[:MOST_DRAWN]
    canvas = Canvas(figsize=(12, 3.2 * (len(shown) + 1)), layout="constrained")
    axes = canvas.subplots(len(shown) + 1, 2, squeeze=False)
    for row, scene in zip(axes, shown, strict=False):
        _draw_scene(row, scene, evaluation.names)
    for axis, metric, unit in zip(axes[-1], ("psnr", "sam"), ("dB", "degrees"), strict=True):
        _draw_bars(axis, evaluation, metric, unit)
    axes[0][0].legend(fontsize=8)
    canvas.savefig(path, dpi=100)


MOST_DRAWN = 20  # scenes on a picture or a page


def _draw_scene(row: Sequence[Any], scene: SceneResult, names: Sequence[str]) -> None:
    for axis, what in zip(row, ("psnr", "rmse"), strict=True):
        for name, colour in zip(names, itertools.cycle(COLOURS)):
            for index, piece in enumerate(lines_of(scene, getattr(scene.curves[name], what))):
                x, y = zip(*piece, strict=True)
                axis.plot(x, y, color=colour, lw=1.3, label=plain(name) if not index else None)
        axis.set_xlabel(axis_label(scene))
        axis.set_ylabel("PSNR, dB" if what == "psnr" else "RMSE, of peak 1")
        axis.set_title(plain(scene.name), fontsize=9)
        axis.grid(alpha=0.3)


def _draw_bars(axis: Any, evaluation: Evaluation, metric: Any, unit: str) -> None:
    scenes = evaluation.scenes[:MOST_DRAWN]
    places, width = np.arange(len(scenes)), 0.8 / len(evaluation.names)
    for index, (name, colour) in enumerate(zip(evaluation.names, itertools.cycle(COLOURS))):
        heights = [scene.figures[name][metric] or 0.0 for scene in scenes]
        axis.bar(places + index * width, heights, width, color=colour, label=plain(name))
    axis.set_xticks(places + 0.4 - width / 2, [plain(scene.name) for scene in scenes])
    axis.tick_params("x", labelsize=7, rotation=20 if len(scenes) > 3 else 0)
    axis.set_ylabel(f"{metric.upper()}, {unit}")


def plain(text: str) -> str:
    """Text that Matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
