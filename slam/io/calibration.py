"""Pinhole intrinsics and lens distortion from a file, in one of two forms.

A text file has one line ``fx fy cx cy``, followed by the distortion if there is any. A YAML file
has the keys ``width``, ``height`` and ``calibration``, the same numbers as a list (the form of
MASt3R-SLAM's ``config/intrinsics.yaml``). Pixels have integer centres; the distortion is OpenCV's,
``k1 k2 p1 p2 k3 ...``.
"""

import dataclasses
import math
import pathlib

import numpy as np

from slam.io.frames import SourceError
from slam.io.tables import Row, read_table
from slam.io.yaml_file import read_yaml

FILE_NAME = "calibration.txt"
"""What it is called inside a folder of images or a TUM RGB-D folder."""

DISTORTION_LENGTHS = (0, 4, 5, 8, 12, 14)
"""How many coefficients OpenCV's models have: none, k1 k2 p1 p2, k3, rational, prism, tilt."""

EXPECTED = "fx fy cx cy"
EXPECTED_DISTORTION = f"{EXPECTED} k1 k2 p1 p2 [k3 ...]"
KEYS = ("width", "height", "calibration")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A camera: pinhole and lens."""

    where: str
    """File and line, for messages."""
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    """Brown-Conrady coefficients in OpenCV's order; empty for a pinhole camera."""
    size: tuple[int, int] | None = None
    """Width and height of the images it is for, None if the file does not tell."""

    @property
    def K(self) -> np.ndarray:
        """The intrinsic matrix, float64 [3, 3]."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def coefficients(self) -> np.ndarray | None:
        """The distortion as an array, None if it bends nothing."""
        return np.array(self.distortion) if any(self.distortion) else None

    def at(self, size: tuple[int, int]) -> "Calibration":
        """The same camera with its images resized to ``size`` (width, height).

        Raises ``SourceError`` if that size has another shape than the calibration's (by more than
        the pixel that rounding may cost), and for a principal point outside the images: the
        numbers are then those of another resolution.
        """
        width, height = self.size or size
        if abs(size[1] - size[0] * height / width) > max(1.0, size[0] / width):
            raise SourceError(
                f"{self.where}: is for images of {width}x{height}, which {size[0]}x{size[1]} are "
                "no enlargement or reduction of; calibrate for the images as they are"
            )
        u, v = size[0] / width, size[1] / height
        resized = dataclasses.replace(
            self,
            fx=self.fx * u,
            fy=self.fy * v,
            # The corner of the image, half a pixel before the first centre, stays where it is.
            cx=(self.cx + 0.5) * u - 0.5,
            cy=(self.cy + 0.5) * v - 0.5,
            size=size,
        )
        resized._check_principal_point(size)
        return resized

    def _check_principal_point(self, size: tuple[int, int]) -> None:
        if not (0 < self.cx < size[0] and 0 < self.cy < size[1]):
            raise SourceError(
                f"{self.where}: principal point ({self.cx:g}, {self.cy:g}) is outside the images "
                f"of {size[0]}x{size[1]}; is this the calibration of another resolution?"
            )


def read_calibration(path: pathlib.Path) -> Calibration:
    """The camera that a calibration file describes; which form it has is read off its content.

    Raises ``SourceError`` naming the line.
    """
    rows = read_table(path)
    if any(":" in field for row in rows for field in row.fields):
        return _read_yaml(path)
    if len(rows) != 1:
        raise SourceError(f"{path}: expected one line '{EXPECTED}', found {len(rows)}")
    return _camera(path, rows[0], None)


def find_calibration(folder: pathlib.Path, size: tuple[int, int]) -> Calibration | None:
    """The folder's own calibration for images of ``size`` (width, height), None without one."""
    path = folder / FILE_NAME
    return read_calibration(path).at(size) if path.is_file() else None


def _read_yaml(path: pathlib.Path) -> Calibration:
    entries = read_yaml(path)
    form = "expected width, height and calibration: [fx, fy, cx, cy, k1, k2, p1, p2]"
    for key, entry in entries.items():
        if key not in KEYS:
            raise SourceError(f"{path}:{entry.line}: unknown key '{key}'; {form}")
    for key in KEYS:
        if key not in entries:
            raise SourceError(f"{path}: has no '{key}'; {form}")
    sides = []
    for key in ("width", "height"):
        entry = entries[key]
        if not isinstance(entry.value, int) or isinstance(entry.value, bool) or entry.value < 1:
            raise SourceError(f"{path}:{entry.line}: {key}: expected pixels, found {entry.value}")
        sides.append(entry.value)
    entry = entries["calibration"]
    values = entry.value if isinstance(entry.value, list) else [entry.value]
    camera = _camera(path, Row(entry.line, tuple(map(str, values))), (sides[0], sides[1]))
    camera._check_principal_point((sides[0], sides[1]))
    return camera


def _camera(path: pathlib.Path, row: Row, size: tuple[int, int] | None) -> Calibration:
    where, count = f"{path}:{row.line}", len(row.fields)
    if count > 4 and count - 4 not in DISTORTION_LENGTHS:
        raise SourceError(
            f"{where}: expected 4 numbers '{EXPECTED}', or with distortion "
            f"'{EXPECTED_DISTORTION}', found {count} numbers"
        )
    expected = EXPECTED if count <= 4 else EXPECTED_DISTORTION
    fx, fy, cx, cy, *distortion = row.numbers(path, count=max(count, 4), expected=expected)
    if not (fx > 0 and fy > 0 and math.isfinite(fx) and math.isfinite(fy)):
        raise SourceError(f"{where}: focal lengths must be positive pixels")
    return Calibration(where, fx, fy, cx, cy, tuple(distortion), size)
