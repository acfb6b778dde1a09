"""Points that several keyframes see, in the world."""

import dataclasses

import numpy as np

from slam.exports.cameras import Cameras
from slam.reconstruction import Reconstruction

MOST_PIXELS = 4.0
"""A point that a camera sees further from where it should be is no match of that camera."""


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Observations, sorted by point."""

    points: np.ndarray
    """float64 [P, 3], in the world."""
    colors: np.ndarray
    """uint8 [P, 3], RGB."""
    point: np.ndarray
    """int [N], the point of each observation; every point has two cameras at least."""
    camera: np.ndarray
    """int [N], the camera of each; a camera sees a point once."""
    pixels: np.ndarray
    """float64 [N, 2], where: u and v."""
    errors: np.ndarray
    """float64 [N], pixels between there and where the point projects to."""

    @property
    def mean_error(self) -> float:
        """Mean over the observations, in pixels; NaN without any."""
        return float(self.errors.mean()) if len(self.errors) else float("nan")


def tracks_of(result: Reconstruction, cameras: Cameras, min_confidence: float = 0.0) -> Tracks:
    """Points that were followed: the mean of what their pixels see, without those far off.

    Pixels count whose average confidence is above ``min_confidence``.
    """
    width, places = cameras.image_shape[1], np.full(result.num_keyframes, -1)
    places[cameras.slots] = np.arange(len(cameras.slots))
    followed, slot, pixel = result.observations[np.isin(result.observations[:, 1], cameras.slots)].T
    camera = places[slot]
    _, point = np.unique(followed, return_inverse=True)
    where = np.stack([pixel % width, pixel // width], axis=1).astype(np.float64)
    seen_W, colors = np.zeros((len(point), 3)), np.zeros((len(point), 3))
    certain = np.zeros(len(point))
    for k in range(len(cameras.slots)):
        mine = camera == k
        seen_W[mine] = cameras.world_points(k)[pixel[mine]]
        certain[mine] = cameras.confidence[k][pixel[mine]]
        colors[mine] = cameras.images[k].reshape(-1, 3)[pixel[mine]]
    keep = np.isfinite(seen_W).all(axis=1) & (certain > min_confidence)
    for _ in range(2):  # a mean without those that were far from the first one
        keep &= np.bincount(point[keep], minlength=point.max(initial=-1) + 1)[point] >= 2
        means = _means(point, certain, seen_W, keep)
        errors = np.linalg.norm(cameras.project(camera, means[point]) - where, axis=1)
        keep &= errors <= MOST_PIXELS
    keep &= np.bincount(point[keep], minlength=point.max(initial=-1) + 1)[point] >= 2
    numbers, renumbered = np.unique(point[keep], return_inverse=True)
    shades = _means(point, certain, colors, keep)[numbers]
    return Tracks(
        points=means[numbers],
        colors=np.clip(np.rint(shades), 0, 255).astype(np.uint8),
        point=renumbered,
        camera=camera[keep],
        pixels=where[keep],
        errors=errors[keep],
    )


def _means(
    point: np.ndarray, weight: np.ndarray, values: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """Weighted means [P, C] of values [N, C] by point; of those to be kept."""
    count = point.max(initial=-1) + 1
    total = np.bincount(point[keep], weight[keep], count)
    sums = [np.bincount(point[keep], (weight * column)[keep], count) for column in values.T]
    return np.stack(sums, axis=1) / np.where(total > 0, total, 1)[:, None]
