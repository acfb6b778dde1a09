"""The robust cost of a factor to second order, exactly: what implicit derivatives are made of.

``factor_gram`` has the gradient of the cost, ``-sum w J^T (z - h)``, but Gauss-Newton's matrix
``sum w J^T J`` is not its derivative: it leaves out how the weights change with the residuals and
how the prediction bends. Here the cost of a pixel is a function ``phi(Y) = sum_k c(z_k - h_k(Y))``
of the moved point ``Y = T X`` alone. With Huber's influence ``s_k = c'`` and ``W_k = c''``,

    g = -sum s_k grad h_k,      h = sum W_k grad h_k grad h_k^T - sum s_k hess h_k

are its gradient and its Hessian (3 x 3). Under ``Y <- exp(xi) Y``, to second order,

    Y' = Y + D xi + (sigma I + [omega]x) (tau + omega x Y + sigma Y) / 2,   D = [I | -[Y]x | Y],

so that ``gradient = sum D^T g``, and ``hessian = sum D^T h D`` plus terms that are linear in
``G = sum g`` and ``M = sum g Y^T``.

All components but the last see directions, which do not depend on the scale: their part of the
cost has ``Y . g = 0`` and ``h Y = -g`` (Euler). These are put in, not computed: a ray weighs ten
million times a distance, and what rounding leaves of it would bury all that is known of the scale.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ops import rays
from ops.edge_system.factors import (
    FactorConfig,
    FactorNoise,
    RayFactorConfig,
    columns_where,
    moved,
    pixel_measurement,
    precisions,
)
from ops.pinhole import project
from ops.rays import Column
from ops.robust import sqrt_or_zero
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
    measurement = _measure(points, measured, q, valid, T, config, K, image_shape, pixels, noise)
    return _gradient(*measurement)


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
    measurement = _measure(points, measured, q, valid, T, config, K, image_shape, pixels, noise)
    (x, y, z), cost = measurement[0], _expand(*measurement)
    # Everything is a sum of products with at most two coordinates: one matrix product has them all.
    upper = [cost.h[i][k] for i in range(3) for k in range(i, 3)]
    monomials = [jnp.ones_like(x), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z]
    sums = _products([*upper, *cost.h_Y, *cost.g], monomials)
    h, h_Y, g = sums[_SYMMETRIC], sums[6:9], sums[9:]
    gradient = _wrench(g[:, :4], -jnp.sum(cost.s[-1] * cost.model.reach))

    tau_omega = _contract("kcl,ikl->ic", _CROSS, h[..., 1:4])
    omega_omega = _contract("ibm,kcl,ikml->bc", _CROSS, _CROSS, h[..., 4 + _SYMMETRIC])
    omega_sigma = _contract("ibm,im->b", _CROSS, h_Y[:, 1:4])
    sigma_sigma = jnp.sum(cost.stretch * cost.model.reach)
    column = jnp.concatenate([h_Y[:, 0], omega_sigma, sigma_sigma[None]])
    DhD = jnp.concatenate(
        [
            jnp.concatenate([h[..., 0], tau_omega], axis=1),
            jnp.concatenate([tau_omega.T, omega_omega], axis=1),
        ]
    )
    DhD = jnp.concatenate([jnp.concatenate([DhD, column[:6, None]], axis=1), column[None]])
    return gradient, DhD + _bending(gradient, g[:, 1:4])


_SYMMETRIC = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]], np.int32)
"""Where the entries of a symmetric matrix are among those of its upper triangle."""
_CROSS = np.array(
    [[[0, 0, 0], [0, 0, 1], [0, -1, 0]],
     [[0, 0, -1], [0, 0, 0], [1, 0, 0]],
     [[0, 1, 0], [-1, 0, 0], [0, 0, 0]]]
)  # fmt: skip
"""``(a x b)_i = sum _CROSS[i, j, k] a_j b_k``."""


Columns = tuple[Column, ...]
Numbers = tuple[Float[Array, ""], ...]


def _measure(
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
) -> tuple[Columns, Columns, Column, Numbers, Float[Array, ""]]:
    """Moved points, what is measured in place of each prediction, weight, precisions, threshold.

    Pixels are measured on the plane at depth 1, so that no intrinsics are needed any more.
    """
    # a solver that met what is not finite has failed, and has no derivative
    finite = jnp.isfinite(points).all(-1) & jnp.isfinite(measured).all(-1) & jnp.isfinite(q)
    valid = valid & finite
    Y = moved(valid, points, T)
    z, q = columns_where(valid, measured), jnp.where(valid, q, 0)
    precision, weak = precisions(noise)
    if isinstance(config, RayFactorConfig):
        target, scales = rays.psi(z), [precision] * 3 + [weak]
    else:
        assert K is not None and image_shape is not None and pixels is not None
        value, in_front = project(Y, K, config.depth_eps)
        Y = [*Y[:2], jnp.where(in_front, Y[2], 1)]  # without weight, but not to be divided by
        pixel = [pixels[:, 0], pixels[:, 1]]
        (u, v, depth), q = pixel_measurement(config, z, pixel, q, value, in_front, image_shape)
        target = [(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], depth]
        scales = [K[0, 0] * precision, K[1, 1] * precision, weak]
    return tuple(Y), tuple(target), q, tuple(scales), noise.huber


class _Model(NamedTuple):
    """What is predicted of moved points, to second order; None is 0."""

    value: list[Column]
    """The predictions."""
    slopes: list[list[Column | None]]
    """Their gradients."""
    bent: Callable[[list[Column]], list[list[Column | None]]]
    """Sum of their Hessians with some weights."""
    reach: Column
    """How the last one changes with the scale: ``Y . gradient``."""
    degree: int
    """It grows with this power of the scale; 0: with its logarithm."""


def _see_rays(Y: Columns) -> _Model:
    """``ops.rays.psi``: with ``P = I - n n^T`` the gradients are ``P/d`` and ``n``."""
    *n, d = rays.psi(list(Y))
    present = d > 0
    inverse = jnp.where(present, 1, 0) / jnp.where(present, d, 1)
    P = [[(1 if i == k else 0) - n[i] * n[k] for k in range(3)] for i in range(3)]

    def bent(s: list[Column]) -> list[list[Column | None]]:
        along = n[0] * s[0] + n[1] * s[1] + n[2] * s[2]
        p = [(s[k] - n[k] * along) * inverse * inverse for k in range(3)]
        level = (s[3] - along * inverse) * inverse
        return [[level * P[i][k] - n[i] * p[k] - p[i] * n[k] for k in range(3)] for i in range(3)]

    slopes: list[list[Column | None]] = [[entry * inverse for entry in row] for row in P]
    return _Model([*n, d], [*slopes, [*n]], bent, d, 1)


def _see_pixels(Y: Columns) -> _Model:
    """``ops.pinhole.project`` without intrinsics: ``a = x/z``, ``b = y/z`` and ``log z``."""
    x, y, z = Y
    inverse = 1 / z
    a, b = x * inverse, y * inverse

    def bent(s: list[Column]) -> list[list[Column | None]]:
        square = inverse * inverse
        xz, yz = -s[0] * square, -s[1] * square
        zz = (2 * (a * s[0] + b * s[1]) - s[2]) * square
        return [[None, None, xz], [None, None, yz], [xz, yz, zz]]

    slopes = [[inverse, None, -a * inverse], [None, inverse, -b * inverse], [None, None, inverse]]
    return _Model([a, b, jnp.log(z)], slopes, bent, jnp.ones_like(z), 0)


class _Expansion(NamedTuple):
    """The cost of every pixel to second order in its moved point."""

    model: _Model
    """What is predicted."""
    s: list[Column]
    """Influence of every component."""
    W: list[Column]
    """Its derivative in what is measured."""
    power: list[Column]
    """Power of the weight in it: 1 within Huber's threshold, 1/2 beyond."""
    g: list[Column]
    """Gradient."""
    h: list[list[Column]]
    """Hessian."""
    h_Y: list[Column]
    """``h Y``."""
    stretch: Column
    """Of the range, how ``h Y`` goes with its slope."""


