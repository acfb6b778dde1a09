"""Live images: a webcam, a network stream, a RealSense, whatever can be opened by address."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from slam.io import realsense
from slam.io.frames import SourceError, SourceFrame
from slam.io.video import opencv_quiet

ADDRESS = re.compile(
    r"webcam:(?P<number>\d+)|realsense:(?P<serial>\w*)|gstreamer:(?P<pipeline>.*\S.*)"
    r"|(?:rtsp|rtsps|rtmp|http|https|udp|tcp)://\S+",
    re.IGNORECASE,
)
"""What ``LiveSource`` takes."""
PATIENCE = 10.0
"""Seconds without a picture after which a stream counts as broken."""
TRIES, PAUSE = 3, 2.0
"""How often a stream of the network that broke off is opened again, and seconds before each try:
enough for a connection that is lost for a moment."""

LOOK_UP = 0.1
"""Seconds after which whoever waits for a picture asks whether it is still wanted."""

_log = logging.getLogger(__name__)


class LiveSource:
    """The newest picture of a camera, each time one is asked for.

    A thread takes pictures as fast as they come and keeps the last one, so a slow consumer misses
    pictures but is never late. Timestamps are seconds since the first, when they were taken. Each
    iteration opens the camera anew; closing the iterator closes it. Only recordings (a pipeline, a
    file behind an address) come to an end by themselves. A stream of the network that breaks off is
    opened again a few times. A RealSense brings its intrinsics and the distortion of its lens.

    Raises ``SourceError`` if there is no such kind of address or the package it needs, and while
    iterating if the camera cannot be opened, or no more pictures come.
    """

    live = True
    """There is no end but the one the user makes."""

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise SourceError(f"{address}: no address of a camera, such as webcam:0 or rtsp://...")
        self.address, self.patience = address, patience
        # Messages and logs are shown to others: they do without the user and the password.
        self._shown = re.sub(r"//[^/]*@", "//", address)
        self.name = re.sub(r"\W+", "-", self._shown).strip("-")
        self.num_frames: int | None = None
        self._parts = match
        self._stopped = threading.Event()
        if match["serial"] is not None:
            realsense.load(address)  # before any work is done
        elif match["pipeline"] is not None and not _has_gstreamer():
            raise SourceError(
                f"{address}: this OpenCV was built without GStreamer, as those from PyPI are; "
                "install one with it, or pass the frames to slam.run"
            )

    def stop(self) -> None:
        """End for good, from any thread: whatever iterates waits for no further picture."""
        self._stopped.set()

    def __iter__(self) -> Iterator[SourceFrame]:
        index, tries, first, why = 0, 0, 0.0, ""
        while True:
            try:
                for taken, rgb, camera in self._pictures():
                    first = first or taken
                    yield SourceFrame(
                        index=index,
                        timestamp=taken - first,
                        rgb=rgb,
                        K=camera.K,
                        distortion=camera.distortion,
                        origin=f"{self._shown} frame {index}",
                    )
                    index, tries, why = index + 1, 0, ""
                return
            except SourceError as error:
                if index == 0 or self._parts.lastgroup is not None:  # None: an address
                    raise
                why = why or str(error)
                if tries == TRIES:
                    raise SourceError(f"{why}; opened again {TRIES} times in vain") from None
                tries += 1
                _log.warning("%s; opening it again, %d of %d", error, tries, TRIES)
                if self._stopped.wait(PAUSE):
                    return

    def _pictures(self) -> Iterator[tuple[float, np.ndarray, "_Camera"]]:
        """Pictures of the camera, opened once, and when they were taken."""
        camera = self._open()
        newest = _Newest(camera, self._stopped)
        try:
            while picture := newest.take(self.patience):
                yield *picture, camera
        except TimeoutError:
            raise SourceError(
                f"{self._shown}: no picture for {self.patience:g} s; is the stream still running?"
            ) from None
        except _CameraError as error:
            raise SourceError(f"{self._shown}: the camera failed ({error})") from None
        finally:
            newest.stop()
        if camera.endless and not self._stopped.is_set():
            raise SourceError(f"{self._shown}: gives no more pictures")

    def _open(self) -> "_Camera":
        # What hangs in a driver ends by itself, and after somebody has said so.
        wait = self.patience + 1
        if self._parts["serial"] is not None:
            return realsense.RealSenseCamera(self.address, self._parts["serial"], wait)
        place = _place(self.address, self._parts, round(1000 * wait))
        return _OpenCVCamera(self._shown, place, may_end=self._parts["pipeline"] is not None)


@runtime_checkable
class _Camera(Protocol):
    """Something that is open."""

    K: np.ndarray | None
    distortion: np.ndarray | None
    endless: bool
    """Whether something is wrong if it ends."""

    def read(self) -> np.ndarray | None:
        """Waits for the next picture, RGB; None at the end."""
        ...

    def release(self) -> None:
        """Close it."""
        ...


class _OpenCVCamera:
    """A webcam, a pipeline or a stream, by OpenCV."""

    K: np.ndarray | None = None
    distortion: np.ndarray | None = None

    def __init__(self, shown: str, place: tuple[Any, ...], may_end: bool) -> None:
        with opencv_quiet():
            self._capture = cv2.VideoCapture(*place)
        if not self._capture.isOpened():
            self.release()
            raise SourceError(f"{shown}: cannot be opened; is it there, and not in use elsewhere?")
        # Of a recording behind an address, the number of frames is known.
        self.endless = not may_end and self._capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0

    def read(self) -> np.ndarray | None:
        there, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if there else None

    def release(self) -> None:
        self._capture.release()


def _place(address: str, parts: re.Match[str], milliseconds: int) -> tuple[Any, ...]:
    """What ``cv2.VideoCapture`` is called with."""
    if parts["number"] is not None:
        return (int(parts["number"]),)
    if parts["pipeline"] is not None:
        return parts["pipeline"].strip(), cv2.CAP_GSTREAMER
    limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
    pairs = [value for limit in limits for value in (limit, milliseconds)]
    return address, cv2.CAP_FFMPEG, pairs


def _has_gstreamer() -> bool:
    return any(
        re.search(r"GStreamer:\s+YES", line) for line in cv2.getBuildInformation().splitlines()
    )


class _CameraError(Exception):
    """A driver's error, of whatever kind, in one line."""


