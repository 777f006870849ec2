"""What a training run is, as typed values, and the runs that have a name."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from odelt_eqx.data import DataName
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective import TRAIN_TYPES, LengthConsistency, Shortcut, TimeObjective
from odelt_eqx.ode.plan import Adaptive, FixedSteps
from odelt_eqx.serial import converter
from odelt_eqx.watching import WatchConfig

Value = TypeVar("Value")


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
        data: what it learns: "digits", scikit-learn's 8 x 8 handwritten digits, or one of the
            latent sets of the published runs, which cannot be read yet.
        init_from: a run folder or a `.safetensors` file whose weights are the first ones, with
            their average where it has one.
        teacher: a run folder or a `.safetensors` file whose averaged weights teach the time axis,
            in place of this run's own.
        time: how its pictures are sampled unless a command says otherwise.
        steps: training steps.
        batch_size: examples per step.
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
    data: DataName = "digits"
    init_from: str | None = None
    teacher: str | None = None
    time: FixedSteps | Adaptive = FixedSteps(steps=16)
    steps: int = 100_000
    batch_size: int = 256
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


def digits() -> TrainConfig:
    """A small transformer on 8 x 8 handwritten digits, the main job of the README.

    Command: `python scripts/train.py digits`. Hardware: 2 CPU cores, about 4 minutes.
    Expect: see the table in the README, which this run makes.
    """
    return TrainConfig(
        model=DiTConfig(
            image_size=8,
            channels=1,
            patch_size=2,
            hidden_size=64,
            num_heads=4,
            mlp_ratio=4,
            depth=6,
            depth_min=2,
            depth_group=2,
            num_classes=10,
            denoise_timesteps=32,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=100, weight_decay=0.01, ema=0.99),
        steps=3600,
        batch_size=64,
        save_every=1200,
        eval_every=600,
    )


def _published(model: DiTConfig, objective: Shortcut, data: DataName) -> TrainConfig:
    """The first stage of the published training; the second has a tenth of the rate."""
    return TrainConfig(
        model=model,
        objective=LengthConsistency(objective, every=8),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=5000, weight_decay=0.1, ema=0.999),
        data=data,
        steps=100_000,
        batch_size=256,
    )


def _dit_b(num_classes: int, dropout: float) -> DiTConfig:
    return DiTConfig(
        image_size=32,
        channels=4,
        patch_size=2,
        hidden_size=768,
        num_heads=12,
        mlp_ratio=4,
        depth=12,
        depth_min=4,
        depth_group=4,
        num_classes=num_classes,
        dropout=dropout,
    )


def celeba_b() -> TrainConfig:
    """DiT-B/2 on CelebA-HQ 256 latents without labels (130,334,224 parameters).

    Command: `python scripts/train.py celeba-b --init-from SHORTCUT_RUN --run runs/celeba-1`, then
    `python scripts/train.py celeba-b --init-from runs/celeba-1 --run runs/celeba-2
    --optimizer.learning-rate 1e-5`. Hardware and the number to expect: not measured yet; the data
    cannot be read yet.
    """
    objective = Shortcut(every=8, guidance=0.0, class_dropout=1.0)
    return _published(_dit_b(num_classes=1, dropout=0.1), objective, "celeba-hq-latents")


def imagenet_b() -> TrainConfig:
    """DiT-B/2 on ImageNet 256 latents with bootstrapped guidance (131,101,456 parameters).

    Command: `python scripts/train.py imagenet-b --init-from SHORTCUT_RUN --run runs/imagenet-1`,
    then the same from runs/imagenet-1 with `--optimizer.learning-rate 1e-5`. Hardware and the
    number to expect: not measured yet; the data cannot be read yet.
    """
    objective = Shortcut(every=8, guidance=1.5, class_dropout=0.1)
    return _published(_dit_b(num_classes=1000, dropout=0.0), objective, "imagenet-latents")


def imagenet_xl() -> TrainConfig:
    """DiT-XL/2 on ImageNet 256 latents with bootstrapped guidance (676,474,000 parameters).

    Command: as for imagenet-b, with `imagenet-xl`. Hardware and the number to expect: not measured
    yet; the data cannot be read yet. The last 4 of its 28 blocks belong to no full group of 8: they
    are part of the count and are not run.
    """
    base = imagenet_b()
    model = dataclasses.replace(
        base.model, hidden_size=1152, depth=28, num_heads=16, depth_group=8, depth_min=12
    )
    return dataclasses.replace(base, model=model)


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "celeba-b": celeba_b,
    "imagenet-b": imagenet_b,
    "imagenet-xl": imagenet_xl,
}
"""The runs that have a name."""


def preset(name: str) -> TrainConfig:
    """Return the run called `name`; an InputError suggests the nearest name if there is none."""
    return _named("preset", name, PRESETS)()


def of_type(config: TrainConfig, name: str) -> TrainConfig:
    """Return `config` with the training type called `name`, see `TRAIN_TYPES`.

    It is trained at every depth if the other was, and takes over what that says of labels.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    old, new = config.objective, _named("training type", name, TRAIN_TYPES)
    inner = old.objective if isinstance(old, LengthConsistency) else old
    labels = {f: getattr(inner, f) for f in ("class_dropout", "guidance") if hasattr(inner, f)}
    fields = {f.name for f in dataclasses.fields(new)}
    new = dataclasses.replace(new, **{f: v for f, v in labels.items() if f in fields})
    if isinstance(old, LengthConsistency):
        new = dataclasses.replace(old, objective=new)
    model = dataclasses.replace(config.model, ignore_step=False)  # follows from the objective
    return dataclasses.replace(config, model=model, objective=new)


def _named(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
    raise InputError(f"no {kind} is called {name!r}; {hint}")


def _converter() -> cattrs.Converter:
    return converter(TimeObjective, LengthConsistency | TimeObjective)


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
