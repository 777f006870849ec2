"""`odelt play`: what the dials do, the page in a real browser, and how it ends."""

import dataclasses
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.config import TrainConfig, save_config
from odelt_eqx.data import Toy
from odelt_eqx.evaluation.grid import Row
from odelt_eqx.evaluation.quality import Quality
from odelt_eqx.images import to_bytes
from odelt_eqx.noise import sample_noise
from odelt_eqx.objective import FlowMatching
from odelt_eqx.play.player import Dials, Player
from odelt_eqx.sampling import CompiledSamplers
from odelt_eqx.training.checkpoint import Checkpoints
from tests.conftest import TINY, TINY_RUN
from tests.evaluation.makers import write_grid
from tests.play.browser import CHROMIUM, Browser

pytestmark = pytest.mark.thorough

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
SCRIPT = Path(__file__).parents[2] / "scripts" / "play.py"
THREE = dataclasses.replace(TINY, depth=3, depth_min=1, depth_group=1, length_embedding="none")
GUIDED = odelt.SampleConfig(
    time=odelt.FixedSteps(steps=8),
    depth=3,
    guidance=1.5,
    guidance_interval=(0.0, 0.75),
    depth_guidance=0.5,
    guide_depth=2,
    depth_guidance_interval=(0.25, 1.0),
)
SMALL = {"hidden_size": 8, "mlp_ratio": 2, "depth": 2, "depth_min": 1, "depth_group": 1}
COUNT = 4


def write_run(folder, config, model):
    """Write a run that was not trained."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_weights(model, model, config)
    save_config(config, folder / "config.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a random network of three depths, and a grid of three rows."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    fresh = odelt.DiT(THREE, key=jax.random.key(0))
    weight = jax.random.normal(jax.random.key(1), fresh.final.out.weight.shape)
    model = eqx.tree_at(lambda m: m.final.out.weight, fresh, weight)
    write_run(folder, dataclasses.replace(TINY_RUN, model=THREE), model)
    settings = [
        odelt.SampleConfig(depth=1),
        odelt.SampleConfig(time=odelt.FixedSteps(steps=5), depth=3),
        GUIDED,
    ]
    rows = [
        Row(config, Quality(9.0 - steps), steps, 0.0, steps, steps, steps, 10, None, "a.png")
        for config in settings
        for steps in [float(config.time.count)]
    ]
    return write_grid(folder, rows, best=0.5)


def test_the_noise_is_held_still_and_only_a_new_kind_of_setting_is_compiled(run):
    player, compiled = Player(run, COUNT), []
    network, noise = odelt.load(run), sample_noise(3, np.arange(COUNT), (8, 8, 1))
    dials = Dials(odelt.SampleConfig(depth=2, guidance=1.5), seed=3, labels=(7, 2))
    for change in (
        {},
        {"guidance": 1.75},
        {"time": odelt.FixedSteps(steps=5)},
        {"depth": 3},
        {"guidance": 3.0},
    ):
        config = dataclasses.replace(dials.config, **change)
        dials = dataclasses.replace(dials, config=config)
        known, played = player.is_compiled(dials), player.play(dials)
        assert known == (played.compiled is None)
        compiled.append(not known)
        expected = odelt.sample(network, noise, [7, 2, 7, 2], config)
        np.testing.assert_allclose(played.samples, expected, atol=1e-5)
        assert played.milliseconds > 0
    assert compiled == [True, False, False, True, False]
    shown = [np.asarray(Image.open(io.BytesIO(png))) for png in played.images()]
    np.testing.assert_array_equal(np.stack(shown)[..., :1], to_bytes(played.samples))
    with pytest.raises(odelt.InputError, match="labels must lie between 0 and 9; got 10"):
        player.play(Dials(labels=(10,)))


def test_while_one_setting_is_compiled_another_is_told_whether_it_is(run, monkeypatch):
    player, compile_it, told = Player(run, COUNT), CompiledSamplers.get, []
    player.play(known := Dials(odelt.SampleConfig(depth=2)))

    def meanwhile(samplers, *inputs):
        asking = threading.Thread(target=lambda: told.append(player.is_compiled(known)))
        asking.start()
        asking.join(timeout=60)
        return compile_it(samplers, *inputs)

    monkeypatch.setattr(CompiledSamplers, "get", meanwhile)
    player.play(Dials(odelt.SampleConfig(depth=3)))
    assert told == [True]


@contextmanager
def playing(run, *words, end):
    """Serve a page; at the end a signal must end it, without a word."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, run, "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
        process.send_signal(end)
        output = process.communicate(timeout=60)
        assert (process.returncode, *output) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def ask(url, config):
    """Return the lines that a page gets for what its dials say, as they come."""
    words = urllib.parse.urlencode({"dials": json.dumps({"config": config})})
    return map(json.loads, urllib.request.urlopen(f"{url}/samples?{words}"))


