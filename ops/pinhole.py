"""The calibrated measurement model: pixel and log-depth under a pinhole camera.

Intrinsics are ``K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`` in pixels with integer pixel centres;
skew is not modelled.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ops.rays import Column


class Intrinsics(NamedTuple):
    """The four numbers of ``K``, for who cannot index an array."""

    fx: Float[Array, ""]
    fy: Float[Array, ""]
    cx: Float[Array, ""]
    cy: Float[Array, ""]


def intrinsics(K: Float[Array, "3 3"]) -> Intrinsics:
    """What ``K`` holds beside zeros and a one."""
    return Intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2])


def pixel_grid(image_shape: tuple[int, int], dtype: DTypeLike = "float32") -> Float[Array, "hw 2"]:
    """Coordinates ``(u, v)`` of every pixel, in the order of the linear index ``u + W*v``."""
    height, width = image_shape
    v, u = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([u, v], axis=-1).reshape(-1, 2).astype(dtype)


def unproject(
    pixels: Float[Array, "*batch 2"], depth: Float[Array, "*batch"], K: Float[Array, "3 3"]
) -> Float[Array, "*batch 3"]:
    """Points ``z K^-1 (u, v, 1)`` of pixels at the given depth along z."""
    x = (pixels[..., 0] - K[0, 2]) / K[0, 0]
    y = (pixels[..., 1] - K[1, 2]) / K[1, 1]
    return depth[..., None] * jnp.stack([x, y, jnp.ones_like(x)], axis=-1)


def constrain_to_rays(
    points: Float[Array, "hw 3"],
    K: Float[Array, "3 3"],
    image_shape: tuple[int, int],
    pixels: Float[Array, "hw 2"] | None = None,
) -> Float[Array, "hw 3"]:
    """Slide every point of an image's pointmap onto its own pixel's ray, keeping its depth z.

    ``points`` are in the image's camera, in the order of the linear index; specification of the
    calibrated mode: ``X <- z K^-1 (u, v, 1)``. ``pixels`` replaces the grid where a lens distorts:
    where an ideal pinhole camera would see each of them.
    """
    height, width = image_shape
    if points.shape[0] != height * width:
        raise ValueError(
            f"constrain_to_rays: {points.shape[0]} points for an image of {height} x {width} "
            "pixels; pass the whole pointmap in pixel order"
        )
    if pixels is None:
        pixels = pixel_grid(image_shape, points.dtype)
    return unproject(pixels, points[:, 2], K)


def project(
    points: list[Column], K: Float[Array, "3 3"] | Intrinsics, depth_eps: float
) -> tuple[list[Column], Bool[Array, "*batch"]]:
    """Pixel and log-depth ``u, v, log z`` of points, and whether ``z > depth_eps``.

    Points are given by their three coordinates. Those that are not in front of the camera give
    finite but meaningless numbers.
    """
    fx, fy, cx, cy = K if isinstance(K, Intrinsics) else intrinsics(K)
    a, b, depth, front = _normalized(points, depth_eps)
    return [fx * a + cx, fy * b + cy, jnp.log(depth)], front


def project_with_jacobian(
    points: list[Column], K: Float[Array, "3 3"] | Intrinsics, depth_eps: float
) -> tuple[list[Column], Bool[Array, "*batch"], list[list[Column | None]]]:
    """``project`` and its derivative under ``Y <- exp(xi) Y`` at ``xi = 0``: 3 rows of 7 entries.

    None are those that are 0 for every point. With ``a = x/z``, ``b = y/z``:

        du = fx [1/z, 0, -a/z | -a b, 1 + a^2, -b | 0],
        dv = fy [0, 1/z, -b/z | -1 - b^2, a b, a | 0],
        d log z = [0, 0, 1/z | b, -a, 0 | 1].
    """
    camera = K if isinstance(K, Intrinsics) else intrinsics(K)
    value, front = project(points, camera, depth_eps)
    a, b, depth, _ = _normalized(points, depth_eps)
    inverse = 1 / depth
    one = jnp.ones_like(a)
    fx, fy = camera.fx, camera.fy
    jacobian = [
        [fx * inverse, None, -fx * a * inverse, -fx * a * b, fx * (1 + a * a), -fx * b, None],
        [None, fy * inverse, -fy * b * inverse, -fy * (1 + b * b), fy * a * b, fy * a, None],
        [None, None, inverse, b, -a, None, one],
    ]
    return value, front, jacobian


def _normalized(
    points: list[Column], depth_eps: float
) -> tuple[Column, Column, Column, Bool[Array, "*batch"]]:
    """``x/z``, ``y/z``, ``z`` (1 where the point is not in front) and whether it is in front."""
    x, y, z = points
    front = z > depth_eps
    depth = jnp.where(front, z, 1)
    inverse = 1 / depth
    return x * inverse, y * inverse, depth, front


def inside_image(
    u: Column, v: Column, image_shape: tuple[int, int], border: float
) -> Bool[Array, "*batch"]:
    """Whether pixels lie more than ``border`` inside the image; a negative border widens it."""
    height, width = image_shape
    return (u > border) & (u < width - 1 - border) & (v > border) & (v < height - 1 - border)