class _Newest:
    """Takes pictures in a thread, keeps the last one, and closes the camera when it ends."""

    def __init__(self, camera: _Camera, abandoned: threading.Event) -> None:
        self._camera, self._stopped, self._abandoned = camera, False, abandoned
        self._changed = threading.Condition()
        self._picture: tuple[float, np.ndarray] | None = None
        self._ended = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def take(self, patience: float) -> tuple[float, np.ndarray] | None:
        """The newest picture that was not taken yet, and when it was made; None at the end, and
        once nobody wants it any more.

        Raises ``TimeoutError`` if there is none within ``patience`` seconds, and ``_CameraError``
        with what the camera has raised.
        """
        with self._changed:
            end = time.monotonic() + patience
            while not (self._picture or self._ended or self._abandoned.is_set()):
                if not self._changed.wait(min(LOOK_UP, patience)) and time.monotonic() > end:
                    raise TimeoutError
            if self._abandoned.is_set():
                return None
            picture, self._picture = self._picture, None
            if picture is None and self._failure is not None:
                raise _CameraError(" ".join(str(self._failure).split())) from self._failure
            return picture

    def stop(self) -> None:
        """End the thread; one that hangs in the driver is left to end with the process."""
        self._stopped = True
        self._thread.join(1.0)

    def _run(self) -> None:
        # Nobody else closes the camera: drivers do not survive that while they are being read.
        try:
            while not self._stopped and (rgb := self._camera.read()) is not None:
                now = time.monotonic()
                with self._changed:
                    self._picture = (now, rgb)
                    self._changed.notify()
        except Exception as error:
            self._failure = error
        finally:
            with contextlib.suppress(Exception):  # a device that is gone cannot be closed
                self._camera.release()
            with self._changed:
                self._ended = True
                self._changed.notify()
