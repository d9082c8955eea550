"""Runs the notebook of the documentation on a simulated scene that is super-resolved first.

    python -m infra.notebook

stores it anew, with the outputs that the site shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from infra.simulate import SceneSpec, simulate_archive

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebooks" / "ndvi.ipynb"
SCENE = SceneSpec("fields", "fields", 64, 64, "zarr", 5, last=900.0)
LARGEST = 300_000  # bytes of the file with its outputs


def execute(folder: Path) -> Any:
    """The notebook with outputs of now; scene, truth and result are made in `folder`.

    Raises:
        CalledProcessError: the scene could not be super-resolved.
        CellExecutionError: of nbclient; a cell failed.
    """
    simulate_archive(folder / "scenes", folder / "scenes-truth", (SCENE,))
    source, output = str(folder / "scenes"), str(folder / "superres")
    run = [sys.executable, "-m", "pipeline", "run", source, output, "--precision", "fp32"]
    subprocess.run(run, cwd=ROOT, check=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=_environment())


def _environment() -> dict[str, str]:
    """Of the kernel: this checkout's packages, and figures that go into the notebook."""
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sr-archive-notebook-") as folder:
        notebook = execute(Path(folder))
    notebook.metadata.language_info = {"name": "python"}
    text = nbformat.writes(notebook) + "\n"  # type: ignore[no-untyped-call]
    if len(text) > LARGEST:
        print(f"{len(text)} bytes are more than {LARGEST}: draw less", file=sys.stderr)
        return 1
    NOTEBOOK.write_text(text, encoding="utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
