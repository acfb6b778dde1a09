"""A folder of images as a source."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from slam.io.calibration import find_calibration
from slam.io.frames import SourceError, SourceFrame
from slam.io.images import check_one_size, list_images, read_rgb

DEFAULT_FPS = 30.0
"""Frame rate of images that tell no time, as the original assumes."""


class FolderSource:
    """The images directly in a folder, in natural order (``2.png`` before ``10.png``).

    A frame's timestamp is its number in the folder divided by ``fps``; a ``calibration.txt`` beside
    the images gives their camera (``slam.io.calibration``). Every header is looked at on
    opening, so a stray file or a mixture of sizes is refused before any work is done. Raises
    ``SourceError`` for a folder without images, an unreadable one and mixed sizes.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None) -> None:
        self.path = pathlib.Path(path)
        self.name = self.path.resolve().name
        self.fps = DEFAULT_FPS if fps is None else fps
        if not self.path.is_dir():
            raise SourceError(f"{self.path}: no such folder")
        self._files = list_images(self.path)
        if not self._files:
            raise SourceError(f"{self.path}: folder without images{_elsewhere(self.path)}")
        self.camera = find_calibration(self.path, check_one_size(self._files))
        self.num_frames: int | None = len(self._files)

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``, reading no others; ``index`` is the place in the folder."""
        for index in range(len(self._files))[positions]:
            yield SourceFrame(
                index=index,
                timestamp=index / self.fps,
                rgb=_read(self._files[index]),
                K=self.camera and self.camera.K,
                distortion=self.camera and self.camera.coefficients,
                origin=str(self._files[index]),
            )


def _read(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        raise SourceError(f"{path}: the image was there when the folder was opened and is gone")
    return read_rgb(path)


def _elsewhere(path: pathlib.Path) -> str:
    """Where the images may be instead, for the message."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    nested = [p for p in folders if list_images(p)]
    if nested:
        return f"; there are some in {nested[0]}: pass that folder"
    return "; expected .jpg, .png, .bmp, .tif or .webp files in it, or rgb.txt (TUM RGB-D)"
