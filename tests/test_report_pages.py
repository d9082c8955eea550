"""The pages of a report in a real Chromium, opened from the disk as a user does."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.enlarging import enlarge
from pipeline.grid import Window
from pipeline.readers import open_scene
from pipeline.report.site import make_report
from tests.test_report import WEB, change_attributes

AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP, PHONE = (1280, 900), (375, 812)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EVIL = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b>"


class Page:
    """One browser window, and what its console said."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, size: tuple[int, int] = DESKTOP) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(address)
        self.until("return document.documentElement.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, (
                script,
                self.console(),
                self.run("return document.body.innerText"),
            )
            time.sleep(0.05)

    def find(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def choose(self, name: str, value: str) -> None:
        """Choose in a list, and wait until the images are drawn."""
        self.run("delete document.documentElement.dataset.shown")
        self.run(
            "const list = document.getElementById(arguments[0]); list.value = arguments[1];"
            "list.dispatchEvent(new Event('change'))",
            name,
            value,
        )
        self.until("return document.documentElement.dataset.shown")

    def picture(self) -> bytes:
        """What the viewer shows, as PNG."""
        address = self.run("return document.getElementById('canvas').toDataURL()")
        return base64.b64decode(address.partition(",")[2])

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def serious_violations(self) -> list[str]:
        """What axe-core finds; it gets no files of its own, which the pages' policy forbids."""
        self.run(AXE.read_text("utf-8"))
        found = self.driver.execute_async_script("axe.run({preload: false}).then(arguments[0])")[
            "violations"
        ]
        return [
            f"{each['id']}: {each['nodes'][0]['target']}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = str(programs[0])
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(programs[1])))
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def report(archive_output: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report whose texts are hostile and one of whose sources is gone."""
    output = shutil.copytree(archive_output / "output", tmp_path_factory.mktemp("pages") / "output")
    change_attributes(output, "envi", bands_note=EVIL)
    change_attributes(output, "store", source="/nowhere/store.zarr")
    make_report(str(output))
    return (output / "report").as_uri()


@pytest.fixture
def scene(page: Page, report: str) -> Page:
    page.open(f"{report}/scenes/tiff/index.html")
    return page


@pytest.fixture(autouse=True)
def console_stays_empty(request: pytest.FixtureRequest) -> Iterator[None]:
    page: Page = request.getfixturevalue("page")
    page.console()
    yield
    assert page.console() == []


def shown(page: Page) -> list[str]:
    rows = page.driver.find_elements(By.CSS_SELECTOR, "#scenes tbody tr")
    return [row.find_element(By.TAG_NAME, "a").text for row in rows]


def test_the_table_is_searched_and_sorted(page: Page, report: str) -> None:
    page.open(f"{report}/index.html")
    assert shown(page) == ["envi", "store", "tiff"]
    page.find("search").send_keys("TIF")
    assert shown(page) == ["tiff"] and page.find("count").text == "1 of 3"
    page.find("search").clear()
    page.find("search").send_keys(Keys.SPACE)
    by_size = page.driver.find_element(By.XPATH, "//th/button[text()='Pixels']")
    by_size.send_keys(Keys.ENTER)
    assert shown(page) == ["store", "envi", "tiff"]
    by_size.send_keys(Keys.ENTER)
    assert shown(page) == ["tiff", "envi", "store"]
    heads = page.driver.find_elements(By.CSS_SELECTOR, "th[aria-sort=descending]")
    assert [head.text for head in heads] == ["Pixels"]


def test_the_overview_leads_to_scenes_and_says_what_is_set_aside(page: Page, report: str) -> None:
    page.open(f"{report}/index.html")
    aside = page.find("aside").text
    assert "too-few-bands" in aside and "--include deep__rgb" in aside
    footprint = page.driver.find_element(By.CSS_SELECTOR, "#map a")
    assert footprint.get_dom_attribute("href") == "scenes/tiff/index.html"
    dots = page.run(
        "return [...document.querySelectorAll('#map .dot')].map(dot => dot.getBBox().width)"
    )
    assert dots and max(dots) > 0
    before = page.run("return document.querySelector('#map g').getAttribute('transform')")
    page.driver.find_element(By.CSS_SELECTOR, "#map svg").send_keys("+")
    assert page.run("return document.querySelector('#map g').getAttribute('transform')") != before
    page.driver.find_element(By.LINK_TEXT, "tiff").send_keys(Keys.ENTER)
    page.until("return document.documentElement.dataset.shown")
    assert page.find("title").text == "tiff"


def test_hostile_text_stays_text(page: Page, report: str) -> None:
    for place in ("index.html", "scenes/envi/index.html"):
        page.open(f"{report}/{place}")
        assert EVIL in page.find("facts" if "scenes/" in place else "scenes").text
        assert page.driver.title != "owned"
        assert not page.driver.find_elements(By.CSS_SELECTOR, "b, img[src=x]")


def test_the_divider_moves_by_keys_and_by_pointer(scene: Page) -> None:
    slider, canvas = scene.find("divider"), scene.find("canvas")
    middle = scene.picture()
    slider.send_keys(Keys.ARROW_RIGHT * 20)
    assert slider.get_attribute("value") == "70"
    moved = scene.picture()
    assert moved != middle
    width = canvas.size["width"]
    drag = webdriver.ActionChains(scene.driver)
    drag.move_to_element_with_offset(canvas, int(0.2 * width), 0).click_and_hold()
    drag.move_by_offset(int(-0.4 * width), 0).release().perform()
    assert abs(float(slider.get_attribute("value")) - 30) < 1
    assert scene.find("spectrum-status").text == ""  # no pixel was picked by that
    slider.send_keys(Keys.HOME)
    right = scene.picture()
    scene.choose("left", "high")  # now both sides are the same image
    slider.send_keys(Keys.END)
    assert scene.run("return srReport.view.divider") == 1
    assert slider.get_attribute("aria-valuetext") == "100 % left image" and right != moved


def test_zoom_and_pan_by_keys_wheel_and_buttons(scene: Page) -> None:
    canvas = scene.find("canvas")

    def state() -> tuple[float, float, float]:
        found = scene.run("const t = srReport.view.transform; return [t.k, t.x, t.y]")
        return found[0], found[1], found[2]

    scene.find("native").click()
    assert state()[0] == 1
    canvas.send_keys("+")
    assert state()[0] == 2
    before = state()
    canvas.send_keys(Keys.ARROW_LEFT)
    assert state()[1] - before[1] == pytest.approx(60)
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(canvas, 100, 40)
    webdriver.ActionChains(scene.driver).scroll_from_origin(origin, 0, -200).perform()
    assert state()[0] > 2
    scene.find("fit").click()
    drag = webdriver.ActionChains(scene.driver).move_to_element_with_offset(canvas, 150, 0)
    fitted = state()
    drag.click_and_hold().move_by_offset(40, 10).release().perform()
    assert state()[1] - fitted[1] == pytest.approx(40)


def test_a_click_shows_the_spectra_of_the_pixel(scene: Page, archive_output: Path) -> None:
    canvas = scene.find("canvas")
    webdriver.ActionChains(scene.driver).move_to_element_with_offset(
        canvas, 80, 30
    ).click().perform()
    scene.until(
        "return document.getElementById('spectrum-status').textContent.startsWith('Spectrum')"
    )
    [pin] = scene.run("return srReport.spectra.pins")
    x, y = pin["x"], pin["y"]
    assert scene.find("spectrum-status").text == f"Spectrum of row {y}, column {x}"
    assert scene.find("spectrum").is_displayed()
    result = xr.open_zarr(archive_output / "output" / "tiff.zarr")
    source = open_scene(str(archive_output / "source" / "tiff.tif"))["reflectance"].values
    good = result["good_band"].values
    scale = result.sizes["y"] // source.shape[1]
    high = np.array(pin["values"]["high"], dtype=float)
    low = np.array(pin["values"]["low"], dtype=float)
    bicubic = np.array(pin["values"]["bicubic"], dtype=float)
    np.testing.assert_allclose(high, result["reflectance"][:, y, x].values, atol=1e-7)
    np.testing.assert_allclose(low, source[:, y // scale, x // scale], atol=1e-7)
    whole = Window(0, source.shape[1], 0, source.shape[2])
    import torch

    plain = enlarge(np.nan_to_num(source), whole, scale, torch.device("cpu"))[:, y, x]
    np.testing.assert_allclose(bicubic, plain, atol=1e-6)
    assert not good.all()
    scene.run("document.getElementById('spectrum-values').open = true")
    cells = scene.find("spectrum-table").find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(cells) == len(good)
    assert sum("not a good band" in row.text for row in cells) == np.count_nonzero(~good)


def test_bicubic_of_a_whole_band_is_that_of_the_model(scene: Page, archive_output: Path) -> None:
    found = scene.driver.execute_async_script(
        "const done = arguments[0]; srReport.pixels.band(4).then(band => done([...band.bicubic]))"
    )
    source = open_scene(str(archive_output / "source" / "tiff.tif"))["reflectance"].values[[4]]
    import torch

    shape = source.shape[1:]
    scale = int((len(found) / np.prod(shape)) ** 0.5)
    whole = Window(0, shape[0], 0, shape[1])
    plain = enlarge(np.nan_to_num(source), whole, scale, torch.device("cpu"))[0]
    image = np.array(found, dtype=float).reshape(plain.shape)
    gaps = np.isnan(source[0]).repeat(scale, 0).repeat(scale, 1)
    assert gaps.any() and (np.isnan(image) == gaps).all()
    far = ~np.isnan(source[0])
    far[:12, :17] = False  # near the gap the two fill it differently
    far = far.repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_allclose(image[far], plain[far], atol=1e-6)


def test_a_pixel_is_named_by_keys_and_enter_reads_the_middle(scene: Page) -> None:
    for name, number in (("row", "31"), ("column", "42")):
        scene.find(name).send_keys(number)
    scene.find("column").send_keys(Keys.ENTER)
    said = "return document.getElementById('spectrum-status').textContent"
    scene.until(f"{said} === 'Spectrum of row 31, column 42'")
    scene.find("canvas").send_keys(Keys.ENTER)
    scene.until(f"{said}.startsWith('Spectrum') && srReport.spectra.pins.length === 2")
    scene.find("row").clear()
    scene.find("row").send_keys("99999")
    scene.find("row").send_keys(Keys.ENTER)
    scene.until(f"{said}.includes('outside')")
    scene.find("clear").click()
    assert not scene.find("spectrum").is_displayed()


def test_bands_composites_and_the_error_map(scene: Page) -> None:
    composite = scene.picture()
    scene.choose("view", "band")
    one = scene.picture()
    scene.choose("band", "7")
    other = scene.picture()
    scene.choose("view", "error")
    assert len({composite, one, other, scene.picture()}) == 4
    sides = [option.text for option in scene.find("left").find_elements(By.TAG_NAME, "option")]
    assert sides == ["Bicubic", "SR"]
    low, high = (part.text for part in scene.driver.find_elements(By.CSS_SELECTOR, ".scale > span"))
    assert float(low) == -float(high) < 0
    scene.choose("view", "composite")
    for name, value in (("red", "0"), ("left", "bicubic")):
        scene.choose(name, value)
    assert "same for both sides" in scene.find("legend").text


def test_the_spread_lies_around_the_result(page: Page, uncertain: Path) -> None:
    make_report(str(uncertain / "out"), str(uncertain / "page"))
    page.open(f"file://{uncertain}/page/scenes/tiff/index.html")
    page.find("canvas").send_keys(Keys.ENTER)
    page.until("return srReport.spectra.pins.length === 1")
    pin = page.run("return srReport.spectra.pins[0]")
    result = xr.open_zarr(uncertain / "out" / "tiff.zarr")
    expected = result["reflectance_spread"][:, pin["y"], pin["x"]].values
    spread = np.array(pin["values"]["spread"], dtype=float)
    np.testing.assert_allclose(spread, expected, atol=1e-5)
    legend = page.find("spectrum").text
    assert "SR + spread" in legend and "SR - spread" in legend
    page.run("document.getElementById('spectrum-values').open = true")
    heads = page.find("spectrum-table").find_elements(By.CSS_SELECTOR, "thead th")
    assert [head.text for head in heads] == ["band", "nm", "SR", "spread", "bicubic", "LR"]


def test_without_its_source_the_result_is_shown_alone(page: Page, report: str) -> None:
    page.open(f"{report}/scenes/store/index.html")
    assert "unreadable" in page.find("origin").text
    assert [page.find(side).text for side in ("left", "right")] == ["SR", "SR"]
    page.find("canvas").send_keys(Keys.ENTER)
    page.until("return srReport.spectra.pins.length === 1")
    assert page.run("return Object.keys(srReport.spectra.pins[0].values)") == ["high"]


def test_provenance_and_the_code_that_opens_the_scene(scene: Page, archive_output: Path) -> None:
    code = scene.driver.find_element(By.CSS_SELECTOR, "#open code").text
    opened: dict[str, Any] = {}
    exec(code, opened)  # what the page tells a user to run
    assert opened["scene"].sizes["band"] == 12
    record = scene.find("record").text
    assert "weights sha256" in record and str(archive_output / "source" / "tiff.tif") in record


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("place", ["index.html", "scenes/tiff/index.html"])
def test_pages_fit_and_are_accessible(
    page: Page, report: str, place: str, size: tuple[int, int]
) -> None:
    page.open(f"{report}/{place}", size)
    if "scenes/" in place:
        page.find("canvas").send_keys(Keys.ENTER)
        page.until("return srReport.spectra.pins.length === 1")
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    if not AXE.exists():
        pytest.skip("no axe-core: npm ci --ignore-scripts in pipeline/report/web")
    assert page.serious_violations() == []


def test_every_control_is_reached_by_the_tab_key(scene: Page) -> None:
    scene.run("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(40):
        webdriver.ActionChains(scene.driver).send_keys(Keys.TAB).perform()
        reached.append(scene.run("return document.activeElement.id"))
    controls = ["view", "red", "green", "blue", "left", "divider", "right", "canvas", "zoom-in",
                "zoom-out", "native", "fit", "row", "column"]  # fmt: skip
    assert [name for name in reached if name in controls][: len(controls)] == controls


def test_pages_of_a_web_server_work_too(page: Page, report: str) -> None:
    folder = report.removeprefix("file://")
    handler: Callable[..., Any] = partial(_Silent, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.open(f"http://127.0.0.1:{server.server_port}/scenes/tiff/index.html")
        asked = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
        server.shutdown()
    assert all(name.startswith("http://127.0.0.1") for name in asked)
    assert sum("/bands/" in name for name in asked) == 3
    assert not any("/spectra/" in name for name in asked)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
