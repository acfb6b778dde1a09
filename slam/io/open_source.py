"""One door for every kind of input: what it is, is read off its content."""

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from PIL import Image, UnidentifiedImageError

from slam.io import posed_images
from slam.io.calibration import read_calibration
from slam.io.camera import ADDRESS, LiveSource
from slam.io.euroc import euroc
from slam.io.folder import FolderSource
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.rectification import Rectification, plan_rectification
from slam.io.tum import TumSource
from slam.io.video import VideoSource

_KINDS = (
    "a video file, a folder of images or of a known data set (TUM RGB-D, ETH3D, EuRoC, 7-Scenes, "
    "Replica, ScanNet), a camera (webcam:0, realsense:, rtsp://...) or a 'procedural:' scene"
)


def open_source(
    path_or_uri: str | os.PathLike[str],
    *,
    start: int = 0,
    stride: int = 1,
    max_frames: int | None = None,
    depth_scale: float | None = None,
    fps: float | None = None,
    calibration: str | os.PathLike[str] | None = None,
    rectify: bool = False,
    center_principal_point: bool = True,
) -> Source:
    """Open a video, a folder of images or of a data set, a camera, or a ``procedural:`` scene.

    ``start`` frames are skipped, then every ``stride``-th is taken, at most ``max_frames``; frames
    are numbered from 0 after that. ``depth_scale`` is the number of units per metre in a TUM
    folder's depth images: 5000 if not given, 1000 for millimetres. ``fps`` replaces a video's
    timestamps and spaces those of an image folder (30 if not given). ``calibration`` is a file with
    the intrinsics and the lens distortion of the images (``slam.io.calibration``), in place of
    whatever the source has. With ``rectify``, which calibrated runs need, images with intrinsics
    become those of a pinhole camera; see ``RectifiedSource``.

    Raises ``SourceError`` with the place and the way out for anything that cannot be used.
    """
    for option, value, least in (
        ("start", start, 0),
        ("stride", stride, 1),
        ("max_frames", max_frames, 1),
    ):
        if value is not None and value < least:
            raise SourceError(f"{option}={value} must be at least {least}")
    for option, number in (("depth_scale", depth_scale), ("fps", fps)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise SourceError(f"{option}={number} must be a positive number")
    source = _recognise(os.fspath(path_or_uri), depth_scale, fps)
    if depth_scale is not None and not isinstance(source, TumSource):
        raise SourceError(f"{path_or_uri}: depth_scale is for TUM RGB-D folders only; leave it out")
    if fps is not None and not isinstance(source, VideoSource | FolderSource):
        raise SourceError(
            f"{path_or_uri}: fps is for videos and image folders only, this source has its own "
            "timestamps; leave it out"
        )
    if calibration is not None:
        source = CalibratedSource(source, calibration)
    if rectify:
        source = RectifiedSource(source, center_principal_point)
    if (start, stride, max_frames) == (0, 1, None):
        return source
    return SlicedSource(source, start, stride, max_frames)


def is_live(source: Source) -> bool:
    """Whether a source ends only when the user wants it to, and cannot be read again."""
    return bool(getattr(source, "live", False))


def stop_waiting(source: Source) -> None:
    """Have a camera give no further picture, from any thread; other sources are left alone."""
    camera = _innermost(source)
    if isinstance(camera, LiveSource):
        camera.stop()


def depth_scale_of(source: Source) -> float | None:
    """Units per metre by which a source reads depth images; None if it reads none."""
    source = _innermost(source)
    return source.depth_scale if isinstance(source, TumSource) and source.has_depth else None


def _innermost(source: Source) -> Source:
    """What a source was made of."""
    while isinstance(source, SlicedSource | CalibratedSource | RectifiedSource):
        source = source.source
    return source


@runtime_checkable
class Selectable(Protocol):
    """A source that can skip frames more cheaply than by decoding them."""

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions`` (non-negative start, positive step), in order."""
        ...


class SlicedSource:
    """Every ``stride``-th frame of a source from ``start`` on, at most ``max_frames`` of them."""

    def __init__(
        self, source: Source, start: int = 0, stride: int = 1, max_frames: int | None = None
    ) -> None:
        self.source = source
        self.name = source.name
        self.live = is_live(source)
        # Ends right after the last wanted frame: what follows it may be damaged.
        stop = None if max_frames is None else start + stride * (max_frames - 1) + 1
        self.positions = slice(start, stop, stride)
        self.num_frames: int | None = None
        if source.num_frames is not None:
            self.num_frames = len(range(source.num_frames)[self.positions])
            if self.num_frames == 0:
                raise SourceError(
                    f"{self.name}: start={start} is past its end, it has {source.num_frames} frames"
                )

    def __iter__(self) -> Iterator[SourceFrame]:
        return frames_from(self, 0)

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``."""
        mine, step = self.positions, self.positions.step
        stop = mine.stop
        if positions.stop is not None:
            end = mine.start + step * (positions.stop - 1) + 1 if positions.stop else mine.start
            stop = end if stop is None else min(stop, end)
        first = mine.start + step * (positions.start or 0)
        return _select(self.source, slice(first, stop, step * (positions.step or 1)))


def frames_from(source: Source, first: int) -> Iterator[SourceFrame]:
    """The frames of a source from number ``first`` on, with the numbers they have in the whole."""
    for index, frame in enumerate(_select(source, slice(first, None, 1)), start=first):
        yield dataclasses.replace(frame, index=index)


class CalibratedSource:
    """A source whose images were taken by the camera of a calibration file, read on opening.

    Raises ``SourceError`` while iterating if the calibration is not for images of that shape.
    """

    def __init__(self, source: Source, calibration: str | os.PathLike[str]) -> None:
        self.source = source
        self.name = source.name
        self.live = is_live(source)
        self.num_frames = source.num_frames
        self.camera = read_calibration(pathlib.Path(calibration))

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``."""
        camera = None
        for frame in _select(self.source, positions):
            camera = camera or self.camera.at((frame.rgb.shape[1], frame.rgb.shape[0]))
            yield dataclasses.replace(frame, K=camera.K, distortion=camera.coefficients)


class RectifiedSource:
    """A source whose images look as if a pinhole camera had taken them.

    Those without intrinsics stay as they are. With ``center_principal_point`` the image's centre is
    on the optical axis; see ``slam.io.rectification``. Depth follows, poses do not change. Raises
    ``SourceError`` while iterating if the distortion folds the image.
    """

    def __init__(self, source: Source, center_principal_point: bool = True) -> None:
        self.source = source
        self.name = source.name
        self.live = is_live(source)
        self.num_frames = source.num_frames
        self.center_principal_point = center_principal_point

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``."""
        camera, plan = None, None
        for frame in _select(self.source, positions):
            if frame.K is None:
                yield frame
                continue
            size = (frame.rgb.shape[1], frame.rgb.shape[0])
            bent = () if frame.distortion is None else tuple(frame.distortion.tolist())
            if plan is None or camera != (size, frame.K.tolist(), bent):
                camera = (size, frame.K.tolist(), bent)
                plan = self._plan(frame, size)
            yield _rectified(frame, plan)

    def _plan(self, frame: SourceFrame, size: tuple[int, int]) -> Rectification:
        assert frame.K is not None
        try:
            return plan_rectification(
                frame.K,
                frame.distortion,
                size,
                center_principal_point=self.center_principal_point,
            )
        except ValueError as error:
            raise SourceError(f"{frame.origin or f'frame {frame.index}'}: {error}") from None


def _rectified(frame: SourceFrame, plan: Rectification) -> SourceFrame:
    try:
        depth = None if frame.depth is None else plan.depth(frame.depth)
    except ValueError as error:
        raise SourceError(f"{frame.origin or f'frame {frame.index}'}: depth: {error}") from None
    return dataclasses.replace(
        frame, rgb=plan.image(frame.rgb), depth=depth, K=plan.K.copy(), distortion=None
    )


def _select(source: Source, positions: slice) -> Iterator[SourceFrame]:
    if isinstance(source, Selectable):
        return source.select(positions)
    return itertools.islice(source, positions.start, positions.stop, positions.step)


def _recognise(location: str, depth_scale: float | None, fps: float | None) -> Source:
    if location.startswith("procedural:"):
        from slam.io.procedural import parse_procedural

        return parse_procedural(location)
    if ADDRESS.fullmatch(location):
        return LiveSource(location)
    path = pathlib.Path(location)
    if path.is_dir():
        if (path / "rgb.txt").is_file():
            return TumSource(path, depth_scale)
        for recognised in (euroc, *posed_images.KINDS):
            source = recognised(path)
            if source is not None:
                return source
        return FolderSource(path, fps)
    if not path.exists():
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", location):
            raise SourceError(f"{location}: no such kind of address is known; pass {_KINDS}")
        raise SourceError(f"{location}: no such file or folder; pass {_KINDS}")
    if not path.is_file():
        raise SourceError(f"{location}: neither a file nor a folder; pass {_KINDS}")
    if path.name == "rgb.txt":
        raise SourceError(f"{location}: is the list of a TUM RGB-D folder; pass {path.parent}")
    if _is_still_image(path):
        raise SourceError(
            f"{location}: is one image; pass the folder of all of them: {path.parent}"
        )
    return VideoSource(path, fps)


def _is_still_image(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            return not getattr(image, "is_animated", False)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False
