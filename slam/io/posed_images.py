"""Recordings that are files named by number: images, and with each its depth and its pose.

7-Scenes, Replica as NICE-SLAM lays it out, and ScanNet as its tools export it. What a folder is, is
told by the files in it.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from slam.io.calibration import Calibration
from slam.io.folder import DEFAULT_FPS
from slam.io.frames import SourceError, SourceFrame
from slam.io.images import check_one_size, image_size, read_depth, read_rgb
from slam.io.tables import Row, read_table

SEVEN_SCENES_CAMERA = (585.0, 585.0, 320.0, 240.0)
"""``fx fy cx cy``: 7-Scenes has no calibration; these are the Kinect's nominal ones, which its page
gives for depth and the field uses for colour too, MASt3R-SLAM's reader among it."""
_MILLIMETRES = 1000.0


@dataclasses.dataclass(frozen=True)
class PosedImage:
    """One frame's files and pose."""

    image: pathlib.Path
    timestamp: float
    """Seconds."""
    depth: pathlib.Path | None = None
    """None: this frame has none, though others may."""
    T_WC: np.ndarray | None = None
    """float64 [4, 4], camera to world, NaN where unknown."""


class PosedImages:
    """A list of images with one camera, and perhaps depth and poses.

    All have depth if any has (zeros where there is none), and poses likewise (NaN).

    Raises ``SourceError`` for mixed image sizes, and while iterating for files that cannot be read
    or depth of another size.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[PosedImage],
        camera: Calibration | None = None,
        depth_scale: float = _MILLIMETRES,
        unknown_depth: float | None = None,
    ) -> None:
        self.name, self._frames, self.depth_scale = name, list(frames), depth_scale
        self._unknown_depth = unknown_depth
        self.size = check_one_size([frame.image for frame in self._frames])
        self.camera = camera and camera.at(self.size)
        self.num_frames: int | None = len(self._frames)
        self.has_depth = any(frame.depth is not None for frame in self._frames)
        self._has_poses = any(frame.T_WC is not None for frame in self._frames)

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``, reading no others."""
        for index in range(len(self._frames))[positions]:
            frame = self._frames[index]
            rgb = read_rgb(frame.image)
            T_WC = np.full((4, 4), np.nan) if frame.T_WC is None else frame.T_WC
            yield SourceFrame(
                index=index,
                timestamp=frame.timestamp,
                rgb=rgb,
                depth=self._depth(frame, rgb.shape[:2]) if self.has_depth else None,
                T_WC=T_WC if self._has_poses else None,
                K=self.camera and self.camera.K,
                distortion=self.camera and self.camera.coefficients,
                origin=str(frame.image),
            )

    def _depth(self, frame: PosedImage, shape: tuple[int, ...]) -> np.ndarray:
        if frame.depth is None:
            return np.zeros(shape, np.float32)
        depth = read_depth(frame.depth, self.depth_scale)
        if self._unknown_depth is not None:
            unknown = np.isclose(depth, self._unknown_depth / self.depth_scale)
            depth = np.where(unknown, np.float32(0), depth)
        if depth.shape != shape:
            raise SourceError(
                f"{frame.depth}: depth is {depth.shape[1]}x{depth.shape[0]} but its image "
                f"{frame.image} is {shape[1]}x{shape[0]}; register depth to colour first"
            )
        return depth


def seven_scenes(folder: pathlib.Path) -> PosedImages | None:
    """A sequence of 7-Scenes: ``frame-000000.color.png``, ``.depth.png``, ``.pose.txt``."""
    images = _numbered(folder, "frame-", ".color.png")
    if not images:
        return None
    poses = _beside(images, folder, "frame-", ".pose.txt")
    depths = _beside(images, folder, "frame-", ".depth.png")
    frames = [
        PosedImage(image, number / DEFAULT_FPS, depth, read_matrix(pose))
        for number, (image, depth, pose) in enumerate(
            zip(images.values(), depths, poses, strict=True)
        )
    ]
    camera = Calibration("7-Scenes", *SEVEN_SCENES_CAMERA, size=(640, 480))
    return PosedImages(_name(folder), frames, camera, unknown_depth=65535.0)


def replica(folder: pathlib.Path) -> PosedImages | None:
    """A scene of Replica as NICE-SLAM renders it: ``results/frame000000.jpg``,
    ``results/depth000000.png``, ``traj.txt``, and ``cam_params.json`` here or one folder up."""
    listing, files = folder / "traj.txt", folder / "results"
    images = _numbered(files, "frame", ".jpg", ".png") if listing.is_file() else {}
    if not images:
        return None
    rows = read_table(listing)
    if len(rows) != len(images):
        raise SourceError(f"{listing}: {len(rows)} poses for {len(images)} images in {files}")
    camera, scale = None, 6553.5
    for place in (folder / "cam_params.json", folder.absolute().parent / "cam_params.json"):
        if place.is_file():
            camera, scale = _replica_camera(place)
            break
    depths: list[pathlib.Path | None] = [None] * len(images)
    if _numbered(files, "depth", ".png"):
        depths = [*_beside(images, files, "depth", ".png")]
    frames = []
    for number, (image, depth, row) in enumerate(zip(images.values(), depths, rows, strict=True)):
        values = row.numbers(listing, 16, "the 16 numbers of a 4x4 matrix, camera to world")
        T_WC = check_rigid(f"{listing}:{row.line}", np.reshape(values, (4, 4)))
        frames.append(PosedImage(image, number / DEFAULT_FPS, depth, T_WC))
    return PosedImages(_name(folder), frames, camera, scale)


