"""The search: what is tried first, what is better, what is kept, what a budget is answered from."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.search import (
    SearchConfig,
    Trials,
    find_frontier,
    in_turn,
    over_all_costs,
    scores,
    search,
    without_guidance,
)
from tests.conftest import NETWORK, TINY
from tests.evaluation.makers import row

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*samples do not determine")]

SMALL = SearchConfig(
    GridConfig(steps=(1, 3), depth_guidance=(0.0, 1.0), count=40, batch_size=10), first=20
)


def test_a_row_is_as_good_as_the_best_that_costs_no_more():
    """By the judge that likes it less: the third row wins by one and loses by the other."""
    numbers = np.array([[8.0, 2.0, 3.0], [4.0, 4.0, 3.0], [8.0, 1.0, 6.0], [2.0, 6.0, 9.0]])
    np.testing.assert_allclose(scores(numbers), [2.0, 1.0, 2.0, 1.0])


def test_every_setting_is_there_once_the_cheapest_first_and_unguided_ones_lead():
    space = GridConfig(
        steps=(1, 2, 4),
        solvers=("euler", "heun"),
        grids=("uniform", "cosine"),
        guidance=(1.0, 1.5),
        depth_guidance=(0.0, 1.0, 2.0),
        depth_guidance_intervals=((0.0, 1.0), (0.2, 1.0)),
    )
    found = SearchConfig(space).settings(NETWORK)
    cost = [s.depth * int(s.time.steps) * (1 + (s.time.solver == "heun")) for s in found]
    assert cost == sorted(cost)
    assert all(plain == without_guidance(plain) == group[0] for plain, group in found.items())
    # Two steps are the same on every grid; a guide of depth 2 serves depth 4 alone.
    assert len(found) == 2 * 2 * (2 + 2)
    assert {len(group) for group in found.values()} == {2, 2 * (1 + 2 * 2)}
    settings = [s for group in found.values() for s in group]
    assert len(settings) == len(set(settings))


def test_trials_cover_all_costs_and_all_guidance_wherever_time_ends():
    """Costs of 4 to 7 have had what those of 2 and 3 have before any of 8 to 15 are tried."""
    space = GridConfig(steps=(1, 2, 4), depth_guidance=(0.0, 1.0, 2.0))
    settings = SearchConfig(space).settings(NETWORK)
    tried = list(over_all_costs(settings))
    expected = [(2, 1), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4)]  # depth, steps
    assert [(s.depth, int(s.time.steps)) for s in tried] == expected
    settings = SearchConfig().settings(NETWORK)
    tried = list(over_all_costs(settings))
    assert set(tried) == set(settings)
    steps = [int(s.time.steps) for s in tried]
    assert {1, 2, 4, 8, 16} <= set(steps[:30])  # before all of three have been tried
    assert 3 in steps[40:]
    assert all(n < 64 for n in steps[:30])
    guided = in_turn([tried[:2], tried[2:3], tried[3:6], tried[6:7]], 3)
    assert list(guided) == [tried[i] for i in (0, 2, 3, 1, 4, 5, 6)]


def test_what_is_guided_is_tried_without_guidance_first_even_if_the_space_lacks_that():
    space = GridConfig(steps=(1,), guidance=(1.5,), depth_guidance=(1.0,), guide_depths=(2,))
    (group,) = SearchConfig(space).settings(NETWORK).values()
    assert [(s.depth, s.guidance, s.depth_guidance) for s in group] == [(4, 1, 0), (4, 1.5, 1)]
    config, tried = SearchConfig(GridConfig(steps=(1,), guidance=(1.5,), count=40), first=20), []

    class Recorded(Trials):
        def __init__(self):
            pass

        def measure(self, settings, count, until):
            rows = {setting: row() for setting in settings}
            tried.append([(s.depth, s.guidance, count) for s in rows])
            return rows

        def known(self, settings):
            return {}

    find_frontier(config, config.settings(NETWORK), Recorded())
    published, unguided, guided, _ = tried
    assert published == [(2, 1, 40), (4, 1, 40)]
    assert unguided == [(2, 1, 20), (4, 1, 20)]
    assert guided == [(2, 1.5, 20), (4, 1.5, 20)]


@pytest.mark.parametrize("grids", [("cosine",), ("cosine", "logit-normal"), ()])
def test_few_steps_are_tried_on_one_grid_whichever_there_is(grids):
    space = GridConfig(steps=(2,), grids=grids, adaptive=("bosh3",), tolerances=(1e-2,))
    found = SearchConfig(space).settings(NETWORK)
    assert {getattr(s.time, "grid", None) for s in found} == {*grids[:1], None}


def test_a_space_that_does_not_fit_the_network_is_refused():
    space = GridConfig(depths=(2,), depth_guidance=(1.0,), guide_depths=(2,))
    with pytest.raises(odelt.InputError, match="got depths 2 and guide_depths 2"):
        SearchConfig(space).settings(NETWORK)


def test_what_a_network_cannot_do_is_not_tried():
    config = dataclasses.replace(TINY, depth_min=4, learned="null")
    narrow = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    space = GridConfig(steps=(1,), guidance=(1.0, 2.0), depth_guidance=(0.0, 1.0))
    found = SearchConfig(space).settings(narrow)
    assert [len(group) for group in found.values()] == [1]


@pytest.mark.parametrize("change", [{"minutes": 0.0}, {"first": 1}])
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(odelt.InputError, match="must"):
        dataclasses.replace(SMALL, **change)


def test_samples_double_from_the_first_trial_to_the_last():
    assert SearchConfig(first=250).counts == [250, 500, 1000, 2000]
    assert SearchConfig(first=300).counts == [500, 1000, 2000]
    assert SMALL.counts == [20, 40]
    assert SearchConfig(GridConfig(count=100)).counts == [100]


def test_a_search_is_reported_resumed_and_answers_a_budget(moons, capsys):
    """Published rows first, then those found with as many samples; a second search is free."""
    paths = search(moons, SMALL, command="this")
    names = {"grid.png", "grid.md", "grid.json", "curves.png", "report.html", "frontier.png"}
    assert {path.name for path in paths} == names
    assert all(path.parent == moons / "search" and path.is_file() for path in paths)
    assert "note: 6 settings tried; the same command tries 0 more" in capsys.readouterr().out
    grid = json.loads((moons / "search" / "grid.json").read_text())
    rows = [row["config"] for row in grid["rows"]]
    assert [(c["time"]["steps"], c["depth"]) for c in rows[:4]] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert all(c["depth_guidance"] == 0 for c in rows[:4])
    assert [c["guide_depth"] for c in rows[4:]] == [1, 1]
    sheets = {path.name for path in (moons / "search" / "samples").iterdir()}
    assert sheets == {row["samples"] for row in grid["rows"]}  # trials have none
    measured = (moons / "search" / "rows.jsonl").read_text()
    search(moons, SMALL)
    assert (moons / "search" / "rows.jsonl").read_text() == measured
    search(moons, dataclasses.replace(SMALL, minutes=1e-6))  # time for nothing, and nothing is lost
    again = json.loads((moons / "search" / "grid.json").read_text())["rows"]
    by_config = lambda rows: sorted(rows, key=lambda row: json.dumps(row["config"]))
    assert by_config(again) == by_config(grid["rows"])
    best = odelt.recommend(moons, milliseconds=1e9)
    assert best.row.quality.frechet == min(r["quality"]["frechet"] for r in grid["rows"])


def test_a_search_without_time_measures_one_setting_of_each_kind(moons, tmp_path, capsys):
    search(moons, dataclasses.replace(SMALL, minutes=1e-6), tmp_path)
    rows = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert len(rows) == 1
    assert "1 setting tried; the same command tries 5 more" in capsys.readouterr().out
