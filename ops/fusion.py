"""The canonical pointmap of a keyframe, which takes in every later prediction of it.

The weighted modes keep the SUM of confidences, ``X <- (C X + C' X')/(C + C')``, ``C <- C + C'``,
and count what went in; ``average_confidence`` divides (paper, section 3.4).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.records import Record, record


@record
class FusedPointmap(Record):
    """A pointmap that has seen one or more predictions."""

    points: Float[Array, "n 3"]
    """Points in the keyframe's camera."""
    confidence: Float[Array, "n"]
    """Accumulated confidence; see ``average_confidence``."""
    count: Int[Array, ""]
    """How many predictions the accumulated confidence is the sum of."""
    updates: Int[Array, ""]
    """How many predictions were offered, the first one included."""
    score: Float[Array, ""]
    """Score of the prediction kept by mode ``best_score``; by its median confidence at first."""


Mode = Callable[[FusedPointmap, Float[Array, "n 3"], Float[Array, "n"], Array], FusedPointmap]


def init_fused(
    points: Float[Array, "n 3"], confidence: Float[Array, "n"], *, score: str = "median"
) -> FusedPointmap:
    """A fused pointmap of one prediction; ``score`` as in ``fuse``."""
    one = jnp.ones((), jnp.int32)
    return FusedPointmap(points, confidence, one, one, _score(score, confidence))


def fuse(
    mode: str,
    fused: FusedPointmap,
    points: Float[Array, "n 3"],
    confidence: Float[Array, "n"],
    *,
    score: str = "median",
) -> FusedPointmap:
    """Take a new prediction, in the same camera, into a fused pointmap.

    =====================  ==============================================================
    ``weighted_pointmap``  confidence-weighted average of points
    ``weighted_spherical`` the same average of radius, azimuth and polar angle
    ``indep_conf``         per pixel, the more confident one
    ``best_score``         the prediction with the better ``score`` of its confidences
    ``recent``             the newest prediction
    ``first``              the oldest prediction
    =====================  ==============================================================

    ``score`` is ``"median"`` (of an even number, the lower one) or ``"mean"``. Raises
    ``ValueError`` for an unknown mode or score.
    """
    if mode not in _MODES:
        raise ValueError(f"unknown fusion mode {mode!r}; choose one of {', '.join(FUSION_MODES)}")
    updated = _MODES[mode](fused, points, confidence, _score(score, confidence))
    return updated.replace(updates=fused.updates + 1)


def average_confidence(fused: FusedPointmap) -> Float[Array, "n"]:
    """Mean confidence of the predictions that went in."""
    return fused.confidence / fused.count.astype(fused.confidence.dtype)


def _score(kind: str, confidence: Float[Array, "n"]) -> Float[Array, ""]:
    """One number for how confident a prediction is."""
    if kind == "median":
        return jnp.sort(confidence)[(confidence.shape[0] - 1) // 2]
    if kind == "mean":
        return jnp.mean(confidence)
    raise ValueError(f"unknown score {kind!r}; choose 'median' or 'mean'")


def _weighted_pointmap(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    del score
    total = fused.confidence + confidence
    mean = fused.confidence[:, None] * fused.points + confidence[:, None] * points
    return fused.replace(points=mean / total[:, None], confidence=total, count=fused.count + 1)


def _weighted_spherical(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    del score
    total = fused.confidence + confidence
    share = confidence / total
    old, new = _to_spherical(fused.points), _to_spherical(points)
    turn = new[1] - old[1]
    turn = turn - 2 * jnp.pi * jnp.round(turn / (2 * jnp.pi))  # the short way round
    difference = (new[0] - old[0], turn, new[2] - old[2])
    mean = [a + share * d for a, d in zip(old, difference, strict=True)]
    return fused.replace(points=_from_spherical(*mean), confidence=total, count=fused.count + 1)


def _indep_conf(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    del score
    better = confidence > fused.confidence
    return fused.replace(
        points=jnp.where(better[:, None], points, fused.points),
        confidence=jnp.where(better, confidence, fused.confidence),
    )


def _best_score(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    better = score > fused.score
    return fused.replace(
        points=jnp.where(better, points, fused.points),
        confidence=jnp.where(better, confidence, fused.confidence),
        score=jnp.where(better, score, fused.score),
    )


def _recent(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    return fused.replace(points=points, confidence=confidence, score=score)


def _first(
    fused: FusedPointmap, points: Float[Array, "n 3"], confidence: Float[Array, "n"], score: Array
) -> FusedPointmap:
    del points, confidence, score
    return fused


_MODES: dict[str, Mode] = {
    "weighted_pointmap": _weighted_pointmap,
    "weighted_spherical": _weighted_spherical,
    "indep_conf": _indep_conf,
    "best_score": _best_score,
    "recent": _recent,
    "first": _first,
}
FUSION_MODES = tuple(_MODES)
"""The names ``fuse`` knows."""


def _to_spherical(points: Float[Array, "n 3"]) -> tuple[Array, Array, Array]:
    """Radius, azimuth ``atan2(y, x)`` and polar angle from the z axis."""
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    across = jnp.sqrt(x * x + y * y)
    return jnp.sqrt(across * across + z * z), jnp.arctan2(y, x), jnp.arctan2(across, z)


def _from_spherical(radius: Array, azimuth: Array, polar: Array) -> Float[Array, "n 3"]:
    across = radius * jnp.sin(polar)
    return jnp.stack(
        [across * jnp.cos(azimuth), across * jnp.sin(azimuth), radius * jnp.cos(polar)], axis=-1
    )
