"""The rows of a grid, measured one after another; an interrupted measurement can be resumed."""

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odelt_eqx.array_files import write_arrays
from odelt_eqx.condition import Classes, Condition
from odelt_eqx.data.source import read_batches, sample_indices
from odelt_eqx.errors import InputError
from odelt_eqx.evaluation.figures import SAMPLES, save_row_samples, shown_count
from odelt_eqx.evaluation.grid import Bits, Bounds, GridConfig, Row
from odelt_eqx.evaluation.quality import Judge
from odelt_eqx.files import (
    fingerprint,
    lock,
    member_path,
    read_json_lines,
    write_errors,
    write_text,
)
from odelt_eqx.network import Network
from odelt_eqx.nn.config import NetworkConfig
from odelt_eqx.noise import sample_keys, sample_noise
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.parallel import (
    broadcast,
    describe_devices,
    is_main_process,
    make_mesh,
    on_main_process,
    place,
    replicate,
)
from odelt_eqx.progress import Progress
from odelt_eqx.sampling import (
    CompiledSampler,
    CompiledSamplers,
    SampleConfig,
    SolveStats,
    log_likelihood,
    raise_failures,
)
from odelt_eqx.serialize import from_dict, to_dict
from odelt_eqx.training.load import load, run_config
from odelt_eqx.training.signals import StopSignals
from odelt_eqx.training.throughput import memory

ROWS, LOCK = "rows.jsonl", ".measuring"

SAVE_SECONDS = 30.0  # time between saves of an unfinished row
TIMED = 5  # batches, at least, whose median is the latency
NOISE = 1000  # samples of noise, at most, that the worst quality is measured with
HELD_OUT = 1000  # held-out examples, at most, whose bits per dimension are measured
COST = ("accepted", "rejected", "evaluations", "blocks")

Value = TypeVar("Value")


@contextmanager
def network_on_devices(run: Path) -> Iterator[Network]:
    """Yield the EMA weights of a run, laid out over all devices as in training.

    Raises:
        InputError: the folder is not a run with a checkpoint.
    """
    mesh = make_mesh(run_config(run).sharding)
    with jax.set_mesh(mesh):
        yield place(load(run), mesh)


def class_count(network: Network | NetworkConfig) -> int:
    """Return the number of classes that may be asked for; 1 if no condition means anything."""
    kind = network.condition_type
    return kind.count if isinstance(kind, Classes) and kind.learned != "null" else 1


def condition_of(network: Network, labels: Int[np.ndarray, " batch"]) -> Condition | None:
    """Return labels as a condition of a network; the null condition if it takes no classes."""
    if isinstance(network.condition_type, Classes):
        return jnp.asarray(labels, jnp.int32)
    return network.null(len(labels))


def inputs(
    network: Network, seed: int, start: int, size: int
) -> tuple[Float[Array, "size *shape"], Int[np.ndarray, " size"], Condition | None]:
    """Return noise, labels and condition of samples from index `start` on; classes in turn."""
    indices = start + np.arange(size, dtype=np.int32)
    labels = indices % class_count(network)
    return sample_noise(seed, indices, network.shape), labels, condition_of(network, labels)


