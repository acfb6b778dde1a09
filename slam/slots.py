"""Buffers of slots: a leading axis of fixed capacity on every array of a pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def read_slot(tree: Any, slot: Int[Array, "*slots"]) -> Any:
    """One slot, or several, of every buffer of a pytree."""
    return jax.tree.map(lambda buffer: buffer[slot], tree)


def write_slot(
    tree: Any, slot: Int[Array, "*slots"], value: Any, where: Bool[Array, "*slots"]
) -> Any:
    """Write one slot of every buffer, or several different ones, but only those ``where``.

    What is not to be written goes past the end, where JAX drops it. So a donated buffer is updated
    in place however often it is written to; a ``lax.cond`` over whole buffers copies them, and so
    does writing back what was there from the second write on.
    """

    def write(buffer: Array, item: Array) -> Array:
        place = jnp.where(where, slot, buffer.shape[0])
        return buffer.at[place].set(item, mode="drop")

    return jax.tree.map(write, tree, value)


def same_types(tree: Any, like: Any) -> Any:
    """A pytree in the types of another one."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def add_slots(tree: Any, extra: int) -> Any:
    """Every buffer of a pytree with ``extra`` blank slots at its end; scalars stay as they are."""

    def pad(buffer: Array) -> Array:
        if buffer.ndim == 0:  # the number of slots in use
            return buffer
        return jnp.concatenate([buffer, jnp.zeros((extra, *buffer.shape[1:]), buffer.dtype)])

    return jax.tree.map(pad, tree) if extra else tree


def blank(shapes: Any) -> Any:
    """Zeros in the shapes and types of a pytree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def blank_unless(condition: Bool[Array, ""], compute: Callable[[], Any]) -> Any:
    """The result of ``compute()`` if ``condition``, else zeros: a result that nobody reads."""
    shapes = jax.eval_shape(compute)
    return jax.lax.cond(condition, compute, lambda: blank(shapes))


def select(condition: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """Leaf-wise ``jnp.where`` over two equal pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
