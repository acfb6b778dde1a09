"""What a clip should have given: differentiable errors of trajectory and map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ops import FusedPointmap, Sim3, average_confidence
from ops.alignment import aligned_error
from slam.state import Keyframes
from slam.tracking import NEVER_PREDICTED


def trajectory_loss(
    T_WC: Sim3, truth: Float[Array, "frames 4 4"], placed: Bool[Array, " frames"]
) -> Float[Array, ""]:
    """Absolute trajectory error of the placed frames: RMSE in metres after Sim(3) alignment.

    Positions only, as in ``slam.evaluation``, whose figure it is; 0 with fewer than three frames,
    which say nothing.
    """
    enough = jnp.sum(placed, dtype=jnp.int32) >= 3
    error = aligned_error(T_WC.translation(), truth[:, :3, 3], placed.astype(T_WC.dtype))
    return jnp.where(enough, error, 0)


def map_loss(
    keyframes: Keyframes,
    truth_W: Float[Array, "capacity hw 3"],
    known: Bool[Array, "capacity hw"],
) -> Float[Array, ""]:
    """Error of the dense map: RMSE in metres of all keyframes' points after Sim(3) alignment.

    ``truth_W`` are the true world points of the pixels of the keyframe in each slot, where
    ``known``. All points have the same weight, but for those that no prediction stands behind.
    """
    points_W = keyframes.T_WC[:, None].apply(keyframes.pointmap.points)
    used = jnp.arange(keyframes.capacity, dtype=jnp.int32) < keyframes.size

    def average(fused: FusedPointmap) -> Float[Array, " hw"]:
        # An empty slot has seen no prediction: 0/0.
        return average_confidence(fused.replace(count=jnp.maximum(fused.count, 1)))

    predicted = jax.vmap(average)(keyframes.pointmap) > NEVER_PREDICTED
    counts = known & used[:, None] & predicted
    dtype = points_W.dtype
    return aligned_error(
        points_W.reshape(-1, 3), truth_W.reshape(-1, 3), counts.reshape(-1).astype(dtype)
    )