@contextmanager
def lock_results(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of results, see `lock`; all processes must.

    Raises:
        InputError: another evaluation or search holds it, or the folder cannot be written.
    """
    with ExitStack() as stack:

        def take() -> None:
            with write_errors(folder):
                stack.enter_context(lock(folder / LOCK, "measuring", "or give another --out"))

        on_main_process(take)
        yield


class Store:
    """What was measured, by the settings that it depends on: a file of JSON lines."""

    def __init__(self, path: Path):
        """Read the file, if there is one; an InputError if it holds something else."""
        self.path, lines = path, list(read_json_lines(path))
        known = all("measured" in x and isinstance(x.get("settings"), dict) for x in lines)
        if path.is_file() and not (lines and known):
            raise InputError(f"{path} holds no measured rows; move it away to measure again")
        self._values = {_text(line["settings"]): line["measured"] for line in lines}

    def known(self, settings: Sequence[dict[str, Any]]) -> Bool[np.ndarray, " settings"]:
        """Return for which settings process 0 has a value; all processes must ask."""
        return broadcast(np.array([_text(each) in self._values for each in settings], bool))

    def measure(
        self, settings: dict[str, Any], kind: type[Value], measure: Callable[[], Value | None]
    ) -> Value | None:
        """Return the value for these settings, to process 0; measure and store it if unknown."""
        (known,) = self.known([settings])
        value = None if known else measure()
        if not is_main_process():
            return None
        if known:
            return from_dict(self._values[_text(settings)], kind, str(self.path))
        self._values[_text(settings)] = to_dict(value)
        lines = [
            json.dumps({"settings": json.loads(text), "measured": measured}, allow_nan=False)
            for text, measured in self._values.items()
        ]
        write_text(self.path, "\n".join(lines) + "\n")
        return value


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


class Meter:
    """Measures a network; what is known from `folder` is not measured again.

    All processes must call the same methods. Only process 0 gets values.
    """

    def __init__(
        self,
        network: Network,
        judge: Judge,
        config: GridConfig,
        folder: Path,
        own: SampleConfig | None = None,
        command: str = "",
    ):
        """Read what is known.

        Args:
            own: a setting that is measured whatever the grid is.
            command: what resumes the measurement, for the message of a stop.
        """
        self.judge, self.config = judge, config
        self.configs = config.sample_configs(network.depths, own)
        self._network, self._folder = network, folder
        self._command = command or "the same call"
        self._store = Store(folder / ROWS)
        self._samplers = CompiledSamplers(network)
        length = network.length if config.length is None else config.length
        self.settings = {
            "weights": fingerprint_weights(network),
            "data": judge.data,
            "classes": judge.classes,
            "features": judge.features.name,
            "second": None if judge.second is None else judge.second.name,
            "reference": judge.reference,
            "autoencoder": judge.autoencoder and fingerprint(judge.autoencoder),
            "length": to_dict(length, FixedSteps | Adaptive),
            "count": config.count,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "device": describe_devices(),
        }
        if judge.further:
            self.settings["further"] = judge.further

    def rows(self, progress: Progress, seconds: float | None = None) -> Iterator[Row]:
        """Yield the rows of the grid; `progress` counts samples.

        Args:
            progress: shows how far the measurement is.
            seconds: the largest numbers of steps are left out if all would take longer. Rows of the
                smallest number are always measured; what they take says what the others will.

        Raises:
            SolveError: an adaptive plan ran out of steps.
            Interrupted: a signal asked for it; the same call resumes the measurement.
        """
        configs, rows, started = self.configs, {}, monotonic()
        with StopSignals() as stop:
            numbers = Counter(time_steps(config) for config in configs if time_steps(config))
            if seconds is not None and numbers:
                least = min(numbers)
                few = [config for config in configs if time_steps(config) == least]
                rows = {config: self.row(config, stop, progress) for config in few}
                used = sum(row.milliseconds for row in rows.values() if row) / 1e3
                one_step = used * self.config.count / (least * len(few))
                costs = {steps: one_step * steps * number for steps, number in numbers.items()}
                most = _most_steps(costs, seconds - (monotonic() - started))
                most = int(broadcast(np.array(most)))
                configs = [config for config in configs if time_steps(config) <= most]
                progress.expect(self.config.count * len(configs))
            for config in configs:
                row = rows[config] if config in rows else self.row(config, stop, progress)
                if row is not None:
                    yield row

    def row(
        self, config: SampleConfig, stop: StopSignals, progress: Progress, count: int | None = None
    ) -> Row | None:
        """Return a row to process 0, measured unless it is known.

        `count` is its number of samples, if that is another than the grid's; the first ones are not
        written then: such a row is a trial.
        """
        count = self.config.count if count is None else count
        settings = self._settings(config, count)
        if self._store.known([settings])[0]:
            progress.advance(count)
        name = f"{_file_name(config)}-{fingerprint(_text(settings))[:8]}"
        measure = lambda: self._measure_row(config, count, name, stop, progress)
        return self._store.measure(settings, Row, measure)

    def known(self, configs: Sequence[SampleConfig]) -> list[SampleConfig]:
        """Return those of some settings whose row has been measured."""
        known = self._store.known([self._settings(config, self.config.count) for config in configs])
        return [config for config, there in zip(configs, known, strict=True) if there]

    def _settings(self, config: SampleConfig, count: int) -> dict[str, Any]:
        return {**self.settings, "count": count, "config": to_dict(config)}

    def _measure_row(
        self, config: SampleConfig, count: int, name: str, stop: StopSignals, progress: Progress
    ) -> Row | None:
        """Generate the samples of a row, judge them, and write the first ones.

        The last batch is filled up with samples that are not counted, so one program generates all.
        If there are few batches, the first is repeated for its time.
        """
        judge, size = self.judge, self.config.batch_size
        classes, partial = class_count(self._network), self._folder / f".{name}.partial.npz"
        resume = f"{self._command} resumes from {self._folder}"
        progress.stage("preparing")
        with stop.at_once(resume):
            judge.prepare()
        trial = count != self.config.count
        shown = 0 if trial else shown_count(judge.shape, classes, count)
        state = judge.accumulator(count, shown)
        sampler = self._compiled(config)
        if is_main_process():
            state.load(partial)
        start, began = int(broadcast(state.count)), monotonic()
        saved = began
        progress.advance(start)
        progress.stage("sampling")
        while start < count:
            samples, labels, stats, seconds = self._sample(sampler, config, start)
            new = min(size, count - start)
            judge.add(state, samples, labels[:new])
            state.cost += [np.sum(getattr(stats, field)[:new]) for field in COST]
            state.seconds = np.append(state.seconds, seconds)
            start += new
            progress.advance(new)
            stopped = stop.agreed(waiting=True)
            if stopped or monotonic() - saved > SAVE_SECONDS:
                write_arrays(partial, vars(state))
                saved = monotonic()
            if stopped:
                stop.leave(resume)
        repeats = [self._sample(sampler, config, 0)[-1] for _ in range(TIMED - len(state.seconds))]
        if not is_main_process():
            return None
        if monotonic() - began > SAVE_SECONDS:
            write_arrays(partial, vars(state))
        progress.stage("comparing")
        with stop.at_once(resume):
            quality = judge.quality(state)
        row = Row(
            config=config,
            quality=quality,
            **dict(zip(COST, (state.cost / count).tolist(), strict=True)),
            milliseconds=1e3 * statistics.median([*state.seconds, *repeats]) / size,
            memory=sampler.peak_bytes,
            device_memory=memory().get("device_peak_bytes"),
            samples=f"{name}.png",
        )
        if not trial:
            path = member_path(self._folder, SAMPLES, row.samples)
            save_row_samples(state.shown, classes, judge.held_out, path)
        partial.unlink(missing_ok=True)
        progress.show(depth=row.depth, steps=row.accepted, frechet=row.quality.frechet)
        return row

    def _compiled(self, config: SampleConfig) -> CompiledSampler:
        """Return the sampler of a setting; one that was compiled before is used if it serves."""
        size, seed = self.config.batch_size, self.config.seed
        noise, _, condition = inputs(self._network, seed, 0, size)
        keys = sample_keys(seed, np.arange(size))
        return self._samplers.get(noise, condition, config, keys)[0]

    def _sample(
        self, sampler: CompiledSampler, config: SampleConfig, start: int
    ) -> tuple[Array, Int[np.ndarray, " batch"], SolveStats, float]:
        """Return a batch of samples, their labels, what they took, and the seconds of it all."""
        network, size = self._network, self.config.batch_size
        noise, labels, condition = inputs(network, self.config.seed, start, size)
        keys = sample_keys(self.config.seed, start + np.arange(size))
        jax.block_until_ready((noise, keys))
        started = perf_counter()
        samples, stats = sampler(noise, condition, config, keys)
        seconds = perf_counter() - started
        raise_failures(samples, network, config, stats.time_failed, stats.length_failed)
        return samples, labels, stats, seconds

    def bounds(self) -> Bounds | None:
        """Return the best and the worst quality to expect."""
        names = ("data", "classes", "features", "second", "reference", "autoencoder")
        names += ("count", "seed", "further")
        settings = {"bounds": {n: self.settings[n] for n in names if n in self.settings}}

        def measure() -> Bounds:
            count = min(self.config.count, NOISE)
            noise, labels, _ = inputs(self._network, self.config.seed, 0, count)
            state = self.judge.accumulator(count)
            self.judge.add(state, noise, labels)
            real = self.judge.real_quality(self.config.count)
            return Bounds(real, self.judge.quality(state))

        return self._store.measure(settings, Bounds, measure)

    def bits(self) -> list[Bits]:
        """Return the bits per dimension at every depth and guidance, if they are asked for."""
        names = ("weights", "data", "length", "batch_size", "seed")
        known = {name: self.settings[name] for name in names}
        probes, found = self.config.likelihood, []
        depths = self.config.depths or self._network.depths
        for depth, guidance in itertools.product(depths, self.config.guidance) if probes else ():
            settings = {"bits": known, "probes": probes, "at": [depth, guidance]}
            measure = lambda: self._measure_bits(depth, guidance)  # noqa: B023
            found.append(self._store.measure(settings, Bits, measure))
        return [bits for bits in found if bits is not None]

    def _measure_bits(self, depth: int, guidance: float) -> Bits:
        """Return the bits per dimension of at most `HELD_OUT` examples, in batches of one size.

        For data with grey levels, uniform noise as wide as the step between two is added, and the
        result is a bound on the bits of the levels themselves; otherwise it is that of the density.
        """
        source, config = self.judge.held_out, self.config
        noise_key, probe_key = jax.random.split(jax.random.key(config.seed))
        width = 2 / (source.levels - 1) if source.levels else 0.0
        indices = sample_indices(source, HELD_OUT)
        size = len(indices) // -(-len(indices) // config.batch_size)
        indices = indices[: len(indices) // size * size]
        bits, evaluations = [], []
        for index, (data, labels) in enumerate(read_batches(source, indices, size)):
            noise = jax.random.uniform(jax.random.fold_in(noise_key, index), data.shape) - 0.5
            likelihood = log_likelihood(
                self._network,
                jnp.asarray(data) + width * noise,
                condition_of(self._network, labels),
                probes=config.likelihood,
                key=jax.random.fold_in(probe_key, index),
                length=config.length,
                depth=depth,
                guidance=guidance,
            )
            bits.append(np.asarray(likelihood.bits_per_dim))
            evaluations.append(np.asarray(likelihood.stats.evaluations))
        values = np.concatenate(bits) - (np.log2(width) if width else 0.0)
        error = values.std(ddof=1) / np.sqrt(len(values))
        numbers = (values.mean(), error, np.concatenate(evaluations).mean())
        return Bits(depth, guidance, *map(float, numbers))


def fingerprint_weights(network: Network) -> str:
    """Return a fingerprint of the weights, on whatever devices they are."""
    return fingerprint(np.asarray(_sums(network)))


@eqx.filter_jit
def _sums(network: Network) -> Array:
    """Return a sum of the bits of each array of weights, in which their order counts."""
    total = []
    for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).ravel()
        odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        total.append(jnp.sum(bits * odd, dtype=jnp.uint32))
    return replicate(jnp.stack(total))


def time_steps(config: SampleConfig) -> int:
    """Return the number of time steps of a setting; 0 if a solver chooses it."""
    return int(config.time.count) if isinstance(config.time, FixedSteps) else 0


def _most_steps(costs: dict[int, float], seconds: float) -> int:
    """Return the largest number of steps that is measured in a time, with all that are smaller.

    Args:
        costs: seconds that the rows of each number take; the smallest is measured already.
        seconds: what is left.
    """
    first, *others = sorted(costs)
    fitting = [first]
    for more in others:
        seconds -= costs[more]
        if seconds < 0:
            break
        fitting.append(more)
    return fitting[-1]


def _file_name(config: SampleConfig) -> str:
    """Return the start of the file name of a row's samples."""
    plan = config.time
    size = f"{plan.rtol:g}" if isinstance(plan, Adaptive) else plan.steps
    guide = f"-by-{config.guide_depth}-{config.depth_guidance:g}" if config.depth_guidance else ""
    noise = f"-diffusion-{config.diffusion:g}" if config.diffusion else ""
    return f"depth-{config.depth}-{plan.solver}-{size}-guidance-{config.guidance:g}{guide}{noise}"
