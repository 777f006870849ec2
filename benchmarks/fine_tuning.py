"""What fine-tuning gives a network that was trained at its full depth: quality at every depth."""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, StrMethodFormatter
from measure import Output, Report

from odelt_eqx.config import TrainConfig
from odelt_eqx.entry import run_command
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.figures import save_figure
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.measure import Store, inputs
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.report import open_judge
from odelt_eqx.network import Network
from odelt_eqx.objective import DeepSupervision, LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import sample
from odelt_eqx.training.load import can_resume, run_config
from odelt_eqx.training.step import init_state
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import init_from

DEPTHS_APART = LengthConsistency()
ONE_PASS = DeepSupervision(share=0.5)
EXITS = ("length_embedding", "final")
"""The parts of a network that are its exits; the others can be frozen."""
WAYS: dict[str, tuple[LengthConsistency | DeepSupervision, str, str]] = {
    "accumulate, length consistency": (DEPTHS_APART, "accumulate", "depth"),
    "accumulate, deep supervision": (ONE_PASS, "accumulate", "none"),
    "accumulate, deep supervision, told the edge": (ONE_PASS, "accumulate", "edge"),
    "residual, length consistency": (DEPTHS_APART, "residual", "depth"),
    "residual, deep supervision": (ONE_PASS, "residual", "none"),
    "residual, deep supervision, told the edge": (ONE_PASS, "residual", "edge"),
    "residual, the exits alone": (ONE_PASS, "residual", "edge"),
}
"""How every depth is trained, the wiring, and the embedding of the length."""
PLAN = FixedSteps(steps=16, solver="ab2")


