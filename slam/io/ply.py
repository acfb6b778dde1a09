"""Coloured point clouds as binary little-endian PLY, the form every viewer reads."""

import os
import pathlib

import numpy as np
from jaxtyping import Bool, Float, UInt8

from slam.io.atomic import atomic_write

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_PROPERTIES = (
    "property float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\n"
)


def write_ply(
    path: str | os.PathLike[str],
    points: Float[np.ndarray, "n 3"],
    colors: UInt8[np.ndarray, "n 3"],
    keep: Bool[np.ndarray, " n"] | None = None,
) -> int:
    """Write points (float32) with RGB colours and return how many; only those of ``keep`` if given.

    Raises ``ValueError`` if a point to be written is not finite: such a file opens as an empty view
    in most viewers, so the caller has to decide what the point means.
    """
    if keep is not None:
        points, colors = points[keep], colors[keep]
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{path}: {np.count_nonzero(~finite)} of {len(points)} points are not finite, "
            f"the first is number {int(np.argmin(finite))}; filter the cloud before writing it"
        )
    vertices = np.empty(len(points), _VERTEX)
    vertices["xyz"], vertices["rgb"] = points, colors
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(points)}\n{_PROPERTIES}end_header\n"
    )
    with atomic_write(path) as file:
        file.write(header.encode("ascii"))
        file.write(vertices.tobytes())
    return len(points)


def read_ply(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Points ``float32[N, 3]`` and colours ``uint8[N, 3]`` of a file that ``write_ply`` wrote.

    Raises ``ValueError`` for any other PLY and for a file cut short.
    """
    content = pathlib.Path(path).read_bytes()
    head, end, body = content.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not end or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise ValueError(f"{path}: not a binary little-endian PLY file")
    if "\n".join(lines[3:]) != _PROPERTIES or not lines[2].startswith("element vertex "):
        raise ValueError(f"{path}: this reader knows vertices of x y z red green blue only")
    count = int(lines[2].split()[-1])
    if len(body) != count * _VERTEX.itemsize:
        raise ValueError(
            f"{path}: {count} points take {count * _VERTEX.itemsize} bytes, found {len(body)}"
        )
    vertices = np.frombuffer(body, _VERTEX)
    return vertices["xyz"].copy(), vertices["rgb"].copy()
