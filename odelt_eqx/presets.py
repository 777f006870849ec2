"""The runs that have a name."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from odelt_eqx.config import OptimizerConfig, TrainConfig
from odelt_eqx.data import Idx, Loading, Shards
from odelt_eqx.errors import InputError
from odelt_eqx.nn.dit import DiTConfig
from odelt_eqx.objective import TRAIN_TYPES, LengthConsistency, Shortcut

Value = TypeVar("Value")


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


FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion() -> TrainConfig:
    """A small transformer on Fashion-MNIST, 60,000 grey pictures of 28 x 28.

    Command: `python scripts/train.py fashion`, after `apt install dataset-fashion-mnist` (Debian,
    Ubuntu), or `python scripts/train.py fashion data:idx --data.folder FOLDER` with
    the IDX files in FOLDER. Hardware: 2 CPU cores, 0.12 s a step, so 16 minutes. Expect, by the
    features of `scripts/classifier.py`: a Frechet distance of 4.0 at depth 6 and 128 time steps,
    11.1 at depth 2 and one step (real pictures: 0.6), see the README.
    """
    return TrainConfig(
        model=DiTConfig(
            image_size=28,
            channels=1,
            patch_size=4,
            hidden_size=64,
            num_heads=4,
            mlp_ratio=4,
            depth=6,
            depth_min=2,
            depth_group=2,
            num_classes=10,
            denoise_timesteps=32,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=200, weight_decay=0.01, ema=0.995),
        data=Idx(Path("/usr/share/datasets/fashion-mnist"), class_names=FASHION),
        steps=8000,
        batch_size=64,
        eval_every=1000,
        save_every=1000,
    )


def _published(model: DiTConfig, objective: Shortcut, shards: str) -> TrainConfig:
    """The first stage of the published training; the second has a tenth of the rate.

    The reference mirrors pictures before it encodes them, so latents are flipped here.
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

    Command: `python scripts/train.py celeba-b --init-from SHORTCUT_RUN --run runs/celeba-1`, then
    `python scripts/train.py celeba-b --init-from runs/celeba-1 --run runs/celeba-2
    --optimizer.learning-rate 1e-5`. It reads shards/celeba-latents, which `python
    scripts/prepare.py PICTURES shards/celeba-latents --latents AUTOENCODER` makes;
    `data:shards --data.folder FOLDER` at the end of a command names another folder. Hardware and
    the number to expect: not measured yet.
    """
    objective = Shortcut(every=8, guidance=0.0, class_dropout=1.0)
    return _published(_dit_b(num_classes=1, dropout=0.1), objective, "shards/celeba-latents")


def imagenet_b() -> TrainConfig:
    """DiT-B/2 on ImageNet 256 latents with bootstrapped guidance (131,101,456 parameters).

    Command: `python scripts/train.py imagenet-b --init-from SHORTCUT_RUN --run runs/imagenet-1`,
    then the same from runs/imagenet-1 with `--optimizer.learning-rate 1e-5`. It reads
    shards/imagenet-latents, which `python scripts/prepare.py PICTURES shards/imagenet-latents
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


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "fashion": fashion,
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
