"""The files of an evaluation, and the page in a real browser."""

import dataclasses
import json
import re
import shutil
import subprocess
from fnmatch import fnmatch

import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.commands import convert
from odelt_eqx.config import save_config
from odelt_eqx.data import Folder, HeldOut
from odelt_eqx.data.source import ArraySource
from odelt_eqx.evaluation.features import Pixels
from odelt_eqx.evaluation.figures import save_grid_samples
from odelt_eqx.evaluation.grid import GridConfig, load_grid
from odelt_eqx.evaluation.measure import Meter, _most_steps, lock_results
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.report import describe_run, evaluate, open_judge
from odelt_eqx.evaluation.samples import SampleRequest, save_samples
from odelt_eqx.evaluation.search import SearchConfig, search
from odelt_eqx.evaluation.validation import validate
from odelt_eqx.files import write_json
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.run_folder import WRITTEN
from odelt_eqx.training.train import train
from tests.conftest import TINY, TINY_RUN
from tests.data.makers import write_images
from tests.evaluation import makers

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*samples do not determine")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CONFIG = GridConfig(
    steps=(1, 2), guidance=(1.0, 2.0), guidance_intervals=((0.0, 0.4),), count=80, batch_size=40
)


@pytest.fixture(scope="module")
def results(tiny_run, tmp_path_factory):
    """The folder of an evaluation, and the files written."""
    folder = tmp_path_factory.mktemp("results")
    return folder, evaluate(tiny_run, CONFIG, folder, command="python scripts/evaluate.py <run>")


