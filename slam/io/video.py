"""A video file as a source, decoded by OpenCV's FFmpeg."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np

from slam.io.folder import DEFAULT_FPS
from slam.io.frames import SourceError, SourceFrame

# FFmpeg writes its own complaints to standard error, beside the one sentence we raise. Read by
# OpenCV at the first opening; a user who set it keeps it.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_TEXT_PROBE = 4096
"""Bytes looked at to tell a text file, which FFmpeg would play as terminal art."""


class VideoSource:
    """The frames of a video file, upright and in RGB, with the container's timestamps.

    With ``fps`` given, a frame's timestamp is its number divided by ``fps`` instead. Where the
    container's time does not advance, it is taken to advance by one nominal frame.

    Raises ``SourceError`` if no frame can be decoded, and while iterating if the video ends well
    before the length its container declares (see ``_ends_early``).
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None) -> None:
        self.path = pathlib.Path(path)
        self.name = self.path.stem
        self.fps = fps
        if not self.path.is_file():
            raise SourceError(f"{self.path}: no such file")
        if looks_like_text(self.path):
            raise SourceError(f"{self.path}: not a video but a text file")
        with self._capture() as capture:
            declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            rate = capture.get(cv2.CAP_PROP_FPS)
            self._nominal_fps = rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_FPS
            self.num_frames = int(declared) if declared >= 1 else None
            if not capture.read()[0]:
                raise SourceError(
                    f"{self.path}: video without a frame that can be decoded; it may be cut short"
                )

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``; those between are decoded but not converted."""
        start, stride, stop = positions.start or 0, positions.step or 1, positions.stop
        number, time = 0, -math.inf
        with self._capture() as capture:
            while stop is None or number < stop:
                if not capture.grab():
                    break
                time = self._timestamp(capture, number, time)
                if number >= start and (number - start) % stride == 0:
                    yield SourceFrame(
                        index=number,
                        timestamp=time,
                        rgb=self._retrieve(capture, number),
                        origin=f"{self.path} frame {number}",
                    )
                number += 1
            else:
                return
        if self._ends_early(number, time):
            usable = len(range(start, number, stride))
            raise SourceError(
                f"{self.path}: ends after {number} of {self.num_frames} frames, the file is cut "
                f"short or damaged; to end there on purpose: max_frames={usable}"
            )

    @contextlib.contextmanager
    def _capture(self) -> Iterator[cv2.VideoCapture]:
        # FFmpeg only: no guessing at image sequences or cameras.
        with opencv_quiet():
            capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise SourceError(
                    f"{self.path}: not a video that can be opened; it may be cut short, or "
                    "re-encode it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
                )
            yield capture
        finally:
            capture.release()

    def _retrieve(self, capture: cv2.VideoCapture, number: int) -> np.ndarray:
        decoded, bgr = capture.retrieve()
        if not decoded or bgr is None:
            raise SourceError(f"{self.path}: frame {number} cannot be decoded")
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def _timestamp(self, capture: cv2.VideoCapture, number: int, previous: float) -> float:
        if self.fps is not None:
            return number / self.fps
        time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if math.isfinite(time) and time > previous:
            return time
        return previous + 1 / self._nominal_fps if number else 0.0

    def _ends_early(self, decoded: int, last_time: float) -> bool:
        """Whether both the count and the clock say that a good part is missing.

        Containers often declare a count estimated from duration and rate, so a few frames fewer
        (2 and 1 %) are normal, and with a variable frame rate the count alone means nothing.
        """
        if self.num_frames is None:
            return False
        fps = self.fps or self._nominal_fps
        declared_time = self.num_frames / fps
        few = decoded < 0.99 * self.num_frames - 2
        short = last_time + 1 / fps < 0.99 * declared_time - 2 / fps
        return few and short


def looks_like_text(path: pathlib.Path) -> bool:
    """Whether the file begins with text (UTF-8 without control characters)."""
    with open(path, "rb") as file:
        probe = file.read(_TEXT_PROBE)
    if not probe or any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in probe):
        return False
    try:
        probe.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut in two by the end of the probe.
        return error.start >= len(probe) - 3
    return True


@contextlib.contextmanager
def opencv_quiet() -> Iterator[None]:
    """OpenCV's log does not appear beside the one sentence we raise."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
