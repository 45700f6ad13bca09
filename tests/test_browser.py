"""The page of a tiny run in headless Chromium: it draws without errors, and every control changes what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import covering

from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.report import write_page
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.stages import Boundary

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
POLL = 0.02  # seconds between two looks at the page
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
    more = [
        "mask.schedule.steps=30",
        "callbacks.snapshot_every=2",
        "mask.init=equal",
        "mask.init_from=null",
        "sparsity.target=0.4",
    ]
    call(*settings(local, out, "logger=none", "callbacks.checkpoint_every=0", "explain.examples=3", *more))
    evolution = json.loads((out / "evolution.json").read_text())
    start, middle, end = (asdict(Boundary(at, at, at)) for at in (0, 10, 30))
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
    WebDriverWait(browser, 20, POLL).until(lambda b: b.execute_script("return document.body.dataset.drawn") == "true")


def until(browser: webdriver.Chrome, script: str) -> None:
    """Wait for an expression to become true."""
    WebDriverWait(browser, 10, POLL).until(lambda b: b.execute_script(f"return {script}"))


def data(browser: webdriver.Chrome, name: str) -> list:
    """What a figure draws now."""
    return json.loads(browser.execute_script(f"return JSON.stringify(document.getElementById('plot-{name}').data)"))


def errors(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def text(browser: webdriver.Chrome, id_: str) -> str:
    return browser.find_element(By.ID, id_).text


@pytest.mark.long
def test_the_page_draws_without_a_word_on_the_console(page: webdriver.Chrome) -> None:
    for name in ("timeline", "kept", "flow", "training"):
        assert page.find_elements(By.CSS_SELECTOR, f"#plot-{name} svg.main-svg"), name
    assert page.find_elements(By.CSS_SELECTOR, "#graph canvas") and lines(page) > 10
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
    return browser.execute_script("return cy.edges().not('.link').length")


def draw(browser: webdriver.Chrome, script: str) -> None:
    """Do something, and wait until the graph has been drawn anew within 200 ms."""
    browser.execute_script("graph.milliseconds = null")
    browser.execute_script(script)
    until(browser, "graph.milliseconds !== null")
    assert browser.execute_script("return graph.milliseconds") < 200


def click_node(browser: webdriver.Chrome, name: str) -> None:
    """Click where a node is drawn."""
    box = browser.find_element(By.ID, "graph")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    x, y, width, height = browser.execute_script(
        "const at = cy.getElementById(arguments[0]).renderedPosition(), box = cy.container();"
        "return [at.x, at.y, box.clientWidth, box.clientHeight]",
        name,
    )
    at = round(x - width / 2), round(y - height / 2)
    webdriver.ActionChains(browser).move_to_element_with_offset(box, *at).click().perform()


def test_edges_are_filtered_by_number_and_kind(page: webdriver.Chrome) -> None:
    strength = page.find_element(By.ID, "strength")
    strength.send_keys(Keys.HOME)
    until(page, "document.getElementById('strength-text').textContent.startsWith('1 of')")
    assert lines(page) == 1
    strength.send_keys(Keys.END)
    until(page, "document.getElementById('strength-text').textContent.startsWith(graph.n_edges + ' of')")
    everything = lines(page)
    assert everything == page.execute_script("return graph.n_edges") > 1
    into = page.execute_script("return cy.edges('[kind = \"logits\"]').length")
    page.find_element(By.CSS_SELECTOR, "[data-kind=logits]").click()
    until(page, "cy.edges('[kind = \"logits\"]').length === 0")
    assert lines(page) == everything - into and into > 0 and errors(page) == []


def test_a_click_on_a_node_highlights_its_paths_to_the_logits(page: webdriver.Chrome) -> None:
    click_node(page, "input")
    until(page, "document.getElementById('paths-text').textContent.includes('from input to the logits')")
    # Every edge of the circuit lies on a path from the input to the logits.
    assert text(page, "paths-text").startswith(f"{lines(page)} of the edges shown")
    assert text(page, "details").startswith("input")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    until(page, "view.node === '' && document.getElementById('details').hidden")
    click_node(page, "m1")
    until(page, "document.getElementById('paths-text').textContent.includes('from m1 to the logits')")
    assert page.execute_script("return cy.edges('.faded').length") > 0 and errors(page) == []


def test_nodes_are_found_pinned_and_their_neighbours_drawn(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "strength").send_keys(Keys.HOME)
    until(page, "cy.edges().not('.link').length === 1")
    find = page.find_element(By.ID, "search")
    find.send_keys("a0")
    until(page, "cy.nodes('.found').every(node => node.id().startsWith('a0'))")
    find.send_keys(".h1")
    until(page, "view.node === 'a0.h1' && cy.getElementById('a0.h1').hasClass('chosen')")
    page.find_element(By.ID, "pin").click()
    until(page, "cy.getElementById('a0.h1').hasClass('pinned')")
    before = lines(page)
    assert before > 1
    page.find_element(By.ID, "expand").click()
    until(page, f"cy.edges().not('.link').length < {before}")
    page.find_element(By.ID, "expand").click()
    until(page, f"cy.edges().not('.link').length === {before}")
    page.find_element(By.ID, "clear").click()
    until(page, "view.pins.length === 0 && cy.edges().not('.link').length === 1")
    assert errors(page) == []


@pytest.mark.long
def test_groups_are_made_saved_opened_and_restored_from_the_address(
    page: webdriver.Chrome, folder: Path, tmp_path: Path
) -> None:
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    draw(page, "view.n = graph.n_edges; document.getElementById('strength').dispatchEvent(new Event('input'))")
    for name in ("a0.h0", "a0.h1"):
        find = page.find_element(By.ID, "search")
        find.clear()
        find.send_keys(name)
        until(page, f"view.node === '{name}'")
        page.find_element(By.ID, "pin").click()
        until(page, f"view.pins.includes('{name}')")
    page.find_element(By.ID, "group-name").send_keys("first heads")
    page.find_element(By.ID, "group").click()
    until(page, "cy.getElementById('group:first heads').length === 1 && cy.getElementById('a0.h0').length === 0")
    joined, address = lines(page), page.current_url
    whole = page.execute_script("return cy.edges().map(edge => edge.data('count')).reduce((a, b) => a + b)")
    assert joined < whole and "groups" in address
    page.find_element(By.CSS_SELECTOR, "#grouped button").click()
    until(page, "cy.getElementById('a0.h0').parent().id() === 'open:first heads'")
    page.find_element(By.ID, "save-groups").click()
    WebDriverWait(page, 10, POLL).until(lambda _: (tmp_path / "groups.json").exists())
    assert json.loads((tmp_path / "groups.json").read_text()) == {"first heads": ["a0.h0", "a0.h1"]}
    page.get("about:blank")
    page.get(address)
    until(page, "document.body.dataset.drawn === 'true' && cy.getElementById('group:first heads').length === 1")
    assert lines(page) == joined and errors(page) == []
    visit(page, apply_groups(folder, tmp_path))
    assert page.execute_script("return cy.getElementById('group:first heads').length") == 1 and errors(page) == []


def apply_groups(folder: Path, groups: Path) -> Path:
    """The page of a copy of the run, with the groups that were saved."""
    shutil.copytree(folder, groups / "run")
    call(f"run={groups}/run", f"groups={groups}/groups.json", f"hydra.run.dir={groups}/out", verb="report")
    return groups / "run" / "report.html"


@pytest.mark.long
def test_two_circuits_are_told_apart_in_one_graph(browser: webdriver.Chrome, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    first = Circuit.load(folder)
    order = torch.randperm(first.kept.numel(), generator=torch.Generator().manual_seed(0)).float()[None]
    scores = EdgeScores(first.graph, order, "other")
    other = Circuit.cut(scores, first.n_edges)
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    visit(browser, write_page(tmp_path / "run", [tmp_path / "other"]))
    draw(browser, "view.n = 1000; document.getElementById('layer').dispatchEvent(new Event('change'))")
    one, two = (set(circuit.edges()) for circuit in (first, other))
    sides = {"both": one & two, "a": one - two, "b": two - one}
    found = browser.execute_script(
        "return cy.edges().not('.link').map(edge => [edge.data('side'), edge.data('source'), edge.data('target')])"
    )
    for side, edges in sides.items():
        assert sum(one[0] == side for one in found) == len(edges) > 0, side
    browser.find_element(By.CSS_SELECTOR, "[data-side=a]").click()
    until(browser, "cy.edges('[side = \"a\"]').length === 0 && cy.edges('[side = \"b\"]').length > 0")
    browser.execute_script(
        "const at = document.getElementById('layer'); at.value = ''; at.dispatchEvent(new Event('change'))"
    )
    until(browser, f"cy.edges().not('.link').length === {len(one)}")
    assert errors(browser) == []


@pytest.mark.long
def test_a_thousand_edges_are_drawn_within_the_time(browser: webdriver.Chrome, tmp_path: Path, folder: Path) -> None:
    graph = Graph(30, 9, 3)
    values = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(0))
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("circuit.*", "expl*", "evol*"))
    Circuit.cut(EdgeScores(graph, values, "random"), 3500).save(tmp_path / "run")
    visit(browser, write_page(tmp_path / "run"))
    strength = "const at = document.getElementById('strength'); at.value = 100; at.dispatchEvent(new Event('input'))"
    draw(browser, strength)
    assert lines(browser) == 1000
    find = "at.value = graph.nodes[graph.source[5]]; at.dispatchEvent(new Event('input'))"
    draw(browser, f"const at = document.getElementById('search'); {find}")
    draw(browser, "document.getElementById('pin').click()")
    assert errors(browser) == []


def test_buttons_save_the_circuit_and_the_data(page: webdriver.Chrome, folder: Path, tmp_path: Path) -> None:
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("circuit.json", "data.json"):
        page.find_element(By.CSS_SELECTOR, f"[data-download='{name}']").click()
        WebDriverWait(page, 10, POLL).until(lambda _, name=name: (tmp_path / name).exists())
    assert json.loads((tmp_path / "circuit.json").read_text()) == json.loads((folder / "circuit.json").read_text())
    saved = json.loads((tmp_path / "data.json").read_text())
    for part in ("result", "history", "evolution"):
        assert saved[part] == json.loads((folder / f"{part}.json").read_text())
    assert errors(page) == []


@pytest.mark.parametrize("dark,width", covering([False, True], [1300, 390]))
def test_the_page_fits_phone_and_desk_in_light_and_dark(
    browser: webdriver.Chrome, folder: Path, dark: bool, width: int
) -> None:
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    phone = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visit(browser, folder / "report.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        ink = browser.execute_script("return document.getElementById('plot-timeline').layout.font.color")
        assert ink == ("#e6e9ed" if dark else "#1b1f24") and errors(browser) == []
        label = browser.execute_script("return cy.nodes()[0].style('color')")
        assert label == ("rgb(230,233,237)" if dark else "rgb(27,31,36)")
        browser.find_element(By.CSS_SELECTOR, "[data-pattern]").click()
        assert browser.find_elements(By.CSS_SELECTOR, "#pattern canvas") and errors(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


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


@pytest.mark.long
@pytest.mark.parametrize("name", ["runs", "compare"])
def test_pages_that_compare_fit_a_phone(browser: webdriver.Chrome, comparisons: dict[str, Path], name: str) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get_log("browser")
        browser.get(comparisons[name].as_uri())
        drawn = "return document.querySelectorAll('.main-svg').length"
        WebDriverWait(browser, 20, POLL).until(lambda b: b.execute_script(drawn) > 0)
        wide = """return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, table')
            && e.getBoundingClientRect().right > 391).map(e => e.tagName + '.' + e.className)"""
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert browser.execute_script(wide) == [] and errors(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
