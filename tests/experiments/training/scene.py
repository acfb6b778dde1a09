"""A room with a box and a ball, seen by the independent ray caster in float64."""

import types

import jax.numpy as jnp
import numpy as np

from experiments.training.correspondences import Sight
from tests.slam.world import ray_caster

HEIGHT, WIDTH = 27, 36
BOX, BALL = 6, 7
ROOM = types.SimpleNamespace(
    size=np.array([6.0, 5.0, 2.8]),
    centre=np.array([[1.0, 0.2, 1.3], [1.3, -0.9, 1.2]]),
    half=np.array([[0.15, 0.4, 0.5], [0.3, 0.3, 0.3]]),
    yaw=np.array([0.3, 0.0]),
    active=np.array([True, True]),
    num_boxes=1,
    num_spheres=1,
)
K = np.array([[28.0, 0.0, 17.2], [0.0, 28.0, 13.4], [0.0, 0.0, 1.0]])


def camera(position, heading, pitch):
    """Looks along +x at heading 0, level at pitch 0; z is up."""
    c, s, cp, sp = np.cos(heading), np.sin(heading), np.cos(pitch), np.sin(pitch)
    T_WC = np.eye(4)
    T_WC[:3, 2] = c * cp, s * cp, sp
    T_WC[:3, 0] = s, -c, 0
    T_WC[:3, 1] = np.cross(T_WC[:3, 2], T_WC[:3, 0])
    T_WC[:3, 3] = position
    return T_WC


T_W1, T_W2 = camera([-1.0, -0.4, 1.4], 0.05, -0.05), camera([-0.8, 0.6, 1.5], -0.35, -0.1)
T_12 = np.linalg.inv(T_W1) @ T_W2


def normals_W(points, ids):
    """Outward normals, from which of the solid's faces the point lies on."""
    normals = np.zeros_like(points)
    for face in range(6):
        normals[ids == face, face // 2] = 1.0 if face % 2 == 0 else -1.0
    c, s = np.cos(ROOM.yaw[0]), np.sin(ROOM.yaw[0])
    to_room = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    local = (points[ids == BOX] - ROOM.centre[0]) @ to_room / ROOM.half[0]
    outermost = np.abs(local) == np.abs(local).max(axis=1, keepdims=True)
    normals[ids == BOX] = (outermost * np.sign(local)) @ to_room.T
    normals[ids == BALL] = (points[ids == BALL] - ROOM.centre[1]) / ROOM.half[1, 0]
    return normals


def look(T_WC, K=K, shape=(HEIGHT, WIDTH)):
    """What a camera sees: points and normals in the room, and object ids, one row a pixel."""
    u, v = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rays = np.linalg.solve(K, pixels.T).T @ T_WC[:3, :3].T
    depth, ids = ray_caster.cast(ROOM, T_WC[:3, 3], rays)
    points = T_WC[:3, 3] + depth[:, None] * rays
    return points, normals_W(points, ids), ids


def sight(T_WC):
    """The same as the matching takes it."""
    points, normals, _ = look(T_WC)
    shape, R = (HEIGHT, WIDTH, 3), T_WC[:3, :3]
    return Sight(
        points=jnp.asarray(((points - T_WC[:3, 3]) @ R).reshape(shape), jnp.float32),
        normals=jnp.asarray((normals @ R).reshape(shape), jnp.float32),
        known=jnp.ones(shape[:2], bool),
        K=jnp.asarray(K, jnp.float32),
    )


def project(T_WC, points, K=K):
    """Pixels and depths of points in the room."""
    X_C = (points - T_WC[:3, 3]) @ T_WC[:3, :3]
    uv = X_C @ K.T
    return uv[:, :2] / uv[:, 2:], X_C[:, 2]


def hidden_by(T_WC, points):
    """How many metres before points the first surface is, on the way from a camera."""
    rays = points - T_WC[:3, 3]
    first, _ = ray_caster.cast(ROOM, T_WC[:3, 3], rays)
    return (1.0 - first) * np.linalg.norm(rays, axis=1)
