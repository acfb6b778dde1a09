"""Placing a frame against the last keyframe: matches, pose, fused pointmap (a proposal only).

Section 3.3 of the MASt3R-SLAM paper. ``f`` is the frame, ``k`` the last keyframe; points of both
come in the frame's camera, the pose sought is ``T_kf`` (frame to keyframe), a Sim(3) because each
prediction has a scale of its own.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import (
    FusedPointmap,
    Matches,
    PoseSolution,
    Sim3,
    SolverStatus,
    average_confidence,
    constrain_to_rays,
    fuse,
    init_fused,
    match,
    solve_relative_pose,
    unique_fraction,
)
from ops.edge_system import FactorNoise
from ops.matching import valid_fraction
from ops.records import Record, record
from ops.robust import sqrt_or_zero
from slam.config import SlamConfig, TrackingConfig
from slam.decisions import MatchChoice
from slam.frontend import UNUSABLE_CONFIDENCE, View

NEVER_PREDICTED = 10 * UNUSABLE_CONFIDENCE
"""A keyframe pixel with no more average confidence than this holds an invented point."""


@record
class Correspondence(Record):
    """For each pixel of the keyframe, the frame pixel that sees the same point."""

    matches: Matches
    """Index into the frame per keyframe pixel, and whether the match is geometrically valid."""
    quality: Float[Array, " hw"]
    """Geometric mean of the two descriptor confidences."""
    usable: Bool[Array, " hw"]
    """Valid, with confident descriptors and confident points: what the pose is solved from."""
    usable_fraction: Float[Array, ""]
    """Share of usable matches; too small means lost."""
    match_fraction: Float[Array, ""]
    """Share of keyframe pixels with a valid match and confident descriptors."""
    unique_fraction: Float[Array, ""]
    """Number of distinct frame pixels among the valid matches, over the number of pixels."""


def correspond(
    config: SlamConfig,
    view_f: View,
    view_k: View,
    keyframe: FusedPointmap,
    match_init: Int[Array, " hw"],
    given: MatchChoice | None = None,
) -> Correspondence:
    """Match the keyframe's pixels into the frame, starting at ``match_init``, and grade each.

    With matches that are ``given`` only their weights are computed.
    """
    if given is not None:
        matches = given.matches(view_f.confidence.shape[1], view_f.points.dtype)
        found = grade(config.tracking, matches, view_f, view_k, keyframe)
        return found.replace(usable=given.usable, usable_fraction=valid_fraction(given.usable))
    matches = match(
        view_f.points,
        view_k.points,
        view_f.descriptors,
        view_k.descriptors,
        match_init,
        config.match,
    )
    return grade(config.tracking, matches, view_f, view_k, keyframe)


def grade(
    config: TrackingConfig,
    matches: Matches,
    view_f: View,
    view_k: View,
    keyframe: FusedPointmap,
) -> Correspondence:
    """How far each match can be trusted, and the shares that decisions are made on."""
    quality = match_quality(matches, view_f, view_k)
    confident = matches.valid & (quality > config.min_descriptor_confidence)
    confidence_f = view_f.confidence.reshape(-1)[matches.index]
    usable = (
        confident
        & (confidence_f > config.min_point_confidence)
        & (average_confidence(keyframe) > max(config.min_point_confidence, NEVER_PREDICTED))
    )
    return Correspondence(
        matches=matches,
        quality=quality,
        usable=usable,
        usable_fraction=valid_fraction(usable),
        match_fraction=valid_fraction(confident),
        unique_fraction=unique_fraction(matches.index, matches.valid),
    )


def match_quality(matches: Matches, view_1: View, view_2: View) -> Float[Array, " hw"]:
    """Geometric mean of the descriptor confidences of each pixel of view 2 and its match."""
    quality_1 = view_1.descriptor_confidence.reshape(-1)[matches.index]
    return sqrt_or_zero(quality_1 * view_2.descriptor_confidence.reshape(-1))


def solve_pose(
    config: TrackingConfig,
    view_f: View,
    keyframe: FusedPointmap,
    correspondence: Correspondence,
    T_kf: Sim3,
    K: Float[Array, "3 3"] | None,
    noise: FactorNoise | None = None,
) -> PoseSolution:
    """Pose of the frame in the keyframe's camera, from the matched points, starting at ``T_kf``."""
    height, width = view_f.confidence.shape
    points_f = view_f.points.reshape(-1, 3)
    points_k = keyframe.points
    factor = config.rays
    if K is not None:
        factor = config.pixels
        points_f = constrain_to_rays(points_f, K, (height, width))
        points_k = constrain_to_rays(points_k, K, (height, width))
    return solve_relative_pose(
        points_f[correspondence.matches.index],
        points_k,
        correspondence.quality,
        correspondence.usable,
        T_kf,
        factor,
        K,
        (height, width),
        noise=noise,
    )


def is_lost(
    config: TrackingConfig, correspondence: Correspondence, solution: PoseSolution
) -> Bool[Array, ""]:
    """Too few usable matches, or a pose problem without a solution."""
    failed = solution.status >= SolverStatus.NOT_FINITE
    return (correspondence.usable_fraction < config.min_match_fraction) | failed


def fuse_keyframe(
    config: TrackingConfig, keyframe: FusedPointmap, view_k: View, T_kf: Sim3
) -> FusedPointmap:
    """The keyframe's pointmap, after taking in the new prediction of it moved into its camera."""
    points_k = T_kf.apply(view_k.points.reshape(-1, 3))
    return fuse(
        config.fusion,
        keyframe,
        points_k,
        view_k.confidence.reshape(-1),
        score=config.fusion_score,
    )


def first_pointmap(config: TrackingConfig, view_f: View) -> FusedPointmap:
    """The canonical pointmap a frame would start with, were it a keyframe."""
    points, confidence = view_f.points.reshape(-1, 3), view_f.confidence.reshape(-1)
    return init_fused(points, confidence, score=config.fusion_score)


def needs_keyframe(config: TrackingConfig, correspondence: Correspondence) -> Bool[Array, ""]:
    """Whether the view has moved on: few matches, or many falling on the same pixels."""
    share = jnp.minimum(correspondence.match_fraction, correspondence.unique_fraction)
    return share < config.keyframe_threshold
