"""Jacobians of functions of a batch of small vectors, by three ways."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tests.quick import quick_jit


def jacobians(
    function: Callable[..., jax.Array], x: np.ndarray, *constants: np.ndarray, h: float
) -> list[np.ndarray]:
    """Derivative of ``function(x, *constants)`` in x: forward, reverse and numeric, [n, out, in].

    ``x`` and the constants have one row per problem, and the function maps rows to rows. A row is
    repeated for each direction instead of ``vmap`` adding axes: that compiles much faster. Numeric
    derivatives are central differences of fourth order, with step ``h``.
    """
    count, inputs = x.shape

    def rows(directions: np.ndarray) -> tuple[list[jax.Array], jax.Array]:
        arguments = [jnp.asarray(np.repeat(a, len(directions), axis=0)) for a in (x, *constants)]
        return arguments, jnp.asarray(np.tile(directions, (count, 1)))

    @quick_jit
    def push(directions: jax.Array, x: jax.Array, *rest: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: function(x, *rest), (x,), (directions,))[1]

    @quick_jit
    def pull(weights: jax.Array, x: jax.Array, *rest: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: function(x, *rest), x)[1](weights)[0]

    arguments, directions = rows(np.eye(inputs))
    forward = np.asarray(push(directions, *arguments)).reshape(count, inputs, -1)
    outputs = forward.shape[-1]
    arguments, weights = rows(np.eye(outputs))
    reverse = np.asarray(pull(weights, *arguments)).reshape(count, outputs, inputs)

    steps = np.concatenate([k * h * np.eye(inputs) for k in (1, -1, 2, -2)])
    arguments, offsets = rows(steps)
    moved = quick_jit(function)(arguments[0] + offsets, *arguments[1:])
    right, left, far_right, far_left = np.moveaxis(
        np.asarray(moved).reshape(count, 4, inputs, outputs), 1, 0
    )
    numeric = (8 * (right - left) - far_right + far_left) / (12 * h)
    return [np.swapaxes(forward, 1, 2), reverse, np.swapaxes(numeric, 1, 2)]
