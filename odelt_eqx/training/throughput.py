"""How fast a run trains, and how much memory it takes."""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from odelt_eqx.config import TrainConfig
from odelt_eqx.interop.published import PublishedLengthConsistency
from odelt_eqx.nn.flops import velocity_flops
from odelt_eqx.objective import LengthConsistency
from odelt_eqx.parallel import is_main_process

PROBED = 5
"""Steps whose time is told."""


class Throughput:
    """Times the steps of a run, except the first, most of which is compilation."""

    def __init__(self, config: TrainConfig, done: int = 0):
        """Start after `done` steps of a run."""
        self._config = config
        self._began: float | None = None
        self._steps, self._done, self._told = 0, done, False

    def advance(self, result: Any) -> None:
        """Count a step that was dispatched; the first one is waited for by its `result`.

        After a few, their time is printed, and that of all that are left.
        """
        self._done += 1
        if self._began is None:
            jax.block_until_ready(result)
            self.restart()
            return
        self._steps += 1
        if self._steps == PROBED and not self._told:
            jax.block_until_ready(result)
            self._told = True
            seconds = (time.monotonic() - self._began) / PROBED
            left = tqdm.format_interval(seconds * (self._config.steps - self._done))
            if is_main_process():
                print(f"note: {seconds:.3g} s a step, {left} to the last", file=sys.stderr)

    def restart(self) -> None:
        """Leave out the time since the last metrics: it was not spent on training."""
        self._began, self._steps = time.monotonic(), 0

    def metrics(self) -> dict[str, float]:
        """Return the speed since the last call, if any step was timed, and the memory.

        Call it when the device has finished the dispatched steps.
        """
        if self._began is None or not self._steps:
            return memory()
        seconds = (time.monotonic() - self._began) / self._steps
        self.restart()
        speed = {
            "step_seconds": seconds,
            "examples_per_second": self._config.batch_size / seconds,
        }
        peak = self._config.logging.peak_flops
        if peak is not None:
            speed["model_flops_utilization"] = step_flops(self._config) / seconds / peak
        return speed | memory()


def step_flops(config: TrainConfig) -> int:
    """Return the model FLOPs of one training step: three times those of `velocity_flops`.

    They are the forward and backward pass of the trained network, each example at its own depth.
    Everything else a step does counts as overhead: targets, blocks that are run and masked,
    recomputation.
    """
    depths = [config.model.depth]
    if isinstance(config.objective, LengthConsistency | PublishedLengthConsistency):
        depths = config.model.depths[::-1]
    flops = [velocity_flops(config.model, depth) for depth in depths]
    return 3 * sum(flops[i % len(flops)] for i in range(config.batch_size))


def least_step_seconds(config: TrainConfig) -> float:
    """Return what a training step takes at least on these devices, before anything is compiled.

    Its matrix products alone take so long, at the rate of a large one, which is measured.
    """
    width, dtype = 1024, config.model.dtype
    matrix, product = jnp.ones((width, width), dtype), jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    times = []
    for _ in range(5):
        began = time.monotonic()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.monotonic() - began)
    return step_flops(config) * min(times) / (2 * width**3) / jax.device_count()


def memory() -> dict[str, float]:
    """Return the peak memory of a device of this process, in bytes, where it is reported.

    Where it is not (on CPUs): the peak resident size of the process, if the system tells it.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": float(max(peaks))}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_peak_resident_bytes": float(unit * peak)}
