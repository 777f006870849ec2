"""The length ODE as anyone would write it by hand: loops over blocks, no diffrax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from odelt_eqx.nn.block import DiTBlock

Group = tuple[DiTBlock, ...]


def apply(block: DiTBlock, x: Array, condition: Array) -> Array:
    """Return the tokens of a batch after a block."""
    return jax.vmap(lambda x, c: block(x, c))(x, condition)


def passed(group: Group, h: Array, condition: Array, run: Callable = apply) -> tuple[Array, Array]:
    """Return what enters the last block of a group, and what leaves it."""
    before, after = h, h
    for block in group:
        before, after = after, run(block, after, condition)
    return before, after


def unrolled(groups: tuple[Group, ...], h: Array, condition: Array, run: Callable = apply) -> Array:
    """Return `u` after one Euler step per group: the published method as a Python loop."""
    u = jnp.zeros_like(h)
    for group in groups:
        before, after = passed(group, h, condition, run)
        h, u = before + after, u + after
    return u


def unrolled_heun(groups: tuple[Group, ...], h: Array, condition: Array) -> Array:
    """Return `u` after one Heun step per group: the mean of the slopes at both ends."""
    u = jnp.zeros_like(h)
    for group in groups:
        before, after = passed(group, h, condition)
        end_before, end_after = passed(group, before + after, condition)
        h, u = (h + end_before + end_after) / 2, u + (after + end_after) / 2
    return u


def scanned(blocks: DiTBlock, h: Array, condition: Array) -> Array:
    """Do what `unrolled` does with weights that are stacked, (groups, group, ...)."""

    def over_blocks(carry: tuple[Array, Array], block: DiTBlock) -> tuple[tuple, None]:
        _, after = carry
        return (after, apply(block, after, condition)), None

    def over_groups(carry: tuple[Array, Array], group: DiTBlock) -> tuple[tuple, None]:
        h, u = carry
        (before, after), _ = jax.lax.scan(over_blocks, (h, h), group)
        return (before + after, u + after), None

    (_, u), _ = jax.lax.scan(over_groups, (h, jnp.zeros_like(h)), blocks)
    return u


def stacked(groups: tuple[Group, ...]) -> DiTBlock:
    """Return all weights as those of one block, (groups, group, ...)."""
    join = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return join(*[join(*group) for group in groups])
