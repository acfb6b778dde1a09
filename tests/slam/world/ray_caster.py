"""A slow float64 ray caster and distance functions in numpy, independent of the renderer.

Boxes are cut face by face as bounded planes, spheres and cylinders by the quadratic formula; the
renderer uses slabs and closest approaches.
"""

import numpy as np


def solids(room):
    """(kind, centre, half, yaw, object id) of the active solids, in float64."""
    n = room.yaw.shape[0]
    kinds = np.full(n, "cylinder", dtype=object)
    kinds[: room.num_boxes] = "box"
    kinds[room.num_boxes : room.num_boxes + room.num_spheres] = "sphere"
    centre, half = np.asarray(room.centre, np.float64), np.asarray(room.half, np.float64)
    yaw, active = np.asarray(room.yaw, np.float64), np.asarray(room.active)
    return [(kinds[i], centre[i], half[i], yaw[i], 6 + i) for i in range(n) if active[i]]


def _to_local(vectors, yaw):
    c, s = np.cos(yaw), np.sin(yaw)
    return vectors @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _quadratic(a, b, c):
    """Both roots of a t^2 + 2 b t + c, NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(b * b - a * c)
        return (-b - root) / a, (-b + root) / a


def _candidates(kind, o, d, half):
    """Parameters at which the rays meet the surface; NaN or anything not positive is no hit."""
    hits = []
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "box":
            for axis in range(3):
                others = [i for i in range(3) if i != axis]
                for side in (-1.0, 1.0):
                    t = (side * half[axis] - o[axis]) / d[:, axis]
                    p = o + t[:, None] * d
                    inside = np.all(np.abs(p[:, others]) <= half[others], axis=1)
                    hits.append(np.where(inside, t, np.nan))
        elif kind == "sphere":
            hits += _quadratic((d * d).sum(1), d @ o, o @ o - half[0] ** 2)
        else:
            flat = d[:, :2]
            for t in _quadratic((flat * flat).sum(1), flat @ o[:2], o[:2] @ o[:2] - half[0] ** 2):
                hits.append(np.where(np.abs(o[2] + t * d[:, 2]) <= half[2], t, np.nan))
            for side in (-1.0, 1.0):
                t = (side * half[2] - o[2]) / d[:, 2]
                p = o + t[:, None] * d
                hits.append(np.where((p[:, :2] ** 2).sum(1) <= half[0] ** 2, t, np.nan))
    return hits


def cast(room, origin, directions):
    """First hit of rays: parameter [n] and object id [n]."""
    best = np.full(len(directions), np.inf)
    ids = np.full(len(directions), -1)

    def offer(t, index):
        closer = np.isfinite(t) & (t > 0) & (t < best)
        best[closer], ids[closer] = t[closer], index

    size = np.asarray(room.size, np.float64)
    with np.errstate(divide="ignore"):
        for axis in range(3):
            low = -0.5 * size[axis] if axis < 2 else 0.0
            for side, bound in enumerate((low, low + size[axis])):
                offer((bound - origin[axis]) / directions[:, axis], 2 * axis + side)
    for kind, centre, half, yaw, index in solids(room):
        o, d = _to_local(origin - centre, yaw), _to_local(directions, yaw)
        for t in _candidates(kind, o, d, half):
            offer(t, index)
    return best, ids


def clearance(room, points):
    """Distance of points [n, 3] to the nearest surface, negative in a solid or out of the room."""
    size = np.asarray(room.size, np.float64)
    below, above = points - size * [-0.5, -0.5, 0.0], size * [0.5, 0.5, 1.0] - points
    distance = np.minimum(below, above).min(axis=1)
    for kind, centre, half, yaw, _ in solids(room):
        local = _to_local(points - centre, yaw)
        if kind == "sphere":
            here = np.linalg.norm(local, axis=1) - half[0]
        else:
            if kind == "cylinder":
                radial = np.linalg.norm(local[:, :2], axis=1) - half[0]
                gaps = np.stack([radial, np.abs(local[:, 2]) - half[2]], axis=1)
            else:
                gaps = np.abs(local) - half
            here = np.linalg.norm(np.maximum(gaps, 0), axis=1) + np.minimum(gaps.max(axis=1), 0)
        distance = np.minimum(distance, here)
    return distance
