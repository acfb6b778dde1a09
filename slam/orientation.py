"""Which way is up in a map whose world is only the frame of its first camera."""

import numpy as np
from jaxtyping import Float

_TURNED = 0.03
"""Second over first eigenvalue of the x axes' moments, about the variance of the heading in square
radians, that no roll of a hand explains: 10 degrees in the root mean square, as Nerfstudio has."""

_HARDLY_TURNED = 1e-3
"""The same below which the x axes are no evidence at all: 1.8 degrees."""

_CLEAR = 4.0
"""Second over third eigenvalue from which on a small turn stands out from roll."""


def estimate_up(T_WC: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3"]:
    """The upward direction, from the poses of cameras that people hold without roll.

    The x axes of such cameras are horizontal however far they look down, so up is the direction
    that these axes have least of: the eigenvector of the smallest eigenvalue of ``mean(x x^T)``,
    on the side of the cameras' mean upward axis -y. Cameras that hardly turn leave it open; up is
    then the mean of -y, made orthogonal to the dominant x axis. After the orientation method
    "vertical" of Nerfstudio (Tancik et al., SIGGRAPH 2023).

    Args:
        T_WC: camera-to-world transforms, at any scale of their translation.

    Returns:
        A unit vector in the world; -y of the world without any pose.
    """
    if not len(T_WC):
        return np.array([0.0, -1.0, 0.0])
    x_axes = np.asarray(T_WC[:, :3, 0], np.float64)
    upward = -np.asarray(T_WC[:, :3, 1], np.float64).mean(axis=0)
    values, vectors = np.linalg.eigh(x_axes.T @ x_axes / len(x_axes))
    normal, across = vectors[:, 0], vectors[:, 2]
    own = upward - (upward @ across) * across
    length = np.linalg.norm(own)
    # Upside down half of the time: no answer is better than that of the first camera.
    own = own / length if length > 1e-6 else -np.asarray(T_WC[0, :3, 1], np.float64)
    turned = values[1] > _TURNED * values[2] or (
        values[1] > _HARDLY_TURNED * values[2]
        and values[1] > _CLEAR * values[0]
        and abs(normal @ own) > 0.5  # or it is roll that the cameras did
    )
    if not turned:
        return own
    return normal if normal @ upward >= 0 else -normal


def levelling_rotation(T_WC: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation from the world to axes x right, y down, z ahead whose y is vertical.

    Ahead is where the first camera looks; where it looks too far down to say, right is its right.
    The identity without any pose. ``points @ R.T`` are the rotated points.
    """
    if not len(T_WC):
        return np.eye(3)
    down = -estimate_up(T_WC)
    x_axis, _, z_axis = np.asarray(T_WC[0, :3, :3], np.float64).T
    if abs(x_axis @ down) < abs(z_axis @ down):
        right = x_axis - (x_axis @ down) * down
    else:
        right = np.cross(down, z_axis)
    right /= np.linalg.norm(right)
    return np.stack([right, down, np.cross(right, down)])
