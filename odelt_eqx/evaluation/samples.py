"""Samples of a run, written as images and arrays."""

import dataclasses
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odelt_eqx.array_files import read_arrays
from odelt_eqx.condition import Classes, learns_null_only
from odelt_eqx.data.source import as_float
from odelt_eqx.errors import InputError, SolveError, check_numbers, check_range, find_by_name
from odelt_eqx.evaluation.export import Write, adm_file, arrays_file, png_folder
from odelt_eqx.evaluation.features import Samples, decode, decoded_shape, open_autoencoder
from odelt_eqx.evaluation.figures import new_figure, plot_points, save_figure
from odelt_eqx.evaluation.measure import class_count, condition_of, network_on_devices
from odelt_eqx.evaluation.recommend import recommend
from odelt_eqx.files import check_writable
from odelt_eqx.images import save_png, sheet
from odelt_eqx.network import Network
from odelt_eqx.noise import sample_keys, sample_noise
from odelt_eqx.parallel import is_main_process, on_main_process
from odelt_eqx.progress import Progress
from odelt_eqx.sampling import (
    SampleConfig,
    SolveStats,
    consistency_sample,
    invert,
    raise_failures,
    sample_with_stats,
    trajectory,
)
from odelt_eqx.training.load import load_contents, run_config

STRIP_ROWS = 10  # images in a film strip, at most
SHEET_ROWS = 40  # rows of images on a sheet, at most

Format = Literal["npz", "png", "adm"]
NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """Which samples are generated.

    Args:
        labels: classes by name, in turn, or by number where the names are not numbers themselves;
            all of them by default.
        count: number of samples; with `from_images` all that are in the file are used.
        seed: seed of the noise.
        renoise: predict the data and add noise again at each step instead of following the flow,
            for models trained by a consistency objective.
        trajectory: rising times in [0, 1] whose states are written as a film strip.
        from_images: an NPZ file with `images` (or `vectors`) and `labels`, which are carried back
            to their noise first; `labels`, if given, replace those in the file on the way forward.
        budget_ms: milliseconds per sample: time, length, depth and guidance are those of the best
            row of the run's grid within it, which `odelt search` or `evaluate` measures.
        autoencoder: weights of the autoencoder that decodes latents, see
            `odelt_eqx.interop.load_autoencoder`; None if samples are images or vectors.
        batch_size: samples in memory at a time.
        format: "npz" is a file of arrays; "png" a folder of images, CLASS/NUMBER.png, and "adm" a
            file of bytes (`arr_0`) and labels (`arr_1`), which other evaluators read.
        out: path of the results without suffix; RUN/samples by default, for png RUN/images.

    Raises:
        InputError: a number is not positive, or options exclude each other.
    """

    labels: tuple[str | int, ...] = ()  # on a command line all are text: 02 is not 2
    count: int = 100
    seed: int = 0
    renoise: bool = False
    trajectory: tuple[float, ...] = ()
    from_images: Path | None = None
    budget_ms: float | None = None
    autoencoder: str | None = None
    batch_size: int = 250
    format: Format = "npz"
    out: Path | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        check_range(self, "count", "batch_size", least=1)
        check_range(self, "seed", least=0)
        check_range(self, "budget_ms", above=0)
        if self.out is not None and self.out.name in ("", ".."):
            raise InputError(f"out is the path of the results without suffix; got {self.out}")
        if self.trajectory and self.format != "npz":
            raise InputError("a trajectory is written as arrays: leave out format")
        if self.renoise and (self.trajectory or self.from_images):
            raise InputError("renoise follows no flow: leave out trajectory and from_images")


