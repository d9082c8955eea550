"""The documentation: pages made of the code, what pages say of outputs, links and navigation."""

from __future__ import annotations

import pydoc
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import yaml
from rasterio.errors import RasterioIOError
from typer.testing import CliRunner

import model
import pipeline
from infra import pages
from infra.site import foreign_requests, notebook_page, on_page_markdown
from model import load_checkpoint
from model.checkpoint import shipped, weights_digest
from pipeline.cli import app
from pipeline.settings import PlanSettings, RunSettings
from tests.archives import publish, write_model

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def navigation() -> list[str]:
    """Every page of mkdocs.yml's navigation."""

    def flat(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [page for each in inner for page in flat(each)]

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return flat(config["nav"])


def test_the_navigation_has_every_page_once() -> None:
    stored = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    notebooks = [f"{path.relative_to(DOCS).with_suffix('.md')}" for path in DOCS.rglob("*.ipynb")]
    assert sorted(navigation()) == sorted([*stored, *notebooks, *pages.pages()])


def test_links_lead_to_files_and_headings() -> None:
    """As the repository's host shows them; MkDocs looks at those of the site."""
    broken = []
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in headings(target)):
                broken.append(f"{page.name}: {link}")
    assert not broken


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_commands_are_those_of_the_program() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages.commands_page(), re.S | re.M))
    listed = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2]
    assert list(sections) == re.findall(r"^  (\w+)", listed, re.MULTILINE)
    for name, section in sections.items():
        shown = CliRunner().invoke(app, [name, "--help"]).output.partition("Options:")[2]
        options = re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE)
        assert re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE) == options, name
        assert "Annotated" not in section


def test_settings_have_the_variables_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    page = pages.settings_page()
    variables = re.findall(r"`(SR_ARCHIVE_\w+)`", page)
    assert len(variables) == len(set(variables)) > 40
    assert {f"SR_ARCHIVE_{name.upper()}" for name in PlanSettings.model_fields} < set(variables)
    assert "| `--tile` | `SR_ARCHIVE_TILE` | LR pixels along a tile's side. | `64` |" in page
    monkeypatch.setenv("SR_ARCHIVE_TILE", "40")
    assert RunSettings.from_options({"source": "a", "output": "b"}).tile == 40


@pytest.mark.parametrize("package", [model, pipeline])
def test_a_package_shows_all_that_it_offers(package: ModuleType) -> None:
    shown = [pydoc.locate(name) for name in re.findall(r"::: (\S+)", pages.package_page(package))]
    assert all(each is not None for each in shown)
    for name in package.__all__:
        offered = getattr(package, name)
        assert offered in shown or sys.modules[offered.__module__] in shown, name


def test_a_card_is_the_checkpoints() -> None:
    for name in shipped():
        net, card = load_checkpoint(name)
        page = pages.card_page(name)
        assert weights_digest(net) in page and card.licence in page
        for figures in card.metrics.values():
            assert all(f"{value:.4f}" in page for value in figures.values())
        assert page.count("\n- ") == len(card.training_data) + len(card.notes)


def test_markup_in_a_cell_is_escaped() -> None:
    assert pages.table(["a"], [["x|y <b> *z*_"], ["`<a|b>`"]]).splitlines()[2:] == [
        "| x\\|y &lt;b> \\*z\\*\\_ |",
        "| `<a\\|b>` |",
    ]


def documented_attributes() -> list[set[str]]:
    """Of the root, of `sr_archive`, `consistency` and `seams`, as docs/attributes.md has them."""
    sections = text_of("attributes.md").split("\n## ")[1:]
    columns = [" ".join(re.findall(r"^\| (`.*?) \|", each, re.MULTILINE)) for each in sections]
    return [set(re.findall(r"`([\w:]+)`", column)) for column in columns]


def test_attributes_are_those_of_an_output(archive_output: Path) -> None:
    """A whole run is compared in tests/test_notebook.py."""
    root, made, figures, seams = documented_attributes()
    for name in ("tiff", "envi", "store"):
        attributes = xr.open_zarr(archive_output / "output" / f"{name}.zarr").attrs
        assert set(attributes) <= root
        assert set(attributes["sr_archive"]) == made
        assert set(attributes["sr_archive"]["consistency"]) == figures
        assert set(attributes["sr_archive"]["seams"]) == seams


def test_gdal_opens_what_the_page_says(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for layout in ("sharded", "plain"):
        publish(str(archive), layout, write_model(tmp_path), layout=layout)
    expected = xr.open_zarr("sharded/tiff.zarr")["reflectance"]
    with rasterio.open('ZARR:"plain/tiff.zarr":/reflectance') as file:
        assert file.shape == expected.shape[1:] and file.crs.to_epsg() == 32633
        np.testing.assert_allclose(masked(file), expected)
    with rasterio.open('ZARR:"plain/tiff.zarr":/reflectance:3') as file:
        np.testing.assert_allclose(masked(file), expected[3:4])
    if tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 13):
        with pytest.raises(RasterioIOError, match="Unsupported codec"):
            rasterio.open('ZARR:"sharded/tiff.zarr":/reflectance')
    [code] = re.findall(r"```python\n(.*?)```", text_of("qgis.md"), re.DOTALL)
    exec(compile(code.replace("superres/fields.zarr", "sharded/tiff.zarr"), "qgis.md", "exec"), {})
    with rasterio.open("fields.tif") as file:
        np.testing.assert_allclose(masked(file), expected)
        named = [f"{nm:g} nm" for nm in xr.open_zarr("sharded/tiff.zarr")["wavelength"].values]
        assert list(file.descriptions) == named and file.crs.to_epsg() == 32633


def masked(file: rasterio.DatasetReader) -> np.ndarray:
    """Physical values, NaN where there is nodata."""
    counts = file.read(masked=True).astype(float).filled(np.nan)
    return np.asarray(counts * np.array(file.scales)[:, None, None])


@pytest.mark.parametrize(
    ("html", "asks"),
    [
        ('<script src="assets/a.js"></script><a href="https://x.org">x</a>', False),
        (
            '<link rel="canonical" href="https://x.org/"><img src="data:image/png;base64,//8=">',
            False,
        ),
        ("<script src=https://x.org/a.js>", True),
        ('<img alt="" src="//x.org/a.png">', True),
        ('<link rel="stylesheet" href="https://fonts.x.org/css">', True),
        ('<pre class="mermaid"><code>', True),
        ('<div class="language-mermaid highlight">', False),
    ],
)
def test_requests_to_other_hosts_are_seen(html: str, asks: bool) -> None:
    assert bool(foreign_requests(html)) == asks


def test_a_notebook_becomes_a_page() -> None:
    text, pictures = notebook_page((DOCS / "notebooks" / "ndvi.ipynb").read_text("utf-8"), "ndvi")
    assert text.startswith("# NDVI before and after") and "```python\nimport" in text
    assert set(pictures) == {"ndvi-1.png", "ndvi-2.png"}
    assert all(name in text and data[:4] == b"\x89PNG" for name, data in pictures.items())
    assert (
        on_page_markdown("[a](notebooks/ndvi.ipynb), b.ipynb") == "[a](notebooks/ndvi.md), b.ipynb"
    )
