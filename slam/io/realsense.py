"""The colour camera of an Intel RealSense, which knows its own intrinsics."""

from typing import Any

import numpy as np

from slam.io.frames import SourceError

WIDTH, HEIGHT, RATE = 640, 480, 30
"""Pixels and frames per second: what every model offers, over USB 2 too."""
BROWN_CONRADY = ("brown_conrady", "modified_brown_conrady", "inverse_brown_conrady")
"""Distortion models whose coefficients are read as OpenCV's k1 k2 p1 p2 k3. The library projects by
the last two with the tangential part taken after the radial one: 0.02 pixels of difference with the
coefficients of a D455, at the corners."""


class RealSenseCamera:
    """The colour stream of the device with a serial number, or of the first one.

    Raises ``SourceError`` if pyrealsense2 is not installed, there is no such device, or it has a
    lens that no known model describes.
    """

    K: np.ndarray | None
    distortion: np.ndarray | None
    endless = True

    def __init__(self, address: str, serial: str, patience: float) -> None:
        rs = load(address)
        self._wait = round(1000 * patience)
        config = rs.config()
        if serial:
            config.enable_device(serial)
        config.enable_stream(rs.stream.color, WIDTH, HEIGHT, rs.format.rgb8, RATE)
        self._pipeline = rs.pipeline()
        try:
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            raise SourceError(
                f"{address}: cannot be opened ({error}); is it there, and not in use elsewhere?"
            ) from None
        try:
            stream = profile.get_stream(rs.stream.color).as_video_stream_profile()
            self.K, self.distortion = _camera(address, stream.get_intrinsics())
        except SourceError:
            self.release()
            raise

    def read(self) -> np.ndarray | None:
        """The next picture, RGB; None if the device has stopped."""
        there, frames = self._pipeline.try_wait_for_frames(self._wait)
        # A copy: the device takes the memory of pictures that are let go for the next ones.
        return np.array(frames.get_color_frame().get_data()) if there else None

    def release(self) -> None:
        """Stop the device."""
        self._pipeline.stop()


def load(address: str) -> Any:
    """The library, an optional dependency."""
    try:
        import pyrealsense2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SourceError(
            f"{address}: RealSense cameras need pyrealsense2, which is not installed: "
            "pip install 'mast3r-slam-jax[realsense]'"
        ) from None
    return pyrealsense2


def _camera(address: str, lens: Any) -> tuple[np.ndarray, np.ndarray | None]:
    K = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]], np.float64)
    distortion = np.array(lens.coeffs, np.float64)
    if lens.model.name == "none" or not distortion.any():
        return K, None
    if lens.model.name not in BROWN_CONRADY:
        raise SourceError(
            f"{address}: the lens is a fisheye ({lens.model.name}), which is not known here; pass "
            "the frames of its rectified stream to slam.run"
        )
    return K, distortion
