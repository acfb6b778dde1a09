"""Points followed from keyframe to keyframe, through the matches that the graph has of every pixel.

What other programs call tracks. A keyframe hands on one pixel of every ``SPACING`` by ``SPACING``:
the one where a point that was followed has come to lie, or else a new one. So a point is followed
through pixels that were matched, and none is moved to a place on a grid.
"""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ops.edge_system import unpack_valid
from slam.graph import Graph

SPACING = 4
"""Pixels; as many points as other programs like to have. Sides of images are multiples of it."""


def observe(graph: Graph, image_shape: tuple[int, int], num_keyframes: int) -> np.ndarray:
    """Every point that two keyframes see at least, and where they do.

    A keyframe sees a point once. Of several matches, and of several points that could be handed on,
    those count that have come through the fewest keyframes, for each match is a pixel or so off;
    among them the most confident.

    Returns:
        int32 [N, 3], sorted: number of the point, slot of the keyframe, linear index of the pixel.
    """
    height, width = image_shape
    v, u = np.mgrid[SPACING // 2 : height : SPACING, SPACING // 2 : width : SPACING]
    size, across = int(graph.size), u.shape[1]
    ends = np.stack([graph.j, graph.i], axis=1)[:size]
    pixels = np.tile((v * width + u).ravel().astype(np.int32), (num_keyframes, 1))
    points = np.arange(pixels.size, dtype=np.int32).reshape(pixels.shape)
    steps = np.zeros_like(points)
    seen = [np.zeros((0, 2), np.int32)] * num_keyframes

    def matched(factor: int) -> tuple[np.ndarray, ...]:
        slot = ends[factor, 0]
        pixel, valid, quality = jax.device_get(_matches(graph, factor, pixels[slot]))
        found = points[slot], pixel, steps[slot] + 1, quality
        return tuple(x[valid] for x in found)

    def see(slot: int, point: np.ndarray, pixel: np.ndarray) -> None:
        new = ~np.isin(point, seen[slot][:, 0])
        seen[slot] = np.concatenate([seen[slot], np.stack([point[new], pixel[new]], axis=1)])

    for slot in range(num_keyframes):
        older = ends.min(axis=1) < slot
        arrived = [matched(k) for k in np.flatnonzero(older & (ends[:, 1] == slot)).tolist()]
        if arrived:
            point, pixel, step, quality = map(np.concatenate, zip(*arrived, strict=True))
            best = _first_of_each(point, step, -quality)
            point, pixel, step, quality = (x[best] for x in (point, pixel, step, quality))
            see(slot, point, pixel)
            cell = pixel // width // SPACING * across + pixel % width // SPACING
            best = _first_of_each(cell, step, -quality)
            for buffer, x in ((pixels, pixel), (points, point), (steps, step)):
                buffer[slot, cell[best]] = x[best]
        see(slot, points[slot], pixels[slot])
        for k in np.flatnonzero(older & (ends[:, 0] == slot)).tolist():
            see(int(ends[k, 1]), *matched(k)[:2])
    slots = np.repeat(np.arange(num_keyframes, dtype=np.int32), [len(x) for x in seen])
    point, pixel = np.concatenate([np.zeros((0, 2), np.int32), *seen]).T
    often = np.bincount(point)[point] > 1
    order = np.lexsort([slots[often], point[often]])
    return np.stack([point, slots, pixel], axis=1)[often][order]


@jax.jit
def _matches(
    graph: Graph, factor: Int[Array, ""], pixels: Int[Array, " n"]
) -> tuple[Int[Array, " n"], Bool[Array, " n"], Float[Array, " n"]]:
    """Where pixels of a factor's ``j`` are in its ``i``, whether that counts, and its quality."""
    valid = unpack_valid(graph.valid[factor], graph.index.shape[1])
    return graph.index[factor, pixels], valid[pixels], graph.quality[factor, pixels]


def _first_of_each(key: np.ndarray, *order: np.ndarray) -> np.ndarray:
    """Indices of the entries that come first, by ``order``, among those with the same key."""
    ordered = np.lexsort([*reversed(order), key])
    return ordered[np.unique(key[ordered], return_index=True)[1]]
