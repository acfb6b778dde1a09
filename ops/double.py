"""Double precision in a single-precision session.

``with jax.enable_x64(True)`` lets a traced function compute in double wherever its caller stands.
``vmap`` over a loop that has been traced goes over its operations again, outside that context; of
those used here only the matrix product would then be cut down to single, with no more than a
warning. ``dot_general`` is not.
"""

import functools
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def dot_general(
    left: Float[Array, "..."], right: Float[Array, "..."], dimension_numbers: Dimensions
) -> Float[Array, "..."]:
    """``jax.lax.dot_general`` in the precision of its arguments, under any ``vmap``.

    JAX cannot differentiate through it.
    """
    return _batchable(functools.partial(_product, dimension_numbers=dimension_numbers))(left, right)


def _product(left: Array, right: Array, dimension_numbers: Dimensions) -> Array:
    return lax.dot_general(left, right, dimension_numbers, precision=lax.Precision.HIGHEST)


def _batchable(product: Any) -> Any:
    @custom_vmap
    def widened(left: Array, right: Array) -> Array:
        with jax.enable_x64(True):
            return product(left, right)

    @widened.def_vmap
    def batch(size: int, in_batched: list[bool], left: Array, right: Array) -> tuple[Array, bool]:
        axes = tuple(0 if batched else None for batched in in_batched)
        return _batchable(jax.vmap(product, axes, axis_size=size))(left, right), True

    return widened
