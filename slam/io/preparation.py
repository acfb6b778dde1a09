"""From a source's frames to the working resolution, with whatever ground truth they carry."""

import dataclasses
from collections.abc import Generator, Iterable

import numpy as np

from mast3r_jax.image import prepare_image
from slam.io.frames import SourceError, SourceFrame
from slam.io.images import mixed_sizes
from slam.types import Frame


def prepare_frames(
    source: Iterable[SourceFrame], size: int = 512, first_timestamp: float | None = None
) -> Generator[tuple[SourceFrame, Frame], None, None]:
    """Every frame of a source as it came and as ``step`` takes it, with time from the first frame,
    or from ``first_timestamp`` where a run goes on that has begun before.

    All have the shape and the optional fields of the first. Raises ``SourceError`` at a frame that
    differs from the first in size or in the sensors it carries, and where ``prepare_frame`` does.
    """
    first: SourceFrame | None = None
    for item in source:
        if first is None:
            # Kept without its arrays: only the sizes and which sensors there are will be asked.
            first = dataclasses.replace(item, rgb=item.rgb[:0], depth=None)
            first_size, first_sensors = _size(item), _sensors(item)
            if first_timestamp is None:
                first_timestamp = item.timestamp
        elif _size(item) != first_size:
            raise SourceError(mixed_sizes(_named(item), _size(item), _named(first), first_size))
        elif _sensors(item) != first_sensors:
            raise SourceError(
                f"{_named(item)}: carries {_listed(_sensors(item))} but {_named(first)} carries "
                f"{_listed(first_sensors)}; a source marks unknown depth by 0 and poses by NaN"
            )
        assert first_timestamp is not None
        yield item, prepare_frame(item, size, first_timestamp)


def prepare_frame(source_frame: SourceFrame, size: int, first_timestamp: float) -> Frame:
    """One frame at working size ``size``, its leaves numpy arrays.

    The image goes through ``prepare_image``, intrinsics follow it, depth is sampled at the nearest
    source pixel (0, unknown, must not be blended). The timestamp counts from ``first_timestamp``.
    Raises ``SourceError`` naming the frame for an image that cannot be prepared and for depth of
    another size than the image.
    """
    origin = _named(source_frame)
    try:
        prepared = prepare_image(source_frame.rgb, size)
        depth = source_frame.depth
        if depth is not None:
            depth = prepared.transform.sample_nearest(depth).astype(np.float32)
    except ValueError as error:
        raise SourceError(f"{origin}: {error}") from error
    K = source_frame.K
    return Frame(
        index=np.asarray(source_frame.index, np.int32),
        timestamp=np.asarray(source_frame.timestamp - first_timestamp, np.float32),
        image=prepared.rgb,
        depth=depth,
        T_WC=_float32(source_frame.T_WC),
        K=None if K is None else _float32(prepared.transform.intrinsics(K)),
    )


def _float32(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float32)


def _size(frame: SourceFrame) -> tuple[int, int]:
    return frame.rgb.shape[1], frame.rgb.shape[0]


def _sensors(frame: SourceFrame) -> tuple[str, ...]:
    sensors = {"depth": frame.depth, "a pose": frame.T_WC, "intrinsics": frame.K}
    return tuple(name for name, value in sensors.items() if value is not None)


def _listed(sensors: tuple[str, ...]) -> str:
    return ", ".join(sensors) or "no sensors"


def _named(frame: SourceFrame) -> str:
    return frame.origin or f"frame {frame.index}"
