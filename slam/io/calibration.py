"""Pinhole intrinsics from a text file: one line ``fx fy cx cy``, pixels of the source's images."""

import pathlib

import numpy as np

from slam.io.frames import SourceError
from slam.io.tables import read_table

FILE_NAME = "calibration.txt"
"""What it is called inside a folder of images or a TUM RGB-D folder."""


def read_calibration(path: pathlib.Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The intrinsic matrix float64 [3, 3] of a calibration file.

    With the images' ``size`` (width, height) given, a principal point outside them is refused: the
    numbers are then those of another resolution. Raises ``SourceError`` naming the line.
    """
    rows = read_table(path)
    if len(rows) != 1:
        raise SourceError(f"{path}: expected one line 'fx fy cx cy', found {len(rows)}")
    row = rows[0]
    if len(row.fields) > 4:
        raise SourceError(
            f"{path}:{row.line}: expected 4 numbers 'fx fy cx cy', found {len(row.fields)}; "
            "images with distortion have to be undistorted first"
        )
    fx, fy, cx, cy = row.numbers(path, count=4, expected="fx fy cx cy")
    if fx <= 0 or fy <= 0:
        raise SourceError(f"{path}:{row.line}: focal lengths must be positive pixels")
    if size is not None and not (0 < cx < size[0] and 0 < cy < size[1]):
        raise SourceError(
            f"{path}:{row.line}: principal point ({cx:g}, {cy:g}) is outside the images of "
            f"{size[0]}x{size[1]}; is this the calibration of another resolution?"
        )
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def find_calibration(folder: pathlib.Path, size: tuple[int, int]) -> np.ndarray | None:
    """``read_calibration`` of the folder's own file, None if it has none."""
    path = folder / FILE_NAME
    return read_calibration(path, size) if path.is_file() else None
