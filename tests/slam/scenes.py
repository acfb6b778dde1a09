"""A scene in ten lines of numpy, independent of the procedural world: inside a box, looking out."""

import jax.numpy as jnp
import numpy as np

from slam.types import Frame

SHAPE = (96, 128)
K = np.array([[96.0, 0, 63.5], [0, 96.0, 47.5], [0, 0, 1]])
HALF = np.array([2.0, 1.5, 2.5])


def pose(yaw=0.0, t=(0.0, 0.0, 0.0), pitch=0.0):
    """Camera to world."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    T = np.eye(4)
    T[:3, :3] = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array(
        [[1, 0, 0], [0, cp, -sp], [0, sp, cp]]
    )
    T[:3, 3] = t
    return T


def depth_of(T_WC, shape=SHAPE, K=K):
    """Depth along z of the box's walls seen from inside."""
    v, u = np.mgrid[0 : shape[0], 0 : shape[1]]
    rays_C = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(shape)], -1)
    rays_W = rays_C @ T_WC[:3, :3].T
    with np.errstate(divide="ignore"):
        walls = (np.sign(rays_W) * HALF - T_WC[:3, 3]) / rays_W
    return walls.min(-1)


def frame(index, T_WC, bright=True):
    """A frame with everything the rendered-geometry prior reads."""
    image = np.full((*SHAPE, 3), 128 if bright else 0, np.uint8)
    return Frame(
        index=jnp.int32(index),
        timestamp=jnp.float32(index / 10),
        image=jnp.asarray(image),
        depth=jnp.asarray(depth_of(T_WC), jnp.float32),
        T_WC=jnp.asarray(T_WC, jnp.float32),
        K=jnp.asarray(K, jnp.float32),
    )


def walk(count, yaw=0.04, stride=0.03):
    """Poses of a short walk along a gentle curve."""
    return [
        pose(yaw * i, (stride * i, 0.02 * np.sin(i), 0.5 * stride * i), 0.03 * np.sin(0.7 * i))
        for i in range(count)
    ]
