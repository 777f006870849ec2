"""Samples of a run, written as images and arrays."""

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from odelt_eqx.errors import InputError, SolveError, check_range, find_by_name, reason
from odelt_eqx.evaluation.features import Samples, decode, open_autoencoder
from odelt_eqx.evaluation.figures import plot_points, save_figure
from odelt_eqx.evaluation.grid import recommend
from odelt_eqx.evaluation.measure import class_count, condition_of, network_on_devices
from odelt_eqx.files import read_arrays, write_arrays
from odelt_eqx.images import save_png, sheet
from odelt_eqx.network import Network, learns_null_only
from odelt_eqx.noise import sample_noise
from odelt_eqx.parallel import is_main_process
from odelt_eqx.sampling import (
    SampleConfig,
    SolveStats,
    consistency_sample,
    invert,
    raise_failures,
    sample_with_stats,
    trajectory,
)
from odelt_eqx.training.checkpoint import load_contents, run_config

STRIP_ROWS = 10  # samples in a film strip


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """Which samples are generated.

    Args:
        labels: classes by name or number, in turn; all of them by default.
        count: number of samples.
        seed: seed of the noise.
        renoise: predict the data and add noise again at each step instead of following the flow,
            for models trained by a consistency objective.
        trajectory: rising times in [0, 1] whose states are written as a film strip.
        from_images: an NPZ file with `images` (or `vectors`) and `labels`, which are carried back
            to their noise first; `labels`, if given, replace those in the file on the way forward.
        budget_ms: milliseconds per sample: time, length, depth and guidance are those of the best
            row of the run's grid within it; scripts/evaluate.py measures the grid.
        autoencoder: weights of the autoencoder that decodes latents, see
            `odelt_eqx.interop.load_autoencoder`; None if samples are images or vectors.
        out: path of the results without suffix; RUN/samples by default.

    Raises:
        InputError: `count` is not positive, or options exclude each other.
    """

    labels: tuple[int | str, ...] = ()
    count: int = 100
    seed: int = 0
    renoise: bool = False
    trajectory: tuple[float, ...] = ()
    from_images: Path | None = None
    budget_ms: float | None = None
    autoencoder: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        check_range(self, "count", least=1)
        if self.renoise and (self.trajectory or self.from_images):
            raise InputError("renoise follows no flow: leave out trajectory and from_images")


def save_samples(
    run: Path, request: SampleRequest, config: SampleConfig | None = None
) -> tuple[list[Path], SolveStats]:
    """Generate samples of a run; write them as PNG and NPZ, and a film strip if asked for.

    The arrays are `images` (or `vectors`), `labels` (zeros without classes), `noise`, one per
    statistic, with a trajectory `times` and `states`, and with an autoencoder `latents`, which the
    images are decoded from. A sample whose solve ran out of steps is written as far as it got, with
    a warning.

    The network is run by `config`, by default as the config of the run says.

    Returns:
        The paths, and what each sample took on its way from the noise.

    Raises:
        InputError: the run, a label, the depth or the file of images does not exist or fit.
        SolveError: an adaptive plan ran out of steps for every sample.
    """
    config = _sample_config(run, request, config)
    out = request.out or run / "samples"
    paths = [out.with_name(f"{out.name}{end}") for end in (".png", ".npz")]
    with network_on_devices(run) as network:
        autoencoder = open_autoencoder(request.autoencoder, network.shape)
        noise, labels = _start(run, network, request, config)
        condition = condition_of(network, labels)
        if request.renoise:
            key = jax.random.fold_in(jax.random.key(request.seed), 1)
            samples, stats = consistency_sample(network, noise, condition, key, config)
        else:
            samples, stats = sample_with_stats(network, noise, condition, config)
        try:
            raise_failures(samples, network, config, stats.time_failed, stats.length_failed)
        except SolveError as error:
            if (stats.time_failed | stats.length_failed).all():
                raise
            warnings.warn(f"these samples are unfinished: {error}", stacklevel=2)
        decoded = decode(autoencoder, samples)
        arrays = {_name(network): decoded, "labels": labels, "noise": noise, **stats._asdict()}
        if autoencoder is not None:
            arrays["latents"] = samples
        columns = len(request.labels) or class_count(network)
        columns = min(columns if 2 < columns <= 20 else 10, len(labels))
        _save_image({"samples": decoded}, labels, columns, paths[0])
        if request.trajectory:
            states = trajectory(network, noise, condition, request.trajectory, config)
            arrays |= {"times": np.asarray(request.trajectory), "states": states}
            paths.append(out.with_name(f"{out.name}-strip.png"))
            shown = states[:, :STRIP_ROWS] if states.ndim == 5 else states
            strip = {
                f"t = {t:g}": decode(autoencoder, x)
                for t, x in zip(request.trajectory, shown, strict=True)
            }
            _save_image(strip, labels, len(strip), paths[-1])
    write_arrays(paths[1], arrays)
    return paths, stats


