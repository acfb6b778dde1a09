"""How wrong a prior is about one pair of views, and how wrong those are that know nothing."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.quality.truth import FramePair, Truth, true_geometry
from experiments.training.objective import median_where
from mast3r_jax.losses import mean_distance, normalize_jointly
from ops import Sim3
from ops.rays import norm
from ops.records import Record, record
from slam.config import SlamConfig
from slam.frontend import decode_pair
from slam.state import identity_match
from slam.tracking import correspond, first_pointmap, is_lost, solve_pose
from slam.types import TwoViewPrior

CLOSE = 2.0
"""Pixels within which a match is right."""
_SAMPLES = 512
"""Pixels of view 2 whose descriptors are compared with all of view 1."""
_STILL = 0.02
"""Metres between the cameras below which there is no direction to speak of."""
_PATCH = 7
"""Pixels along the side of the patches that stand in for descriptors."""


@record
class PairMeasures(Record):
    """Errors of a pair; NaN where something makes no statement."""

    points_1: Float[Array, ""]
    """Median over view 1's known pixels of the distance between predicted and true point over the
    true point's distance, once the points of both views are divided by their mean distance: of the
    predicted ones, of the true ones."""
    points_2: Float[Array, ""]
    """The same of view 2, in view 1's camera."""
    scale: Float[Array, ""]
    """``|log(predicted / true mean distance)|``."""
    rotation: Float[Array, ""]
    """Of the relative pose, degrees; infinite if none was found."""
    direction: Float[Array, ""]
    """Between estimated and true translation, degrees; infinite if no pose was found."""
    placed: Float[Array, ""]
    """1 if a pose was found, else 0."""
    matches: Float[Array, ""]
    """Share of the pixels of view 2 that view 1 sees too whose match, by geometry and then
    descriptors as the system does it, is within ``CLOSE`` pixels."""
    descriptors: Float[Array, ""]
    """The same share if the most similar descriptor of the whole image is taken."""


FIGURES = {
    "points_1": "points of view 1, error",
    "points_2": "points of view 2, error",
    "scale": "metric scale, log error",
    "rotation": "rotation, degrees",
    "direction": "direction, degrees",
    "placed": "pose found, share",
    "matches": "within 2 px, system",
    "descriptors": "within 2 px, descriptors",
}
"""What to call the measures."""
SHARES = ("placed", "matches", "descriptors")
"""Those of which the mean is told; of the others it is the median."""


def measure_prior(
    prior: TwoViewPrior, config: SlamConfig, pair: FramePair, key: PRNGKeyArray
) -> PairMeasures:
    """Errors of a prior, used as the system uses it: view 1 is the frame, view 2 the keyframe."""
    truth = true_geometry(pair)
    encoding_1, encoding_2 = prior.encode(pair.frame_1), prior.encode(pair.frame_2)
    view_1, view_2 = decode_pair(prior, encoding_1, encoding_2)
    own_2, _ = decode_pair(prior, encoding_2, encoding_1)
    keyframe = first_pointmap(config.tracking, own_2)
    height, width = truth.seen.shape
    start = identity_match((height, width))
    found = correspond(config, view_1, view_2, keyframe, start)
    solution = solve_pose(
        config.tracking, view_1, keyframe, found, Sim3.identity(dtype=jnp.float32), None
    )
    lost = is_lost(config.tracking, found, solution)
    T_21 = solution.T_kf
    rotation, direction = pose_errors(T_21.rotation_matrix(), T_21.translation(), truth)
    points_1, points_2 = point_errors(view_1.points, view_2.points, truth)
    distances = [
        mean_distance(a[None], b[None], truth.valid_1[None], truth.valid_2[None])[0]
        for a, b in ((view_1.points, view_2.points), (truth.points_1, truth.points_2))
    ]
    return PairMeasures(
        points_1=points_1,
        points_2=points_2,
        scale=jnp.abs(jnp.log(distances[0] / distances[1])),
        rotation=jnp.where(lost, jnp.inf, rotation),
        direction=jnp.where(lost & ~jnp.isnan(direction), jnp.inf, direction),
        placed=jnp.where(lost, 0.0, 1.0),
        matches=share_close(found.matches.uv.reshape(height, width, 2), truth),
        descriptors=similar_share(view_1.descriptors, view_2.descriptors, truth, key),
    )


def measure_constant(
    mean_1: Float[Array, "h w 3"], mean_2: Float[Array, "h w 3"], pair: FramePair
) -> PairMeasures:
    """Errors of predicting the same two pointmaps whatever the images."""
    points_1, points_2 = point_errors(mean_1, mean_2, true_geometry(pair))
    return _nothing().replace(points_1=points_1, points_2=points_2)


