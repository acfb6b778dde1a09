"""Trajectories in the TUM RGB-D format: ``t x y z qx qy qz qw`` a line, camera to world.

Time in seconds, position in metres (or the map's unit), a unit quaternion with the scalar last.
These rows and 4x4 matrices are the only pose forms known here, in float64 because the timestamps
are counted from 1970.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.io.tables import Row, read_table

QUATERNION_TOLERANCE = 1e-2
"""How far a file's quaternion norm may be from 1: four printed decimals give 2e-4, a wrong column
order or an unnormalised export gives far more."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Camera poses over time."""

    timestamps: Float64[np.ndarray, " n"]
    """Seconds, increasing."""
    T_WC: Float64[np.ndarray, "n 4 4"]
    """Rigid transforms, camera to world."""

    @property
    def positions(self) -> Float64[np.ndarray, "n 3"]:
        """Camera centres in the world."""
        return self.T_WC[:, :3, 3]


def write_trajectory(
    path: str | os.PathLike[str],
    timestamps: Float[np.ndarray, " n"],
    T_WC: Float[np.ndarray, "n 4 4"],
) -> None:
    """Write poses ``T_WC`` (rigid or Sim(3), whose scale is dropped) at ``timestamps`` in seconds.

    Raises ``ValueError`` if a number is not finite or a matrix is no similarity.
    """
    T_WC = np.asarray(T_WC, np.float64)
    if not (np.isfinite(timestamps).all() and np.isfinite(T_WC).all()):
        raise ValueError(f"{path}: a pose or timestamp is not finite; leave such frames out")
    rows = np.concatenate([T_WC[:, :3, 3], quaternions(T_WC[:, :3, :3])], axis=1)
    lines = ["# timestamp tx ty tz qx qy qz qw (camera to world)\n"]
    for time, row in zip(timestamps, rows, strict=True):
        # Nine significant digits carry a float32 pose without loss.
        lines.append(f"{time:.6f} " + " ".join(f"{value:.9g}" for value in row) + "\n")
    with atomic_write(path) as file:
        file.write("".join(lines).encode("ascii"))


def read_trajectory(path: str | os.PathLike[str]) -> Trajectory:
    """Read a TUM trajectory, sorted by time; ``#`` starts a comment, commas may separate.

    Raises ``SourceError`` naming the line that does not have eight finite numbers or whose
    quaternion is not of unit length, and for a file without poses.
    """
    path = pathlib.Path(path)
    rows = read_table(path)
    if not rows:
        raise SourceError(f"{path}: no poses; expected lines 't x y z qx qy qz qw'")
    return trajectory(np.array([_pose_row(path, row) for row in rows]))


def trajectory(rows: Float[np.ndarray, "n 8"]) -> Trajectory:
    """The poses of rows ``t x y z qx qy qz qw``, sorted by time."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    T_WC = np.tile(np.eye(4), (len(rows), 1, 1))
    T_WC[:, :3, :3] = rotations(rows[:, 4:])
    T_WC[:, :3, 3] = rows[:, 1:4]
    return Trajectory(rows[:, 0].copy(), T_WC)


def _pose_row(path: pathlib.Path, row: Row) -> list[float]:
    columns = "t x y z qx qy qz qw"
    values = row.numbers(path, count=8, expected=columns)
    check_unit_length(f"{path}:{row.line}", values[4:], columns)
    return values


def check_unit_length(where: str, quaternion: Sequence[float], columns: str) -> None:
    """Raise ``SourceError`` for a quaternion in a file that is far from length 1."""
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        raise SourceError(
            f"{where}: quaternion has length {norm:.4g}, expected 1; "
            f"is the column order '{columns}'?"
        )


def rotations(q_xyzw: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 3 3"]:
    """Rotation matrices of quaternions ``(x, y, z, w)``, normalised first."""
    q = np.asarray(q_xyzw, np.float64)
    x, y, z, w = np.moveaxis(q / np.linalg.norm(q, axis=1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternions(sR: Float[np.ndarray, "n 3 3"]) -> Float64[np.ndarray, "n 4"]:
    """Unit quaternions ``(x, y, z, w)``, ``w >= 0``, of rotations times a positive scale.

    The scale is the cube root of the determinant. Shepperd's method: divide by the largest of the
    four components, found from the trace and the diagonal. Raises ``ValueError`` if a matrix is not
    a scaled rotation to 1e-3.
    """
    sR = np.asarray(sR, np.float64)
    scale = np.cbrt(np.linalg.det(sR))
    with np.errstate(divide="ignore", invalid="ignore"):
        R = sR / scale[:, None, None]
    error = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = ~((scale > 0) & (error < 1e-3))
    if bad.any():
        raise ValueError(f"pose {int(np.argmax(bad))} is not a rotation times a positive scale")
    diagonal = np.diagonal(R, axis1=1, axis2=2)
    trace = diagonal.sum(axis=1)
    # 4 q_i^2 for i in x, y, z, w.
    squares = np.concatenate([1 - trace[:, None] + 2 * diagonal, 1 + trace[:, None]], axis=1)
    # Row i is 4 q_i q, whose i-th entry is squares[i].
    products = np.empty((len(R), 4, 4))
    for i in range(4):
        products[:, i, i] = squares[:, i]
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[:, i, j] = products[:, j, i] = R[:, i, j] + R[:, j, i]
        products[:, k, 3] = products[:, 3, k] = R[:, j, i] - R[:, i, j]
    q = products[np.arange(len(R)), squares.argmax(axis=1)]
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return np.where(q[:, 3:] < 0, -q, q)
