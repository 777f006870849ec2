"""The arguments of commands, by tyro, and a training run that follows its data."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, get_args

import jax
import tyro

from odelt_eqx.config import TrainConfig
from odelt_eqx.data import Data, Folder
from odelt_eqx.entry import program, typed
from odelt_eqx.errors import InputError, check_numbers
from odelt_eqx.nn import DiTConfig
from odelt_eqx.objective import TYPES
from odelt_eqx.parallel import is_main_process
from odelt_eqx.presets import PRESETS, of_type, preset
from odelt_eqx.training.throughput import least_step_seconds

TOKENS = {"cpu": 64}
"""Tokens of an image that a device trains at a fair speed; 256 on others."""
HELD_OUT = 64
"""Images that are held out of a folder, if that is less than a fifth of them."""
FOLLOWING = ("channels", "image_size", "patch_size", "hidden_size", "size", "num_classes")
"""Fields of a network that follow from the data."""
ANY_ORDER = (tyro.conf.CascadeSubcommandArgs,)
"""How tyro reads options: those of a field may stand behind the choice of another's type."""
Arguments = TypeVar("Arguments", bound=Any)


def preset_of(words: list[str]) -> tuple[str, TrainConfig, list[str]]:
    """Return the preset that the first word names ("digits" by default), and the other words.

    Raises:
        InputError: there is no such preset; the message suggests the closest name.
    """
    name, *words = words if _starts_with_name(words) else ["digits", *words]
    return name, preset(name), words


def run_of(words: list[str]) -> tuple[str, TrainConfig, list[str]]:
    """Return as `preset_of` does; the next words may name other training types.

    Raises:
        InputError: there is no such preset or training type; the message suggests the closest name.
    """
    name, config, words = preset_of(words)
    while _starts_with_name(words):
        kind, *words = words
        name, config = f"{name}-{kind}", of_type(config, kind)
    return name, config, words


@contextmanager
def hint_at_names(names: Sequence[str], words: list[str]) -> Iterator[None]:
    """Where tyro refuses words, say so if a preset or a training type stands behind the options.

    Or if an option of data is not one of the preset's type of data, and no other type is chosen.

    Args:
        names: the words before the options.
        words: the others.
    """
    try:
        yield
    except SystemExit as stopped:
        for before, word in itertools.pairwise(words):
            option = before.startswith("-") and "=" not in before
            if stopped.code and not option and (word in PRESETS or word in TYPES):
                first = [*names, word] if word in TYPES else [word]
                raise InputError(
                    f"{word} must come before all options: {typed('train', *first)} ..."
                ) from None
        own = _field_names(type(preset(names[0]).data))
        others = set[str]().union(*map(_field_names, get_args(Data))) - own
        chosen = own >= _field_names(Folder) or any(word.startswith("data:") for word in words)
        for option in (word.split("=")[0] for word in words if word.startswith("--data.")):
            field = option.removeprefix("--data.").replace("-", "_").split(".")[0]
            if stopped.code and not chosen and field in others:
                raise InputError(
                    f"{option} needs a type of data before it: {typed('train', *names)} data:TYPE "
                    f"{option} ...; for images, {typed('train', 'folder', '--data.folder', 'DIR')}"
                ) from None
        raise


def _field_names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _starts_with_name(words: list[str]) -> bool:
    """Whether the first word is a name: neither an option nor the choice of a type."""
    return bool(words) and not words[0].startswith("-") and ":" not in words[0]


def arguments(kind: type[Arguments], words: list[str], **options: Any) -> Arguments:
    """Return the words after a command as its dataclass, see `tyro.cli`.

    The dataclass has the name of the command. Options stand in any order.

    Raises:
        InputError: a number is not finite, or too large for 32 bits.
    """
    prog = program(kind.__name__.lower())
    found = tyro.cli(kind, prog=prog, args=words, config=ANY_ORDER, **options)
    check_numbers(found)
    return found


