"""The config of a user's network, in a module that keeps its annotations as texts."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import numpy as np
import pytest

import odelt_eqx as odelt
from odelt_eqx.nn.config import NetworkConfig

if TYPE_CHECKING:
    from collections.abc import Sized


class Colour(enum.Enum):
    RED = 1


class Sampler(Protocol):
    def __call__(self, key): ...


@dataclasses.dataclass(frozen=True)
class Part:
    width: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(NetworkConfig):
    width: int = 3
    kind: Literal["wide", "deep"] = "wide"
    activation: Callable[[Any], Any] = jax.nn.gelu
    colour: Colour = Colour.RED
    parts: tuple[Part, ...] = (Part(),)
    part: Part | None = None
    folder: Path | None = None
    names: tuple[str, ...] = ()
    size: Literal[8, 16] = 8
    sampler: Sampler = jax.random.normal
    anything: Any = None

    @property
    def shape(self):
        return (self.width,)

    def build(self, *, key):
        raise NotImplementedError


def own(config_type=OwnConfig, **changes):
    return config_type(hidden_size=8, depth=2, depth_min=1, depth_group=1, **changes)


def test_values_of_its_own_types_are_kept():
    config = own(width=np.int64(4), part=Part(2), parts=[Part(3)], folder=Path("x"))
    assert type(config.width) is int
    assert (config.part, config.parts, config.folder) == (Part(2), (Part(3),), Path("x"))
    assert (config.activation, config.colour, config.anything) == (jax.nn.gelu, Colour.RED, None)
    hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "3"}, "width must be a whole number; got '3'"),
        ({"kind": "tall"}, "kind must be one of wide, deep; got 'tall'"),
        ({"part": 3}, "part must be Part or None; got 3"),
        ({"parts": [3]}, "parts must be a tuple of Part; got"),
        ({"names": 3}, "names must be texts; got 3"),
        ({"size": 9}, "size must be one of 8, 16; got 9"),
    ],
)
def test_values_of_other_types_are_refused(changes, message):
    with pytest.raises(odelt.InputError, match=message):
        own(**changes)


def test_a_type_that_only_type_checkers_know_is_not_checked():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unknown(OwnConfig):
        data: Sized = ()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Subscripted(OwnConfig):
        data: np.random.Generator[int] = ()

    assert own(Unknown, data=[1]).data == own(Subscripted, data=[1]).data
