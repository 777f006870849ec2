"""Sampling that is compiled ahead, for callers that sample again and again."""

from collections.abc import Hashable
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from odelt_eqx.condition import Condition, ConditionLike
from odelt_eqx.errors import InputError
from odelt_eqx.network import Network, as_batch
from odelt_eqx.sampling.config import KeyLike, SampleConfig, resolve
from odelt_eqx.sampling.field import SolveStats
from odelt_eqx.sampling.flow import example_keys, ready, solve_flow

X = Float[Array, "batch *shape"]


class CompiledSampler:
    """`sample_with_stats` compiled ahead, for one shape of batch and one kind of plan.

    This is what a server calls: nothing is compiled later, and in a call with the config of the
    last one only the noise and the condition are looked at.

    What may change without compiling is the noise, the condition, the numbers of the time plan
    (its steps or tolerances, but not its solver), the numbers of guidance other than 0 and 1, and
    of that by depth other than 0. Arguments and errors are those of `sample`.

    Example:
        >>> sampler = odelt.CompiledSampler(model, noise, labels, odelt.SampleConfig(depth=4))
        >>> images, stats = sampler(noise, labels)
        >>> images.shape
        (10, 8, 8, 1)
    """

    def __init__(
        self,
        model: Network,
        noise: X,
        condition: ConditionLike | None = None,
        config: SampleConfig = SampleConfig(),
        key: KeyLike = None,
    ):
        """Compile, and run nothing."""
        inputs = _inputs(model, noise, condition, config, key)
        self._model, self._config, self._kinds = model, config, _kinds(_parts(*inputs))
        self._last = _constant(config), inputs[2]
        self._weights, self._structure = jax.tree.flatten(model)
        self._compiled = solve_flow.lower(self._weights, self._structure, *inputs, True).compile()

    @property
    def peak_bytes(self) -> int:
        """Bytes that it needs on a device at once, see `peak_bytes`."""
        return peak_bytes(self._compiled)

    def __call__(
        self,
        noise: X,
        condition: ConditionLike | None = None,
        config: SampleConfig | None = None,
        key: KeyLike = None,
    ) -> tuple[X, SolveStats]:
        """Return samples and what they took, both ready, as `sample_with_stats` does.

        `config` is by default the one that was compiled.

        Raises:
            InputError: another program would be needed, as the shape of the batch or what `config`
                says beyond the numbers above is not what was compiled; or as for `sample`.
        """
        config = self._config if config is None else config
        last, resolved = self._last
        if config is last:  # which needs no second look
            noise, condition = as_batch(self._model, noise, condition)
            keys = example_keys(resolved, key, noise)
            self._check({"noise": noise, "condition": condition, "key": keys})
        else:
            noise, condition, resolved, keys = _inputs(self._model, noise, condition, config, key)
            self._check(_parts(noise, condition, resolved, keys))
            self._last = _constant(config), resolved
        inputs = noise, condition, resolved, keys
        samples, _, stats = self._compiled(self._weights, self._structure, *inputs, True)
        return ready((samples, stats))

    def _check(self, parts: dict[str, Any]) -> None:
        """Raise an InputError unless what was compiled serves these parts of the inputs."""
        for name, kind in _kinds(parts).items():
            if kind != self._kinds[name]:
                wanted, got = (" ".join(str(k).split()) for k in (self._kinds[name], kind))
                raise InputError(
                    f"compiled for {name} {wanted}; got {got}: compile another CompiledSampler"
                )


class CompiledSamplers:
    """Compiled samplers of one network, each made when a setting first needs it.

    Args:
        model: the network.
        most: how many are kept, those that were used last.
    """

    def __init__(self, model: Network, most: int = 64):
        self._model, self._most = model, most
        self._samplers: dict[Hashable, CompiledSampler] = {}

    def has(
        self, noise: X, condition: ConditionLike | None, config: SampleConfig, key: KeyLike
    ) -> bool:
        """Whether the sampler for these inputs is there; arguments and errors as of `sample`."""
        return self._name(noise, condition, config, key) in self._samplers

    def get(
        self, noise: X, condition: ConditionLike | None, config: SampleConfig, key: KeyLike
    ) -> tuple[CompiledSampler, float | None]:
        """Return the sampler for these inputs; arguments and errors are those of `sample`.

        Beside it are the seconds that compiling it took, or None if it was there. A new one has run
        once, so that a caller times no first run.
        """
        name = self._name(noise, condition, config, key)
        sampler, seconds = self._samplers.pop(name, None), None
        while len(self._samplers) >= self._most:
            del self._samplers[next(iter(self._samplers))]
        if sampler is None:
            started = perf_counter()
            sampler = CompiledSampler(self._model, noise, condition, config, key)
            seconds = perf_counter() - started
            sampler(noise, condition, config, key)
        self._samplers[name] = sampler
        return sampler, seconds

    def _name(self, *inputs: Any) -> Hashable:
        return tuple(_kinds(_parts(*_inputs(self._model, *inputs))).items())


def _inputs(
    model: Network,
    noise: X,
    condition: ConditionLike | None,
    config: SampleConfig,
    key: KeyLike,
) -> tuple[X, Condition | None, SampleConfig, Key[Array, " batch"] | None]:
    """Return what a program is compiled for, or called with."""
    noise, condition = as_batch(model, noise, condition)
    config = resolve(model, noise, config, {})
    return noise, condition, config, example_keys(config, key, noise)


def _parts(
    noise: X, condition: Condition | None, config: SampleConfig, keys: Key[Array, " batch"] | None
) -> dict[str, Any]:
    """Return all that a program takes besides the network, by name."""
    return {"noise": noise, "condition": condition, "key": keys, **vars(config)}


def _kinds(parts: dict[str, Any]) -> dict[str, Any]:
    """Return what a program depends on: all but the values of arrays."""
    is_array = lambda leaf: isinstance(leaf, Array | np.ndarray)
    kind = lambda leaf: jax.typeof(leaf).str_short() if is_array(leaf) else leaf
    return {name: jax.tree.map(kind, part) for name, part in parts.items()}


def _constant(config: SampleConfig) -> SampleConfig | None:
    """Return a config that cannot change; None for one with arrays of NumPy, which can."""
    leaves = jax.tree.leaves(config)
    return None if any(isinstance(leaf, np.ndarray) for leaf in leaves) else config


def peak_bytes(program: Any) -> int:
    """Return the bytes a program needs on a device at once: arguments, results, temporaries.

    Args:
        program: what `.lower(...).compile()` of a `jax.jit` or `eqx.filter_jit` returns.
    """
    memory = getattr(program, "compiled", program).memory_analysis()
    live = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return live + memory.temp_size_in_bytes - memory.alias_size_in_bytes