def save_samples(
    run: Path, request: SampleRequest, config: SampleConfig | None = None
) -> tuple[list[Path], SolveStats]:
    """Generate samples of a run in batches; write them, and the first ones as a picture.

    In the format "npz" they are arrays: `images` (or `vectors`), `labels` (zeros without classes),
    `noise`, one per statistic, with a trajectory `times` and `states`, and with an autoencoder
    `latents`, which the images are decoded from. The other formats are those of
    `odelt_eqx.evaluation.export`. A sample whose solve ran out of steps is written as far as it
    got, with a warning.

    The network is run by `config`, by default as the config of the run says.

    Returns:
        The paths, and what each sample took on its way from the noise.

    Raises:
        InputError: the run, a label, the depth or the file of images does not exist or fit, the
            format holds no such samples, its folder exists, or the path cannot be written.
        SolveError: an adaptive plan ran out of steps for every sample of a batch, or with a
            trajectory for any.
    """
    config = _sample_config(run, request, config)
    out = request.out or run / ("images" if request.format == "png" else "samples")
    on_main_process(lambda: check_writable(out.with_name(f"{out.name}.png")))
    with network_on_devices(run) as network:
        autoencoder = open_autoencoder(request.autoencoder, network.shape)
        names = class_names(run, network)
        noise_of, labels = _start(network, names, request, config)
        count, shape = len(labels), decoded_shape(autoencoder, network.shape)
        columns = len(request.labels) or len(names)
        columns = min(columns if 2 < columns <= 20 else 10, count)
        strip_rows = STRIP_ROWS if len(shape) == 3 else count
        path, writer = _writer(request, out, count, shape, names)
        sheet, strip, all_stats, done = [], [], [], 0
        with writer as write, Progress("sample", count) as progress:
            for arrays, stats in _batches(network, noise_of, labels, request, config):
                samples = arrays.pop("samples")
                decoded = decode(autoencoder, samples)
                sheet.append(decoded[: max(0, columns * SHEET_ROWS - done)])
                if request.trajectory:
                    strip.append(arrays["states"][:, : max(0, strip_rows - done)])
                if autoencoder is not None:
                    arrays["latents"] = samples
                write({_name(network): decoded, **arrays, **stats._asdict()})
                all_stats.append(stats)
                done += len(decoded)
                progress.advance(len(decoded))
        paths, samples = [out.with_name(f"{out.name}.png"), path], np.concatenate(sheet)
        _save_image({"samples": samples}, labels[: len(samples)], columns, paths[0])
        if request.trajectory:
            states = zip(request.trajectory, np.concatenate(strip, axis=1), strict=True)
            shown = {f"t = {t:g}": decode(autoencoder, x) for t, x in states}
            paths.append(out.with_name(f"{out.name}-strip.png"))
            _save_image(shown, labels, len(shown), paths[-1])
    return paths, jax.tree.map(lambda *parts: np.concatenate(parts), *all_stats)


def _batches(
    network: Network,
    noise_of: Callable[[Int[np.ndarray, " batch"]], Array],
    labels: Int[np.ndarray, " count"],
    request: SampleRequest,
    config: SampleConfig,
) -> Iterator[tuple[dict[str, np.ndarray], SolveStats]]:
    """Yield the samples of each batch with what they came from, and what they took.

    The last batch is filled up with samples that are dropped, so that one program makes all.
    """
    count, size = len(labels), min(request.batch_size, len(labels))
    for start in range(0, count, size):
        indices = np.minimum(np.arange(start, start + size), count - 1)
        new = slice(min(size, count - start))
        noise, condition = noise_of(indices), condition_of(network, labels[indices])
        keys = sample_keys(request.seed, indices)
        if request.renoise:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(request.seed), 1), start)
            samples, stats = consistency_sample(network, noise, condition, key, config)
        else:
            samples, stats = sample_with_stats(network, noise, condition, config, key=keys)
        try:
            failed = stats.time_failed, stats.length_failed
            raise_failures(samples, network, config, *failed, noise)
        except SolveError as error:
            if (stats.time_failed | stats.length_failed).all():
                raise
            warnings.warn(f"these samples are unfinished: {error}", stacklevel=2)
        arrays = {"samples": samples, "noise": noise, "labels": labels[indices]}
        arrays = {name: np.asarray(values)[new] for name, values in arrays.items()}
        if request.trajectory:
            states = trajectory(network, noise, condition, request.trajectory, config, key=keys)
            arrays["states"] = np.asarray(states)[:, new]
        yield arrays, SolveStats(*(values[new] for values in stats))


def _writer(
    request: SampleRequest, out: Path, count: int, shape: tuple[int, ...], names: Sequence[str]
) -> tuple[Path, AbstractContextManager[Write]]:
    """Return where samples are written to, and what writes them; process 0 alone does."""
    path = out if request.format == "png" else out.with_name(f"{out.name}.npz")
    if request.format == "npz":
        times = {"times": np.asarray(request.trajectory)} if request.trajectory else {}
        return path, arrays_file(path, **times)
    if not is_main_process():
        return path, nullcontext(lambda arrays: None)
    if request.format == "png":
        return path, png_folder(path, shape, names)
    return path, adm_file(path, count, shape)


def _sample_config(run: Path, request: SampleRequest, config: SampleConfig | None) -> SampleConfig:
    """Return how the network is run."""
    trained = run_config(run)
    default = trained.sample
    if request.budget_ms is None:
        config = default if config is None else config
        trained.check_sampling(config.diffusion)
        return config
    if config is not None and config != default:
        raise InputError("budget_ms chooses time, length, depth and guidance: leave them out")
    recommendation = recommend(run, milliseconds=request.budget_ms)
    if is_main_process():
        print(f"note: {recommendation}", file=sys.stderr)
    return recommendation.config


