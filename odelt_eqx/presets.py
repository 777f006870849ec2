"""Named training runs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.data import Folder, Idx, Loading, Shards, Toy
from odelt_eqx.errors import find_by_name
from odelt_eqx.nn import DiTConfig, VectorNetConfig
from odelt_eqx.objective import (
    TYPES,
    DeepSupervision,
    FlowMatching,
    LengthConsistency,
    SelfAlignment,
    Shortcut,
    WrappingObjective,
)
from odelt_eqx.objective.self_alignment import path_of
from odelt_eqx.ode import FixedSteps
from odelt_eqx.sampling import SampleConfig

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "depth": 6,
    "depth_min": 2,
    "depth_group": 2,
    "denoise_timesteps": 32,
}
"""Shape of the networks that train in minutes on a CPU."""


def digits() -> TrainConfig:
    """A small transformer on 8 x 8 handwritten digits, the main job of the README.

    Command: `odelt train digits`. Hardware: 2 CPU cores, about 4 minutes.
    Expect: see the table in benchmarks/README.md, which this run makes. Of the choices of the block
    rotary positions help: all else is that of the published one.
    """
    model = DiTConfig(
        image_size=8, channels=1, patch_size=2, num_heads=4, num_classes=10, rope=True, **SMALL
    )
    config = TrainConfig(
        model=model,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=100, weight_decay=0.01, ema=0.99),
        sample=_guided(0.5),
        steps=2700,
        batch_size=64,
        save_every=900,
        eval_every=450,
    )
    return of_type(config, "deep-supervision")


EIGHT = FixedSteps(steps=8, solver="ab2")
"""Eight evaluations: nearer to the data than sixteen by Euler steps on all three data sets."""


def _guided(weight: float) -> SampleConfig:
    """Eight evaluations of an `anytime` network, guided by its smallest depth."""
    return SampleConfig(time=EIGHT, depth_guidance=weight)


def _plane(data: Toy, num_classes: int | None) -> TrainConfig:
    """A run on points in the plane."""
    return TrainConfig(
        model=VectorNetConfig(size=2, num_classes=num_classes, **SMALL),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=100, weight_decay=0.01, ema=0.99),
        data=data,
        steps=2000,
        batch_size=256,
        save_every=1000,
        eval_every=500,
    )


def moons() -> TrainConfig:
    """An MLP on two moons in the plane: the nested ODE at its smallest.

    Command: `odelt train moons`. Hardware: 2 CPU cores, 34 s of training and 50 s of
    evaluation. Expect: the class asked for in 98 % of samples at one step and in all at 16, and a
    log-likelihood of held-out points of -1.17 nats (`density.png`).
    """
    return _plane(Toy("moons"), num_classes=2)


def checkerboard() -> TrainConfig:
    """An MLP on a checkerboard in the plane, without conditions.

    Command: `odelt train checkerboard`. Hardware: 2 CPU cores, a minute and a half with
    the evaluation. Expect: a log-likelihood of held-out points of -2.27 nats where the data have
    -1.79: in so few steps the cells stay blurred.
    """
    return _plane(Toy("checkerboard"), num_classes=None)


FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion() -> TrainConfig:
    """A small transformer on Fashion-MNIST, 60,000 grey images of 28 x 28.

    Command: `odelt train fashion`, after `apt install dataset-fashion-mnist` (Debian,
    Ubuntu), or `odelt train fashion data:idx --data.folder FOLDER` with
    the IDX files in FOLDER. Hardware: 2 CPU cores, 0.17 to 0.28 s a step, so 17 to 28 minutes.
    Expect, by the features of `odelt classifier` and 10,000 images: a Fréchet distance of 1.5 ± 0.2
    over three seeds as it samples by itself, of 2.4 ± 0.1 without guidance (the published block:
    2.0 ± 0.2 and 3.1 ± 0.1; training images: 2.2 ± 0.1), see benchmarks/README.md.
    """
    block = {"rope": True, "mlp": "swiglu", "norm": "scaled-rms", "logit_scale": "inverse-sqrt"}
    model = DiTConfig(
        image_size=28, channels=1, patch_size=4, num_heads=4, num_classes=10, **block, **SMALL
    )
    config = TrainConfig(
        model=model,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=200, weight_decay=0.01, ema=0.995),
        data=Idx(Path("/usr/share/datasets/fashion-mnist"), class_names=FASHION),
        sample=_guided(1.0),
        steps=5900,
        batch_size=64,
        eval_every=1000,
        save_every=1000,
    )
    return of_type(config, "deep-supervision")


def folder() -> TrainConfig:
    """A small transformer on your own images: in folders, a zip, tars or Parquet files.

    Command: `odelt train folder --data.folder IMAGES`. The shape of the images, their
    channels, classes and patches, the batch and the share that is held out follow from the images
    unless options say them. Hardware: 2 CPU cores, about half a second a step for 64 x 64 colour
    images. Expect: after 300 steps the colours of each class under noise, no shapes yet.
    """
    model = DiTConfig(image_size=64, channels=3, patch_size=8, num_heads=4, num_classes=1, **SMALL)
    return TrainConfig(
        model=dataclasses.replace(model, hidden_size=192),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=200, weight_decay=0.01, ema=0.995),
        data=Folder(Path("images")),
        sample=SampleConfig(time=EIGHT),
        steps=2000,
        batch_size=32,
        eval_every=500,
        save_every=500,
    )


def _published(model: DiTConfig, objective: Shortcut, shards: str) -> TrainConfig:
    """The first stage of the published training; the second has a tenth of the rate.

    The reference mirrors images before it encodes them, so latents are flipped here.
    """
    return TrainConfig(
        model=model,
        objective=LengthConsistency(objective, every=8),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=5000, weight_decay=0.1, ema=0.999),
        data=Shards(Path(shards)),
        loading=Loading(flip=True),
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

    Command: `odelt train celeba-b --init-from SHORTCUT_RUN --run runs/celeba-1`, then
    `odelt train celeba-b --init-from runs/celeba-1 --run runs/celeba-2
    --optimizer.learning-rate 1e-5`. It reads shards/celeba-latents, which `odelt
    prepare IMAGES shards/celeba-latents --latents AUTOENCODER` makes;
    `data:shards --data.folder FOLDER` at the end of a command names another folder. Hardware and
    the number to expect: not measured yet.
    """
    objective = Shortcut(every=8, guidance=0.0, class_dropout=1.0)
    return _published(_dit_b(num_classes=1, dropout=0.1), objective, "shards/celeba-latents")