def parse(
    kind: type[Arguments],
    config: TrainConfig,
    words: list[str],
    description: str | None = None,
    **defaults: Any,
) -> Arguments:
    """Return as `arguments` does; the field `config` of the dataclass is `config`, changed.

    The network stays of the preset's type, and so do the data where they are a folder of images, so
    that their options need no choice of a type.
    """
    found = arguments(of_config(kind, config, **defaults), words, description=description)
    return kind(**vars(found) | {"config": TrainConfig(**vars(found.config))})


def of_config(kind: type[Arguments], config: TrainConfig, **defaults: Any) -> type[Arguments]:
    """Return the dataclass as `parse` reads it, by default with these values."""
    fixed = _with_fields(TrainConfig, ("model", type(config.model)))
    if isinstance(config.data, Folder):
        fixed = _with_fields(fixed, ("data", Folder))
    typed = _with_fields(kind, ("config", Annotated[fixed, tyro.conf.arg(name="")]))
    return with_defaults(typed, config=fixed(**vars(config)), **defaults)


def with_defaults(kind: type[Arguments], **defaults: Any) -> type[Arguments]:
    """Return a subclass of a dataclass in which fields have these defaults."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    field = lambda value: dataclasses.field(default_factory=lambda: value)
    return _with_fields(kind, *((n, types[n], field(value)) for n, value in defaults.items()))


def _with_fields(kind: type[Arguments], *fields: Any) -> type[Arguments]:
    """Return a subclass of a dataclass that declares fields anew: name, type, and any default."""
    made = dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True
    )
    made.__doc__ = kind.__doc__
    return made


def follow_data(config: TrainConfig, words: list[str]) -> TrainConfig:
    """Return `config` with a network for its data, but for what the command line says of it.

    The shape and the classes are those of the data. The patches of images of another size than the
    preset's are so large that a CPU has 64 of them at most and other devices 256, and the network
    is at least as wide as the values in one.

    Raises:
        InputError: the data cannot be read, or be cut into so few patches.
    """
    followed = _follow_data(config, words)
    old, new = vars(config.model), vars(followed.model)
    if changed := [
        f"model.{name} {new[name]}" for name in FOLLOWING if new.get(name) != old.get(name)
    ]:
        _note(f"{', '.join(changed)}: as the data are")
    return followed


def follow_folder(config: TrainConfig, words: list[str]) -> TrainConfig:
    """Return as `follow_data` does, with a batch and a held-out share for a folder of images.

    Held out are about `HELD_OUT` images or 5 %, whatever is more, but a fifth at most; a batch has
    no more than the others. Three lines say what was found.

    Raises:
        InputError: there are no images, or as for `follow_data`.
    """
    data = config.data
    assert isinstance(data, Folder)  # for the type checker
    images = data.find()
    own = images.held_out is None and data.held_out_folder is None
    if own and not _says(words, "data.held_out.share"):
        share = round(max(data.held_out.share, min(HELD_OUT / len(images), 0.2)), 2)
        held_out = dataclasses.replace(data.held_out, share=share)
        data = dataclasses.replace(data, held_out=held_out)
    train, held_out = data.open("train"), data.open("held-out")
    batch_size = config.batch_size
    if not _says(words, "batch_size"):
        batch_size = min(batch_size, 2 ** (len(train).bit_length() - 1))
    config = dataclasses.replace(config, data=data, batch_size=batch_size)
    config = _follow_data(config, words)
    model = config.model
    assert isinstance(model, DiTConfig)  # for the type checker
    names = ", ".join(train.class_names[:10]) + (", ..." if train.num_classes > 10 else "")
    classes = f"{train.num_classes} classes: {names}" if train.num_classes > 1 else "no classes"
    _note(f"{data}: {len(train):,} images to train on, {len(held_out):,} held out, {classes}")
    _note(
        f"{' x '.join(map(str, model.shape))} values in patches of {model.patch_size} x "
        f"{model.patch_size}: {math.prod(model.grid)} tokens, network of width {model.hidden_size}"
    )
    _note(f"{config.steps:,} steps of {batch_size} images; what one takes is said when it is known")
    return config


def follow_run(config: TrainConfig, begun: TrainConfig, words: list[str]) -> TrainConfig:
    """Return `config` with what followed from the data when a run began, for the run to go on."""
    model, data = config.model, config.data
    if type(model) is not type(begun.model) or type(data) is not type(begun.data):
        return config
    old = vars(begun.model)
    names = [n for n in FOLLOWING if n in old and not _says(words, f"model.{n}")]
    learned = old["learned"]
    model = dataclasses.replace(model, learned=learned, **{name: old[name] for name in names})
    if isinstance(data, Folder) and isinstance(begun.data, Folder):
        was, share = begun.data, "data.held_out.share"
        size = data.size if _says(words, "data.size") else was.size
        channels = data.channels if _says(words, "data.channels") else was.channels
        held_out = data.held_out if _says(words, share) else was.held_out
        data = dataclasses.replace(data, size=size, channels=channels, held_out=held_out)
        if not _says(words, "batch_size"):
            config = dataclasses.replace(config, batch_size=begun.batch_size)
    return dataclasses.replace(config, model=model, data=data)


def _follow_data(config: TrainConfig, words: list[str]) -> TrainConfig:
    """Return what `follow_data` does; only too many tokens are said."""
    if isinstance(config.data, Folder):
        config = dataclasses.replace(config, data=config.data.with_shape())
    model = config.model
    source = config.data.open("train")
    found: dict[str, Any] = {}
    if isinstance(model, DiTConfig) and len(source.shape) == 3:
        height, width, found["channels"] = source.shape
        found["image_size"] = height if height == width else (height, width)
        if found["image_size"] != model.image_size:
            patch = model.patch_size
            if not _says(words, "model.patch_size"):
                found["patch_size"] = patch = _patch_size(height, width)
            # A narrower network could not even copy the noise in a patch.
            narrowest = 64 * math.ceil(patch**2 * found["channels"] / 64)
            found["hidden_size"] = max(model.hidden_size, narrowest)
    elif not isinstance(model, DiTConfig) and len(source.shape) == 1:
        (found["size"],) = source.shape
    if model.num_classes is not None:
        found["num_classes"] = source.num_classes
    new = {name: value for name, value in found.items() if not _says(words, f"model.{name}")}
    if any(getattr(model, name) != value for name, value in new.items()):
        model = dataclasses.replace(model, learned="both", **new)
        config = dataclasses.replace(config, model=model)
    if isinstance(model, DiTConfig) and math.prod(model.grid) > (most := _most_tokens()):
        _note(
            f"{math.prod(model.grid)} tokens an image, {most} are trained at a fair speed here: a "
            f"step will take at least {least_step_seconds(config):.2g} s; larger patches, by "
            "--model.patch-size, are faster"
        )
    return config


def _says(words: list[str], option: str) -> bool:
    """Whether the command line gives an option."""
    return any(word.split("=")[0].replace("-", "_") == f"__{option}" for word in words)


def _note(text: str) -> None:
    """Say something in process 0 only."""
    if is_main_process():
        print(f"note: {text}", file=sys.stderr)


def _most_tokens() -> int:
    return TOKENS.get(jax.default_backend(), 256)


def _patch_size(height: int, width: int) -> int:
    """Return the smallest size of patches that leaves the device no more tokens than it is for.

    Raises:
        InputError: height and width have no divisor in common that is large enough.
    """
    most, common = _most_tokens(), math.gcd(height, width)
    for patch in range(1, common + 1):
        if common % patch == 0 and (height // patch) * (width // patch) <= most:
            return patch
    raise InputError(
        f"images of {height} x {width} cannot be cut into at most {most} square patches: crop or "
        "resize them (data:folder does by --data.size HEIGHT WIDTH), or give --model.patch-size"
    )


def print_results(*lines: object) -> None:
    """Print results, one per line, in process 0 only."""
    if is_main_process():
        print(*lines, sep="\n")
