"""What is kept of a keyframe's points to draw them, and how many of them are drawn."""

import dataclasses
import functools

import numpy as np

from slam.snapshot import KeyframeView

KEPT = 40_000
"""Points kept of a keyframe: a fifth of the pixels at 512x384, half a megabyte. Where the views
overlap as keyframes do, a picture of the map shows no gaps with them."""

_OUTLINE = 200

_LARGEST = 6e4
"""Half-precision numbers end shortly above."""


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Points of one keyframe in its camera, in a random order, so that any first part of them is a
    thinner picture of the same."""

    points: np.ndarray
    """float16 [N, 3]: a step of half precision is a quarter of a pixel at 512 pixels a row."""
    colors: np.ndarray
    """uint8 [N, 3], RGB."""
    confidence: np.ndarray
    """float32 [N]."""
    share: float
    """Pixels of the keyframe over points kept."""
    high: float
    """95th percentile of the confidence."""
    outline: np.ndarray
    """float32 [M, 3], a few points of the surer half."""

    @classmethod
    def of(cls, view: KeyframeView) -> "Cloud":
        """The points of a keyframe that can be drawn."""
        order = _order(len(view.points))
        points = view.points[order]
        # A comparison with NaN is false.
        with np.errstate(invalid="ignore"):
            fine = np.all(np.abs(points) < _LARGEST, axis=1)
        points, confidence = points[fine], view.confidence[order][fine]
        middle, high = np.quantile(confidence, [0.5, 0.95]) if len(confidence) else (0.0, 0.0)
        return cls(
            points=points.astype(np.float16),
            colors=view.image.reshape(-1, 3)[order][fine],
            confidence=confidence,
            share=len(view.points) / len(order),
            high=float(high),
            outline=points[confidence >= middle][:_OUTLINE],
        )

    def count(self, min_confidence: float) -> int:
        """Points more confident than ``min_confidence``."""
        return int(np.count_nonzero(self.confidence > min_confidence))

    def thinned(self, min_confidence: float, halvings: int) -> tuple[np.ndarray, np.ndarray]:
        """Points and colours more confident than ``min_confidence``, halved so many times."""
        keep = np.flatnonzero(self.confidence > min_confidence)
        keep = keep[: len(keep) >> halvings]
        return self.points[keep], self.colors[keep]


@functools.lru_cache(maxsize=2)
def _order(count: int) -> np.ndarray:
    """Which pixels are kept, the same of every keyframe."""
    return np.random.default_rng(0).permutation(count)[:KEPT]


def halvings_for(counts: list[int], max_points: int) -> int:
    """How often clouds of these sizes are to be halved to have ``max_points`` in all at most.

    Powers of two, so that a growing map is sent anew a few times only.
    """
    halvings = 0
    while sum(count >> halvings for count in counts) > max_points:
        halvings += 1
    return halvings


@dataclasses.dataclass(frozen=True)
class Lens:
    """What a keyframe's points say about the camera and the size of the scene."""

    fov: float
    """Vertical field of view in radians."""
    aspect: float
    """Width over height."""
    distance: float
    """Median depth."""
    spacing: float
    """Distance of neighbouring pixels' points, square to the ray, at the median depth."""

    @classmethod
    def of(cls, view: KeyframeView) -> "Lens":
        """As seen by the confident half of a keyframe's points; anything where there are none."""
        height, width = view.image.shape[:2]
        v, u = np.mgrid[:height, :width].reshape(2, -1)
        across = np.hypot(u - (width - 1) / 2, v - (height - 1) / 2)
        x, y, z = view.points.T
        with np.errstate(invalid="ignore", divide="ignore"):
            focal = across * z / np.hypot(x, y)
            good = np.isfinite(focal) & (focal > 0) & (across > height / 4)
        if not good.any():
            return cls(fov=1.0, aspect=width / height, distance=1.0, spacing=1.0 / height)
        good &= view.confidence >= np.median(view.confidence[good])
        length, distance = float(np.median(focal[good])), float(np.median(z[good]))
        return cls(
            fov=2 * float(np.arctan(height / 2 / length)),
            aspect=width / height,
            distance=distance,
            spacing=distance / length,
        )
