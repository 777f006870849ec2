"""Blocks of one shape, each fed by the one before: one by one, or as a loop over their weights."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Block = Callable[..., Float[Array, "tokens width"]]
"""`block(tokens, condition, key=None) -> tokens`, for one example."""

AnyBlock = TypeVar("AnyBlock", bound=Block)


class Stack(eqx.Module, Generic[AnyBlock]):
    """Blocks of one shape whose weights lie in common arrays.

    Args:
        stacked: a block with one more axis in each of its arrays, the first: whose it is.
    """

    stacked: AnyBlock

    @classmethod
    def of(cls, blocks: "Sequence[AnyBlock] | Stack[AnyBlock]") -> "Stack[AnyBlock]":
        """Return a stack of copies of these blocks, or the stack itself if it is one."""
        if isinstance(blocks, Stack):
            return blocks
        arrays, rest = zip(*(eqx.partition(block, eqx.is_array) for block in blocks), strict=True)
        return cls(eqx.combine(jax.tree.map(lambda *each: jnp.stack(each), *arrays), rest[0]))

    def __len__(self) -> int:
        """How many blocks there are."""
        return jax.tree.leaves(eqx.filter(self.stacked, eqx.is_array))[0].shape[0]

    def __iter__(self) -> Iterator[AnyBlock]:
        """Copies of the blocks, one by one."""
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        for each in zip(*map(jnp.unstack, leaves), strict=True):
            yield eqx.combine(jax.tree.unflatten(structure, each), rest)

    def parts(self, size: int) -> "list[Stack[AnyBlock]]":
        """Return stacks of `size` blocks in turn, the last of what is left."""
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        cut = lambda rows: eqx.combine(jax.tree.map(lambda x: x[rows], arrays), rest)
        return [Stack(cut(slice(i, i + size))) for i in range(0, len(self), size)]


def in_turn(
    blocks: Sequence[Block], h: Array, condition: Array, keys: Key[Array, " blocks"] | None
) -> tuple[Array, Array]:
    """Return what goes into the last block and what comes out of it.

    Args:
        blocks: at least one.
        h: tokens of one example, (tokens, width).
        condition: what every block is modulated by, (width,).
        keys: dropout keys, one per block, or None for no dropout.
    """
    before, after = h, h
    for index, block in enumerate(blocks):
        key = None if keys is None else keys[index]
        before, after = after, block(after, condition, key=key)
    return before, after


def in_loop(
    stack: Stack,
    recompute: bool,
    h: Array,
    condition: Array,
    keys: Key[Array, " blocks"] | None,
) -> tuple[Array, Array]:
    """Do what `in_turn` does in a `jax.lax.scan`, whose body is compiled once.

    The gradient keeps the products with weights and computes the rest again: kept, what is cheap to
    compute would be written to memory by every turn of the loop (2 x the memory, 1.3 x the time).

    Args:
        stack: the blocks.
        recompute: the gradient keeps what goes into each block, and no more.
        h: as for `in_turn`.
        condition: as for `in_turn`.
        keys: as for `in_turn`.
    """
    weights, rest = eqx.partition(stack.stacked, eqx.is_array)
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @partial(jax.checkpoint, prevent_cse=False, policy=None if recompute else saved)
    def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], None]:
        arrays, key = inputs
        _, before = carry
        return (before, eqx.combine(arrays, rest)(before, condition, key=key)), None

    return jax.lax.scan(step, (h, h), (weights, keys))[0]
