"""Buffers of slots: a leading axis of fixed capacity on every array of a pytree."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def read_slot(tree: Any, slot: Int[Array, "*slots"]) -> Any:
    """One slot, or several, of every buffer of a pytree."""
    return jax.tree.map(lambda buffer: buffer[slot], tree)


def write_slot(tree: Any, slot: Int[Array, ""], value: Any, where: Bool[Array, ""]) -> Any:
    """Write one slot of every buffer if ``where``, else write back what was there.

    The write itself is unconditional, so that a donated buffer is updated in place; a
    ``lax.cond`` over whole buffers copies them.
    """

    def write(buffer: Array, item: Array) -> Array:
        return buffer.at[slot].set(jnp.where(where, item, buffer[slot]))

    return jax.tree.map(write, tree, value)


def add_slots(tree: Any, extra: int) -> Any:
    """Every buffer of a pytree with ``extra`` blank slots at its end; scalars stay as they are."""

    def pad(buffer: Array) -> Array:
        if buffer.ndim == 0:  # the number of slots in use
            return buffer
        return jnp.concatenate([buffer, jnp.zeros((extra, *buffer.shape[1:]), buffer.dtype)])

    return jax.tree.map(pad, tree) if extra else tree


def select(condition: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """Leaf-wise ``jnp.where`` over two equal pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
