"""What a training run is, as typed values."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cattrs

from odelt_eqx.data import Data, Digits, Loading
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective import LengthConsistency, TimeObjective
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.serial import converter
from odelt_eqx.sharding import Layout
from odelt_eqx.watching import WatchConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW whose rate rises linearly, stays, and falls along a cosine over the last tenth.

    Args:
        learning_rate: the rate between warm-up and decay.
        warmup: steps of the linear rise from zero.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: decoupled weight decay, on every parameter.
        ema: decay per step of the averaged weights.
        clip_norm: a gradient whose norm over all parameters is larger is scaled to this norm; None
            for no limit.
        max_skipped: a step whose loss or gradient is not finite is skipped; so many in a row stop
            the run.
    """

    learning_rate: float = 1e-4
    warmup: int = 5000
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1
    ema: float = 0.999
    clip_norm: float | None = None
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive; got {self.learning_rate}")
        for name in ("warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm must be positive, or None; got {self.clip_norm}")
        if self.max_skipped < 1:
            raise InputError(f"max_skipped must be at least 1; got {self.max_skipped}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        model: shape of the network; `ignore_step` follows from the objective.
        objective: what the network regresses on.
        optimizer: how it is updated.
        data: what it learns.
        loading: how that is read; of it only `flip` changes what is learned.
        init_from: a run folder or a `.safetensors` file whose weights are the first ones, with
            their average where it has one.
        teacher: a run folder or a `.safetensors` file whose averaged weights teach the time axis,
            in place of this run's own.
        time: how its pictures are sampled unless a command says otherwise.
        steps: training steps.
        batch_size: examples per step.
        sharding: how several devices share the work: "dp" copies the state to each, "fsdp" deals it
            out. A run may be resumed with either, on any number of devices.
        accumulate: parts that a batch is trained in, one after the other, for less memory; the step
            is the same to rounding, except that dropout draws other units.
        seed: decides weights, draws and the order of the data.
        log_every: steps between lines of metrics.
        eval_every: steps between measurements of the held-out loss.
        save_every: steps between checkpoints; the last step is always saved.
        watch: what of it is watched, and where.
        keep: newest checkpoints that are kept.
        keep_every: checkpoints at multiples of so many steps are kept as well.
    """

    model: DiTConfig
    objective: LengthConsistency | TimeObjective = LengthConsistency()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: Data = Digits()
    loading: Loading = Loading()
    init_from: str | None = None
    teacher: str | None = None
    time: FixedSteps | Adaptive = FixedSteps(steps=16)
    steps: int = 100_000
    batch_size: int = 256
    sharding: Layout = "dp"
    accumulate: int = 1
    seed: int = 0
    log_every: int = 100
    eval_every: int = 1000
    save_every: int = 10_000
    watch: WatchConfig = WatchConfig()
    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        """Check the counts and tell the model whether its step index means anything."""
        intervals = ("log_every", "eval_every", "save_every")
        for name in ("steps", "batch_size", "accumulate", *intervals, "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate must divide batch_size {self.batch_size}; got {self.accumulate}"
            )
        if self.keep_every is not None and (
            self.keep_every < 1 or self.keep_every % self.save_every
        ):
            raise InputError(
                f"keep_every must be a multiple of save_every {self.save_every}, or None; "
                f"got {self.keep_every}"
            )
        ignore_step = not self.objective.trains_steps
        if self.model.ignore_step and not ignore_step:
            raise InputError("model.ignore_step would hide the steps that this objective trains")
        for depth in self.watch.sample_depths:
            self.model.check_depth(depth)
        object.__setattr__(self, "model", dataclasses.replace(self.model, ignore_step=ignore_step))


def _converter() -> cattrs.Converter:
    return converter(TimeObjective, LengthConsistency | TimeObjective, Data)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as what JSON can hold; each objective carries the name of its type."""
    return _converter().unstructure(config)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every value of `config` by its dotted name."""
    return _flat(to_dict(config))


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def save_config(config: TrainConfig, path: Path) -> None:
    """Write `config` as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load_config(path: Path) -> TrainConfig:
    """Read what `save_config` wrote; only the types of `TrainConfig` can come out of it.

    Raises:
        InputError: the file is not such a config.
    """
    try:
        return _converter().structure(json.loads(path.read_text()), TrainConfig)
    except json.JSONDecodeError as error:
        problem = str(error)
    except cattrs.BaseValidationError as error:
        problem = "; ".join(cattrs.transform_error(error))
    raise InputError(f"{path} is not a config of this version: {problem}")
