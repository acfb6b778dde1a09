"""The robust cost of a factor to second order, exactly: what implicit derivatives are made of.

``factor_gram`` has the gradient of the cost, ``-sum w J^T (z - h)``, but Gauss-Newton's matrix
``sum w J^T J`` is not its derivative: it leaves out how the weights change with the residuals and
how the prediction bends. Here the cost of a pixel is taken as a function ``phi(Y)`` of the moved
point ``Y = T X`` alone; its gradient ``g`` and its Hessian ``h`` (3 x 3) come from automatic
differentiation over three numbers. Under ``Y <- exp(xi) Y``, to second order,

    Y' = Y + D xi + (sigma I + [omega]x) (tau + omega x Y + sigma Y) / 2,   D = [I | -[Y]x | Y],

so that ``gradient = sum D^T g``, and ``hessian = sum D^T h D`` plus terms that are linear in
``G = sum g`` and ``M = sum g Y^T``.

Rays and pixels do not depend on the scale: their part of the cost has ``Y . g = 0`` and ``h Y =
-g`` (Euler). These are put in, not computed: a ray weighs ten million times a distance, and what
rounding leaves of it would bury all that is known of the scale.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops import pinhole, rays, robust
from ops.edge_system.factors import (
    FactorConfig,
    FactorNoise,
    RayFactorConfig,
    columns_where,
    moved,
    pixel_measurement,
    precisions,
)
from ops.rays import Column
from ops.sim3 import Sim3


def factor_gradient(
    points: Float[Array, "n 3"],
    measured: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    pixels: Float[Array, "n 2"] | None,
    noise: FactorNoise,
) -> Float[Array, "7"]:
    """Derivative of the robust cost under ``T <- exp(xi) T``; arguments of ``factor_gram``.

    The negative of what ``factor_gram`` calls downhill, written so that it can be differentiated
    in everything: what is not valid has derivative 0.
    """
    valid = valid & _finite(points, measured, q)
    Y = once(moved(columns_where(valid, points), T))
    sight, range_ = _slopes(measured, q, valid, config, K, image_shape, pixels, noise)
    return _gradient(*_moments(Y, *once((sight(Y), range_(Y)))))


def factor_curvature(
    points: Float[Array, "n 3"],
    measured: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    pixels: Float[Array, "n 2"] | None,
    noise: FactorNoise,
) -> tuple[Float[Array, "7"], Float[Array, "7 7"]]:
    """Gradient and exact Hessian of the robust cost in ``xi`` of ``exp(xi) T`` at 0."""
    valid = valid & _finite(points, measured, q)
    Y = moved(columns_where(valid, points), T)
    sight, range_ = _slopes(measured, q, valid, config, K, image_shape, pixels, noise)
    one, zero = jnp.ones_like(Y[0]), jnp.zeros_like(Y[0])
    of_sight, of_range = [], []
    for k in range(3):
        along = [one if axis == k else zero for axis in range(3)]
        g_sight, bend = jax.jvp(sight, (Y,), (along,))
        of_sight.append(bend)
        g_range, bend = jax.jvp(range_, (Y,), (along,))
        of_range.append(bend)
    of_sight, of_range, g_sight, g_range = once((of_sight, of_range, g_sight, g_range))
    G, M = _moments(Y, g_sight, g_range)

    x, y, z = Y
    D = [[one, zero, zero, zero, z, -y, x],
         [zero, one, zero, -z, zero, x, y],
         [zero, zero, one, y, -x, zero, z]]  # fmt: skip
    hD = []
    for of_s, of_r, g in zip(of_sight, of_range, g_sight, strict=True):
        both = [a + b for a, b in zip(of_s, of_r, strict=True)]
        row = [sum(both[k] * D[k][c] for k in range(3)) for c in range(6)]
        hD.append([*row, sum(of_r[k] * D[k][6] for k in range(3)) - g])
    # Joined as in ``factor_gram``, for the same reason.
    left, right = (
        jnp.concatenate([entry[None] for row in rows for entry in row], axis=1).reshape(3, 7, -1)
        for rows in (D, hD)
    )
    products = jnp.matmul(left, right.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST)
    DhD = jnp.sum(products, axis=0)
    DhD = DhD.at[6, :6].set(DhD[:6, 6])
    return _gradient(G, M), DhD + _bending(G, M)


def _slopes(measured, q, valid, config, K, image_shape, pixels, noise):
    """Derivative of every pixel's cost in its moved point, as functions of the columns of that.

    Of the part that sees directions, and of the part that sees distance.
    """
    z, q = once((columns_where(valid, measured), jnp.where(valid, q, 0)))

    def cost(Y: list[Column], of_range: bool) -> Float[Array, ""]:
        if isinstance(config, RayFactorConfig):
            value, target, weight = rays.psi(Y), rays.psi(z), q
        else:
            assert K is not None and image_shape is not None and pixels is not None
            value, in_front = pinhole.project(Y, K, config.depth_eps)
            target, weight = pixel_measurement(config, z, pixels, q, value, in_front, image_shape)
        target, value = once((target, value))
        components = [*zip(target, value, precisions(noise, len(value)), strict=True)]
        total = jnp.zeros_like(weight)
        for seen_at, expected, precision in components[-1:] if of_range else components[:-1]:
            whitened = once(robust.sqrt_or_zero(weight) * precision * (seen_at - expected))
            total = total + robust.huber_loss(whitened, noise.huber)
        return jnp.sum(total)

    return [jax.grad(functools.partial(cost, of_range=part)) for part in (False, True)]


once = jax.lax.optimization_barrier
"""What a pixel gives is computed once and then read: XLA would compute it anew for every sum."""


def _finite(
    points: Float[Array, "n 3"], measured: Float[Array, "n 3"], q: Float[Array, "n"]
) -> Bool[Array, "n"]:
    """Where all is finite: a solver that met anything else has failed, and has no derivative."""
    return jnp.isfinite(points).all(-1) & jnp.isfinite(measured).all(-1) & jnp.isfinite(q)


def _moments(
    Y: list[Column], g_sight: list[Column], g_range: list[Column]
) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
    """``G = sum g`` and ``M = sum g Y^T`` of both parts, the trace of M that of range alone."""

    def moment(g: list[Column]) -> Float[Array, "3 3"]:
        return jnp.stack([jnp.stack([jnp.sum(row * column) for column in Y]) for row in g])

    G = jnp.stack([jnp.sum(a) + jnp.sum(b) for a, b in zip(g_sight, g_range, strict=True)])
    M = moment(g_sight)
    return G, M - jnp.eye(3, dtype=M.dtype) * (jnp.trace(M) / 3) + moment(g_range)


def _gradient(G: Float[Array, "3"], M: Float[Array, "3 3"]) -> Float[Array, "7"]:
    """``sum [g, Y x g, Y . g]``."""
    return jnp.concatenate([G, _twist(M), jnp.trace(M)[None]])


def _twist(M: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """``sum Y x g``."""
    return jnp.stack([M[2, 1] - M[1, 2], M[0, 2] - M[2, 0], M[1, 0] - M[0, 1]])


def _bending(G: Float[Array, "3"], M: Float[Array, "3 3"]) -> Float[Array, "7 7"]:
    """Second derivative of ``sum g . Y'`` with g held: the terms of second order of the motion."""
    o = jnp.zeros((), G.dtype)
    cross = jnp.stack([o, -G[2], G[1], G[2], o, -G[0], -G[1], G[0], o]).reshape(3, 3)
    trace = jnp.trace(M)
    omega_omega = (M + M.T) / 2 - trace * jnp.eye(3, dtype=G.dtype)
    omega_sigma = _twist(M)[:, None]
    tau_sigma = G[:, None] / 2
    return jnp.concatenate(
        [
            jnp.concatenate([jnp.zeros((3, 3), G.dtype), cross / 2, tau_sigma], axis=1),
            jnp.concatenate([-cross / 2, omega_omega, omega_sigma], axis=1),
            jnp.concatenate([tau_sigma.T, omega_sigma.T, trace.reshape(1, 1)], axis=1),
        ]
    )
