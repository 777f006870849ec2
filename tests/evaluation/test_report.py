"""The report's files, and the page in a real browser."""

import dataclasses
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.table import front, load_map

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def results(tiny_run, tmp_path_factory):
    """The folder of an evaluation, and the files written."""
    folder = tmp_path_factory.mktemp("results")
    config = GridConfig(steps=(1, 2), guidance=(1.0, 2.0), count=100, batch_size=50)
    return folder, evaluate(tiny_run, config, folder, command="python scripts/evaluate.py <run>")


def test_evaluation_writes_a_table_its_data_two_pictures_and_a_page(results):
    _, (grid, markdown, data, curves, page) = results
    rows = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 8 + 2
    document = json.loads(data.read_text())
    assert [document[name] for name in ("features", "count", "step")] == ["pixels", 100, 6]
    cells = [(c["depth"], c["guidance"], c["time"]["steps"]) for c in document["cells"]]
    assert cells == [(d, w, t) for d in (2, 4) for w in (1, 2) for t in (1, 2)]
    for cell in document["cells"]:
        assert cell["evaluations"] == cell["time"]["steps"] * (1 if cell["guidance"] == 1 else 2)
        assert cell["memory"] > 1000
        assert cell["quality"]["frechet_error"] > 0
    for picture in (grid, curves):
        assert min(Image.open(picture).size) > 300
    assert page.exists()


def test_a_second_evaluation_measures_what_is_new_and_no_more(
    tiny_run, results, tmp_path, monkeypatch
):
    folder = tmp_path / "copy"
    shutil.copytree(results[0], folder)
    config = GridConfig(steps=(1,), depths=(2,), count=100, batch_size=50)
    before, known = load_map(folder), (folder / "rows.jsonl").read_text()
    with monkeypatch.context() as patch:
        nothing = lambda *_, **__: pytest.fail("this was measured before")
        patch.setattr("odelt_eqx.evaluation.measure.generate", nothing)
        evaluate(tiny_run, config, folder)
    assert (folder / "rows.jsonl").read_text() == known
    after = load_map(folder)
    assert after.cells == before.cells[:1]
    assert after.bounds == before.bounds
    evaluate(tiny_run, dataclasses.replace(config, seed=1, likelihood=1), folder)
    rows = (folder / "rows.jsonl").read_text()
    assert rows.startswith(known)
    assert len(rows[len(known) :].splitlines()) == 3  # a cell, its bounds, its bits
    (bits,) = load_map(folder).likelihood
    assert bits.bits > 0 < bits.error
    assert "| 2 | 1 | " in (folder / "table.md").read_text().split("bits per dimension")[1]


def test_rows_that_are_none_are_one_line(tiny_run, tmp_path):
    (tmp_path / "rows.jsonl").write_text("no rows\n")
    with pytest.raises(odelt.InputError, match="holds no measured rows"):
        evaluate(tiny_run, GridConfig(steps=(1,), count=100, batch_size=50), tmp_path)


def test_a_depth_the_run_has_not_is_refused_before_anything_is_measured(tiny_run):
    with pytest.raises(odelt.InputError, match="depth must be one of 2, 4"):
        evaluate(tiny_run, GridConfig(depths=(3,)))


def test_the_page_holds_all_it_needs_and_nothing_else_is_executed(results):
    text = (results[0] / "report.html").read_text()
    assert "python scripts/evaluate.py &lt;run&gt;" in text
    assert not re.search(r"(src|href)=[\"']?http", text)
    data = json.loads(re.search(r'application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["cells"]) == 8
    assert all(cell["sheet"].startswith("data:image/png;base64,") for cell in data["cells"])
    for cell in load_map(results[0]).cells:
        assert Image.open(results[0] / cell.samples).size == (91, 37)  # ten by four digits


def test_the_front_is_what_nothing_beats(results):
    cells = load_map(results[0]).cells
    best = front(cells)
    for cell in cells:
        beaten = any(
            other.milliseconds <= cell.milliseconds
            and other.quality.frechet <= cell.quality.frechet
            and other != cell
            for other in cells
        )
        assert (cell in best) != beaten


def browse(page, words="", script=""):
    """Return what a browser makes of a page: the document after its scripts ran."""
    path = page.with_name("browsed.html")
    text = page.read_text()
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [*command, f"file://{path}{words}"], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_dials_choose_the_pictures_in_a_browser(results):
    page = results[0] / "report.html"
    data = json.loads(re.search(r'application/json">(.*?)</script>', page.read_text(), re.S)[1])
    shown = lambda text: re.search(r'<img id="sheet"[^>]* src="([^"]*)"', text)[1]
    sheet = {(c["plan"], c["depth"], c["guidance"]): c["sheet"] for c in data["cells"]}

    linked = browse(page, "#time=1&depth=4&guidance=2")
    assert shown(linked) == sheet["2 time steps", 4, 2]
    assert linked.count('class="dot') == len(data["cells"]) == linked.count('class="strip')
    assert linked.count('class="strip other') == len(data["cells"]) / 2  # of the other guidance
    turned = browse(
        page,
        "#time=1&depth=4&guidance=2",
        "const depth = document.getElementById('depth'); depth.value = 0;"
        "depth.dispatchEvent(new Event('input'));",
    )
    assert shown(turned) == sheet["2 time steps", 2, 2]
    assert "--depth 2 --guidance 2 time:fixed-steps --time.steps 2" in turned
    clicked = browse(
        page, script="document.querySelector('.strip').dispatchEvent(new MouseEvent('click'));"
    )
    assert shown(clicked) == sheet["1 time step", 2, 1]
