"""A sequence of the EuRoC MAV data set, as recorded by its left camera.

``cam0/data.csv`` lists nanoseconds and files in ``cam0/data``; ``cam0/sensor.yaml`` has the camera
and its place on the body, ``state_groundtruth_estimate0/data.csv`` the body's poses,
``t p_xyz q_wxyz ...``. https://projects.asl.ethz.ch/datasets/doku.php?id=kmavvisualinertialdatasets
"""

import pathlib

import numpy as np

from slam.evaluation import associate
from slam.io.calibration import DISTORTION_LENGTHS, Calibration
from slam.io.frames import SourceError
from slam.io.posed_images import PosedImage, PosedImages, check_rigid
from slam.io.tables import Row, read_table
from slam.io.trajectory_file import Trajectory, check_unit_length, trajectory
from slam.io.yaml_file import read_yaml

MAX_DIFFERENCE = 0.005
"""Seconds between an image and the pose that is taken for its own, the nearest, as evo and TUM's
tools do it. Nothing is to be interpolated: ground truth comes at 200 Hz, and one of its stamps is
that of the image, to less than a microsecond."""
_NANOSECONDS = 1e9


def euroc(folder: pathlib.Path) -> PosedImages | None:
    """The sequence in a folder that holds ``mav0``, or is it; None if there is no such thing.

    Raises ``SourceError`` naming file and line for what is malformed or missing.
    """
    mav = folder / "mav0" if (folder / "mav0").is_dir() else folder
    listing = mav / "cam0" / "data.csv"
    if not listing.is_file():
        return None
    stamps, images = _listed(listing)
    camera, T_BC = _sensor(mav / "cam0" / "sensor.yaml")
    truth = mav / "state_groundtruth_estimate0" / "data.csv"
    poses: list[np.ndarray | None] = [None] * len(images)
    if truth.is_file():
        body = _body_poses(truth)
        i, j = associate(np.array(stamps), body.timestamps, MAX_DIFFERENCE)
        if not len(i):
            raise SourceError(
                f"{truth}: no timestamp is within {MAX_DIFFERENCE} s of one in {listing}; "
                "correct its clock, or move the file away to run without it"
            )
        for image, pose in zip(i, j, strict=True):
            poses[image] = body.T_WC[pose] @ T_BC
    frames = [
        PosedImage(image, stamp, None, pose)
        for image, stamp, pose in zip(images, stamps, poses, strict=True)
    ]
    place = mav.resolve()
    return PosedImages((place.parent if place.name == "mav0" else place).name, frames, camera)


def _listed(listing: pathlib.Path) -> tuple[list[float], list[pathlib.Path]]:
    stamps: list[float] = []
    images = []
    for row in read_table(listing):
        if len(row.fields) != 2 or not row.fields[0].isdecimal():
            found = " ".join(row.fields)
            raise SourceError(f"{listing}:{row.line}: expected 'nanoseconds,file', found '{found}'")
        image, stamp = listing.parent / "data" / row.fields[1], int(row.fields[0]) / _NANOSECONDS
        if not image.is_file():
            raise SourceError(f"{listing}:{row.line}: missing image {image}")
        if stamps and stamp <= stamps[-1]:
            raise SourceError(
                f"{listing}:{row.line}: timestamp {row.fields[0]} does not follow the one before; "
                "the list must be in the order of time"
            )
        stamps.append(stamp)
        images.append(image)
    if not images:
        raise SourceError(f"{listing}: no images; expected lines 'nanoseconds,file'")
    return stamps, images


def _sensor(path: pathlib.Path) -> tuple[Calibration, np.ndarray]:
    """The camera, and its pose on the body."""
    entries = read_yaml(path)

    def numbers(key: str, counts: tuple[int, ...], meaning: str) -> tuple[str, list[float]]:
        if key not in entries:
            raise SourceError(f"{path}: has no '{key}'; expected the {meaning} there")
        entry = entries[key]
        values = entry.value if isinstance(entry.value, list) else [entry.value]
        count = len(values) if len(values) in counts else counts[0]
        row = Row(entry.line, tuple(map(str, values)))
        return f"{path}:{entry.line}", row.numbers(path, count, f"{key}: {meaning}")

    for key, known in (
        ("camera_model", ("pinhole",)),
        ("distortion_model", ("radial-tangential", "radtan")),
    ):
        if key not in entries:
            raise SourceError(f"{path}: has no '{key}'; expected '{known[0]}'")
        if entries[key].value not in known:
            raise SourceError(
                f"{path}:{entries[key].line}: {key} '{entries[key].value}' is not known, only "
                f"'{known[0]}'"
            )
    where, (fx, fy, cx, cy) = numbers("intrinsics", (4,), "fu fv cu cv")
    if min(fx, fy) <= 0:
        raise SourceError(f"{where}: focal lengths must be positive pixels")
    bend = numbers("distortion_coefficients", DISTORTION_LENGTHS[1:], "k1 k2 p1 p2")[1]
    at, (width, height) = numbers("resolution", (2,), "width height")
    if min(width, height) < 1:
        raise SourceError(f"{at}: width and height must be positive pixels")
    placed, T = numbers("T_BS.data", (16,), "4x4 matrix, camera to body")
    T_BC = check_rigid(placed, np.reshape(T, (4, 4)), "camera to body")
    size = (int(width), int(height))
    return Calibration(where, fx, fy, cx, cy, tuple(bend), size), T_BC


def _body_poses(path: pathlib.Path) -> Trajectory:
    columns, rows = "nanoseconds x y z qw qx qy qz", []
    for row in read_table(path):
        values = row.numbers(path, max(8, len(row.fields)), f"{columns} ...")
        check_unit_length(f"{path}:{row.line}", values[4:8], columns)
        time, x, y, z, qw, qx, qy, qz = values[:8]
        rows.append((time / _NANOSECONDS, x, y, z, qx, qy, qz, qw))
    if not rows:
        raise SourceError(f"{path}: no poses; move the file away to run without ground truth")
    return trajectory(np.array(rows))
