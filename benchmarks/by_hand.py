"""The length ODE written by hand: loops over blocks, without diffrax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from odelt_eqx.nn.block import DiTBlock

Group = tuple[DiTBlock, ...]


def apply(block: DiTBlock, x: Array, condition: Array) -> Array:
    """Return the tokens of a batch after a block."""
    return jax.vmap(lambda x, c: block(x, c))(x, condition)


def run_group(
    group: Group, h: Array, condition: Array, run: Callable = apply
) -> tuple[Array, Array]:
    """Return the input and the output of the last block of a group."""
    previous, current = h, h
    for block in group:
        previous, current = current, run(block, current, condition)
    return previous, current


def run_euler(
    groups: tuple[Group, ...], h: Array, condition: Array, run: Callable = apply
) -> Array:
    """Return `u` after one Euler step per group: the published method as a Python loop."""
    u = jnp.zeros_like(h)
    for group in groups:
        previous, current = run_group(group, h, condition, run)
        h, u = previous + current, u + current
    return u


def run_heun(groups: tuple[Group, ...], h: Array, condition: Array) -> Array:
    """Return `u` after one Heun step per group: the mean of the slopes at both ends."""
    u = jnp.zeros_like(h)
    for group in groups:
        previous, current = run_group(group, h, condition)
        end_previous, end_current = run_group(group, previous + current, condition)
        h, u = (h + end_previous + end_current) / 2, u + (current + end_current) / 2
    return u


def scan_euler(blocks: DiTBlock, h: Array, condition: Array) -> Array:
    """Return what `run_euler` does from stacked weights, (groups, group, ...)."""

    def over_blocks(carry: tuple[Array, Array], block: DiTBlock) -> tuple[tuple, None]:
        _, current = carry
        return (current, apply(block, current, condition)), None

    def over_groups(carry: tuple[Array, Array], group: DiTBlock) -> tuple[tuple, None]:
        h, u = carry
        (previous, current), _ = jax.lax.scan(over_blocks, (h, h), group)
        return (previous + current, u + current), None

    (_, u), _ = jax.lax.scan(over_groups, (h, jnp.zeros_like(h)), blocks)
    return u


def stack(groups: tuple[Group, ...]) -> DiTBlock:
    """Return all weights as those of one block, (groups, group, ...)."""
    join = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return join(*[join(*group) for group in groups])
