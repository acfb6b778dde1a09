"""Images from anywhere: arrays or frames that some Python code yields."""

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

    Raises ``SourceError`` while iterating for anything that is no image.
    """

    def __init__(
        self,
        frames: Iterable[np.ndarray | SourceFrame],
        fps: float = DEFAULT_FPS,
        K: Float[np.ndarray, "3 3"] | None = None,
        name: str = "frames",
    ) -> None:
        self.frames, self.fps, self.K, self.name = frames, fps, K, name
        self.num_frames: int | None = len(frames) if hasattr(frames, "__len__") else None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, item in enumerate(self.frames):
            if isinstance(item, SourceFrame):
                yield item
                continue
            image = np.asarray(item)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise SourceError(
                    f"{self.name}: frame {index} is {image.dtype} {list(image.shape)}; expected "
                    "uint8 [height, width, 3], RGB"
                )
            yield SourceFrame(
                index=index,
                timestamp=index / self.fps,
                rgb=image,
                K=self.K,
                origin=f"{self.name} frame {index}",
            )
