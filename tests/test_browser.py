"""The page of a tiny run in headless Chromium: it draws without errors, and every control changes what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from cli import call, settings

from circuitlit.report import write_page
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.stages import Boundary

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")


def open_browser(downloads: Path) -> webdriver.Chrome:
    """Chromium without a window, its console recorded, saving into a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1200,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))


@pytest.fixture(scope="module")
def folder(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many snapshots whose masks start equal, and two stages put on its page."""
    out = tmp_path_factory.mktemp("browser") / "run"
    more = ["mask.schedule.steps=60", "callbacks.snapshot_every=2", "mask.init=equal", "mask.init_from=null"]
    call(*settings(local, out, "logger=none", "callbacks.checkpoint_every=0", *more))
    evolution = json.loads((out / "evolution.json").read_text())
    start, middle, end = (asdict(Boundary(at, at, at)) for at in (0, 20, 60))
    middle |= {"p": 0.005, "draws": 199, "status": "beyond chance"}
    ends = {"initialization": (start, middle), "rapid_learning": (middle, end)}
    stages = [
        {
            "name": name,
            "observed": name in ends,
            **dict(zip(("start", "end"), ends.get(name, (None, None)), strict=True)),
        }
        for name in NAMES
    ]
    evolution["stages"] |= {"verdict": "learning", "stages": stages, "change_points": [middle]}
    (out / "evolution.json").write_text(json.dumps(evolution))
    write_page(out)
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = open_browser(tmp_path_factory.mktemp("downloads"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, folder: Path) -> webdriver.Chrome:
    visit(browser, folder / "report.html")
    return browser


def visit(browser: webdriver.Chrome, path: Path) -> None:
    """Open a page and wait until its figures are drawn."""
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.body.dataset.drawn") == "true")


def until(browser: webdriver.Chrome, script: str) -> None:
    """Wait for an expression to become true."""
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(f"return {script}"))


def data(browser: webdriver.Chrome, name: str) -> list:
    """What a figure draws now."""
    return json.loads(browser.execute_script(f"return JSON.stringify(document.getElementById('plot-{name}').data)"))


def errors(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def text(browser: webdriver.Chrome, id_: str) -> str:
    return browser.find_element(By.ID, id_).text


def test_the_page_draws_without_a_word_on_the_console(page: webdriver.Chrome) -> None:
    for name in ("circuit", "timeline", "kept", "flow", "layers", "training"):
        assert page.find_elements(By.CSS_SELECTOR, f"#plot-{name} svg.main-svg"), name
    assert errors(page) == []


def test_the_slider_and_the_stages_lead_to_their_snapshots(page: webdriver.Chrome, folder: Path) -> None:
    evolution = json.loads((folder / "evolution.json").read_text())
    slider = page.find_element(By.ID, "snapshot")
    last = len(evolution["steps"]) - 1
    assert int(slider.get_attribute("value")) == last
    for keys, at in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, last)):
        slider.send_keys(keys)
        until(
            page, f"document.getElementById('snapshot-text').textContent.startsWith('step {evolution['steps'][at]},')"
        )
        bars = {bar["meta"]: bar["y"] for bar in data(page, "kept")}
        assert bars == {
            **{k: evolution["kept"][k][at] for k in "q k v mlp".split()},
            "logits": [evolution["kept"]["logits"][at]],
        }
        cells = data(page, "flow")[0]["z"]
        assert sum(cell or 0 for row in cells for cell in row) == evolution["count"]
    observed = [stage for stage in evolution["stages"]["stages"] if stage["observed"]]
    bands = page.find_elements(By.CSS_SELECTOR, "[data-snapshot]")
    assert len(bands) == len(observed) >= 2
    for band, stage in zip(bands, observed, strict=True):
        band.click()
        step = stage["start"]["step"]
        until(page, f"document.getElementById('snapshot-text').textContent.startsWith('step {step},')")
        shapes = page.execute_script("return document.getElementById('plot-timeline').layout.shapes")
        assert [shape["x0"] for shape in shapes if shape.get("name") == "cursor"] == [step]
        assert band.get_attribute("aria-pressed") == "true"
    assert errors(page) == []


def test_play_goes_to_the_end_and_can_be_paused(page: webdriver.Chrome) -> None:
    play = page.find_element(By.ID, "play")
    before = data(page, "kept")
    play.send_keys(Keys.ENTER)
    until(page, "+document.getElementById('snapshot').value > 1")
    play.click()
    assert play.text == "Play"
    paused = page.execute_script("return document.getElementById('snapshot').value")
    assert data(page, "kept") != before
    page.execute_script("document.getElementById('snapshot').value = document.getElementById('snapshot').max - 2")
    play.click()
    until(page, "document.getElementById('snapshot').value === document.getElementById('snapshot').max")
    until(page, "document.getElementById('play').textContent === 'Play'")
    assert int(paused) > 1 and errors(page) == []


def lines(browser: webdriver.Chrome) -> int:
    """Edges that the graph draws."""
    return sum(trace["x"].count(None) for trace in data(browser, "circuit") if trace.get("meta"))


def test_edges_are_filtered_by_strength_and_kind(page: webdriver.Chrome) -> None:
    everything = lines(page)
    strength = page.find_element(By.ID, "strength")
    strength.send_keys(Keys.HOME)
    until(page, "document.getElementById('strength-text').textContent.startsWith('1 of')")
    assert lines(page) == 1 < everything
    strength.send_keys(Keys.END)
    until(page, f"document.getElementById('strength-text').textContent.startsWith('{everything} of')")
    assert lines(page) == everything
    into = sum(t["x"].count(None) for t in data(page, "circuit") if t.get("meta") == "logits")
    page.find_element(By.CSS_SELECTOR, "[data-kind=logits]").click()
    until(page, "!document.getElementById('plot-circuit').data.some(trace => trace.meta === 'logits')")
    assert lines(page) == everything - into and into > 0 and errors(page) == []


def test_a_click_on_a_node_highlights_its_paths_to_the_logits(page: webdriver.Chrome) -> None:
    nodes = next(trace for trace in data(page, "circuit") if trace["name"] == "nodes")
    at = next(i for i, note in enumerate(nodes["text"]) if note.startswith("<b>input<"))
    points = page.find_elements(By.CSS_SELECTOR, "#plot-circuit .scatterlayer .trace:last-child .points path")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[at])
    webdriver.ActionChains(page).move_to_element(points[at]).click().perform()
    until(page, "document.getElementById('paths-text').textContent.includes('from input to the logits')")
    # Every edge of the circuit lies on a path from the input to the logits.
    assert text(page, "paths-text").startswith(f"{lines(page)} of the edges shown")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    until(page, "document.getElementById('node').value === ''")
    choice = Select(page.find_element(By.ID, "node"))
    choice.select_by_visible_text(choice.options[-1].text)
    until(page, "document.getElementById('paths-text').textContent.includes('to the logits')")
    dim = [trace for trace in data(page, "circuit") if trace.get("opacity") == 0.06]
    assert dim and errors(page) == []


def test_buttons_save_the_circuit_and_the_data(page: webdriver.Chrome, folder: Path, tmp_path: Path) -> None:
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("circuit.json", "data.json"):
        page.find_element(By.CSS_SELECTOR, f"[data-download='{name}']").click()
        WebDriverWait(page, 10).until(lambda _, name=name: (tmp_path / name).exists())
    assert json.loads((tmp_path / "circuit.json").read_text()) == json.loads((folder / "circuit.json").read_text())
    saved = json.loads((tmp_path / "data.json").read_text())
    for part in ("result", "history", "evolution"):
        assert saved[part] == json.loads((folder / f"{part}.json").read_text())
    assert errors(page) == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_in_light_and_dark(page: webdriver.Chrome, folder: Path, dark: bool) -> None:
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visit(page, folder / "report.html")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        ink = page.execute_script("return document.getElementById('plot-timeline').layout.font.color")
        assert ink == ("#e6e9ed" if dark else "#1b1f24") and errors(page) == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture(scope="module")
def comparisons(folder: Path, local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages that compare: two runs of a sweep, and a tuned model with its base."""
    out = tmp_path_factory.mktemp("comparisons")
    shutil.copytree(folder, out / "sweep" / "0")
    shutil.copytree(folder, out / "sweep" / "1")
    config = out / "sweep" / "1" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 123456789", 1).replace("lr: 0.3", "lr: 0.31"))
    call(f"runs={out}/sweep", f"hydra.run.dir={out}/report", verb="report")
    more = ["logger=none", "sparsity.target=0.6", "method.score.steps=2", f"tuned={local}/model"]
    call(*settings(local, out / "compare", *more), verb="compare")
    return {"runs": out / "report" / "runs.html", "compare": out / "compare" / "compare.html"}


@pytest.mark.parametrize("name", ["runs", "compare"])
def test_pages_that_compare_fit_a_phone(browser: webdriver.Chrome, comparisons: dict[str, Path], name: str) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get_log("browser")
        browser.get(comparisons[name].as_uri())
        drawn = "return document.querySelectorAll('.main-svg').length"
        WebDriverWait(browser, 20).until(lambda b: b.execute_script(drawn) > 0)
        wide = """return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, table')
            && e.getBoundingClientRect().right > 391).map(e => e.tagName + '.' + e.className)"""
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert browser.execute_script(wide) == [] and errors(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
