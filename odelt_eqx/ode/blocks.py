"""A sequence of blocks, unrolled or scanned."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from odelt_eqx.errors import InputError

Block = Callable[..., Float[Array, "*tokens width"]]
"""`block(h, condition, key=None) -> h`, for one example."""

AnyBlock = TypeVar("AnyBlock", bound=Block)


class Stack(eqx.Module, Generic[AnyBlock]):
    """Blocks of one shape whose weights share arrays.

    Args:
        stacked: a block whose arrays have one more axis, the first: the index of the block.
    """

    stacked: AnyBlock

    @classmethod
    def fits(cls, blocks: Sequence[AnyBlock]) -> bool:
        """Whether blocks differ in the values of their arrays alone, and have some."""
        arrays, rest = zip(*(eqx.partition(block, eqx.is_array) for block in blocks), strict=True)
        shapes = [
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), each) for each in arrays
        ]
        alike = eqx.tree_equal(*shapes) is True and eqx.tree_equal(*rest) is True
        return alike and bool(jax.tree.leaves(shapes[0]))

    @classmethod
    def of(cls, blocks: "Sequence[AnyBlock] | Stack[AnyBlock]") -> "Stack[AnyBlock]":
        """Return copies of these blocks as a stack, or the stack itself if it is one.

        Raises:
            InputError: the blocks differ in more than the values of their arrays.
        """
        if isinstance(blocks, Stack):
            return blocks
        if not cls.fits(blocks):
            raise InputError(
                "only blocks that differ in the values of their arrays alone make a stack; these "
                "differ in shapes, functions or numbers, or have no arrays"
            )
        arrays, rest = zip(*(eqx.partition(block, eqx.is_array) for block in blocks), strict=True)
        return cls(eqx.combine(jax.tree.map(lambda *each: jnp.stack(each), *arrays), rest[0]))

    def __len__(self) -> int:
        """Return the number of blocks."""
        return jax.tree.leaves(eqx.filter(self.stacked, eqx.is_array))[0].shape[0]

    def __iter__(self) -> Iterator[AnyBlock]:
        """Yield a copy of each block."""
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        for each in zip(*map(jnp.unstack, leaves), strict=True):
            yield eqx.combine(jax.tree.unflatten(structure, each), rest)

    def split(self, size: int) -> "list[Stack[AnyBlock]]":
        """Return stacks of `size` consecutive blocks; the last has what is left."""
        arrays, rest = eqx.partition(self.stacked, eqx.is_array)
        cut = lambda rows: eqx.combine(jax.tree.map(lambda x: x[rows], arrays), rest)
        return [Stack(cut(slice(i, i + size))) for i in range(0, len(self), size)]


def run_scanned(
    stack: Stack,
    recompute: bool,
    h: Float[Array, "*tokens width"],
    condition: Float[Array, " features"],
    keys: Key[Array, " blocks"] | None,
) -> tuple[Array, Array]:
    """Return the input and the output of the last block, by a scan whose body compiles once.

    The gradient keeps the products with weights and recomputes the rest, which every iteration
    would otherwise write to memory (2 x the memory, 1.3 x the time); with `recompute` it keeps only
    the input of each block.
    """
    weights, rest = eqx.partition(stack.stacked, eqx.is_array)
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @partial(jax.checkpoint, prevent_cse=False, policy=None if recompute else products)
    def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], None]:
        arrays, key = inputs
        _, previous = carry
        return (previous, eqx.combine(arrays, rest)(previous, condition, key=key)), None

    return jax.lax.scan(step, (h, h), (weights, keys))[0]