def test_points_are_one_plot_what_is_wrong_is_one_line_and_it_ends_while_it_computes(tmp_path):
    model = odelt.VectorNetConfig(size=2, num_classes=2, **SMALL)
    config = TrainConfig(model, FlowMatching(), data=Toy("moons", count=400))
    write_run(tmp_path / "moons", config, model.build(key=jax.random.key(0)))
    with playing(tmp_path / "moons", "--count", "50", end=signal.SIGINT) as url:
        described = json.load(urllib.request.urlopen(f"{url}/dials"))
        assert (described["depths"], described["grid"]) == ([1, 2], None)
        assert "evaluate.py" in described["missing"]
        assert "search.py" in described["missing"]
        own = described["own"]
        begun, done = ask(url, own)
        assert begun == {"compiling": True}
        assert len(done["images"]) == 1
        (again,) = ask(url, own)
        assert again["compiled"] is None
        *_, wrong = ask(url, {**own, "depth": 3})
        assert wrong == {"error": "depth must be one of 1, 2 (in blocks); got 3"}
        (wrong,) = ask(url, {**own, "dept": 3})
        assert "dept" in wrong["error"]
        nested = urllib.request.urlopen(f"{url}/samples?dials={'[' * 10_000}")
        assert "nested too deeply" in json.load(nested)["error"]
        rebound = urllib.request.Request(url, headers={"Host": "example.org"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(rebound)
        hours = ask(url, {**own, "depth": 1, "time": {**own["time"], "steps": 2**24}})
        assert next(hours) == {"compiling": True}


def test_what_cannot_be_served_is_one_line(command, run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = command("play.py", run, "--port", port)
    assert (status, errors.count("\n")) == (2, 1)
    assert f"port {port} cannot be used" in errors
    assert "--port" in errors
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, errors = command("play.py", run)
    assert (status, errors.count("\n")) == (2, 1)
    assert "pip install 'odelt-eqx[play]'" in errors


GUIDANCE = {
    **{"steps": "8", "depth": "3", "guidance": "1.5", "depth_guidance": "0.5", "guide_depth": "2"},
    **{"guidance_from": "0", "guidance_to": "0.75"},
    **{"depth_guidance_from": "0.25", "depth_guidance_to": "1"},
}
"""What is read beside the dials after a click on the guided row."""
SHOWN = "[...document.querySelectorAll('#images img')].map(image => image.src)"
READY = "document.body.dataset.busy === 'false'"


class Page:
    """The page, and the images it shows."""

    def __init__(self, browser):
        self.browser = browser
        browser.wait(READY)
        self.shown = browser.run(SHOWN)

    def _changes(self):
        self.browser.wait(READY)
        before, self.shown = self.shown, self.browser.run(SHOWN)
        assert self.browser.run("document.getElementById('status').className") == "muted"
        return before != self.shown

    def turn(self, name, value, event="input"):
        """Set a dial; return whether the images have changed."""
        value = json.dumps(value)
        self.browser.run(
            f"(() => {{ const dial = document.getElementById('{name}'); dial.value = {value};"
            f"dial.dispatchEvent(new Event('{event}')); }})()"
        )
        return self._changes()

    def click(self, selector):
        """Click; return whether the images have changed."""
        self.browser.click(selector)
        return self._changes()

    def read(self, name):
        """Return what is written beside a dial."""
        return self.browser.run(f"document.getElementById('{name}').previousSibling.textContent")

    def text(self, name):
        """Return the text of an element."""
        return self.browser.run(f"document.getElementById('{name}').textContent")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_every_dial_changes_the_images_in_a_browser(run, tmp_path):
    with (
        playing(run, "--count", str(COUNT), end=signal.SIGTERM) as url,
        Browser(tmp_path / "profile") as browser,
    ):
        browser.open(url, width=390)
        page = Page(browser)
        assert len(page.shown) == COUNT
        first = page.shown
        assert browser.run("document.documentElement.scrollWidth") == 390
        image = "getComputedStyle(document.querySelector('#images img'))"
        assert browser.run(f"{image}.imageRendering") == "pixelated"

        assert page.click('[data-row="1"] circle:last-of-type')
        assert (page.read("steps"), page.text("blocks"), page.text("status")) == ("5", "15", "")
        assert page.text("here").startswith("depth 3, 5 time steps, guidance 1: ")
        assert page.turn("unit", "milliseconds", "change") is False
        assert page.click('[data-row="2"] circle:last-of-type')
        assert page.text("status").startswith("Compiled first, in ")
        assert {name: page.read(name) for name in GUIDANCE} == GUIDANCE
        assert page.text("blocks") == "42"  # 8 steps of 3 blocks, both halves in 6 of them

        assert page.turn("steps", 3)
        assert page.read("steps") == "4"
        assert page.text("here") == "This setting was not measured."
        assert page.turn("guidance", 2.5)
        assert page.turn("guidance_from", 0.25)
        assert page.turn("guidance_to", 0.5)
        assert page.turn("depth_guidance", 1)
        assert page.turn("depth_guidance_from", 0.5)
        assert page.turn("depth_guidance_to", 0.75)
        assert page.text("status") == ""  # nothing was compiled
        assert page.turn("guide_depth", 0)
        assert page.turn("depth", 1)
        assert (page.read("depth"), page.read("guide_depth")) == ("2", "1")
        assert page.turn("grid", "cosine", "change")
        assert page.turn("solver", "Adaptive heun", "change")
        assert page.turn("tolerance", 1)
        assert page.turn("seed", 5, "change")
        assert page.click("#next")
        assert page.click("#classes button:nth-child(8)")
        assert page.text("images") == "7777"

        saved = urllib.request.urlopen(browser.run("document.getElementById('download').href"))
        sheet = np.asarray(Image.open(io.BytesIO(saved.read())))
        assert sheet.shape == (10 * 17, 37 * 17, 3)  # four digits, enlarged
        browser.call("Page.reload")
        browser.wait("document.querySelectorAll('#images img').length > 0 && " + READY)
        assert browser.run(SHOWN) == page.shown
        page.turn("seed", 0, "change")
        page.click("#classes button:nth-child(8)")
        page.click("#reset")
        assert page.shown == first

        assert browser.errors == []
        assert {u for u in browser.requests if not u.startswith(("data:", f"{url}/"))} == set()
