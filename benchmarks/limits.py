"""What the machine can do at most: the rates of matrix products and of copies, measured here."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        size: side of the matrices.
        mebibytes: size of the copy, more than the caches hold.
        rounds: how often each is timed.
    """

    size: int = 2048
    mebibytes: int = 256
    rounds: int = 9


def matmul_rate(dtype: str = "float32", size: int = 2048, rounds: int = 9) -> float:
    """Return floating-point operations per second of a product of square matrices."""
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    return 2 * size**3 / median_seconds(jax.jit(lambda a: a @ a), matrix, rounds)


def copy_rate(mebibytes: int = 256, rounds: int = 9) -> float:
    """Return bytes per second that are read and written by a copy that changes every value."""
    array = jnp.zeros(mebibytes * 2**18, jnp.float32)
    return 2 * array.nbytes / median_seconds(jax.jit(lambda a: a + 1), array, rounds)


def median_seconds(function: Callable[[Array], Any], argument: Array, rounds: int) -> float:
    """Return the median time of a call, after a first one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(config: Config) -> None:
    """Print the rates."""
    for dtype in ("float32", "bfloat16"):
        rate = matmul_rate(dtype, config.size, config.rounds)
        print(f"matrix product, {dtype}: {rate / 1e9:.0f} GFLOP/s")
    print(f"copy: {copy_rate(config.mebibytes, config.rounds) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
