"""What of a run is watched, and where."""

import dataclasses
from typing import Literal

from odelt_eqx.errors import InputError

Service = Literal["tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """What of a run is watched, and where, besides its folder; nothing here changes the weights.

    Args:
        to: services that get the figures and pictures too: "tensorboard" writes to the run folder,
            "wandb" is Weights & Biases. Each is an extra: `pip install 'odelt-eqx[tensorboard]'`.
        sample_every: steps between pictures drawn from the averaged weights; 0 draws none.
        sample_steps: numbers of Euler steps in time that they are drawn with.
        sample_depths: depths in blocks that they are drawn at; none given means all there are.
        sample_count: images on a picture, classes in turn, from the same noise each time.
        guidance: classifier-free guidance weight of the pictures.
        peak_flops: floating-point operations a second that all devices of the run together could
            do in the network's dtype; with it, the share that training makes use of is a figure.

    Raises:
        InputError: a number is out of range.
    """

    to: tuple[Service, ...] = ()
    sample_every: int = 0
    sample_steps: tuple[int, ...] = (1, 4, 16)
    sample_depths: tuple[int, ...] = ()
    sample_count: int = 10
    guidance: float = 1.0
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.sample_every < 0:
            raise InputError(f"sample_every must not be negative; got {self.sample_every}")
        if min(self.sample_steps, default=0) < 1:
            raise InputError(f"sample_steps must be positive numbers; got {self.sample_steps}")
        if self.sample_count < 1:
            raise InputError(f"sample_count must be at least 1; got {self.sample_count}")
        if self.peak_flops is not None and not self.peak_flops > 0:
            raise InputError(f"peak_flops must be positive; got {self.peak_flops}")
