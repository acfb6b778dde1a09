"""A folder in the layout of the TUM RGB-D benchmark as a source.

``rgb.txt`` lists ``timestamp file``; ``depth.txt`` (same form), ``groundtruth.txt``
(``t x y z qx qy qz qw``, camera to world) and ``calibration.txt`` (see ``slam.io.calibration``)
are optional.
https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from slam.evaluation import associate
from slam.io.calibration import find_calibration
from slam.io.frames import SourceError, SourceFrame
from slam.io.images import check_one_size, read_depth, read_rgb
from slam.io.tables import read_table
from slam.io.trajectory_file import Trajectory, read_trajectory

TUM_DEPTH_SCALE = 5000.0
"""Units per metre of the benchmark's depth images. Other recordings in this layout often hold
millimetres (1000); the files do not tell, so it is an option and never guessed."""

MAX_DIFFERENCE = 0.02
"""Seconds between stamps that still belong together, the default of the benchmark's tools."""


@dataclasses.dataclass(frozen=True)
class _Listed:
    """A line of rgb.txt or depth.txt."""

    timestamp: float
    path: pathlib.Path


class TumSource:
    """The colour images of ``rgb.txt``, each with the depth and pose nearest in time (0.02 s).

    ``depth_scale`` is the number of units per metre in the depth images, 5000 unless given. An
    image without a depth gets zeros, one without a pose NaN, so that all frames have one structure.

    Raises ``SourceError`` naming file and line for a missing image, a malformed line, timestamps
    that do not increase, a quaternion that is not of unit length; and for mixed image sizes.
    """

    def __init__(self, path: str | os.PathLike[str], depth_scale: float | None = None) -> None:
        self.path = pathlib.Path(path)
        self.name = self.path.resolve().name
        self.depth_scale = TUM_DEPTH_SCALE if depth_scale is None else depth_scale
        self._rgb = _read_list(self.path / "rgb.txt", "image")
        if not self._rgb:
            raise SourceError(f"{self.path / 'rgb.txt'}: no images; expected lines 'time file'")
        size = check_one_size([entry.path for entry in self._rgb])
        self.num_frames: int | None = len(self._rgb)
        self.camera = find_calibration(self.path, size)
        self.ground_truth: Trajectory | None = None
        """Everything in ``groundtruth.txt``, at its own rate."""
        if (self.path / "groundtruth.txt").is_file():
            self.ground_truth = read_trajectory(self.path / "groundtruth.txt")
        self._depth = self._match_depth()
        self._poses = self._match_poses()

    @property
    def has_depth(self) -> bool:
        """Whether there is a ``depth.txt``."""
        return self._depth is not None

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``, reading no others; ``index`` is the place in ``rgb.txt``."""
        for index in range(len(self._rgb))[positions]:
            entry = self._rgb[index]
            rgb = read_rgb(entry.path)
            yield SourceFrame(
                index=index,
                timestamp=entry.timestamp,
                rgb=rgb,
                depth=self._read_depth(index, rgb.shape[:2]),
                T_WC=None if self._poses is None else self._poses[index],
                K=self.camera and self.camera.K,
                distortion=self.camera and self.camera.coefficients,
                origin=str(entry.path),
            )

    def _match_depth(self) -> list[pathlib.Path | None] | None:
        listing = self.path / "depth.txt"
        if not listing.is_file():
            return None
        depth = _read_list(listing, "depth image")
        matches = self._associate(listing, [entry.timestamp for entry in depth])
        files: list[pathlib.Path | None] = [None] * len(self._rgb)
        for i, j in zip(*matches, strict=True):
            files[i] = depth[j].path
        return files

    def _match_poses(self) -> np.ndarray | None:
        if self.ground_truth is None:
            return None
        listing = self.path / "groundtruth.txt"
        i, j = self._associate(listing, self.ground_truth.timestamps.tolist())
        poses = np.full((len(self._rgb), 4, 4), np.nan)
        poses[i] = self.ground_truth.T_WC[j]
        return poses

    def _associate(self, listing: pathlib.Path, times: list[float]) -> tuple[np.ndarray, ...]:
        rgb_times = np.array([entry.timestamp for entry in self._rgb])
        matches = associate(rgb_times, np.array(times, np.float64), MAX_DIFFERENCE)
        if not len(matches[0]):
            raise SourceError(
                f"{listing}: no timestamp is within {MAX_DIFFERENCE} s of one in rgb.txt; "
                "correct its clock, or move the file away to run without it"
            )
        return matches

    def _read_depth(self, index: int, shape: tuple[int, ...]) -> np.ndarray | None:
        if self._depth is None:
            return None
        path = self._depth[index]
        if path is None:
            return np.zeros(shape, np.float32)
        depth = read_depth(path, self.depth_scale)
        if depth.shape != shape:
            raise SourceError(
                f"{path}: depth is {depth.shape[1]}x{depth.shape[0]} but its image "
                f"{self._rgb[index].path} is {shape[1]}x{shape[0]}; register depth to colour first"
            )
        return depth


def _read_list(listing: pathlib.Path, kind: str) -> list[_Listed]:
    entries: list[_Listed] = []
    for row in read_table(listing):
        try:
            stamp, *name = row.fields
            timestamp = float(stamp)
        except ValueError:
            name, timestamp = [], math.nan
        if not name or not math.isfinite(timestamp):
            raise SourceError(
                f"{listing}:{row.line}: expected 'timestamp file', found '{' '.join(row.fields)}'"
            )
        if entries and timestamp <= entries[-1].timestamp:
            raise SourceError(
                f"{listing}:{row.line}: timestamp {stamp} does not follow "
                f"{entries[-1].timestamp:.6f}; the list must be in the order of time"
            )
        file = listing.parent / " ".join(name)
        if not file.is_file():
            raise SourceError(f"{listing}:{row.line}: missing {kind} {' '.join(name)}")
        entries.append(_Listed(timestamp, file))
    return entries
