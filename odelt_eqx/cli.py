"""Entry point shared by all scripts."""

import dataclasses
import logging
import math
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import jax
import tyro

from odelt_eqx.config import TrainConfig
from odelt_eqx.data import open_source
from odelt_eqx.errors import DivergedError, InputError, Interrupted, SolveError
from odelt_eqx.nn import DiTConfig
from odelt_eqx.parallel import is_main_process
from odelt_eqx.presets import of_type, preset

TOKENS = {"cpu": 64}
"""Tokens of an image that a device trains at a fair speed; 256 on others."""
Arguments = TypeVar("Arguments", bound=Any)


def preset_of_command_line() -> tuple[str, TrainConfig, list[str]]:
    """Return the preset that the first word names ("digits" by default), and the other words.

    Raises:
        InputError: there is no such preset; the message suggests the closest name.
    """
    words = sys.argv[1:]
    name = words.pop(0) if _starts_with_name(words) else "digits"
    return name, preset(name), words


def run_of_command_line() -> tuple[str, TrainConfig, list[str]]:
    """Return as `preset_of_command_line` does; a second word may name another training type.

    Raises:
        InputError: there is no such preset or training type; the message suggests the closest name.
    """
    name, config, words = preset_of_command_line()
    if not _starts_with_name(words):
        return name, config, words
    return f"{name}-{words[0]}", of_type(config, words[0]), words[1:]


def _starts_with_name(words: list[str]) -> bool:
    """Whether the first word is a name: neither an option nor the choice of a type."""
    return bool(words) and not words[0].startswith("-") and ":" not in words[0]


def parse(default: Arguments, words: list[str], description: str | None = None) -> Arguments:
    """Return the command line in the form of `default`, whose field `config` is a `TrainConfig`.

    The network stays of the preset's type, so that its options need no choice of a type.
    """
    kind, config = type(default), default.config
    fixed = _with_type(TrainConfig, "model", type(config.model))
    typed = _with_type(kind, "config", Annotated[fixed, tyro.conf.arg(name="")])
    fields = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    start = typed(**fields | {"config": fixed(**vars(config))})
    found = tyro.cli(typed, default=start, args=words, description=description)
    return kind(**vars(found) | {"config": TrainConfig(**vars(found.config))})


def follow_data(config: TrainConfig, words: list[str]) -> TrainConfig:
    """Return `config` with a network for its data, but for what the command line says of it.

    The shape and the classes are those of the data. The patches of images of another size than the
    preset's are so large that a CPU has 64 of them at most and other devices 256.
    """
    model = config.model
    source = open_source(config.data, "train")
    found: dict[str, Any] = {}
    if isinstance(model, DiTConfig) and len(source.shape) == 3:
        height, width, found["channels"] = source.shape
        found["image_size"] = height if height == width else (height, width)
        if found["image_size"] != model.image_size:
            found["patch_size"] = _patch_size(height, width)
    elif not isinstance(model, DiTConfig) and len(source.shape) == 1:
        (found["size"],) = source.shape
    if model.num_classes is not None:
        found["num_classes"] = source.num_classes
    typed = {word.split("=")[0].replace("-", "_") for word in words}
    new = {
        name: value
        for name, value in found.items()
        if f"__model.{name}" not in typed and getattr(model, name) != value
    }
    if not new:
        return config
    listed = ", ".join(f"model.{name} {value}" for name, value in new.items())
    if is_main_process():
        print(f"note: {listed}: as the data are", file=sys.stderr)
    return dataclasses.replace(config, model=dataclasses.replace(model, learned="both", **new))


def _patch_size(height: int, width: int) -> int:
    """Return the smallest size of patches that leaves the device no more tokens than it is for.

    Raises:
        InputError: height and width have no divisor in common that is large enough.
    """
    most, common = TOKENS.get(jax.default_backend(), 256), math.gcd(height, width)
    for patch in range(1, common + 1):
        if common % patch == 0 and (height // patch) * (width // patch) <= most:
            return patch
    raise InputError(
        f"images of {height} x {width} cannot be cut into at most {most} square patches: crop or "
        "resize them (data:folder does by --data.size HEIGHT WIDTH), or give --model.patch-size"
    )


def _with_type(kind: type, name: str, annotation: Any) -> Any:
    """Return a subclass of a dataclass in which a field has another type."""
    made = dataclasses.make_dataclass(
        kind.__name__, [(name, annotation)], bases=(kind,), frozen=True, kw_only=True
    )
    made.__doc__ = kind.__doc__
    return made


def print_results(*lines: object) -> None:
    """Print results, one per line, in process 0 only."""
    if is_main_process():
        print(*lines, sep="\n")


def main(run: Callable[[], None]) -> None:
    """Run a script; a user's error becomes one line and exit status 2, without a traceback."""
    warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
    try:
        run()
    except Interrupted as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    except (InputError, SolveError, DivergedError) as error:
        _fail(str(error), status=2)


def _fail(message: str, status: int) -> None:
    """Print an error and exit; background threads of a failed write log nothing after it."""
    logging.disable()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