def _expand(
    Y: Columns, target: Columns, weight: Column, scales: Numbers, huber: Float[Array, ""]
) -> _Expansion:
    model = _see_rays(Y) if len(target) == 4 else _see_pixels(Y)
    s, W, power = [], [], []
    root = sqrt_or_zero(weight)
    for seen_at, expected, scale in zip(target, model.value, scales, strict=True):
        precision = root * scale
        whitened = precision * (seen_at - expected)
        inside = jnp.abs(whitened) <= huber
        s.append(precision * jnp.clip(whitened, -huber, huber))
        W.append(jnp.where(inside, precision * precision, 0))
        power.append(jnp.where(inside, 1.0, 0.5).astype(root.dtype))

    slopes, bent = model.slopes, model.bent(s)
    of_sight = [_sum_of_products(s[:-1], [row[i] for row in slopes[:-1]]) for i in range(3)]
    of_range = [_sum_of_products(s[-1:], [slopes[-1][i]]) for i in range(3)]
    g = [-(a + b) for a, b in zip(of_sight, of_range, strict=True)]
    h = [[_curve(W, slopes, bent, i, k) for k in range(i + 1)] for i in range(3)]
    h = [[h[max(i, k)][min(i, k)] for k in range(3)] for i in range(3)]
    stretch = W[-1] * model.reach + (1 - model.degree) * s[-1]
    h_Y = [_sum_of_products([stretch], [slopes[-1][i]]) + of_sight[i] for i in range(3)]
    return _Expansion(model, s, W, power, g, h, h_Y, stretch)


def _curve(W, slopes, bent, i: int, k: int) -> Column:
    """An entry of the Hessian."""
    outer = _sum_of_products(
        W,
        [None if row[i] is None or row[k] is None else row[i] * row[k] for row in slopes],
    )
    return outer if bent[i][k] is None else outer - bent[i][k]


