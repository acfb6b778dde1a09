"""Live images: a webcam, a network stream, whatever OpenCV can open by address."""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from slam.io.frames import SourceError, SourceFrame

ADDRESS = re.compile(r"webcam:(\d+)|(?:rtsp|rtsps|rtmp|http|https|udp|tcp)://\S+", re.IGNORECASE)
"""What ``LiveSource`` takes."""
PATIENCE = 10.0
"""Seconds without a picture after which a stream counts as broken."""


class LiveSource:
    """The newest picture of a camera, each time one is asked for.

    A thread takes pictures as fast as they come and keeps the last one, so a slow consumer misses
    pictures but is never late. Timestamps are seconds since the first, when they were taken. Each
    iteration opens the camera anew and ends when the stream does.

    Raises ``SourceError`` if the camera cannot be opened, and while iterating if nothing comes.
    """

    live = True
    """There is no end but the one the user makes."""

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise SourceError(f"{address}: no address of a camera, such as webcam:0 or rtsp://...")
        self.address, self.patience = address, patience
        self.name = re.sub(r"\W+", "-", re.sub(r"//[^/@]*@", "//", address)).strip("-")
        self.num_frames: int | None = None
        self._place = address if match[1] is None else int(match[1])

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = cv2.VideoCapture(self._place)
        if not capture.isOpened():
            capture.release()
            raise SourceError(
                f"{self.address}: cannot be opened; is it there, and not in use elsewhere?"
            )
        newest = _Newest(capture)
        try:
            index = 0
            while True:
                picture = newest.take(self.patience)
                if picture is None:
                    return
                taken, image = picture
                yield SourceFrame(
                    index=index,
                    timestamp=taken - newest.first,
                    rgb=np.ascontiguousarray(image[..., ::-1]),
                    origin=f"{self.address} frame {index}",
                )
                index += 1
        except TimeoutError:
            raise SourceError(
                f"{self.address}: no picture for {self.patience:g} s; is the stream still running?"
            ) from None
        finally:
            newest.stop()
            capture.release()


@runtime_checkable
class _Capture(Protocol):
    """OpenCV's, as far as it is needed."""

    def read(self) -> tuple[bool, Any]:
        """Whether there was a picture, and the picture."""
        ...


class _Newest:
    """Takes pictures in a thread and keeps the last one."""

    def __init__(self, capture: _Capture) -> None:
        self.first = 0.0
        self._capture, self._stopped = capture, False
        self._changed = threading.Condition()
        self._picture: tuple[float, np.ndarray] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def take(self, patience: float) -> tuple[float, np.ndarray] | None:
        """The newest picture that was not taken yet, and when it was made; None at the end.

        Raises ``TimeoutError`` if there is none within ``patience`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._picture or self._ended, patience):
                raise TimeoutError
            picture, self._picture = self._picture, None
            return picture

    def stop(self) -> None:
        """End the thread; one that hangs in the driver is left to end with the process."""
        self._stopped = True
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopped:
            there, image = self._capture.read()
            now = time.monotonic()
            with self._changed:
                if not there:
                    self._ended = True
                else:
                    self.first = self.first or now
                    self._picture = (now, image)
                self._changed.notify()
                if not there:
                    return
