"""What a report of many scenes costs: time to make and to renew it, bytes of its first page.

    python -m benchmarks.report_overview OUTPUT [--scenes 1000]

OUTPUT is a folder with a published scene, the smallest of which is taken many times over; its data
are linked, not copied. Printed are seconds on this machine and bytes that a browser loads at first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.inventory import scenes_of
from pipeline.report.extent import Limits
from pipeline.report.site import Report, make_report
from pipeline.store import STATE

_FIRST = ("index.html", "overview-data.js", "assets/overview.js", "assets/style.css")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sr-archive-") as scratch:
        many = Path(scratch)
        _multiply(arguments.output, many, arguments.scenes)
        limits = Limits(max_side=64, spectra_megabytes=0.5)
        first, seconds = _timed(many, limits)
        again, renewed = _timed(many, limits)
        print(f"scenes                       {len(first.written)}")
        print(f"made                         {seconds:.1f} s, {first.bytes / 1e6:.1f} MB")
        print(f"made again, nothing changed  {renewed:.1f} s, {len(again.written)} written")
        for name in _FIRST:
            print(f"{name:<28} {(many / 'report' / name).stat().st_size / 1e3:.1f} kB")
        pictures = [path.stat().st_size for path in (many / "report").glob("scenes/*/*.webp")]
        print(
            f"a thumbnail                  {sum(pictures) / len(pictures) / 1e3:.1f} kB, when seen"
        )


def _timed(output: Path, limits: Limits) -> tuple[Report, float]:
    began = time.perf_counter()
    report = make_report(str(output), limits=limits)
    return report, time.perf_counter() - began


def _multiply(output: Path, many: Path, count: int) -> None:
    """Scenes that are all the smallest one of `output`."""
    published = [entry.scene_id for entry in scenes_of(str(output)) if entry.status == "published"]
    sizes = {name: _bytes(output / f"{name}.zarr") for name in published}
    smallest = min(sizes, key=lambda name: sizes[name])
    for number in range(count):
        name = f"scene_{number:05d}"
        folders = {f"{smallest}.zarr": f"{name}.zarr"}
        folders[f"{STATE}/scenes/{smallest}"] = f"{STATE}/scenes/{name}"
        for one, other in folders.items():
            shutil.copytree(output / one, many / other, copy_function=os.link)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
