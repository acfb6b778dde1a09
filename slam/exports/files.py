"""Exports that are one file."""

import json
import os
import struct

import numpy as np

from slam.exports.cameras import cameras_of
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.io.ply import write_ply
from slam.io.trajectory_file import write_trajectory
from slam.reconstruction import PointCloud, Reconstruction

Path = str | os.PathLike[str]

_FRUSTUM = 0.05
"""Depth of the pyramids that show cameras, as a share of the map's extent."""
_GRAPHICS = np.diag([1.0, -1.0, -1.0])
"""From x right, y down, z forward to the y up of graphics: half a turn around x."""


def confident_cloud(result: Reconstruction, min_confidence: float) -> PointCloud:
    """The points of the largest submap.

    Raises:
        SourceError: none is more confident than asked.
    """
    cloud = result.point_cloud(min_confidence)
    if not len(cloud.points):
        raise SourceError(
            f"{result.name}: no point is more confident than {min_confidence:g}; lower "
            "--min-confidence"
        )
    return cloud


def export_ply(result: Reconstruction, path: Path, min_confidence: float) -> list[str]:
    """The coloured points of the largest submap."""
    cloud = confident_cloud(result, min_confidence)
    write_ply(path, cloud.points, cloud.colors)
    return [f"{len(cloud.points)} points; opens in MeshLab, CloudCompare, Blender"]


def export_tum(result: Reconstruction, path: Path, min_confidence: float) -> list[str]:
    """Poses of all placed frames of the largest submap, as ``t x y z qx qy qz qw``."""
    trajectory = result.trajectory()
    write_trajectory(path, trajectory.timestamps, trajectory.T_WC)
    return [_counted(result, len(trajectory.T_WC)), "for evo: evo_traj tum FILE"]


def export_kitti(result: Reconstruction, path: Path, min_confidence: float) -> list[str]:
    """Poses of all placed frames of the largest submap: the first three rows of each matrix."""
    T_WC = result.trajectory().T_WC
    with atomic_write(path) as file:
        np.savetxt(file, T_WC[:, :3].reshape(-1, 12), fmt="%.9g")
    said = [_counted(result, len(T_WC)), "for evo: evo_traj kitti FILE"]
    if len(T_WC) < result.num_frames:
        said.insert(1, "the format has no timestamps: a row's number is not its frame's")
    return said


def export_glb(result: Reconstruction, path: Path, min_confidence: float) -> list[str]:
    """Points, camera path and keyframes as binary glTF 2.0, turned so that y is up."""
    cloud = confident_cloud(result, min_confidence)
    cameras = cameras_of(result, only_to_look_at=True)
    points = cloud.points.astype(np.float64) @ _GRAPHICS
    place = np.asarray(result.trajectory().positions, np.float64)
    extent = float(np.ptp(np.concatenate([cloud.points, place]), axis=0).max())
    height, width = cameras.image_shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    rays = (corners - cameras.K[:2, 2]) / np.diag(cameras.K)[:2]
    tips = np.concatenate([np.zeros((1, 3)), np.column_stack([rays, np.ones(4)])])
    lines = tips[[0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1]] * _FRUSTUM * extent
    frustums = np.concatenate([lines @ T[:3, :3].T + T[:3, 3] for T in cameras.T_WC])
    steps = np.stack([place[:-1], place[1:]], axis=1).reshape(-1, 3)
    white = np.full((len(steps), 3), 255, np.uint8)
    orange = np.tile(np.array([[224, 123, 0]], np.uint8), (len(frustums), 1))
    parts = [
        ("points", 0, points, cloud.colors),
        ("camera path", 1, steps @ _GRAPHICS, white),
        ("keyframes", 1, frustums @ _GRAPHICS, orange),
    ]
    with atomic_write(path) as file:
        file.write(_glb([part for part in parts if len(part[2])]))
    return [
        f"{len(points)} points, {len(cameras.slots)} keyframes; opens in Blender and browsers",
        cameras.lens,
    ]


def _glb(parts: list[tuple[str, int, np.ndarray, np.ndarray]]) -> bytes:
    """A scene of coloured primitives: name, glTF mode, positions [N, 3], colours uint8 [N, 3]."""
    body, views, accessors, meshes = b"", [], [], []

    def add(data: np.ndarray, kind: str, component: int, **more: object) -> int:
        nonlocal body
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": data.nbytes})
        body += data.tobytes()
        entry = {"bufferView": len(views) - 1, "componentType": component, "count": len(data)}
        accessors.append({**entry, "type": kind, **more})
        return len(accessors) - 1

    for name, mode, positions, colors in parts:
        vertices = np.ascontiguousarray(positions, "<f4")
        bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
        opaque = np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], axis=1)
        attributes = {
            "POSITION": add(vertices, "VEC3", 5126, **bounds),
            "COLOR_0": add(opaque, "VEC4", 5121, normalized=True),
        }
        meshes.append({"name": name, "primitives": [{"attributes": attributes, "mode": mode}]})
    scene = {
        "asset": {"version": "2.0", "generator": "mast3r-slam-jax"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"mesh": k, "name": mesh["name"]} for k, mesh in enumerate(meshes)],
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)  # all parts are multiples of four bytes already
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(body), 0x004E4942) + body
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def _counted(result: Reconstruction, placed: int) -> str:
    missing = result.num_frames - placed
    return f"{placed} poses" + (f"; {missing} frames have none and are left out" if missing else "")