def page_data(page):
    text = page.read_text()
    return json.loads(re.search(r'application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_evaluation_writes_a_grid_two_figures_and_a_page(results):
    folder, (figure, markdown, data, curves, page) = results
    for path in folder.iterdir():  # it goes with its run
        assert any(fnmatch(path.name, name) for name in WRITTEN), path
    rows = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 8 + 2
    document = json.loads(data.read_text())
    assert [document[name] for name in ("features", "count", "step")] == ["pixels", 80, 6]
    configs = [row["config"] for row in document["rows"]]
    settings = [(c["depth"], c["guidance"], c["time"]["steps"]) for c in configs]
    assert settings == [(d, w, t) for d in (2, 4) for w in (1, 2) for t in (1, 2)]
    for row in document["rows"]:
        guided = row["config"]["guidance"] == 2  # at t = 0, not at t = 0.5
        assert row["evaluations"] == guided + row["config"]["time"]["steps"]
        assert row["memory"] > 1000
        assert row["quality"]["frechet_error"] > 0
    assert "| Fréchet distance (pixels), 80 samples to 360 |" in markdown.read_text()
    for image in (figure, curves):
        assert max(Image.open(image).size) > 300
    assert page.exists()


def test_a_second_evaluation_measures_only_what_is_new(tiny_run, results, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(results[0], folder)
    config = dataclasses.replace(CONFIG, steps=(1,), depths=(2,), guidance=(1.0,))
    before, known = load_grid(folder), (folder / "rows.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "_measure_row", lambda *_: pytest.fail("this was measured before"))
        evaluate(tiny_run, config, folder)
    assert (folder / "rows.jsonl").read_text() == known
    after = load_grid(folder)
    assert after.rows == before.rows[:1]
    assert after.bounds == before.bounds
    evaluate(tiny_run, dataclasses.replace(config, seed=1, likelihood=1), folder)
    rows = (folder / "rows.jsonl").read_text()
    assert rows.startswith(known)
    assert len(rows[len(known) :].splitlines()) == 3  # a row, its bounds, its bits
    (bits,) = load_grid(folder).likelihood
    assert bits.bits > 0 < bits.error
    assert "| 2 | 1 | " in (folder / "grid.md").read_text().split("bits per dimension")[1]


def test_images_that_are_no_squares_are_trained_sampled_and_shown(tmp_path):
    data = Folder(write_images(tmp_path / "images", count=60), (8, 12), 1, held_out=HeldOut(0.3))
    model = dataclasses.replace(TINY, image_size=(8, 12), patch_size=4, num_classes=2)
    config = dataclasses.replace(TINY_RUN, model=model, data=data, steps=2)
    run = tmp_path / "run"
    train(config, run)
    paths = evaluate(run, GridConfig(steps=(1,), count=40, batch_size=20))
    data = page_data(paths[-1])
    assert data["shape"] == [8, 12, 1]
    assert data["strip"] == [10 * 13 + 1, 9]
    with Image.open(run / "samples" / data["rows"][0]["samples"]) as sheet:
        assert sheet.size == (10 * 13 + 1, 4 * 9 + 1)
    paths, _ = save_samples(run, SampleRequest(count=4, format="png"))
    assert Image.open(next(paths[1].rglob("*.png"))).size == (12, 8)


def test_data_with_other_classes_than_a_run_began_with_are_not_measured(tiny_run, tmp_path):
    """Where only the examples have changed, a note says so."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    known = json.loads((run / "data.json").read_text())
    names = [*known["class_names"][:9], "ten"]
    write_json(run / "data.json", known | {"class_names": names})
    for measure in (
        lambda: evaluate(run, CONFIG),
        lambda: search(run, SearchConfig(GridConfig(count=20))),
        lambda: validate(run),
    ):
        with pytest.raises(odelt.InputError, match="other classes: '9' is new, 'ten' is gone"):
            measure()


def test_classes_of_a_run_that_learned_none_may_change(checkerboard, tmp_path, capsys):
    run = shutil.copytree(checkerboard, tmp_path / "run")
    known = json.loads((run / "data.json").read_text())
    write_json(run / "data.json", known | {"class_names": ["cat", "dog"]})
    open_judge(run, GridConfig(), Pixels())
    assert "was begun with other training examples" in capsys.readouterr().err


def test_a_note_says_that_the_training_examples_have_changed(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert open_judge(run, CONFIG, Pixels()).classes == 10
    assert not capsys.readouterr().err
    known = json.loads((run / "data.json").read_text())
    write_json(run / "data.json", known | {"count": known["count"] - 1})
    open_judge(run, CONFIG, Pixels())
    assert f"{known['count'] - 1:,} of them, now {known['count']:,}" in capsys.readouterr().err


def test_little_time_leaves_out_the_largest_numbers_of_steps(tiny_run, tmp_path, monkeypatch):
    """And says what measures them, which then measures nothing twice.

    How the run samples by itself is one of them.
    """
    config, run = GridConfig(steps=(2, 1, 4), count=20, batch_size=20), tmp_path / "run"
    shutil.copytree(tiny_run, run)
    own = odelt.SampleConfig(time=odelt.FixedSteps(steps=8), depth_guidance=0.5)
    save_config(dataclasses.replace(TINY_RUN, sample=own), run / "config.json")
    with pytest.warns(UserWarning, match=r"over 0 s: 2, 4, 8 time steps; evaluate\.py RUN meas"):
        evaluate(run, config, tmp_path, seconds=0.0, command="evaluate.py RUN")
    rows = load_grid(tmp_path).rows
    assert [(row.depth, row.config.time.steps) for row in rows] == [(2, 1), (4, 1)]
    measured = []
    whole = Meter._measure_row
    count = lambda self, config, *rest: measured.append(config) or whole(self, config, *rest)
    monkeypatch.setattr(Meter, "_measure_row", count)
    evaluate(run, config, tmp_path, seconds=1e6)
    assert [(config.depth, config.time.steps) for config in measured] == [
        *((d, s) for d in (2, 4) for s in (2, 4)),
        (4, 8),
    ]
    assert len(load_grid(tmp_path).rows) == 7


def test_the_time_of_a_grid_is_told_by_its_first_rows():
    """Rows of 1 step take 1 s: those of 2 and 4 take 6 s more, those of 16 another 16 s."""
    most = lambda seconds: _most_steps({16: 16.0, 1: 1.0, 2: 2.0, 4: 4.0}, float(seconds))
    assert [most(s) for s in (-5, 1, 2, 5.9, 6, 21, 22)] == [1, 1, 2, 2, 4, 4, 16]


@pytest.mark.parametrize("text", ["no rows\n", '{"a": 1}\n'])
def test_a_file_without_rows_is_one_line(tiny_run, tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(odelt.InputError, match="holds no measured rows"):
        evaluate(tiny_run, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GridConfig(depths=(3,)), "depth must be one of 2, 4"),
        (GridConfig(depth_guidance=(1.0,), guide_depths=(4,)), "depths 2, 4 and guide_depths 4"),
    ],
)
def test_a_depth_the_run_lacks_is_refused_before_anything_is_measured(
    tiny_run, monkeypatch, config, message
):
    monkeypatch.setattr(Judge, "prepare", lambda _: pytest.fail("it is measured"))
    with pytest.raises(odelt.InputError, match=message):
        evaluate(tiny_run, config)


def test_a_folder_that_another_evaluation_writes_to_is_refused(tiny_run, tmp_path):
    with lock_results(tmp_path), pytest.raises(odelt.InputError, match="another process is meas"):
        evaluate(tiny_run, CONFIG, tmp_path)


def test_names_of_classes_that_are_no_text_are_escaped(tmp_path):
    """As a folder may be called in Latin-1; in a formula of matplotlib, `$` would be math."""
    names = ("caf\udce9", r"$\a$")
    source = ArraySource(np.zeros((8, 4, 4, 1), np.float32), np.arange(8) % 2, class_names=names)
    judge = Judge(Pixels().open((4, 4, 1)), source, source, classes=2)
    assert judge.class_names == (r"caf\udce9", r"$\a$")
    grid = load_grid(makers.write_grid(tmp_path, [makers.row()]))
    grid = dataclasses.replace(grid, shape=(4, 4, 1), class_names=judge.class_names)
    save_grid_samples(grid, judge, tmp_path)
    assert (tmp_path / "grid.png").is_file()
    write_json(tmp_path / "data.json", to_dict(source.contents))
    assert describe_run(tmp_path) == "## Classes\n\n- 0: caf\\udce9\n- 1: $\\a$\n\n"


@pytest.mark.parametrize("options", [[], ["--depth", "2"], ["--average-width", "0.2"]], ids=str)
def test_a_published_grid_is_that_of_the_weights(tiny_run, tmp_path, monkeypatch, options):
    """Those of a part of the network, or of another average, were not measured."""
    cards, run = [], tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "grid.md").write_text("| depth |\n")
    monkeypatch.setattr("odelt_eqx.commands.convert.convert", lambda *args: cards.append(args[6]))
    convert.run([str(run), "hub:someone/digits", *options])
    (card,) = cards
    assert "## Classes" in card
    assert ("## Measured" in card) == (not options)


def test_the_page_needs_no_other_file_and_executes_nothing_else(results):
    text = (results[0] / "report.html").read_text()
    assert "python scripts/evaluate.py &lt;run&gt;" in text
    assert not re.search(r"(src|href)=[\"']?http", text)
    data = page_data(results[0] / "report.html")
    assert len(data["rows"]) == 8
    assert all(row["sheet"].startswith("data:image/png;base64,") for row in data["rows"])
    command = data["rows"][3]["command"]
    options = " --depth 2 --guidance 2.0 --guidance-interval 0.0 0.4 time:fixed-steps"
    options += " --time.steps 2"
    assert command.endswith(options)
    for row in load_grid(results[0]).rows:
        assert Image.open(results[0] / "samples" / row.samples).size == (91, 37)  # 10 x 4 digits


def test_no_row_beats_those_of_the_front(results):
    grid = load_grid(results[0])
    for row in grid.rows:
        beaten = any(
            other.milliseconds <= row.milliseconds
            and other.quality.frechet <= row.quality.frechet
            and other is not row
            for other in grid.rows
        )
        assert (row in grid.front) != beaten


def test_a_run_on_vectors_is_evaluated(moons, tmp_path):
    config = GridConfig(steps=(1, 2), depths=(2,), count=40, batch_size=20, likelihood=1)
    paths = evaluate(moons, config, tmp_path)
    names = [*("grid.png", "grid.md", "grid.json", "curves.png", "report.html")]
    assert [path.name for path in paths] == [*names, "length.png", "density.png"]
    grid = load_grid(tmp_path)
    assert grid.shape == (2,)
    assert [row.evaluations for row in grid.rows] == [1, 2]
    assert all(row.quality.accuracy is not None for row in grid.rows)
    assert len(grid.likelihood) == 1
    for path in (paths[0], paths[3], *paths[5:]):
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    data = page_data(paths[4])
    assert (data["strip"], data["classes"]) == ([1, 1], [])
    assert all(row["sheet"].startswith("data:image/png;base64,") for row in data["rows"])
    assert paths[4].read_text().count('<img src="data:image/png') == 2
    # The run samples in 3 steps at depth 1 by default.
    assert data["rows"][0]["command"].endswith("--depth 2 time:fixed-steps --time.steps 1")


def test_a_network_without_conditions_has_no_class_accuracy(checkerboard, tmp_path):
    paths = evaluate(checkerboard, GridConfig(steps=(1,), count=20, batch_size=20), tmp_path)
    grid = load_grid(tmp_path)
    assert grid.rows[0].quality.accuracy is None
    assert "Class accuracy: empty, as there are no classes." in paths[1].read_text()
    assert all(path.exists() for path in paths)


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
def test_the_sliders_select_the_samples_in_a_browser(results):
    page = results[0] / "report.html"
    rows = page_data(page)["rows"]
    shown = lambda text: re.search(r'<img id="sheet"[^>]* src="([^"]*)"', text)[1]
    sheet = {(row["time"], row["depth"], row["config"]["guidance"]): row["sheet"] for row in rows}

    linked = browse(page, "#time=1&depth=4&guidance=2%20from%200%20to%200.4")
    assert shown(linked) == sheet["2 time steps", 4, 2]
    assert linked.count('class="dot') == len(rows) == linked.count('class="strip')
    assert linked.count('class="strip other') == len(rows) / 2  # of the other guidance
    turned = browse(
        page,
        "#time=1&depth=4&guidance=2%20from%200%20to%200.4",
        "const slider = document.getElementById('depth'); slider.value = 0;"
        "slider.dispatchEvent(new Event('input'));",
    )
    assert shown(turned) == sheet["2 time steps", 2, 2]
    assert "--depth 2 --guidance 2.0 --guidance-interval 0.0 0.4 time:fixed" in turned
    clicked = browse(
        page, script="document.querySelector('.strip').dispatchEvent(new MouseEvent('click'));"
    )
    assert shown(clicked) == sheet["1 time step", 2, 1]
