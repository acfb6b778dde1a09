"""Points that several keyframes see, from the matches of the graph."""

import dataclasses

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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
    """Chains of matches as points: the mean of what their pixels see, without those far off.

    Pixels count whose average confidence is above ``min_confidence``.
    """
    height, width = cameras.image_shape
    num_pixels, places = height * width, np.full(result.num_keyframes, -1)
    places[cameras.slots] = np.arange(len(cameras.slots))
    ends = places[result.links]
    first, second = [], []
    for (i, j), matched in zip(ends, result.matches, strict=True):
        if i >= 0 and j >= 0:
            good = matched >= 0
            first.append(i * num_pixels + result.match_pixels[good].astype(np.int64))
            second.append(j * num_pixels + matched[good].astype(np.int64))
    empty = np.zeros(0, np.int64)
    a, b = np.concatenate([empty, *first]), np.concatenate([empty, *second])
    nodes, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    pairs = index.reshape(2, -1)
    links = coo_array((np.ones(len(a), bool), (pairs[0], pairs[1])), shape=(len(nodes),) * 2)
    _, point = connected_components(links, directed=False)
    camera, pixel = nodes // num_pixels, nodes % num_pixels
    where = np.stack([pixel % width, pixel // width], axis=1).astype(np.float64)
    seen_W = np.zeros((len(nodes), 3))
    certain, colors = np.zeros(len(nodes)), np.zeros((len(nodes), 3))
    for k in range(len(cameras.slots)):
        mine = camera == k
        seen_W[mine] = cameras.world_points(k)[pixel[mine]]
        certain[mine] = cameras.confidence[k][pixel[mine]]
        colors[mine] = cameras.images[k].reshape(-1, 3)[pixel[mine]]
    keep = np.isfinite(seen_W).all(axis=1) & (certain > min_confidence)
    for _ in range(2):  # a mean without those that were far from the first one
        keep &= _once(point, camera, certain, keep)
        keep &= np.bincount(point[keep], minlength=point.max(initial=-1) + 1)[point] >= 2
        means = _means(point, certain, seen_W, keep)
        errors = np.linalg.norm(cameras.project(camera, means[point]) - where, axis=1)
        keep &= errors <= MOST_PIXELS
    keep &= np.bincount(point[keep], minlength=point.max(initial=-1) + 1)[point] >= 2
    numbers, renumbered = np.unique(point[keep], return_inverse=True)
    order = np.argsort(renumbered, kind="stable")
    shades = _means(point, certain, colors, keep)[numbers]
    return Tracks(
        points=means[numbers],
        colors=np.clip(np.rint(shades), 0, 255).astype(np.uint8),
        point=renumbered[order],
        camera=camera[keep][order],
        pixels=where[keep][order],
        errors=errors[keep][order],
    )


def _once(
    point: np.ndarray, camera: np.ndarray, certain: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """bool: of several pixels of one camera in one point, the most certain."""
    order = np.lexsort([-np.where(keep, certain, -1), camera, point])
    fresh = np.ones(len(order), bool)
    fresh[1:] = (np.diff(point[order]) != 0) | (np.diff(camera[order]) != 0)
    chosen = np.zeros(len(order), bool)
    chosen[order] = fresh
    return chosen


def _means(
    point: np.ndarray, weight: np.ndarray, values: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """Weighted means [P, C] of values [N, C] by point; of those to be kept."""
    count = point.max(initial=-1) + 1
    total = np.bincount(point[keep], weight[keep], count)
    sums = [np.bincount(point[keep], (weight * column)[keep], count) for column in values.T]
    return np.stack(sums, axis=1) / np.where(total > 0, total, 1)[:, None]