def scannet(folder: pathlib.Path) -> PosedImages | None:
    """A scene that ScanNet's tools have exported: ``color/0.jpg``, ``depth/0.png``, ``pose/0.txt``,
    ``intrinsic/intrinsic_color.txt``.

    Depth of another size than colour, as it comes, is left out: it is not registered.
    """
    images = _numbered(folder / "color", "", ".jpg", ".png")
    if not images or not (folder / "pose").is_dir():
        return None
    file, camera = folder / "intrinsic" / "intrinsic_color.txt", None
    if file.is_file():
        K = read_matrix(file, rigid=False)
        if min(K[0, 0], K[1, 1]) <= 0:
            raise SourceError(f"{file}: focal lengths must be positive pixels")
        camera = Calibration(str(file), K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    depths: list[pathlib.Path | None] = [None] * len(images)
    measured = [*_numbered(folder / "depth", "", ".png").values()]
    if measured and image_size(measured[0]) == image_size(next(iter(images.values()))):
        depths = [*_beside(images, folder / "depth", "", ".png")]
    poses = _beside(images, folder / "pose", "", ".txt")
    frames = [
        PosedImage(image, number / DEFAULT_FPS, depth, read_matrix(pose))
        for number, (image, depth, pose) in enumerate(
            zip(images.values(), depths, poses, strict=True)
        )
    ]
    return PosedImages(_name(folder), frames, camera)


KINDS: tuple[Callable[[pathlib.Path], PosedImages | None], ...] = (seven_scenes, replica, scannet)
"""Each answers None to a folder that is something else."""


def read_matrix(path: pathlib.Path, rigid: bool = True) -> np.ndarray:
    """A 4x4 matrix from a text file; a pose that was lost when recording (infinite) is all NaN.

    Raises ``SourceError`` naming the line.
    """
    rows = read_table(path)
    if len(rows) != 4:
        raise SourceError(f"{path}: expected 4 lines of 4 numbers, found {len(rows)} lines")
    if rigid and any(_infinite(field) for row in rows for field in row.fields):
        return np.full((4, 4), np.nan)
    matrix = np.array([row.numbers(path, 4, "a row of a 4x4 matrix") for row in rows])
    return check_rigid(str(path), matrix) if rigid else matrix


def check_rigid(where: str, T: np.ndarray, meaning: str = "camera to world") -> np.ndarray:
    """The 4x4 matrix, or ``SourceError`` unless it is a rotation (no mirror) and a translation."""
    R = T[:3, :3]
    bent = np.abs(R @ R.T - np.eye(3)).max() > 0.01 or np.linalg.det(R) < 0
    if bent or np.abs(T[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise SourceError(f"{where}: is no rigid transformation, {meaning}")
    return T


def _infinite(field: str) -> bool:
    try:
        return not math.isfinite(float(field))
    except ValueError:
        return False


def _replica_camera(path: pathlib.Path) -> tuple[Calibration, float]:
    try:
        camera = json.loads(path.read_text())["camera"]
        numbers = [float(camera[key]) for key in ("fx", "fy", "cx", "cy", "scale")]
        size = (int(camera["w"]), int(camera["h"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: expected camera: w h fx fy cx cy scale ({error})") from error
    row = Row(1, tuple(map(str, numbers)))
    fx, fy, cx, cy, scale = row.numbers(path, 5, "fx fy cx cy scale")
    if min(fx, fy, scale) <= 0:
        raise SourceError(f"{path}: focal lengths and scale must be positive")
    return Calibration(str(path), fx, fy, cx, cy, size=size), scale


def _numbered(folder: pathlib.Path, prefix: str, *suffixes: str) -> dict[str, pathlib.Path]:
    """Files by the digits in their names, in the order of these numbers."""
    if not folder.is_dir():
        return {}
    pattern = re.compile(f"{prefix}([0-9]+)(?:{'|'.join(map(re.escape, suffixes))})")
    files = {match[1]: p for p in folder.iterdir() if (match := pattern.fullmatch(p.name))}
    return dict(sorted(files.items(), key=lambda item: int(item[0])))


def _beside(
    images: dict[str, pathlib.Path], folder: pathlib.Path, prefix: str, suffix: str
) -> list[pathlib.Path]:
    """The files that go with the images; neither may be without the other."""
    files = _numbered(folder, prefix, suffix)
    for digits, image in images.items():
        if digits not in files:
            missing = folder / f"{prefix}{digits}{suffix}"
            raise SourceError(f"{missing}: missing, though there is {image}")
    for digits, file in files.items():
        if digits not in images:
            raise SourceError(
                f"{file}: its image is missing; move it away, too, to leave that frame out"
            )
    return [files[digits] for digits in images]


def _name(folder: pathlib.Path) -> str:
    return folder.resolve().name
