"""Derivatives of what a solver converged to, without going back through its iterations.

At the solution x of a problem with parameters p some condition ``F(x, p) = 0`` holds; for a least
squares problem, the gradient of its cost vanishes. If p moves, x has to follow so that the
condition goes on holding (implicit function theorem):

    dx = -(dF/dx)^-1 (dF/dp) dp.

So the derivative takes one linearisation of the condition and one linear solve, however many
iterations there were, and it does not know of damping, of approximated Hessians, of where the
solver started or of how it went on from there: only of the problem. It is exact as far as the
solver converged. ``dF/dx`` has to be exact for that, too: for a robust least squares problem the
true Hessian, with the second derivatives of the residuals and with weights that change with them,
not Gauss-Newton's (Krantz and Parks, The Implicit Function Theorem; Blondel et al., Efficient and
modular implicit differentiation, 2022).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

P = TypeVar("P")
X = TypeVar("X")
R = TypeVar("R")
Tangent = Float[Array, "..."]


def implicitly(
    solve: Callable[[P], tuple[X, R]],
    condition: Callable[[X, R, P], Tangent],
    follow: Callable[[X, R, P, Tangent], Tangent],
    move: Callable[[X, R, P, Tangent], X],
) -> Callable[[P], tuple[X, R]]:
    """``solve``, with the derivative of the solution by the implicit function theorem.

    The derivative exists in forward and in reverse mode and under ``vmap``; code that does not
    differentiate runs ``solve`` and nothing else. Functions must not close over traced values
    that are to be differentiated: everything goes into the parameters, a pytree in which integers
    and booleans are constants.

    Args:
        solve: ``(x, report)`` for parameters p; the report has no derivative.
        condition: ``(x, report, p) -> F(x, p)``, zero at the solution, with an entry for each
            coordinate of a tangent.
        follow: ``(x, report, p, change) -> xi``: the motion of x, in the coordinates of its
            tangent, that takes the ``change`` of the condition back. Linear in the change in a
            form that JAX can transpose (``solve_linear``).
        move: ``(x, report, p, xi)``: x, moved by a tangent ``xi``. Parts of x that are not
            unknowns, but parameters handed through, it takes from p.
    """

    @jax.custom_jvp
    def solved(parameters: P) -> tuple[X, R]:
        return solve(parameters)

    @solved.defjvp
    def _(primals: tuple[P], tangents: tuple[P]) -> tuple[tuple[X, R], tuple[X, R]]:
        (parameters,), (change,) = primals, tangents
        x, report = solved(parameters)
        value, changed = jax.jvp(lambda p: condition(x, report, p), (parameters,), (change,))
        tangent = follow(x, report, parameters, -changed)
        still = jnp.zeros_like(value)
        _, x_change = jax.jvp(
            lambda p, xi: move(x, report, p, xi), (parameters, still), (change, tangent)
        )
        no_change = jax.tree.map(jax.custom_derivatives.zero_from_primal, report)
        return (x, report), (x_change, no_change)

    return solved


def solve_linear(
    H: Float[Array, "..."],
    g: Tangent,
    apply: Callable[[Array, Array], Array],
    solve: Callable[[Array, Array], Array],
) -> Tangent:
    """``solve(H, g)`` for a symmetric H, linear in ``g`` in JAX's eyes, whatever ``solve`` does."""
    return lax.custom_linear_solve(
        lambda x: apply(H, x), g, lambda _, b: solve(H, b), symmetric=True
    )


def follow_plane(
    jacobian: Float[Array, "n 2 2"], change: Float[Array, "n 2"], ok: Bool[Array, "n"]
) -> Float[Array, "n 2"]:
    """``jacobian^-1 change`` for many 2 x 2 systems in closed form; 0 where not ``ok`` or singular.

    Singular is a determinant below rounding of its two products.
    """
    a, b = jacobian[:, 0, 0], jacobian[:, 0, 1]
    c, d = jacobian[:, 1, 0], jacobian[:, 1, 1]
    determinant = a * d - b * c
    rounding = 16 * float(jnp.finfo(jacobian.dtype).eps)
    sound = ok & (jnp.abs(determinant) > rounding * (jnp.abs(a * d) + jnp.abs(b * c)))
    inverse = jnp.where(sound, 1, 0) / jnp.where(sound, determinant, 1)
    x, y = change[:, 0], change[:, 1]
    moved = jnp.stack([d * x - b * y, a * y - c * x], axis=-1)
    return jnp.where(sound[:, None], inverse[:, None] * moved, 0)
