"""What the report of many scenes costs: time for one page, time to renew all, bytes at first.

    python -m benchmarks.report_overview OUTPUT [--scenes 1000]

OUTPUT is a folder with a published scene, the smallest of which is taken many times over: its data
and its page are linked, so that only what grows with the number of scenes is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.inventory import scenes_of
from pipeline.report.site import Report, make_report
from pipeline.store import STATE

_FIRST = ("index.html", "overview-data.js", "assets/overview.js", "assets/style.css")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sr-archive-", dir=arguments.output.parent) as scratch:
        many = Path(scratch)
        names = [f"scene_{number:05d}" for number in range(arguments.scenes)]
        _multiply_scenes(arguments.output, many, names)
        _, one = _timed(many, names[:1])
        _multiply_pages(many / "report" / "scenes", names)
        renewed, all_of_them = _timed(many)
        print(f"one page and the overview    {one:.2f} s")
        print(f"{len(renewed.unchanged)} unchanged, overview new  {all_of_them:.2f} s")
        for name in _FIRST:
            print(f"{name:<28} {(many / 'report' / name).stat().st_size / 1e3:.1f} kB")
        picture = many / "report" / "scenes" / names[0] / "thumbnail.webp"
        print(f"a thumbnail, when seen       {picture.stat().st_size / 1e3:.1f} kB")


def _timed(output: Path, scenes: list[str] | None = None) -> tuple[Report, float]:
    began = time.perf_counter()
    report = make_report(str(output), scenes=scenes or [])
    return report, time.perf_counter() - began


def _multiply_scenes(output: Path, many: Path, names: list[str]) -> None:
    """Scenes that are all the smallest one of `output`."""
    published = [entry.scene_id for entry in scenes_of(str(output)) if entry.status == "published"]
    sizes = {name: _bytes(output / f"{name}.zarr") for name in published}
    smallest = min(sizes, key=lambda name: sizes[name])
    for name in names:
        folders = {f"{smallest}.zarr": f"{name}.zarr"}
        folders[f"{STATE}/scenes/{smallest}"] = f"{STATE}/scenes/{name}"
        for one, other in folders.items():
            shutil.copytree(output / one, many / other, copy_function=os.link)


def _multiply_pages(folder: Path, names: list[str]) -> None:
    """The first scene's page for all; `row.json` names each."""
    row = json.loads((folder / names[0] / "row.json").read_text())
    for name in names[1:]:
        shutil.copytree(folder / names[0], folder / name, copy_function=os.link)
        (folder / name / "row.json").unlink()
        row["row"]["id"] = name
        (folder / name / "row.json").write_text(json.dumps(row))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