def _sum_of_products(a: list[Column], b: list[Column | None]) -> Column:
    """Sum over those that are not 0; an array even if there are none."""
    terms = [x * y for x, y in zip(a, b, strict=True) if y is not None]
    return functools.reduce(operator.add, terms) if terms else jnp.zeros_like(a[0])


def _products(left: Sequence[Column], right: Sequence[Column]) -> Float[Array, "l r"]:
    """Sums of the products of every column with every other.

    Joined, and multiplied as matrices, like the rows of ``factor_gram`` and for the same reason:
    every column is computed once and written to memory. A derivative gets its columns likewise.
    """
    a, b = (jnp.concatenate([column[None] for column in columns]) for columns in (left, right))
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _contract(subscripts: str, *factors: Array | np.ndarray) -> Array:
    dtype = factors[-1].dtype
    return jnp.einsum(
        subscripts, *(jnp.asarray(x, dtype) for x in factors), precision=jax.lax.Precision.HIGHEST
    )


def _wrench(sums: Float[Array, "3 4"], stretch: Float[Array, ""]) -> Float[Array, "7"]:
    """``sum [g, Y x g, Y . g]`` from the products of g with 1 and Y; the last, as it is given.

    What directions add to the last is 0, but for rounding.
    """
    return jnp.concatenate([sums[:, 0], _twist(sums[:, 1:]), stretch[None]])


def _twist(M: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """``sum Y x g`` from ``M = sum g Y^T``."""
    return jnp.stack([M[2, 1] - M[1, 2], M[0, 2] - M[2, 0], M[1, 0] - M[0, 1]])


@jax.custom_jvp
def _gradient(
    Y: Columns, target: Columns, weight: Column, scales: Numbers, huber: Float[Array, ""]
) -> Float[Array, "7"]:
    """``sum D^T g``; its derivative reads the Hessian of every pixel, on the way back as well."""
    return _balance(Y, _expand(Y, target, weight, scales, huber))


@_gradient.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Float[Array, "7"], Float[Array, "7"]]:
    Y, _, weight, scales, huber = primals
    Y_dot, target_dot, weight_dot, scales_dot, huber_dot = tangents
    cost = _expand(*primals)
    slopes, s, W, reach = cost.model.slopes, cost.s, cost.W, cost.model.reach
    share = jnp.where(weight > 0, weight_dot, 0) / jnp.where(weight > 0, weight, 1)
    # Change of each influence at predictions that stay where they are.
    change = [
        W[k] * target_dot[k]
        + s[k] * cost.power[k] * (share + 2 * scales_dot[k] / scales[k])
        + jnp.where(cost.power[k] == 1, 0, s[k] / huber) * huber_dot
        for k in range(len(s))
    ]
    g_dot = [
        sum(cost.h[i][k] * Y_dot[k] for k in range(3))
        - _sum_of_products(change, [row[i] for row in slopes])
        for i in range(3)
    ]
    away = _sum_of_products(list(Y_dot), slopes[-1])
    stretch = W[-1] * reach - cost.model.degree * s[-1]
    change_of_pull = _wrench(
        _products(g_dot, [jnp.ones_like(Y[0]), *Y]),
        jnp.sum(stretch * away - change[-1] * reach),
    )
    turned = _twist(_products(cost.g, Y_dot))
    return _balance(Y, cost), change_of_pull.at[3:6].add(turned)


def _balance(Y: Columns, cost: _Expansion) -> Float[Array, "7"]:
    stretch = -jnp.sum(cost.s[-1] * cost.model.reach)
    return _wrench(_products(cost.g, [jnp.ones_like(Y[0]), *Y]), stretch)


def _bending(gradient: Float[Array, "7"], M: Float[Array, "3 3"]) -> Float[Array, "7 7"]:
    """Second derivative of ``sum g . Y'`` with g held: the terms of second order of the motion.

    ``gradient`` is ``sum [g, Y x g, Y . g]``, ``M`` the sum of ``g Y^T``, whose trace is put right.
    """
    G, twist, trace = gradient[:3], gradient[3:6, None], gradient[6]
    eye = jnp.eye(3, dtype=G.dtype)
    M = M + eye * ((trace - jnp.trace(M)) / 3)
    o = jnp.zeros((), G.dtype)
    cross = jnp.stack([o, -G[2], G[1], G[2], o, -G[0], -G[1], G[0], o]).reshape(3, 3)
    omega_omega = (M + M.T) / 2 - trace * eye
    tau_sigma = G[:, None] / 2
    return jnp.concatenate(
        [
            jnp.concatenate([jnp.zeros((3, 3), G.dtype), cross / 2, tau_sigma], axis=1),
            jnp.concatenate([-cross / 2, omega_omega, twist], axis=1),
            jnp.concatenate([tau_sigma.T, twist.T, trace.reshape(1, 1)], axis=1),
        ]
    )
