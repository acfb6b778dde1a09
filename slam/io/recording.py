"""Writers of whole recordings: a TUM RGB-D folder or a video from any source."""

import itertools
import os
import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from PIL import Image

from slam.io.frames import Source, SourceError
from slam.io.trajectory_file import write_trajectory
from slam.io.tum import TUM_DEPTH_SCALE


def write_tum(source: Source, folder: str | os.PathLike[str]) -> None:
    """Write a source as a folder in the layout of the TUM RGB-D benchmark.

    ``rgb/*.png`` and ``rgb.txt``; where the source has them, ``depth/*.png`` (16 bits, 5000 a
    metre, 0 unknown) and ``depth.txt``, ``groundtruth.txt``, and ``calibration.txt`` (``fx fy cx
    cy``) if one pinhole camera describes all frames: not with zoom or lens distortion. The folder
    takes its name when it is complete. Raises ``SourceError`` if it exists already, if the source
    is empty, or for a depth beyond 13.1 m.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(f"{folder}: exists already; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_tum_files(source, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tum_files(source: Source, folder: pathlib.Path) -> None:
    stamps: list[tuple[float, str]] = []
    with_depth: list[tuple[float, str]] = []
    posed: list[tuple[float, np.ndarray]] = []
    intrinsics: list[np.ndarray | None] = []
    (folder / "rgb").mkdir()
    for frame in source:
        name = f"{len(stamps):06d}.png"
        Image.fromarray(frame.rgb).save(folder / "rgb" / name)
        stamps.append((frame.timestamp, f"rgb/{name}"))
        if frame.depth is not None:
            (folder / "depth").mkdir(exist_ok=True)
            units = np.rint(frame.depth.astype(np.float64) * TUM_DEPTH_SCALE)
            if units.max() > np.iinfo(np.uint16).max:
                raise SourceError(
                    f"{frame.origin or name}: depth {frame.depth.max():.2f} m does not fit 16 bits "
                    f"at {TUM_DEPTH_SCALE:g} a metre; the layout ends at 13.1 m"
                )
            Image.fromarray(units.astype(np.uint16)).save(folder / "depth" / name)
            with_depth.append((frame.timestamp, f"depth/{name}"))
        if frame.T_WC is not None and np.isfinite(frame.T_WC).all():
            posed.append((frame.timestamp, frame.T_WC))
        intrinsics.append(frame.K)
    if not stamps:
        raise SourceError(f"{source.name}: no frames to write")
    for kind, entries in (("rgb", stamps), ("depth", with_depth)):
        if entries:
            lines = [f"{stamp:.6f} {name}\n" for stamp, name in entries]
            (folder / f"{kind}.txt").write_text("# timestamp filename\n" + "".join(lines))
    if posed:
        times = np.array([stamp for stamp, _ in posed])
        write_trajectory(folder / "groundtruth.txt", times, np.stack([pose for _, pose in posed]))
    K = intrinsics[0]
    pinhole = getattr(source, "distortion", None) is None
    if (
        pinhole
        and K is not None
        and all(k is not None and np.array_equal(k, K) for k in intrinsics)
    ):
        # Seventeen digits carry a double without loss.
        numbers = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        (folder / "calibration.txt").write_text(" ".join(f"{x:.17g}" for x in numbers) + "\n")


_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}


def write_video(source: Source, path: str | os.PathLike[str], fps: float | None = None) -> None:
    """Write the images of a source as a video: ``.mp4`` (MPEG-4) or ``.avi`` (Motion JPEG).

    ``fps`` is taken from the first two timestamps unless given. The file takes its name when it is
    complete and has been read back. Raises ``SourceError`` for another suffix, an empty source, or
    if the OpenCV installed cannot write and read that kind of video.
    """
    path = pathlib.Path(path)
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        raise SourceError(f"{path}: cannot write '{path.suffix}'; use one of {', '.join(_CODECS)}")
    frames = iter(source)
    first = list(itertools.islice(frames, 2))
    if not first:
        raise SourceError(f"{source.name}: no frames to write")
    if fps is None:
        fps = 1.0 / (first[1].timestamp - first[0].timestamp) if len(first) > 1 else 30.0
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = first[0].rgb.shape[:2]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        fourcc = cv2.VideoWriter.fourcc(*codec)
        writer = cv2.VideoWriter(str(temporary), fourcc, fps, (width, height))
        count = 0
        try:
            for frame in itertools.chain(first, frames):
                writer.write(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
                count += 1
        finally:
            writer.release()
        if _count_frames(temporary) != count:
            raise SourceError(
                f"{path}: this OpenCV cannot write {codec} video; use another of "
                f"{', '.join(_CODECS)}, or write_tum"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _count_frames(path: pathlib.Path) -> int:
    if not path.is_file():
        return 0
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count
