"""The notebook of the documentation, run on a scene that is super-resolved first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from infra.notebook import LARGEST, NOTEBOOK, execute
from tests.test_docs import documented_attributes


def printed(notebook: Any) -> str:
    outputs = [each for cell in notebook["cells"] for each in cell.get("outputs", [])]
    return "".join("".join(each.get("text", "")) for each in outputs)


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d+\.\d+", text)]


def test_it_is_stored_as_executed_and_small() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    stored = json.loads(text)
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = [
        each for cell in code for each in cell["outputs"] if "image/png" in each.get("data", {})
    ]
    assert len(pictures) == 2
    assert str(Path.home()) not in text and "/tmp/" not in text


@pytest.mark.slow
def test_it_runs_and_gives_what_it_shows(tmp_path: Path) -> None:
    found = printed(execute(tmp_path))
    shown = printed(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert re.sub(r"\d+\.\d+", "#", found) == re.sub(r"\d+\.\d+", "#", shown)
    assert numbers(found) == pytest.approx(numbers(shown), abs=3e-4, rel=0.02)
    # What its last paragraph says of them.
    consistent, consistent_bicubic = (
        float(x) for x in re.findall(r"NDVI of degraded - of LR ([\d.]+)", found)
    )
    wrong, wrong_bicubic = (float(x) for x in re.findall(r"truth by ([\d.]+)", found))
    assert consistent == pytest.approx(consistent_bicubic / 5, rel=0.2)
    assert 1 - wrong / wrong_bicubic == pytest.approx(1 / 5, rel=0.2)
    assert wrong > 10 * consistent
    means = [float(x) for x in re.findall(r"block means of NDVI - of LR ([\d.]+)", found)]
    [of_truth] = [float(x) for x in re.findall(r"true NDVI - NDVI of LR: ([\d.]+)", found)]
    assert means[0] < of_truth
    attributes = xr.open_zarr(tmp_path / "superres" / "fields.zarr").attrs
    root, made, consistency, seams = documented_attributes()
    assert set(attributes) <= root and set(attributes["sr_archive"]) == made
    assert set(attributes["sr_archive"]["consistency"]) == consistency
    assert set(attributes["sr_archive"]["seams"]) == seams