def _name(network: Network) -> str:
    """Return the name of the array of samples."""
    return "images" if len(network.shape) == 3 else "vectors"


def class_names(run: Path, network: Network) -> tuple[str, ...]:
    """Return the names of the classes that may be asked for, numbers if they have none."""
    contents, count = load_contents(run), class_count(network)
    if contents is not None and len(contents.class_names) == count:
        return contents.class_names
    return tuple(map(str, range(count)))


def _start(
    network: Network, names: Sequence[str], request: SampleRequest, config: SampleConfig
) -> tuple[Callable[[Int[np.ndarray, " batch"]], Array], Int[np.ndarray, " count"]]:
    """Return a function from indices to the noise to start from, and the labels to ask for."""
    if request.labels and learns_null_only(network.condition_type):
        raise InputError("this run was trained without its conditions: leave out labels")
    classes = [_label_of(label, names) for label in request.labels] or range(len(names))
    if request.from_images is None:
        noise_of = lambda indices: sample_noise(request.seed, indices, network.shape)
        return noise_of, np.resize(classes, request.count).astype(np.int32)
    data, own = _read_images(request.from_images, network)

    def invert_images(indices: Int[np.ndarray, " batch"]) -> Array:
        return invert(network, data[indices], condition_of(network, own[indices]), config)

    labels = np.resize(classes, len(own)).astype(np.int32) if request.labels else own
    return invert_images, labels


def _read_images(
    path: Path, network: Network
) -> tuple[Float[Array, "count *shape"], Int[np.ndarray, " count"]]:
    """Return the samples and labels in a file; bytes are scaled to [-1, 1], as `Npz` does.

    Raises:
        InputError: they do not fit the network, or a value is not finite or no label of a class.
    """
    name, kind = _name(network), network.condition_type
    what = f"a file of {name} and labels to start from"
    arrays = read_arrays(path, what, name, "labels")
    data, labels = arrays[name], arrays["labels"]
    found = f"{name} of {data.dtype} {data.shape} and labels of {labels.dtype} {labels.shape}"
    if not len(labels.shape) == 1 <= labels.size or data.shape != (len(labels), *network.shape):
        raise InputError(f"{path} has {found}; this network makes {name} of {network.shape}")
    if labels.dtype.kind not in "iu" or (data.dtype != np.uint8 and data.dtype.kind != "f"):
        raise InputError(f"{path} has {found}; expected bytes or floats, and integers")
    low, high = labels.min(), labels.max()
    if not isinstance(kind, Classes):
        labels = np.zeros_like(labels)
    elif not 0 <= low <= high <= kind.count:
        raise InputError(f"{path} has the labels {low} to {high}, not 0 to {kind.count}")
    with np.errstate(over="ignore"):
        data = as_float(data).astype(np.float32)
    if not np.isfinite(data).all():
        raise InputError(f"{path} has {name} that are not finite")
    return jnp.asarray(data), labels.astype(np.int32)


def _label_of(label: str | int, class_names: Sequence[str]) -> int:
    """Return the label of a class that is asked for by its name, or else by its number.

    Other numbers than the labels, say 01 to 10, are names alone: else 10 could mean either.
    """
    name, labels = str(label), {name: i for i, name in enumerate(class_names)}
    same = [i for i, each in enumerate(class_names) if each == name]
    if len(same) > 1:
        raise InputError(f"classes {', '.join(map(str, same))} are called {name!r}: ask by number")
    numbered = list(labels) == list(map(str, labels.values()))
    names_alone = all(map(_is_number, labels)) and not numbered
    if name in labels or names_alone or not NUMBER.fullmatch(name):
        return find_by_name("class", name, labels)
    if 0 <= int(name) < len(class_names):
        return int(name)
    raise InputError(
        f"labels must lie between 0 and {len(class_names) - 1}, or be names of classes; got {name}"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _save_image(
    parts: Mapping[str, Samples], labels: Int[np.ndarray, " count"], columns: int, path: Path
) -> None:
    """Write samples by title: images side by side on a sheet, vectors as a scatter plot each."""
    samples = np.stack([np.asarray(part) for part in parts.values()], axis=1)
    if samples.ndim == 5:
        save_png(sheet(samples.reshape(-1, *samples.shape[2:]), columns), path)
        return
    figure = new_figure(3 * len(parts), 3.3)
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        plot_points(axis, part, labels, 1.1 * float(np.abs(samples).max()))
        axis.set_title(title, fontsize=10)
    save_figure(figure, path)
