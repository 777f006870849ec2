"""What fine-tuning gives a network that was trained at its full depth: quality at every depth."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from measure import Output, Report

from odelt_eqx import cli
from odelt_eqx.config import TrainConfig
from odelt_eqx.evaluation.features import FeaturesConfig, Pixels
from odelt_eqx.evaluation.figures import save_figure
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.measure import inputs
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.evaluation.report import open_judge
from odelt_eqx.network import Network
from odelt_eqx.objective import DeepSupervision, LengthConsistency
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import sample
from odelt_eqx.training.checkpoint import run_config
from odelt_eqx.training.step import init_state
from odelt_eqx.training.train import train
from odelt_eqx.training.weights import init_from

DEPTHS_APART = LengthConsistency()
ONE_PASS = DeepSupervision(share=0.5)
EXITS = ("patch_embedding", "condition_embedding", "groups")
"""What is frozen where only the exits are trained: all but their embedding and the final layer."""
WAYS: dict[str, tuple[LengthConsistency | DeepSupervision, str, str, tuple[str, ...]]] = {
    "accumulate, length consistency": (DEPTHS_APART, "accumulate", "depth", ()),
    "accumulate, deep supervision": (ONE_PASS, "accumulate", "none", ()),
    "accumulate, deep supervision, told the edge": (ONE_PASS, "accumulate", "edge", ()),
    "residual, length consistency": (DEPTHS_APART, "residual", "depth", ()),
    "residual, deep supervision": (ONE_PASS, "residual", "none", ()),
    "residual, deep supervision, told the edge": (ONE_PASS, "residual", "edge", ()),
    "residual, the exits alone": (ONE_PASS, "residual", "edge", EXITS),
}
"""How every depth is trained, the wiring, the embedding of the length, and what is frozen."""
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
        folder: where the fine-tuned runs go; those that are there are not trained again.
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
    objective, wiring, told, frozen = WAYS[way]
    length: dict[str, Any] = {"wiring": wiring, "length_embedding": told}
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, **length),
        objective=dataclasses.replace(objective, objective=plain.objective),
        optimizer=dataclasses.replace(plain.optimizer, learning_rate=config.learning_rate),
        init_from=str(run),
        frozen=frozen,
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
    return train(trained, folder, resume=folder.exists()).ema


def measure(network: Network, judge: Judge, count: int) -> Float[np.ndarray, "depths judges"]:
    """Return the Fréchet distances of samples at every depth, by both judges."""
    found = []
    for depth in network.depths:
        state = judge.accumulator(count)
        for start in range(0, count, 250):
            noise, labels, condition = inputs(network, 0, start, min(250, count - start))
            judge.add(state, sample(network, noise, condition, time=PLAN, depth=depth), labels)
        quality = judge.quality(state)
        found.append((quality.frechet, quality.second or np.nan))
    return np.array(found)


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
            for way in dict.fromkeys(way for way, _ in rows):
                steps = [s for w, s in rows if w == way]
                values = np.array([rows[way, s][:, k, j] for s in steps])
                style = "-" if way.startswith("residual") else "--"
                error = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
                axis.errorbar(steps, values.mean(axis=1), error, ls=style, marker="o", label=way)
            axis.set(yscale="log", title=f"depth {depth}")
            axis.set_xscale("symlog", linthresh=min(s for _, s in rows if s))
            axis.grid(alpha=0.3, which="both")
    for axis in panels[-1]:
        axis.set_xlabel("fine-tuning steps")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=2)
    save_figure(figure, path)


def main(config: Config) -> None:
    """Print the table and write the figure."""
    depths = run_config(config.runs[0]).model.depths
    judges = [open_judge(run_config(run), GridConfig(), config.features) for run in config.runs]
    for judge in judges:
        judge.prepare()
    names = (judges[0].features.name, *([judges[0].second.name] if judges[0].second else []))
    columns = [f"depth {depth}: {name}" for depth in depths for name in names]
    report, rows = Report(("way", "steps", *columns), config), {}
    for way in config.ways:
        for steps in (0, *config.steps):
            each = [
                measure(fine_tuned(run, way, config, steps), judge, config.count)
                for run, judge in zip(config.runs, judges, strict=True)
            ]
            rows[way, steps] = found = np.stack(each)[..., : len(names)]
            report.row(way, steps, *map(spread, found.reshape(len(each), -1).T))
    save_curves(rows, depths, names, config.folder / "fine-tuning.png")


def spread(values: Float[np.ndarray, " runs"]) -> str:
    """Return a mean and, of several values, their standard deviation."""
    error = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{error}"


if __name__ == "__main__":
    cli.main(lambda: main(tyro.cli(Config, description=__doc__)))
