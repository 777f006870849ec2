"""How fast a run goes, and what it takes."""

import resource
import sys
import time
from typing import Any

import jax

from odelt_eqx.config import TrainConfig
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.objective import LengthConsistency


class Pace:
    """Times the steps of a run, but not the first, most of which is compilation."""

    def __init__(self, config: TrainConfig):
        """Wait for the first step."""
        self._batch_size, self._peak = config.batch_size, config.watch.peak_flops
        self._flops = step_flops(config)
        self._began: float | None = None
        self._steps = 0

    def advance(self, result: Any) -> None:
        """Count a step that was handed to the device; the first one is waited for by its result."""
        if self._began is None:
            jax.block_until_ready(result)
            self.restart()
        else:
            self._steps += 1

    def restart(self) -> None:
        """Leave out what was done since the last figures: it was not training."""
        self._began, self._steps = time.monotonic(), 0

    def figures(self) -> dict[str, float]:
        """Return speed since the last figures, if any step was timed, and memory.

        To be asked for when the device has done what it was handed.
        """
        if self._began is None or not self._steps:
            return memory()
        seconds = (time.monotonic() - self._began) / self._steps
        self.restart()
        speed = {"step_seconds": seconds, "examples_per_second": self._batch_size / seconds}
        if self._peak is not None:
            speed["model_flops_utilization"] = self._flops / seconds / self._peak
        return speed | memory()


def step_flops(config: TrainConfig) -> int:
    """Return the model FLOPs of one training step, what `velocity_flops` counts taken three times.

    That is the forward and the backward pass of the network that is trained, each example at the
    depth it runs. What else a step does counts as overhead: targets, blocks run and masked out,
    anything computed twice.
    """
    depths = [config.model.depth]
    if isinstance(config.objective, LengthConsistency):
        depths = config.model.depths[::-1]
    flops = [velocity_flops(config.model, depth) for depth in depths]
    return 3 * sum(flops[i % len(flops)] for i in range(config.batch_size))


def memory() -> dict[str, float]:
    """Return the most memory a device of this process has held, in bytes, where it tells.

    Where it does not (the CPU), the largest size the process has had in memory.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": float(max(peaks))}
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return {
        "process_peak_resident_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    }