def imagenet_b() -> TrainConfig:
    """DiT-B/2 on ImageNet 256 latents with bootstrapped guidance (131,101,456 parameters).

    Command: `odelt train imagenet-b --init-from SHORTCUT_RUN --run runs/imagenet-1`,
    then the same from runs/imagenet-1 with `--optimizer.learning-rate 1e-5`. It reads
    shards/imagenet-latents, which `odelt prepare IMAGES shards/imagenet-latents
    --latents AUTOENCODER` makes; `data:shards --data.folder FOLDER` at the end of a command names
    another folder. Hardware and the number to expect: not measured yet.
    """
    objective = Shortcut(every=8, guidance=1.5, class_dropout=0.1)
    return _published(_dit_b(num_classes=1000, dropout=0.0), objective, "shards/imagenet-latents")


def imagenet_xl() -> TrainConfig:
    """DiT-XL/2 on ImageNet 256 latents with bootstrapped guidance (676,474,000 parameters).

    Command: as for imagenet-b, with `imagenet-xl`. Hardware and the number to expect: not measured
    yet. The last 4 of its 28 blocks belong to no full group of 8: they are part of the count and
    are not run.
    """
    base = imagenet_b()
    shape = {"depth": 28, "depth_group": 8, "depth_min": 12, "stacked": True}
    model = dataclasses.replace(base.model, hidden_size=1152, num_heads=16, **shape)
    return dataclasses.replace(base, model=model)


