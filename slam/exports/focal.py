"""The focal length that explains pointmaps, for cameras that were never calibrated."""

import numpy as np
from jaxtyping import Float


def estimate_focal(points: Float[np.ndarray, "n 3"], pixels: Float[np.ndarray, "n 2"]) -> float:
    """Robust focal length of a pinhole camera whose principal point is known.

    Each point asks for a focal length; the answer is their median, weighted by the distance of the
    pixel from the axis, for near the axis all focal lengths look alike. (The sum of distances in
    pixels, which DUSt3R's Weiszfeld iterations minimise, can be ruled by a few points that are
    wrongly close to the camera's plane: they project far away.)

    Args:
        points: in the camera, x right, y down, z forward; any scale.
        pixels: where each was seen, from the principal point.

    Returns:
        The focal length in pixels.

    Raises:
        ValueError: no point lies before the camera and off its axis.
    """
    usable = np.isfinite(points).all(axis=1) & (points[:, 2] > 0)
    rays = points[usable, :2].astype(np.float64) / points[usable, 2:]
    seen = pixels[usable].astype(np.float64)
    along = np.sum(rays * seen, axis=1)
    asked, weight = np.full(len(seen), np.inf), np.linalg.norm(seen, axis=1)
    np.divide(weight**2, along, out=asked, where=along > 0)
    order = np.argsort(asked)
    total = np.cumsum(weight[order])
    if not len(total) or not total[-1] > 0:
        raise ValueError("no point lies before the camera: there is no focal length to estimate")
    focal = float(asked[order][np.searchsorted(total, total[-1] / 2)])
    if not np.isfinite(focal):
        raise ValueError("most points lie on the wrong side: there is no focal length to estimate")
    return focal
