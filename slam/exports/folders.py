"""Exports that are a folder: keyframes as images with cameras, and points."""

import json
import pathlib

import numpy as np
from PIL import Image

from slam.exports.cameras import Cameras, cameras_of
from slam.exports.files import confident_cloud
from slam.exports.tracks import tracks_of
from slam.io.frames import SourceError
from slam.io.ply import write_ply
from slam.reconstruction import Reconstruction

_IMAGES = r"images/(map-)?\d{6,}\.png"
COLMAP_FILES = rf"{_IMAGES}|sparse/0/(cameras|images|points3D)\.txt"
NERFSTUDIO_FILES = rf"{_IMAGES}|transforms\.json|points\.ply"
"""Every file of the folders."""

_PIXEL = 0.5
"""Both programs put the centre of the first pixel at (0.5, 0.5), we at (0, 0)."""
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Cameras look along -z with y up there, along z with y down here."""


def export_colmap(result: Reconstruction, folder: pathlib.Path, min_confidence: float) -> list[str]:
    """A sparse COLMAP model in text form, ``sparse/0``, and its images.

    The cameras are the keyframes of the largest submap; the points are chains of matches.
    """
    cameras = cameras_of(result)
    tracks = tracks_of(result, cameras, min_confidence)
    if not len(tracks.points):
        raise SourceError(
            f"{result.name}: no keyframes have matches more confident than {min_confidence:g}, of "
            "which the model's points are made; lower --min-confidence"
        )
    _write_images(folder, cameras)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    height, width = cameras.image_shape
    fx, fy, (cx, cy) = cameras.K[0, 0], cameras.K[1, 1], cameras.K[:2, 2] + _PIXEL
    (model / "cameras.txt").write_text(
        "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]\n"
        f"1 PINHOLE {width} {height} {fx:.9g} {fy:.9g} {cx:.9g} {cy:.9g}\n"
    )
    order = np.lexsort([tracks.point, tracks.camera])
    starts = np.searchsorted(tracks.camera[order], np.arange(len(cameras.slots) + 1))
    place = np.zeros(len(order), int)
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then POINTS2D[] as X Y POINT3D_ID\n"]
    for k, name in enumerate(cameras.names):
        T_CW = np.linalg.inv(cameras.T_WC[k])
        pose = " ".join(f"{x:.9g}" for x in (*_quaternion(T_CW[:3, :3]), *T_CW[:3, 3]))
        mine = order[starts[k] : starts[k + 1]]
        place[mine] = np.arange(len(mine))
        seen = zip(tracks.pixels[mine] + _PIXEL, tracks.point[mine] + 1, strict=True)
        lines.append(f"{k + 1} {pose} 1 {name}\n")
        lines.append(" ".join(f"{u:.9g} {v:.9g} {point}" for (u, v), point in seen) + "\n")
    (model / "images.txt").write_text("".join(lines))
    first = np.searchsorted(tracks.point, np.arange(len(tracks.points) + 1))
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[] as IMAGE_ID POINT2D_IDX\n"]
    for number, (point, color) in enumerate(zip(tracks.points, tracks.colors, strict=True)):
        mine = slice(first[number], first[number + 1])
        track = zip(tracks.camera[mine] + 1, place[mine], strict=True)
        where = " ".join(f"{x:.9g}" for x in point)
        shade, error = " ".join(map(str, color)), tracks.errors[mine].mean()
        ends = " ".join(f"{image} {index}" for image, index in track)
        lines.append(f"{number + 1} {where} {shade} {error:.6g} {ends}\n")
    (model / "points3D.txt").write_text("".join(lines))
    return [
        f"{len(cameras.slots)} images, {len(tracks.points)} points seen {len(tracks.point)} times; "
        f"mean reprojection error {tracks.mean_error:.2f} px",
        cameras.lens,
        "opens in COLMAP (File > Import model), pycolmap, and what reads their models",
    ]


def export_nerfstudio(
    result: Reconstruction, folder: pathlib.Path, min_confidence: float
) -> list[str]:
    """``transforms.json`` with the keyframes of the largest submap, their images, and points."""
    cameras = cameras_of(result)
    cloud = confident_cloud(result, min_confidence)
    _write_images(folder, cameras)
    write_ply(folder / "points.ply", cloud.points, cloud.colors)
    height, width = cameras.image_shape
    record = {
        "camera_model": "OPENCV",
        "w": width,
        "h": height,
        "fl_x": cameras.K[0, 0],
        "fl_y": cameras.K[1, 1],
        "cx": cameras.K[0, 2] + _PIXEL,
        "cy": cameras.K[1, 2] + _PIXEL,
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": "points.ply",
        "frames": [
            {"file_path": f"images/{name}", "transform_matrix": (T @ _OPENGL).tolist()}
            for name, T in zip(cameras.names, cameras.T_WC, strict=True)
        ],
    }
    (folder / "transforms.json").write_text(json.dumps(record, indent=1) + "\n")
    return [
        f"{len(cameras.slots)} images, {len(cloud.points)} points",
        cameras.lens,
        "for nerfstudio: ns-train splatfacto --data FOLDER",
    ]


def _write_images(folder: pathlib.Path, cameras: Cameras) -> None:
    (folder / "images").mkdir()
    for name, image in zip(cameras.names, cameras.images, strict=True):
        Image.fromarray(image).save(folder / "images" / name)


def _quaternion(R: np.ndarray) -> np.ndarray:
    """Unit quaternion ``w x y z`` of a rotation: the eigenvector of its largest eigenvalue."""
    m = np.zeros((4, 4))
    m[0, 0] = np.trace(R)
    m[0, 1:] = m[1:, 0] = [R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]
    m[1:, 1:] = R + R.T - np.trace(R) * np.eye(3)
    q = np.linalg.eigh(m)[1][:, -1]
    return q if q[0] >= 0 else -q