def _sample_config(run: Path, request: SampleRequest, config: SampleConfig | None) -> SampleConfig:
    """Return how the network is run."""
    default = run_config(run).sample
    if request.budget_ms is None:
        return default if config is None else config
    if config is not None and config != default:
        raise InputError("budget_ms chooses time, length, depth and guidance: leave them out")
    recommendation = recommend(run, milliseconds=request.budget_ms)
    if is_main_process():
        print(f"note: {recommendation}", file=sys.stderr)
    return recommendation.config


def _name(network: Network) -> str:
    """Return the name of the array of samples."""
    return "images" if len(network.shape) == 3 else "vectors"


def _start(
    run: Path, network: Network, request: SampleRequest, config: SampleConfig
) -> tuple[Array, Int[np.ndarray, " count"]]:
    """Return the noise to start from and the labels to ask for."""
    if request.labels and learns_null_only(network):
        raise InputError("this run was trained without its conditions: leave out labels")
    contents = load_contents(run)
    names = contents.class_names if contents else tuple(map(str, range(class_count(network))))
    classes = [_label_of(label, names) for label in request.labels] or range(class_count(network))
    if request.from_images is None:
        noise = sample_noise(request.seed, np.arange(request.count), network.shape)
        return noise, np.resize(classes, request.count).astype(np.int32)
    name = _name(network)
    what = f"a file of {name} and labels to start from"
    arrays = read_arrays(request.from_images, what, name, "labels")
    try:
        data, own = jnp.asarray(arrays[name], jnp.float32), arrays["labels"].astype(np.int32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{request.from_images} is not {what}: {reason(error)}") from None
    noise = invert(network, data, condition_of(network, own), config)
    return noise, np.resize(classes, len(own)).astype(np.int32) if request.labels else own


def _label_of(label: int | str, class_names: Sequence[str]) -> int:
    """Return the label of a class that is asked for by its name, or else by its number."""
    if str(label) in class_names:
        return class_names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(class_names):
        return label
    if isinstance(label, int):
        raise InputError(
            f"labels must lie between 0 and {len(class_names) - 1}, or be names of classes; "
            f"got {label}"
        )
    return find_by_name("class", label, {name: i for i, name in enumerate(class_names)})


def _save_image(
    parts: Mapping[str, Samples], labels: Int[np.ndarray, " count"], columns: int, path: Path
) -> None:
    """Write samples by title: images side by side on a sheet, vectors as a scatter plot each."""
    samples = np.stack([np.asarray(part) for part in parts.values()], axis=1)
    if samples.ndim == 5:
        save_png(sheet(samples.reshape(-1, *samples.shape[2:]), columns), path)
        return
    figure = Figure(figsize=(3 * len(parts), 3.3), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        plot_points(axis, part, labels, 1.1 * float(np.abs(samples).max()))
        axis.set_title(title, fontsize=10)
    save_figure(figure, path)
