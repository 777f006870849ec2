"""What a training run is, as typed values."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from odelt_eqx.data import Data, Digits, Loading
from odelt_eqx.errors import InputError, check_numbers, check_range
from odelt_eqx.files import read_json, write_json
from odelt_eqx.inputs import check_depth
from odelt_eqx.interop.published import PublishedObjective
from odelt_eqx.nn import DiTConfig, VectorNetConfig
from odelt_eqx.objective import (
    DeepSupervision,
    LengthConsistency,
    MeanFlow,
    SelfAlignment,
    TimeObjective,
    innermost,
)
from odelt_eqx.ode import FixedSteps
from odelt_eqx.parallel import Layout
from odelt_eqx.sampling import SampleConfig
from odelt_eqx.sampling.config import check_fit
from odelt_eqx.serialize import from_dict, set_declared, to_dict

Service = Literal["tensorboard", "wandb"]

WIDEST = 12**-0.5
"""The relative width of an average in which all steps count the same."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW whose rate rises linearly, stays, and falls along a cosine over the last tenth.

    Args:
        learning_rate: the rate between warm-up and decay.
        warmup: steps of the linear rise from zero, at most a tenth of the run.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: decoupled weight decay, on every parameter.
        ema: decay per step of the EMA weights.
        ema_warmup: in a run so short that its first weights would be over a thousandth of the
            average, the decay rises with the steps taken, `(1 + step) / (10 + step)`, until it is
            `ema`. Not with `init_from`, nor in runs that were begun before there was this field.
        average_widths: of the averages that `TrainConfig.snapshot_every` stores, each as a share of
            the steps taken (arXiv 2312.02696, whose two are the default).
        clip_norm: a gradient whose norm over all parameters is larger is scaled to this norm; None
            for no limit.
        max_skipped: a step whose loss or gradient is not finite is skipped; so many in a row stop
            the run.

    Raises:
        InputError: a number is out of range.
    """

    learning_rate: float = 1e-4
    warmup: int = 5000
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1
    ema: float = 0.999
    ema_warmup: bool = True
    average_widths: tuple[float, ...] = (0.05, 0.1)
    clip_norm: float | None = None
    max_skipped: int = 10

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "learning_rate", "clip_norm", above=0)
        check_range(self, "warmup", "weight_decay", least=0)
        check_range(self, "beta1", "beta2", "ema", least=0, below=1)
        check_range(self, "max_skipped", least=1)
        if not self.average_widths or len(set(self.average_widths)) < len(self.average_widths):
            raise InputError(f"average_widths must be different numbers; got {self.average_widths}")
        if not all(0 < width <= WIDEST for width in self.average_widths):
            raise InputError(
                f"average_widths must lie in (0, {WIDEST:.4f}]; got {self.average_widths}"
            )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What a run logs, and where, besides its folder; nothing here changes the weights.

    Args:
        to: services that get metrics and samples, too: "tensorboard" writes to the run folder,
            "wandb" is Weights & Biases. Each is an extra: `pip install 'odelt-eqx[tensorboard]'`.
        sample_every: steps between samples from the EMA weights; 0 draws none.
        sample_steps: numbers of time steps that they are drawn with.
        sample_depths: depths in blocks that they are drawn at; all by default.
        sample_count: samples of each, classes in turn, from the same noise each time.
        peak_flops: floating-point operations per second that all devices of the run together can
            do in the network's dtype; with it, model FLOP utilisation is a metric.

    Raises:
        InputError: a number is out of range.
    """

    to: tuple[Service, ...] = ()
    sample_every: int = 0
    sample_steps: tuple[int, ...] = (1, 4, 16)
    sample_depths: tuple[int, ...] = ()
    sample_count: int = 10
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        set_declared(self)
        check_range(self, "sample_every", least=0)
        check_range(self, "sample_count", least=1)
        check_range(self, "peak_flops", above=0)
        if min(self.sample_steps, default=0) < 1:
            raise InputError(f"sample_steps must be positive numbers; got {self.sample_steps}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        model: shape of the network; `ignore_step`, `learned` and `max_guidance` follow from the
            objective, and `attention` where it takes a forward derivative.
        objective: what the network regresses on.
        optimizer: how it is updated.
        data: what it learns.
        loading: how data are read; only its `flip` changes what is learned.
        init_from: a run folder or a `.safetensors` file whose weights are the first ones, with
            their average where it has one.
        frozen: parts of the network that are not trained, by their names in it ("groups",
            "final"): they keep the average's weights from `init_from`.
        teacher: a run folder or a `.safetensors` file whose EMA weights teach the time axis,
            in place of this run's own.
        sample: how the network is run unless a command says otherwise; without guidance by depth
            where the objective trains one depth only.
        steps: training steps.
        batch_size: examples per step.
        sharding: how several devices share the work: "dp" copies the state to each, "fsdp" splits
            it. A run may be resumed with either, on any number of devices.
        accumulate: parts in which a batch is trained, one after another, for less memory; the step
            is the same to rounding.
        seed: decides weights, draws and the order of the data.
        log_every: steps between lines of metrics.
        eval_every: steps between measurements of the held-out loss.
        save_every: steps between checkpoints; the last step is always saved.
        snapshot_every: steps between snapshots of power-function averages of the weights, and one
            of the last step, from which `load_average` makes the average of any width afterwards.
            Of the default widths, 32 of them give the widths from 0.05 to 0.2 to 1 %, 64 those from
            0.03. A snapshot has the size of the weights for each width. None: no such averages.
        logging: what is logged besides, and where.
        keep: number of the newest checkpoints that are kept.
        keep_every: checkpoints at multiples of so many steps are kept as well.

    Raises:
        InputError: the values do not fit together.
    """

    model: DiTConfig | VectorNetConfig
    objective: (
        LengthConsistency | DeepSupervision | SelfAlignment | TimeObjective | PublishedObjective
    ) = LengthConsistency()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: Data = Digits()
    loading: Loading = Loading()
    init_from: str | None = None
    frozen: tuple[str, ...] = ()
    teacher: str | None = None
    sample: SampleConfig = SampleConfig(time=FixedSteps(steps=16))
    steps: int = 100_000
    batch_size: int = 256
    sharding: Layout = "dp"
    accumulate: int = 1
    seed: int = 0
    log_every: int = 100
    eval_every: int = 1000
    save_every: int = 10_000
    snapshot_every: int | None = None
    logging: LoggingConfig = LoggingConfig()
    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        """Check the values and set what follows from the objective."""
        set_declared(self)
        check_numbers(self)
        check_range(self, "seed", least=0)
        check_range(self, "steps", "batch_size", "accumulate", least=1)
        check_range(self, "log_every", "eval_every", "save_every", "keep", "keep_every", least=1)
        check_range(self, "snapshot_every", least=1)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate must divide batch_size {self.batch_size}; got {self.accumulate}"
            )
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise InputError(
                f"keep_every must be a multiple of save_every {self.save_every}, or None; "
                f"got {self.keep_every}"
            )
        if self.frozen and self.init_from is None:
            raise InputError(
                f"frozen would keep random weights of {', '.join(self.frozen)}: say "
                "by init_from where they come from"
            )
        ignore_step = not self.objective.trains_steps
        if self.model.ignore_step and not ignore_step:
            raise InputError("model.ignore_step would hide the steps that this objective trains")
        learned = self.objective.learned if self.model.num_classes != 1 else "null"
        if self.model.learned not in ("both", learned):
            raise InputError(
                f"model.learned is {self.model.learned}, but this objective teaches {learned}: "
                "give --model.learned both"
            )
        inner = innermost(self.objective)
        most = inner.max_guidance if isinstance(inner, MeanFlow) else None
        if self.model.max_guidance not in (None, most):
            raise InputError(
                f"model.max_guidance is {self.model.max_guidance}, but this objective teaches "
                f"{most}: leave it out"
            )
        follows = {"ignore_step": ignore_step, "learned": learned, "max_guidance": most}
        model = dataclasses.replace(self.model, **follows)
        if isinstance(inner, MeanFlow) and isinstance(model, DiTConfig):
            if model.attention == "cudnn":
                raise InputError("mean flow takes a forward derivative: give --model.attention xla")
            model = dataclasses.replace(model, attention="xla")
        object.__setattr__(self, "model", model)
        self.objective.check_network(model)
        if not self.objective.trains_depths or len(model.depths) < 2:
            # One depth is trained, and none to guide it.
            sample = dataclasses.replace(self.sample, depth_guidance=0.0)
            object.__setattr__(self, "sample", sample)
        for depth in self.logging.sample_depths:
            check_depth(depth, self.model.depths)
        self.check_sampling(self.sample.diffusion)
        check_fit(model.condition_type, model.depths, model.anytime, vars(self.sample))

    def check_sampling(self, *diffusion: float) -> None:
        """Raise an InputError unless the network can be sampled with this diffusion.

        The score must follow from what the objective teaches, see `Objective.no_score`.
        """
        if any(diffusion) and (reason := self.objective.no_score) is not None:
            raise InputError(
                "diffusion is for straight paths of independent noise and data; this run "
                f"{reason}: leave out diffusion"
            )


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every value of `config` by its dotted name."""
    return _flatten(to_dict(config))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flatten(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def save_config(config: TrainConfig, path: Path) -> None:
    """Write `config` as JSON."""
    write_json(path, to_dict(config))


def load_config(path: Path) -> TrainConfig:
    """Read what `save_config` wrote; only the types of `TrainConfig` can come out of it.

    Raises:
        InputError: the file is not such a config.
    """
    data = read_json(path, "a config")
    if isinstance(data, dict) and isinstance(optimizer := data.get("optimizer"), dict):
        optimizer.setdefault("ema_warmup", False)  # the run began before there was this field
    return from_dict(data, TrainConfig, str(path))
