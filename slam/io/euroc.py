"""A sequence of the EuRoC MAV data set, as recorded by its left camera.

``mav0/cam0/data.csv`` lists nanoseconds and files in ``mav0/cam0/data``; ``mav0/cam0/sensor.yaml``
has the camera and its place on the body, ``mav0/state_groundtruth_estimate0/data.csv`` the body's
poses, ``t p_xyz q_wxyz ...``. https://projects.asl.ethz.ch/datasets/doku.php?id=kmavvisualinertialdatasets
"""

import pathlib
from typing import Any

import numpy as np
import yaml

from slam.evaluation import associate
from slam.io.calibration import Calibration
from slam.io.frames import SourceError
from slam.io.posed_images import PosedImage, PosedImages
from slam.io.tables import read_table

MAX_DIFFERENCE = 0.005
"""Seconds between an image and the pose that is taken for its own: ground truth comes at 200 Hz."""
_NANOSECONDS = 1e9


def euroc(folder: pathlib.Path) -> PosedImages | None:
    """The sequence in a folder that holds ``mav0``, or is it; None if there is no such thing.

    Raises ``SourceError`` naming file and line for what is malformed or missing.
    """
    mav = folder if folder.name == "mav0" else folder / "mav0"
    listing = mav / "cam0" / "data.csv"
    if not listing.is_file():
        return None
    stamps, images = [], []
    for row in read_table(listing):
        if len(row.fields) != 2 or not row.fields[0].isdigit():
            found = " ".join(row.fields)
            raise SourceError(f"{listing}:{row.line}: expected 'nanoseconds,file', found '{found}'")
        image = mav / "cam0" / "data" / row.fields[1]
        if not image.is_file():
            raise SourceError(f"{listing}:{row.line}: missing image {image}")
        stamps.append(int(row.fields[0]))
        images.append(image)
    if not images:
        raise SourceError(f"{listing}: no images; expected lines 'nanoseconds,file'")
    camera, T_BC = _sensor(mav / "cam0" / "sensor.yaml")
    times = np.array(stamps) / _NANOSECONDS
    poses = np.full((len(images), 4, 4), np.nan)
    truth = mav / "state_groundtruth_estimate0" / "data.csv"
    if truth.is_file():
        at, T_WB = _body_poses(truth)
        i, j = associate(times, at, MAX_DIFFERENCE)
        poses[i] = T_WB[j] @ T_BC
    frames = [
        PosedImage(image, float(time), None, pose if truth.is_file() else None)
        for image, time, pose in zip(images, times, poses, strict=True)
    ]
    return PosedImages((mav.resolve().parent).name, frames, camera)


def _sensor(path: pathlib.Path) -> tuple[Calibration, np.ndarray]:
    """The camera, and its pose on the body."""
    try:
        entries: Any = yaml.safe_load(path.read_text())
        model, lens = entries["camera_model"], entries["distortion_model"]
        size = tuple(int(x) for x in entries["resolution"])
        numbers = [float(x) for x in entries["intrinsics"]]
        bend = tuple(float(x) for x in entries["distortion_coefficients"])
        T_BC = np.array(entries["T_BS"]["data"], np.float64).reshape(4, 4)
        fx, fy, cx, cy = numbers
        width, height = size
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SourceError(
            f"{path}: expected camera_model, intrinsics, distortion_coefficients, resolution and "
            f"T_BS ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if model != "pinhole" or lens not in ("radial-tangential", "radtan"):
        raise SourceError(
            f"{path}: camera model {model} with {lens} distortion; only pinhole with "
            "radial-tangential is known"
        )
    return Calibration(str(path), fx, fy, cx, cy, bend, (width, height)), T_BC


def _body_poses(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    times, poses = [], []
    for row in read_table(path):
        count = max(8, len(row.fields))
        values = row.numbers(path, count, "nanoseconds, p_xyz, q_wxyz, ...")
        (w, x, y, z), position = values[4:8], values[1:4]
        if abs(w * w + x * x + y * y + z * z - 1) > 1e-2:
            raise SourceError(f"{path}:{row.line}: quaternion is not of unit length")
        T = np.eye(4)
        n = 2 / (w * w + x * x + y * y + z * z)
        T[:3, :3] = np.eye(3) + n * np.array(
            [
                [-y * y - z * z, x * y - w * z, x * z + w * y],
                [x * y + w * z, -x * x - z * z, y * z - w * x],
                [x * z - w * y, y * z + w * x, -x * x - y * y],
            ]
        )
        T[:3, 3] = position
        times.append(values[0] / _NANOSECONDS)
        poses.append(T)
    if not poses:
        raise SourceError(f"{path}: no poses; move the file away to run without ground truth")
    return np.array(times), np.array(poses)
