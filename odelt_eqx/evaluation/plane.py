"""Figures of a network of points in the plane: what it reads along its length, and its density."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.data.source import Source, read, sample_indices
from odelt_eqx.evaluation.figures import (
    POINTS,
    axis_limit,
    depth_colours,
    new_figure,
    save_figure,
)
from odelt_eqx.evaluation.measure import class_count, condition_of, inputs
from odelt_eqx.ode.plan import Adaptive
from odelt_eqx.sampling import SampleConfig, log_likelihood, trajectory

LINES, BINS = 150, 64
TIMES = (0.25, 0.5, 0.75)


def save_length(network: Any, held_out: Source, config: SampleConfig, path: Path) -> None:
    """Write how the output of a network moves over its length, at a few times.

    A line joins a state `x` on its way from noise to data with the points `x + (1 - t) v`, where
    `v` is the velocity that the final layer reads from `u` at every edge of the full length.
    """
    noise, _, condition = inputs(network, 0, 0, LINES)
    states = trajectory(network, noise, condition, TIMES, config, key=jax.random.key(0))
    if not network.anytime:
        # At depth d, a network whose every length embedding is that of the full depth stops where
        # the full depth passes the edge d.
        rows = network.length_embedding.weight
        full = jnp.broadcast_to(rows[network.depth], rows.shape)
        network = eqx.tree_at(lambda n: n.length_embedding.weight, network, full)
    data, _ = read(held_out, sample_indices(held_out, POINTS))
    limit, colours = axis_limit(held_out), depth_colours(network.depths)
    figure = new_figure(3.6 * len(TIMES), 4.2)
    for axis, t, x in zip(figure.subplots(1, len(TIMES)), TIMES, states, strict=True):
        outputs = x + (1 - t) * network.velocities(t, x, network.flow_index, condition)
        axis.scatter(*data.T, s=2, c="0.88", linewidths=0)
        axis.plot(*np.stack([x, *outputs]).transpose(2, 0, 1), color="0.6", lw=0.5, zorder=1)
        for points, (depth, colour) in zip(outputs, colours.items(), strict=True):
            axis.scatter(*points.T, s=8, color=colour, linewidths=0, label=f"depth {depth}")
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=f"t = {t:g}")
        axis.set(xticks=[], yticks=[])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=10)
    save_figure(figure, path)


def save_density(network: Any, held_out: Source, config: SampleConfig, path: Path) -> None:
    """Write the density of a network beside a histogram of the data.

    Classes are weighted by their share of the data. The title has the mean log-likelihood of the
    data. The `time` of `config` is not used.
    """
    data, labels = read(held_out, sample_indices(held_out, POINTS))
    limit = axis_limit(held_out)
    centres = (np.arange(BINS) + 0.5) * (2 * limit / BINS) - limit
    plane = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    points = jnp.asarray(np.concatenate([plane, data]), jnp.float32)
    labels = labels if class_count(network) > 1 else np.zeros_like(labels)
    density = np.zeros(len(points))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        condition = condition_of(network, np.full(len(points), label))
        time = Adaptive(rtol=1e-3, atol=1e-3)
        found = log_likelihood(network, points, condition, config, time=time)
        density += count / len(data) * np.exp(found.log_density)
    likelihood, density = np.log(density[len(plane) :]), density[: len(plane)]
    error = likelihood.std() / np.sqrt(len(likelihood))
    extent = (-limit, limit, -limit, limit)
    histogram, _, _ = np.histogram2d(*data.T, bins=BINS, range=[extent[:2]] * 2, density=True)
    panels = {"model": density.reshape(BINS, BINS), "histogram of the data": histogram.T}
    figure = new_figure(8, 4.4)
    for axis, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axis.imshow(values, origin="lower", extent=extent, vmin=0, vmax=density.max())
        axis.set_title(title, fontsize=10)
    title = f"log-likelihood of held-out data {likelihood.mean():.3f} ± {error:.3f} nats"
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)
