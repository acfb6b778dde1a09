"""Small symmetric positive definite systems."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PIVOT_FLOOR = 16.0
"""A relative pivot below this many rounding errors is rounding itself: the matrix is singular."""


def solve_spd_small(
    H: Float[Array, "n n"], g: Float[Array, "n"]
) -> tuple[Float[Array, "n"], Bool[Array, ""]]:
    """Solve ``H x = g`` for a symmetric positive definite ``H`` of a few rows.

    Returns ``x`` and whether the factorisation succeeded; if not, ``x`` is zero, never NaN. The
    matrix is first scaled to a unit diagonal, so that a pivot measures what is left of a variable
    once the earlier ones are known, whatever the units; one below a few rounding errors counts as
    a failure. The Cholesky factorisation is unrolled: for seven variables a library call costs
    more than the arithmetic, above all on a GPU.
    """
    n = H.shape[-1]
    diagonal = jnp.diagonal(H)
    ok = jnp.all(jnp.isfinite(H)) & jnp.all(jnp.isfinite(g)) & jnp.all(diagonal > 0)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    left = jnp.where(ok, scale[:, None] * H * scale[None, :], jnp.eye(n, dtype=H.dtype))
    rhs = jnp.where(ok, scale * g, 0)

    floor = PIVOT_FLOOR * float(jnp.finfo(H.dtype).eps)
    columns = []
    for k in range(n):  # outer-product form; the right-hand side is eliminated along the way
        pivot = left[k, k]
        ok &= pivot > floor
        root = jnp.sqrt(jnp.where(pivot > floor, pivot, 1))
        column = left[:, k] / root
        rhs = rhs.at[k].divide(root)
        below = jnp.arange(n) > k
        rhs = rhs - jnp.where(below, column * rhs[k], 0)
        left = left - column[:, None] * column[None, :]
        columns.append(column)
    for k in reversed(range(n)):  # L^T x = y, and row k of L^T is column k of L
        later = jnp.sum(jnp.where(jnp.arange(n) > k, columns[k] * rhs, 0))
        rhs = rhs.at[k].set((rhs[k] - later) / columns[k][k])
    return jnp.where(ok, scale * rhs, 0), ok