@dataclasses.dataclass(frozen=True)
class Config(Output):
    """What is compared.

    Args:
        runs: run folders of plain networks that differ in their seed: trained at the full depth,
            with `--model.wiring residual`.
        steps: numbers of fine-tuning steps, each a run of its own.
        ways: which of them.
        learning_rate: of fine-tuning.
        folder: where the fine-tuned runs go; what is there is neither trained nor measured again.
        features: what samples are compared by, besides a second judge.
        count: samples of each.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/plain"),)
    steps: tuple[int, ...] = (100, 300, 900)
    ways: tuple[str, ...] = tuple(WAYS)
    learning_rate: float = 1e-3
    folder: Path = Path("runs/fine-tuned")
    features: FeaturesConfig = Pixels()
    count: int = 1000


def fine_tuning(run: Path, way: str, config: Config, steps: int) -> TrainConfig:
    """Return the run of `steps` steps that trains every depth from the weights of `run`."""
    plain = run_config(run)
    objective, wiring, told = WAYS[way]
    length: dict[str, Any] = {"wiring": wiring, "length_embedding": told}
    model = dataclasses.replace(plain.model, **length)
    fresh = eqx.filter_eval_shape(model.build, key=jax.random.key(0))
    parts = [f.name for f in dataclasses.fields(fresh)]
    frozen = [part for part in parts if part not in (*EXITS, "config")]
    return dataclasses.replace(
        plain,
        model=model,
        objective=dataclasses.replace(objective, objective=plain.objective),
        optimizer=dataclasses.replace(plain.optimizer, learning_rate=config.learning_rate),
        init_from=str(run),
        frozen=tuple(frozen) if way.endswith("alone") else (),
        steps=steps,
        save_every=steps,
    )


def fine_tuned(run: Path, way: str, config: Config, steps: int) -> Network:
    """Return the average of a fine-tuned run; after 0 steps, what it begins with."""
    trained = fine_tuning(run, way, config, max(steps, 1))
    if not steps:
        fresh = trained.model.build(key=jax.random.key(0))
        return init_from(init_state(fresh, optax.identity()), run, trained.frozen).ema
    folder = config.folder / f"{run.name}, {way}, {steps}"
    begun = can_resume(folder)  # or else it was stopped before its first checkpoint
    return train(trained, folder, resume=begun, overwrite=not begun).ema


@dataclasses.dataclass(frozen=True)
class Distances:
    """Fréchet distances of samples at every depth, by each judge."""

    values: tuple[tuple[float, ...], ...]


def measure(network: Network, judge: Judge, count: int) -> Distances:
    """Return the Fréchet distances of samples by both judges, at every depth."""
    found: list[tuple[float, ...]] = []
    for depth in network.depths:
        state = judge.accumulator(count)
        for start in range(0, count, 250):
            noise, labels, condition = inputs(network, 0, start, min(250, count - start))
            judge.add(state, sample(network, noise, condition, time=PLAN, depth=depth), labels)
        quality = judge.quality(state)
        found.append((quality.frechet, *([] if quality.second is None else [quality.second])))
    return Distances(tuple(found))


def save_curves(
    rows: dict[tuple[str, int], Float[np.ndarray, "runs depths judges"]],
    depths: tuple[int, ...],
    names: tuple[str, ...],
    path: Path,
) -> None:
    """Write the distance at every depth over the steps of fine-tuning, a line for each way."""
    figure = Figure(figsize=(3.4 * len(depths), 3.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(depths), sharex=True, squeeze=False)
    for j, (name, line) in enumerate(zip(names, panels, strict=True)):
        line[0].set_ylabel(f"Fréchet distance, {name}")
        for k, (depth, axis) in enumerate(zip(depths, line, strict=True)):
            for way, marker in zip(dict.fromkeys(way for way, _ in rows), "osD^vPX", strict=False):
                steps = [s for w, s in rows if w == way]
                values = np.array([rows[way, s][:, k, j] for s in steps])
                style = "-" if way.startswith("residual") else "--"
                error = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
                look: dict[str, Any] = {"ls": style, "marker": marker, "fillstyle": "none"}
                axis.errorbar(steps, values.mean(axis=1), error, label=way, **look)
            axis.set(yscale="log", title=f"depth {depth}")
            axis.set_xscale("symlog", linthresh=min(s for _, s in rows if s))
            axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            axis.tick_params(axis="y", which="minor", labelsize=6)
            axis.xaxis.set_major_locator(FixedLocator(sorted({s for _, s in rows})))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.grid(alpha=0.3, which="both")
    for axis in panels[-1]:
        axis.set_xlabel("fine-tuning steps")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=2)
    save_figure(figure, path)


def main(config: Config) -> None:
    """Print the table and write the figure."""
    depths = run_config(config.runs[0]).model.depths
    judges = [open_judge(run, GridConfig(), config.features) for run in config.runs]
    for judge in judges:
        judge.prepare()
    names = (judges[0].features.name, *([judges[0].second.name] if judges[0].second else []))
    store = Store(config.folder / "measured.jsonl")

    def row(run: Path, judge: Judge, way: str, steps: int) -> tuple[tuple[float, ...], ...]:
        what = {"run": str(run), "way": way, "steps": steps, "learning_rate": config.learning_rate}
        what |= {"features": names, "count": config.count}
        measured = lambda: measure(fine_tuned(run, way, config, steps), judge, config.count)
        distances = store.measure(what, Distances, measured)
        assert distances is not None  # there is one process
        return distances.values

    columns = [f"depth {depth}: {name}" for depth in depths for name in names]
    report, rows = Report(("way", "steps", *columns), config), {}
    for way in config.ways:
        for steps in (0, *config.steps):
            pairs = zip(config.runs, judges, strict=True)
            rows[way, steps] = found = np.array([row(*pair, way, steps) for pair in pairs])
            report.row(way, steps, *map(spread, found.reshape(len(found), -1).T))
    save_curves(rows, depths, names, config.folder / "fine-tuning.png")


def spread(values: Float[np.ndarray, " runs"]) -> str:
    """Return a mean and, of several values, their standard deviation."""
    error = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{error}"


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Config, description=__doc__)))