def _sit(**shape: Any) -> TrainConfig:
    """The published training of SiT on ImageNet 256 latents, with the linear path.

    Wired as a residual length ODE it is the published network at full depth, and depths can be
    trained from its weights.
    """
    base = _dit_b(num_classes=1000, dropout=0.0)
    wiring: dict[str, Any] = {"wiring": "residual", "length_embedding": "none"}
    return TrainConfig(
        model=dataclasses.replace(base, **wiring, **shape),
        objective=FlowMatching(class_dropout=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup=0, weight_decay=0.0, ema=0.9999),
        data=Shards(Path("shards/imagenet-latents")),
        loading=Loading(flip=True),
        sample=SampleConfig(time=FixedSteps(steps=125, solver="heun"), guidance=1.5),
        steps=400_000,
        batch_size=256,
    )


def sit_b() -> TrainConfig:
    """SiT-B/2 on ImageNet 256 latents (arXiv 2401.08740), from scratch or from its weights.

    Command: `odelt convert sit-b SIT-B.pt runs/sit-b`, then sample and evaluate that
    run, or `odelt train sit-b deep-supervision --init-from runs/sit-b` for every depth.
    Hardware and the number to expect: not measured yet.
    """
    return _sit()


def sit_xl() -> TrainConfig:
    """SiT-XL/2 on ImageNet 256 latents (arXiv 2401.08740), from scratch or from its weights.

    Command: as for sit-b, with `sit-xl` and `SiT-XL-2-256x256.pt`, or a checkpoint of REPA. Latents
    are scaled by 0.18215; those of 512 x 512 images need `--model.image-size 64`. The published
    FID of these weights is 2.15 with an ODE solver and guidance 1.5; not measured here.
    """
    return _sit(hidden_size=1152, num_heads=16, depth=28, stacked=True)


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "moons": moons,
    "checkerboard": checkerboard,
    "fashion": fashion,
    "folder": folder,
    "celeba-b": celeba_b,
    "imagenet-b": imagenet_b,
    "imagenet-xl": imagenet_xl,
    "sit-b": sit_b,
    "sit-xl": sit_xl,
}
"""The presets by name."""


def preset(name: str) -> TrainConfig:
    """Return the run called `name`, or raise an InputError that suggests the nearest name.

    Example:
        >>> odelt.preset("digits").model.depths
        (2, 4, 6)
    """
    return find_by_name("preset", name, PRESETS)()


def of_type(config: TrainConfig, name: str) -> TrainConfig:
    """Return `config` with another training type, one of `TYPES`.

    One of `TRAIN_TYPES` trains the time axis, with the old one's label dropout and guidance, one of
    `DEPTH_TYPES` every depth, one of `STATE_TYPES` hidden states besides; what the others train
    stays, and so does the rest.

    Raises:
        InputError: there is none called `name`; the nearest name is suggested. Or the types cannot
            be combined.
    """
    new = find_by_name("training type", name, TYPES)
    old, states, depths = config.objective, None, None
    if isinstance(old, SelfAlignment):
        old, states = old.objective, old
    if isinstance(old, WrappingObjective):
        old, depths = old.objective, old
    embedding = config.model.length_embedding
    if isinstance(new, SelfAlignment):
        states = new
    elif isinstance(new, WrappingObjective):
        depths = new
        embedding = "none" if isinstance(new, DeepSupervision) else "depth"
    else:
        labels = {f: getattr(old, f) for f in ("class_dropout", "guidance") if hasattr(old, f)}
        fields = {f.name for f in dataclasses.fields(new)}
        old = dataclasses.replace(new, **{f: v for f, v in labels.items() if f in fields})
    objective = old if depths is None else dataclasses.replace(depths, objective=old)
    if states is not None:
        path_of(objective)
        objective = dataclasses.replace(states, objective=objective)
    # What follows from the objective. On a network that is told its depth, guidance by depth would
    # cost a second pass.
    model = dataclasses.replace(
        config.model,
        ignore_step=False,
        learned="both",
        max_guidance=None,
        length_embedding=embedding,
        projector=states is not None,
    )
    sample = (
        config.sample if model.anytime else dataclasses.replace(config.sample, depth_guidance=0.0)
    )
    return dataclasses.replace(config, model=model, objective=objective, sample=sample)
