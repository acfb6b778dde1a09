"""A picture of training pairs with some of their matches, to see what is learnt from."""

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.training.types import PairBatch
from slam.io.atomic import atomic_write

_GAP = 4
"""Pixels between the two views."""
_COLUMNS = 2
_DPI = 100


def draw_pairs(
    path: str | os.PathLike[str], pairs: PairBatch, *, most: int = 12, matches: int = 24
) -> None:
    """Writes a PNG with the first ``most`` pairs, side by side, and ``matches`` true ones of each.

    Above each pair: distance and rotation between the cameras, and how many matches there are.
    """
    count = min(most, len(pairs.images_1))
    height, width = pairs.images_1.shape[1:3]
    rows = -(-count // _COLUMNS)
    side = 5.0
    tall = side * height / (2 * width + _GAP) + 0.35
    figure = Figure(figsize=(side * _COLUMNS, tall * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for b, place in enumerate(axes):
        place.set_axis_off()
        if b < count:
            _draw_pair(place, pairs, b, matches)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _draw_pair(axes: Axes, pairs: PairBatch, b: int, matches: int) -> None:
    image_1, image_2 = (0.5 + 0.5 * np.asarray(x[b]) for x in (pairs.images_1, pairs.images_2))
    gap = np.ones((image_1.shape[0], _GAP, 3), image_1.dtype)
    axes.imshow(np.concatenate([image_1, gap, image_2], axis=1))
    true = np.flatnonzero(pairs.matched[b])
    pixels_1 = np.asarray(pairs.pixels_1[b])[true[:matches]]
    pixels_2 = np.asarray(pairs.pixels_2[b])[true[:matches]] + [image_1.shape[1] + _GAP, 0]
    # One line a match, each in the next colour.
    u, v = np.stack([pixels_1, pixels_2]).transpose(2, 0, 1)
    axes.plot(u, v, linewidth=0.6, marker=".", markersize=3)
    T_12 = np.asarray(pairs.T_12[b], np.float64)
    cosine = 0.5 * (np.trace(T_12[:3, :3]) - 1.0)
    angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    distance = np.linalg.norm(T_12[:3, 3])
    axes.set_title(f"{distance:.2f} m, {angle:.0f} degrees, {len(true)} matches", fontsize=8)
