"""Other ways to the same end: matching by search among all pixels, instead of by projection.

They find the nearest point, or the most similar descriptor, wherever it is; that is another
question than ``ops.match`` asks, so their answers are compared with the true correspondences, not
with ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.stage import Agreement, Peer, absent

TREE, BRUTE_FORCE = "k-d tree, points", "brute force, desc."
MOST_PRODUCTS = 3e9
"""Products of descriptors that brute force may take: some seconds on two cores."""
CHUNK = 1024
"""Pixels that are compared with all others at a time."""
CLOSE = 3.0
"""A match within so many pixels of the true one is right."""
TOLERANCE = 0.5
"""Share of wrong matches beyond which a method does not do what matching is for."""


def tree_peer(points_1: Any, points_2: Any, wrong: Callable[[np.ndarray], float]) -> Peer:
    """The nearest point of image 1 for every point of image 2; the tree is built every time.

    ``points_1`` and ``points_2`` are ``[h, w, 3]`` in one camera; ``wrong`` is the share of
    indices that are wrong.
    """
    try:
        from scipy.spatial import KDTree
    except ImportError:
        return absent(TREE, "scipy is not installed: pip install scipy")
    one, two = (np.asarray(points).reshape(-1, 3) for points in (points_1, points_2))

    def call() -> np.ndarray:
        return np.asarray(KDTree(one).query(two, workers=-1)[1])

    return _peer(TREE, call, wrong)


def brute_force_peer(
    descriptors_1: Any, descriptors_2: Any, wrong: Callable[[np.ndarray], float]
) -> Peer:
    """The most similar descriptor of image 1 for every one of image 2, by matrix products.

    ``descriptors_1`` and ``descriptors_2`` are ``[h, w, d]``.
    """
    one, two = (
        np.asarray(d, np.float32).reshape(-1, d.shape[-1]) for d in (descriptors_1, descriptors_2)
    )
    if len(one) * len(two) > MOST_PRODUCTS:
        return absent(BRUTE_FORCE, f"{len(one)} pixels with as many others take too long")

    def call() -> np.ndarray:
        found = np.empty(len(two), np.int64)
        for first in range(0, len(two), CHUNK):
            part = slice(first, first + CHUNK)
            np.argmax(two[part] @ one.T, axis=1, out=found[part])
        return found

    return _peer(BRUTE_FORCE, call, wrong)


def _peer(name: str, call: Callable[[], np.ndarray], wrong: Callable[[np.ndarray], float]) -> Peer:
    agreement = Agreement("share of wrong matches", wrong(call()), TOLERANCE)
    return Peer(name, call, agreement=agreement, same_method=False)
