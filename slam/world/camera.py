"""Lens distortion in normalised image coordinates (Brown-Conrady, OpenCV's coefficients)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_UNDISTORT_ITERATIONS = 10
"""Newton steps; float32 is reached after 4 or 5 wherever the model is well invertible."""


def distort(xy: Float[Array, "*n 2"], coefficients: Float[Array, "4"]) -> Float[Array, "*n 2"]:
    """Brown-Conrady distortion of normalised coordinates, ``k1, k2, p1, p2`` in OpenCV's order."""
    k1, k2, p1, p2 = coefficients
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * k2)
    return jnp.stack(
        [
            x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x),
            y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y,
        ],
        axis=-1,
    )


def undistort(xy: Float[Array, "*n 2"], coefficients: Float[Array, "4"]) -> Float[Array, "*n 2"]:
    """Inverse of ``distort`` by Newton's method, exact where the model is invertible."""
    k1, k2, p1, p2 = coefficients

    def newton(guess, _):
        x, y = guess[..., 0], guess[..., 1]
        r2 = x * x + y * y
        radial, slope = 1.0 + r2 * (k1 + r2 * k2), 2.0 * (k1 + 2.0 * k2 * r2)
        cross = slope * x * y + 2.0 * (p1 * x + p2 * y)
        jxx = radial + slope * x * x + 2.0 * p1 * y + 6.0 * p2 * x
        jyy = radial + slope * y * y + 6.0 * p1 * y + 2.0 * p2 * x
        residual = distort(guess, coefficients) - xy
        ex, ey = residual[..., 0], residual[..., 1]
        det = jxx * jyy - cross * cross
        det = jnp.where(jnp.abs(det) < 1e-6, 1e-6, det)
        step = jnp.stack([jyy * ex - cross * ey, jxx * ey - cross * ex], axis=-1) / det[..., None]
        return guess - step, None

    return jax.lax.scan(newton, xy, None, length=_UNDISTORT_ITERATIONS)[0]
