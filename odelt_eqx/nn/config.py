"""What every network of this package is configured by."""

import abc
import dataclasses
from typing import Literal

import equinox as eqx
from jax.core import Tracer
from jaxtyping import Array, Key

from odelt_eqx.condition import Classes, ConditionType, Learned, Vector
from odelt_eqx.errors import InputError, check_range
from odelt_eqx.network import Network
from odelt_eqx.ode.length import Wiring
from odelt_eqx.ode.plan import Adaptive, FixedSteps, Plan
from odelt_eqx.serialize import as_python, set_declared

LengthEmbedding = Literal["depth", "edge", "none"]
DType = Literal["float32", "bfloat16"]

MOST_BLOCKS, MOST_COUNT, MOST_VALUES, MOST_WEIGHTS = 1000, 2**20, 2**28, 2**40
"""Bounds of a network: its blocks, any other count, the values of one example or of its hidden
state, and the weights of its MLPs. A config is read from files, and a larger one would hang."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(abc.ABC):
    """Shape of a network whose depth is an ODE: what `DiTConfig` and `VectorNetConfig` share.

    Args:
        hidden_size: width of the hidden state.
        mlp_ratio: width of a block's MLP over `hidden_size`.
        depth: number of blocks.
        depth_min: the smallest depth that may be asked for.
        depth_group: blocks per unit of length.
        num_classes: classes of the condition; the label `num_classes` stands for none. None: the
            condition is no class.
        condition_size: values of a condition that is a vector of numbers. None: it is no vector.
        learned: what training teaches: the "condition", the condition that stands for none
            ("null"), or "both". One that learns "null" alone is given that whatever is asked for.
        max_guidance: the largest weight of guidance by the condition that training teaches. The
            network is told the weight and where it acts, so that sampling with guidance takes one
            evaluation in place of two. None: it is not told.
        dropout: dropout rate of the MLPs while training.
        denoise_timesteps: time steps of the finest shortcut, a power of two; the step index
            `log2(denoise_timesteps)` asks for the flow field itself.
        ignore_step: the network never sees its step index, as in training without time shortcuts.
        dtype: what the blocks compute in; parameters and solver states are float32.
        length: how each group's unit of length is solved unless a call says otherwise. It is part
            of the network: the same weights under another solver are another function.
        length_embedding: what blocks are told of the length besides `c`: the "depth" at which the
            integration will stop (published), the depth of the "edge" where their own group ends,
            which the final layer is told as well, or "none". With the last two a network is
            `anytime`.
        wiring: the vector field of a group: "accumulate" (published) or "residual", in which the
            full depth is a plain transformer, see `ODEBlock`.
        projector: there is a head that maps the hidden state at one edge to that at a deeper one,
            an MLP as wide as a block's. `SelfAlignment` trains it; sampling leaves it out.
        stacked: the blocks of a group share arrays and are scanned. Training compiles in a time
            that does not grow with the group, in less memory; sampling is slower.

    Raises:
        InputError: the numbers do not fit together, or a value is of another type.
    """

    hidden_size: int
    mlp_ratio: int = 4
    depth: int
    depth_min: int
    depth_group: int
    num_classes: int | None = None
    condition_size: int | None = None
    learned: Learned = "both"
    max_guidance: float | None = None
    dropout: float = 0.0
    denoise_timesteps: int = 128
    ignore_step: bool = False
    dtype: DType = "float32"
    length: FixedSteps | Adaptive = FixedSteps()
    length_embedding: LengthEmbedding = "depth"
    wiring: Wiring = "accumulate"
    projector: bool = False
    stacked: bool = False

    def __post_init__(self) -> None:
        set_declared(self)
        names = [field.name for field in dataclasses.fields(self.length)]
        values = {name: getattr(self.length, name) for name in names}
        known = {n: as_python(v) for n, v in values.items() if not isinstance(v, Tracer)}
        object.__setattr__(self, "length", dataclasses.replace(self.length, **known))
        counts = [f.name for f in dataclasses.fields(self) if f.type in (int, int | None)]
        check_range(self, *counts, least=1)
        check_range(self, *counts, most=MOST_COUNT)
        check_range(self, "depth", most=MOST_BLOCKS)
        if 2 * self.depth * self.mlp_ratio * self.hidden_size**2 > MOST_WEIGHTS:
            raise InputError(
                f"hidden_size {self.hidden_size:,} and mlp_ratio {self.mlp_ratio:,} at depth "
                f"{self.depth} make more than {MOST_WEIGHTS:,} weights"
            )
        check_range(self, "dropout", least=0, below=1)
        if not self.depth_group <= self.depth_min <= self.depth:
            raise InputError(
                f"depth_min must lie between depth_group {self.depth_group} and depth "
                f"{self.depth}; got {self.depth_min}"
            )
        if (self.depth - self.depth_min) % self.depth_group:
            raise InputError(
                f"depth must be depth_min {self.depth_min} plus a multiple of depth_group "
                f"{self.depth_group}; got {self.depth}"
            )
        if self.denoise_timesteps & (self.denoise_timesteps - 1):
            raise InputError(
                f"denoise_timesteps must be a power of two; got {self.denoise_timesteps}"
            )
        if self.num_classes is not None and self.condition_size is not None:
            raise InputError(
                "a condition is a class or a vector: give num_classes or condition_size, not both"
            )
        check_range(self, "max_guidance", above=1)
        if self.max_guidance is not None and (
            self.condition_type is None or self.learned != "both"
        ):
            raise InputError(
                "max_guidance is for networks that learn a condition and none: with num_classes or "
                "condition_size, and conditions that are dropped now and then (class_dropout)"
            )

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    @abc.abstractmethod
    def build(self, *, key: Key[Array, ""]) -> Network:
        """Return a network of this shape with fresh weights."""

    @property
    def condition_type(self) -> ConditionType | None:
        """What a condition is."""
        if self.num_classes is not None:
            return Classes(self.num_classes, self.learned, self.max_guidance)
        if self.condition_size is not None:
            return Vector(self.condition_size, self.learned, self.max_guidance)
        return None

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that may be asked for, in blocks, from the smallest to `depth`."""
        return tuple(range(self.depth_min, self.depth + 1, self.depth_group))

    @property
    def anytime(self) -> bool:
        """Whether one integration gives the velocities at all depths on its way."""
        return self.length_embedding != "depth"

    @property
    def dead_blocks(self) -> int:
        """Blocks past the last full group, which the length ODE reaches at no depth."""
        return self.depth % self.depth_group

    @property
    def flow_index(self) -> int:
        """The step index of the flow field itself."""
        return self.denoise_timesteps.bit_length() - 1


class ConfiguredNetwork(Network):
    """A network whose properties are those of its `config`: abstract."""

    config: eqx.AbstractVar[NetworkConfig]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.config.shape

    @property
    def condition_type(self) -> ConditionType | None:
        """What a condition is."""
        return self.config.condition_type

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that may be asked for, in blocks."""
        return self.config.depths

    @property
    def flow_index(self) -> int:
        """The step index of the flow field itself."""
        return self.config.flow_index

    @property
    def length(self) -> Plan:
        """How each group's unit of length is solved by default."""
        return self.config.length

    @property
    def anytime(self) -> bool:
        """Whether one integration gives the velocities at all depths on its way."""
        return self.config.anytime
