"""Other people's pose conventions, converted here and nowhere else.

======================  ==========================================================
lietorch Sim(3)         ``(tx, ty, tz, qx, qy, qz, qw, s)``
TUM trajectory row      ``(tx, ty, tz, qx, qy, qz, qw)``, no scale
homogeneous matrix      ``[[s R, t], [0, 1]]``, ``s = 1`` for SE(3)
======================  ==========================================================
"""

import jax.numpy as jnp
import jaxlie
from jax import Array
from jaxtyping import Float

from ops.sim3 import Sim3, relaxed


def from_lietorch(data: Float[Array, "*batch 8"]) -> Sim3:
    """Sim(3) of lietorch's vector ``(t, q_xyzw, s)``."""
    t, xyz, w, s = data[..., :3], data[..., 3:6], data[..., 6:7], data[..., 7:]
    return Sim3(jnp.concatenate([w, xyz, t, s], axis=-1))


def to_lietorch(T: Sim3) -> Float[Array, "*batch 8"]:
    """lietorch's vector ``(t, q_xyzw, s)`` of a Sim(3)."""
    data = T.wxyz_xyz_scale
    w, xyz, t, s = data[..., :1], data[..., 1:4], data[..., 4:7], data[..., 7:]
    return jnp.concatenate([t, xyz, w, s], axis=-1)


def from_tum(row: Float[Array, "*batch 7"]) -> Sim3:
    """Sim(3) of scale one of a TUM row ``(t, q_xyzw)`` (without its time stamp)."""
    return from_lietorch(jnp.concatenate([row, jnp.ones_like(row[..., :1])], axis=-1))


def to_tum(T: Sim3) -> Float[Array, "*batch 7"]:
    """TUM row ``(t, q_xyzw)`` of a Sim(3); the scale is dropped, the translation kept as it is."""
    return to_lietorch(T)[..., :7]


def from_matrix(matrix: Float[Array, "*batch 4 4"]) -> Sim3:
    """Sim(3) of ``[[s R, t], [0, 1]]``; the scale is the cube root of the determinant of ``s R``.

    An SE(3) matrix gives the scale one up to rounding. The determinant must be positive; nothing
    is checked here, a reflection gives NaN.
    """
    linear = matrix[..., :3, :3]
    columns = linear[..., 0], linear[..., 1], linear[..., 2]
    determinant = jnp.sum(jnp.cross(columns[0], columns[1]) * columns[2], axis=-1)
    scale = jnp.exp(jnp.log(determinant) / 3)
    with relaxed():
        rotation = jaxlie.SO3.from_matrix(linear / scale[..., None, None]).normalize()
    return Sim3.from_parts(rotation, matrix[..., :3, 3], scale)


def to_matrix(T: Sim3) -> Float[Array, "*batch 4 4"]:
    """Homogeneous matrix ``[[s R, t], [0, 1]]`` of a Sim(3)."""
    return T.as_matrix()


def to_se3_matrix(T: Sim3) -> Float[Array, "*batch 4 4"]:
    """Rigid matrix ``[[R, t], [0, 1]]``: the scale is dropped, the translation kept."""
    return T.replace(wxyz_xyz_scale=T.wxyz_xyz_scale.at[..., 7].set(1)).as_matrix()
