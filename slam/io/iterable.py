"""Images from anywhere: arrays or frames that some Python code yields."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from slam.io.folder import DEFAULT_FPS
from slam.io.frames import SourceError, SourceFrame


class IterableSource:
    """Images ``uint8 [H, W, 3]`` (RGB), or ``SourceFrame``, that an iterable yields.

    Args:
        frames: what yields them; a generator can be run once.
        fps: frames per second of images, which tell no time.
        K: intrinsics of images, float [3, 3] in pixels; None: unknown.
        name: for output folders and messages.

    Images are copied, so whoever yields them may use one array for all.

    Raises ``SourceError`` for a rate that is not positive, and while iterating for any non-image.
    """

    def __init__(
        self,
        frames: Iterable[np.ndarray | SourceFrame],
        fps: float = DEFAULT_FPS,
        K: Float[np.ndarray, "3 3"] | None = None,
        name: str = "frames",
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise SourceError(f"{name}: fps={fps} must be a positive number")
        self.frames, self.fps, self.K, self.name = frames, fps, K, name
        self.num_frames: int | None = len(frames) if hasattr(frames, "__len__") else None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, item in enumerate(self.frames):
            where = f"{self.name}: frame {index}"
            if isinstance(item, SourceFrame):
                _check_image(where, item.rgb)
                yield item
                continue
            try:
                image = np.array(item)
            except ValueError as error:  # rows of different lengths
                raise SourceError(f"{where} is no array ({error})") from None
            _check_image(where, image)
            yield SourceFrame(
                index=index,
                timestamp=index / self.fps,
                rgb=image,
                K=self.K,
                origin=f"{self.name} frame {index}",
            )


def _check_image(where: str, image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise SourceError(
            f"{where} is {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3], RGB"
        )