def measure_identity(pair: FramePair) -> PairMeasures:
    """Errors of true depth in both views, with the cameras in the same place."""
    truth = true_geometry(pair)
    points_1, points_2 = point_errors(truth.points_1, truth.own_2, truth)
    rotation, _ = pose_errors(jnp.eye(3), jnp.zeros(3), truth)
    height, width = truth.seen.shape
    v, u = jnp.mgrid[0:height, 0:width].astype(jnp.float32)
    return _nothing().replace(
        points_1=points_1,
        points_2=points_2,
        rotation=rotation,
        matches=share_close(jnp.stack([u, v], axis=-1), truth),
    )


def measure_patches(pair: FramePair, key: PRNGKeyArray) -> PairMeasures:
    """How well pixels are told apart by what is around them, without any network."""
    one, two = (patch_descriptors(jnp.asarray(f.image)) for f in (pair.frame_1, pair.frame_2))
    return _nothing().replace(descriptors=similar_share(one, two, true_geometry(pair), key))


def point_errors(
    points_1: Float[Array, "h w 3"], points_2: Float[Array, "h w 3"], truth: Truth
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``PairMeasures.points_1`` and ``points_2`` of pointmaps in view 1's camera."""
    valid = truth.valid_1, truth.valid_2
    points, true = normalize_jointly(
        points_1[None],
        points_2[None],
        truth.points_1[None],
        truth.points_2[None],
        valid[0][None],
        valid[1][None],
        jnp.zeros(1, bool),
    )

    def median(view: int) -> Float[Array, ""]:
        distance = norm(true[view][0])
        error = norm(points[view][0] - true[view][0]) / jnp.where(distance > 0, distance, 1)
        return median_where(valid[view], error)

    return median(0), median(1)


def pose_errors(
    R_21: Float[Array, "3 3"], t_21: Float[Array, "3"], truth: Truth
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Angles in degrees between rotations, and between translations; NaN if the camera is still."""
    # Angles by way of sines too: an arc cosine in float32 tells none below 0.02 degrees.
    R = jnp.matmul(R_21, truth.T_12[:3, :3], precision="highest")
    twist = jnp.stack([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    rotation = jnp.arctan2(norm(twist), jnp.trace(R) - 1)
    true = -jnp.matmul(truth.T_12[:3, :3].T, truth.T_12[:3, 3], precision="highest")
    direction = jnp.arctan2(norm(jnp.cross(t_21, true)), jnp.sum(t_21 * true))
    direction = jnp.where(norm(true) < _STILL, jnp.nan, direction)
    return jnp.rad2deg(rotation), jnp.rad2deg(direction)


def share_close(uv: Float[Array, "h w 2"], truth: Truth) -> Float[Array, ""]:
    """Share of what view 1 sees of view 2 whose match is within ``CLOSE`` pixels."""
    close = norm(uv - truth.target) <= CLOSE
    seen = jnp.sum(truth.seen).astype(jnp.float32)
    return jnp.sum(close & truth.seen).astype(jnp.float32) / seen


def similar_share(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    truth: Truth,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """The same of the most similar unit descriptors of all of view 1, for a sample of pixels."""
    height, width = truth.seen.shape
    chance = jax.random.uniform(key, (height * width,))
    ranked = jnp.where(truth.seen.reshape(-1), chance, -1.0)
    order, sample = jax.lax.top_k(ranked, min(_SAMPLES, height * width))
    all_1 = descriptors_1.reshape(height * width, -1)
    some_2 = descriptors_2.reshape(height * width, -1)[sample]
    best = jnp.argmax(jnp.matmul(some_2, all_1.T, precision="highest"), axis=1)
    uv = jnp.stack([best % width, best // width], axis=-1).astype(jnp.float32)
    close = norm(uv - truth.target.reshape(-1, 2)[sample]) <= CLOSE
    drawn = order >= 0
    return jnp.sum(close & drawn).astype(jnp.float32) / jnp.sum(drawn).astype(jnp.float32)


def patch_descriptors(image: Array) -> Float[Array, "h w d"]:
    """The 7x7 pixels around each one, less their mean colour, of unit length.

    Their products are zero-mean normalised cross-correlations.
    """
    height, width = image.shape[:2]
    half = _PATCH // 2
    padded = jnp.pad(image.astype(jnp.float32), ((half, half), (half, half), (0, 0)), mode="edge")
    shifts = [padded[i : i + height, j : j + width] for i in range(_PATCH) for j in range(_PATCH)]
    patch = jnp.stack(shifts, axis=2)
    patch = (patch - patch.mean(axis=2, keepdims=True)).reshape(height, width, -1)
    length = norm(patch)[..., None]
    return patch / jnp.where(length > 0, length, 1.0)


def summarize(columns: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float | None]:
    """Of many pairs: medians of errors, means of shares; None where nothing was stated.

    An error that is infinite for half of the pairs is infinite.
    """
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        known = columns[name][~np.isnan(columns[name])]
        average = np.mean if name in SHARES else np.median
        figures[name] = float(average(known)) if known.size else None
    return figures


def _nothing() -> PairMeasures:
    return PairMeasures(**{name: jnp.float32(jnp.nan) for name in FIGURES})
