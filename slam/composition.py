"""Poses and points of a finished map, composed from what it stores relative to keyframes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ops import FusedPointmap, Sim3, average_confidence, constrain_to_rays, lie_convert


@jax.jit
def compose(T_WK: Sim3, T_kf: Sim3) -> Float[Array, "n 4 4"]:
    """Rigid part of ``T_WK @ T_kf``; the scale belongs to the points."""
    return lie_convert.to_se3_matrix(T_WK @ T_kf)


@functools.partial(jax.jit, static_argnums=2)
def camera_points(
    pointmap: FusedPointmap, K: Array | np.ndarray | None, image_shape: tuple[int, int]
) -> tuple[Float[Array, "n 3"], Float[Array, " n"]]:
    """Points of one keyframe in its camera, as they are mapped, and their average confidence."""
    points = pointmap.points
    if K is not None:
        points = constrain_to_rays(points, jnp.asarray(K), image_shape)
    return points, average_confidence(pointmap)


@functools.partial(jax.jit, static_argnums=3)
def world_points(
    T_WC: Sim3, pointmap: FusedPointmap, K: Array | np.ndarray | None, image_shape: tuple[int, int]
) -> tuple[Float[Array, "n 3"], Float[Array, " n"]]:
    """Points of one keyframe in the world, and their average confidence."""
    points, confidence = camera_points(pointmap, K, image_shape)
    return T_WC.apply(points), confidence
