"""The settings of a network that no other beats, found under a budget of time."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic

import numpy as np
from jaxtyping import Float

from odelt_eqx.errors import check_range
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.figures import (
    depth_colours,
    log_limits,
    new_figure,
    number_log_axis,
    save_figure,
)
from odelt_eqx.evaluation.grid import SEARCH, GridConfig, Row
from odelt_eqx.evaluation.measure import Meter, lock_results, network_on_devices
from odelt_eqx.evaluation.metrics import distance_name
from odelt_eqx.evaluation.report import open_judge, write_grid
from odelt_eqx.network import Network
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.ode.plan import FixedSteps
from odelt_eqx.parallel import broadcast, is_main_process, on_main_process
from odelt_eqx.progress import Progress
from odelt_eqx.sampling import SampleConfig
from odelt_eqx.training.load import latest_step, run_config
from odelt_eqx.training.signals import StopSignals

Rows = dict[SampleConfig, Row | None]
"""What was measured of each setting; None in all processes but the first."""

PUBLISHED, UNGUIDED, GUIDED = 0.25, 0.45, 0.7
"""Shares of the time after which the published way has been measured, and others tried."""
SURVIVORS = 8
"""Settings that halving leaves, at least."""
SPACE = GridConfig(
    steps=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128),
    solvers=("euler", "ab2", "heun"),
    grids=("uniform", "logit-normal"),
    guidance=(1.0, 1.25, 1.5),
    depth_guidance=(0.0, 0.5, 1.0, 2.0),
    depth_guidance_intervals=((0.0, 1.0), (0.25, 1.0)),
    count=2000,
)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """What is searched, and for how long.

    Args:
        space: the settings that are tried, and the samples of a row that is measured to the end.
            The guide may have any depth unless it says which. What is guided is tried without
            guidance as well.
        minutes: about how long the search takes. What it has measured is kept: the same command
            goes on from there.
        first: samples of a row when it is first tried, those of the space at most.

    Raises:
        InputError: a number is out of range.
    """

    space: GridConfig = SPACE
    minutes: float = 10.0
    first: int = 250

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0)
        check_range(self, "first", least=2)

    @property
    def counts(self) -> list[int]:
        """Samples of a row, from its first trial to the last, each twice those before."""
        counts = [self.space.count]
        while counts[0] // 2 >= self.first:
            counts.insert(0, counts[0] // 2)
        return counts

    def settings(self, network: Network | NetworkConfig) -> dict[SampleConfig, list[SampleConfig]]:
        """Return the settings of a network by what they are without guidance, the cheapest first.

        That without guidance is the first in each list, even if it is not in the space.

        Raises:
            InputError: the network lacks a depth of the space, or no guide is below a row's depth.
        """
        kind, depths = network.condition_type, network.depths
        space = dataclasses.replace(self.space, guide_depths=self.space.guide_depths or depths[:-1])
        if kind is None or kind.learned != "both":
            space = dataclasses.replace(space, guidance=(1.0,))
        if len(depths) == 1:
            space = dataclasses.replace(space, depth_guidance=(0.0,))
        space.check_depths(depths)
        usual = min(space.grids, key=lambda grid: grid != "uniform", default="uniform")
        found: dict[SampleConfig, list[SampleConfig]] = {}
        for setting in space.sample_configs(depths):
            plan, plain = setting.time, without_guidance(setting)
            if isinstance(plan, FixedSteps) and plan.grid != usual and plan.steps <= 2:
                continue  # every grid is the same
            found.setdefault(plain, [plain]).append(setting)
        cheapest = sorted(found, key=_cost)
        return {plain: sorted(dict.fromkeys(found[plain]), key=_guidances) for plain in cheapest}


def without_guidance(config: SampleConfig) -> SampleConfig:
    """Return a setting without guidance of any kind."""
    return dataclasses.replace(
        config,
        guidance=1.0,
        guidance_interval=None,
        depth_guidance=0.0,
        guide_depth=None,
        depth_guidance_interval=None,
    )


def _guidances(config: SampleConfig) -> int:
    """Return how many kinds of guidance a setting has; that by class counts twice: it costs."""
    return 2 * (config.guidance != 1) + (config.depth_guidance != 0)


def _cost(config: SampleConfig) -> int:
    """Return the block evaluations of a setting without guidance, to sort by."""
    plan = config.time
    steps = int(plan.count) if isinstance(plan, FixedSteps) else 100
    return _depth(config) * int(plan.evaluations(steps))


def _depth(config: SampleConfig) -> int:
    assert isinstance(config.depth, int)  # for the type checker: a row has a number
    return config.depth


def search(
    run: Path,
    config: SearchConfig,
    out: Path | None = None,
    *,
    features: FeaturesConfig = Pixels(),
    command: str = "",
) -> list[Path]:
    """Search the settings of a run that no other beats in cost and quality, and report them.

    The published way, Euler steps at one depth, is measured first. Then unguided settings are tried
    with few samples, over all costs, and the best of them with guidance. Successive halving
    (arXiv 1502.07943) measures the better half of what is left with twice the samples, until few
    have as many as those of the published way. What is better two judges say, see `scores`. All
    rows are sampled from the same noise.

    Args:
        out: folder of the results; `search` in the run's own by default, where
            `odelt_eqx.recommend` looks.
        command: the command that the report shows as its source.

    Returns:
        The files written: frontier.png, and those of `evaluate`.

    Raises:
        InputError: the folder is not a run with a checkpoint, the features cannot be read, the
            space does not fit the network, or another process measures in the folder.
        Interrupted: a signal asked for it; the same call resumes the search.
    """
    trained, folder = run_config(run), run / SEARCH if out is None else out
    trained.check_sampling(*config.space.diffusion)
    settings = config.settings(trained.model)
    judge = open_judge(run, config.space, features)
    step = latest_step(run)  # training may go on meanwhile
    with network_on_devices(run) as network, lock_results(folder):
        meter = Meter(network, judge, config.space, folder, command=command)
        seconds = 60 * config.minutes
        with StopSignals() as stop, Progress("search (seconds)", round(seconds)) as progress:
            trials = Trials(meter, stop, progress, seconds)
            published, found = find_frontier(config, settings, trials)
        figure = folder / "frontier.png"
        judges = [features for features in (judge.features, judge.second) if features is not None]
        names = [distance_name("Fréchet", features.name) for features in judges]
        on_main_process(lambda: save_frontier(published.values(), found.values(), names, figure))
        measured = {**published, **found}.values()
        rows = [row for row in measured if row is not None]
        paths = write_grid(meter, rows, step, trained, run, folder, command, [figure])
    if is_main_process():
        tried = len(trials.tried)
        noun, every = "setting" if tried == 1 else "settings", sum(map(len, settings.values()))
        print(f"note: {tried:,} {noun} tried; the same command tries {every - tried:,} more")
    return paths


class Trials:
    """Measures settings while there is time; all processes must call the same methods."""

    def __init__(self, meter: Meter, stop: StopSignals, progress: Progress, seconds: float):
        self._meter, self._stop, self._progress = meter, stop, progress
        self._started, self._seconds, self._shown = monotonic(), seconds, 0
        self.tried: set[SampleConfig] = set()

    def measure(self, settings: Iterable[SampleConfig], count: int, until: float) -> Rows:
        """Return rows of `count` samples, in order, until a share of the time has passed.

        The first is measured in any case.
        """
        rows: Rows = {}
        for setting in settings:
            elapsed = monotonic() - self._started
            if rows and bool(broadcast(np.array(elapsed > until * self._seconds))):
                break
            rows[setting] = self._meter.row(setting, self._stop, _Silent("", 0), count)
            self.tried.add(setting)
            now = min(round(monotonic() - self._started), round(self._seconds))
            self._progress.advance(now - self._shown)
            self._shown = now
        return rows

    def known(self, settings: Sequence[SampleConfig]) -> Rows:
        """Return the rows that this search or an earlier one has measured to the end."""
        silent = _Silent("", 0)
        return {
            each: self._meter.row(each, self._stop, silent) for each in self._meter.known(settings)
        }


class _Silent(Progress):
    """Shows nothing."""

    def advance(self, count: int = 1) -> None:
        """Count nothing."""

    def stage(self, name: str) -> None:
        """Name nothing."""


def find_frontier(
    config: SearchConfig, settings: dict[SampleConfig, list[SampleConfig]], trials: Trials
) -> tuple[Rows, Rows]:
    """Return the rows of the published way, and of the best of the other settings."""
    first, *more = config.counts
    usual = [setting for setting in settings if is_published(setting)]
    published = trials.measure(usual, config.space.count, PUBLISHED)
    rows = trials.measure(over_all_costs(settings), first, UNGUIDED)
    guided = in_turn([settings[plain][1:] for plain in _best(rows)], SURVIVORS)
    rows |= trials.measure(guided, first, GUIDED)
    for rung, count in enumerate(more, start=1):
        kept = _best(rows)[: max(SURVIVORS, len(rows) // 2)]
        rows = trials.measure(kept, count, GUIDED + (1 - GUIDED) * rung / len(more))
    known = trials.known([setting for group in settings.values() for setting in group])
    published |= {setting: known[setting] for setting in usual if setting in known}
    rows |= known
    return published, {setting: row for setting, row in rows.items() if setting not in published}


def over_all_costs(settings: Iterable[SampleConfig]) -> Iterator[SampleConfig]:
    """Yield settings so that each doubling of the cost has had as much, wherever one stops.

    The next is of the doubling that has then cost least in all; within one the deepest come first,
    which share few compiled programs.
    """
    left: dict[int, deque[SampleConfig]] = {}
    for setting in sorted(settings, key=_depth, reverse=True):
        left.setdefault(_cost(setting).bit_length(), deque()).append(setting)
    spent = dict.fromkeys(sorted(left), 0)
    while left:
        doubling = min(left, key=lambda doubling: spent[doubling] + _cost(left[doubling][0]))
        setting = left[doubling].popleft()
        spent[doubling] += _cost(setting)
        if not left[doubling]:
            del left[doubling]
        yield setting


def in_turn(lists: Sequence[Sequence[SampleConfig]], most: int) -> Iterator[SampleConfig]:
    """Yield the first setting of each list, then the second, and so on, `most` lists at a time."""
    for start in range(0, len(lists), most):
        for line in itertools.zip_longest(*lists[start : start + most]):
            yield from (setting for setting in line if setting is not None)


def is_published(setting: SampleConfig) -> bool:
    """Whether a setting takes Euler steps on the uniform grid, without diffusion."""
    plan = setting.time
    if setting.diffusion or not isinstance(plan, FixedSteps):
        return False
    return (plan.solver, plan.grid) == ("euler", "uniform")


def _best(rows: Rows) -> list[SampleConfig]:
    """Return settings, the best first, in every process."""
    numbers = np.zeros((len(rows), 3))
    if is_main_process():
        numbers = np.array([_judged(row) for row in rows.values() if row is not None])
    order = np.argsort(scores(broadcast(numbers)), kind="stable")
    settings = list(rows)
    return [settings[i] for i in order]


def _judged(row: Row) -> tuple[float, float, float]:
    """Return the cost of a row and its distance by both judges, or twice by the only one."""
    quality = row.quality
    return row.blocks, quality.frechet, quality.second or quality.frechet


def scores(numbers: Float[np.ndarray, "rows 3"]) -> Float[np.ndarray, " rows"]:
    """Return how far each row is from the best that costs no more: 1 if it is the best.

    It is the ratio of its distance to the smallest of all rows that cost as much or less, by the
    judge for whom that ratio is larger.

    Args:
        numbers: cost of each row, and its distance by two judges.
    """
    cost = numbers[:, 0]
    affordable = cost[None, :] <= cost[:, None]
    ratios = [
        distance / np.maximum(np.where(affordable, distance[None, :], np.inf).min(axis=1), 1e-9)
        for distance in numbers[:, 1:].T
    ]
    return np.max(ratios, axis=0)


def save_frontier(
    published: Iterable[Row | None], found: Iterable[Row | None], names: Sequence[str], path: Path
) -> None:
    """Write quality by each judge over block evaluations and latency.

    Lines join the published way's rows of a depth; points are other settings, with a line through
    those that no other beats by that judge.
    """
    usual = [row for row in published if row is not None]
    others = [row for row in found if row is not None]
    colours = depth_colours(sorted({row.depth for row in (*usual, *others)}))
    costs = {"blocks": "block evaluations", "milliseconds": "ms per sample"}
    figure = new_figure(9, 3.4 * len(names))
    panels = figure.subplots(len(names), 2, sharey="row", sharex="col", squeeze=False)
    for judge, (name, line) in enumerate(zip(names, panels, strict=True)):
        line[0].set_ylabel(name)
        for cost, axis in zip(costs, line, strict=True):
            axis.set(xscale="log", yscale="log")
            points = lambda rows, cost=cost, judge=judge: np.array(
                [(getattr(row, cost), *_with_error(row, judge)) for row in rows]
            ).reshape(-1, 3)
            for depth, colour in colours.items():
                own = points([row for row in usual if row.depth == depth])
                axis.errorbar(*own.T, color=colour, marker="o", ms=4, ls="-", alpha=0.6)
                own = points([row for row in others if row.depth == depth])
                axis.errorbar(*own.T, color=colour, marker="D", ms=5, ls="")
            front = points(others)
            front = front[np.argsort(front[:, 0], kind="stable")]
            lowest = np.minimum.accumulate(front[:, 1])
            axis.plot(*front[front[:, 1] == lowest][:, :2].T, color="k", lw=1)
            spent, distance, error = points([*usual, *others]).T
            reach = np.concatenate([np.maximum(distance - error, distance / 2), distance + error])
            axis.set(xlim=log_limits(spent), ylim=log_limits(reach))
            for side in (axis.xaxis, axis.yaxis):
                number_log_axis(side)
            axis.grid(alpha=0.3)
    for axis, label in zip(panels[-1], costs.values(), strict=True):
        axis.set_xlabel(label)
    handles = [axis.plot([], [], "o-", color=c, alpha=0.6)[0] for c in colours.values()]
    handles += [axis.plot([], [], "D", color=c)[0] for c in colours.values()]
    handles += axis.plot([], [], "k-", lw=1)
    labels = [f"published, depth {depth}" for depth in colours]
    labels += [f"found, depth {depth}" for depth in colours] + ["the best of what was found"]
    columns = min(len(colours) + 1, 5)  # more are wider than the figure
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=columns)
    save_figure(figure, path)


def _with_error(row: Row, judge: int) -> tuple[float, float]:
    """Return the distance by one of two judges, and its standard error."""
    quality = row.quality
    if judge == 0:
        return quality.frechet, quality.frechet_error or 0.0
    return quality.second or 0.0, quality.second_error or 0.0
