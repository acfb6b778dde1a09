"""The pose of one image relative to another, from matched points (paper, section 3.4).

Gauss-Newton on ``T_kf``, which maps the frame's points into the keyframe's camera. With ``z`` the
keyframe's measurement, ``h(T_kf X_f)`` its prediction and ``J = dh/dxi`` under ``T <- exp(xi) T``,

    H = sum w J^T J,   xi = H^-1 sum w J^T (z - h),   cost = 1/2 sum w (z - h)^2,

where ``w = q/sigma^2`` times Huber's weight of the whitened component. All three sums are entries
of one 8 x 8 Gram matrix, that of the rows ``sqrt(w) [J | z - h]``.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import pinhole
from ops.edge_system.factors import FactorConfig, checked_calibration, factor_gram
from ops.edge_system.factors import PixelFactorConfig as PixelFactorConfig
from ops.edge_system.factors import RayFactorConfig as RayFactorConfig
from ops.gauss_newton import StepReport, gauss_newton
from ops.linear import solve_spd_small
from ops.records import Record, record
from ops.sim3 import Sim3


@record
class PoseSolution(Record):
    """A proposed relative pose, and how it came about."""

    T_kf: Sim3
    """Frame to keyframe; after a failure, the last pose that was good."""
    cost: Float[Array, ""]
    """Robust cost of the last linearisation, one step before ``T_kf``."""
    iterations: Int[Array, ""]
    """Linearisations made."""
    status: Int[Array, ""]
    """A ``SolverStatus`` as int32."""
    hessian: Float[Array, "7 7"]
    """``H`` of the last linearisation, tangent order (tau, omega, sigma)."""


@record
class NormalEquations(Record):
    """A linearised relative pose problem."""

    hessian: Float[Array, "7 7"]
    """``sum w J^T J``."""
    gradient: Float[Array, "7"]
    """``sum w J^T (z - h)``, the downhill side: the step is ``hessian^-1 gradient``."""
    cost: Float[Array, ""]
    """``1/2 sum w (z - h)^2``."""


@record
class PoseStep(Record):
    """One Gauss-Newton step."""

    T_kf: Sim3
    """The pose after the step."""
    tangent: Float[Array, "7"]
    """The step, ``T_kf = exp(tangent) T_kf_before``; 0 if the system could not be solved."""
    equations: NormalEquations
    """The system at the pose before the step."""
    positive_definite: Bool[Array, ""]
    """Whether the system could be solved."""


def linearize_relative_pose(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> NormalEquations:
    """Normal equations of ``solve_relative_pose`` at one pose; same arguments."""
    pixels = None
    if isinstance(config, PixelFactorConfig):
        K, image_shape = checked_calibration(points_f.shape[0], K, image_shape)
        pixels = pinhole.pixel_grid(image_shape, points_k.dtype)
    gram = factor_gram(points_f, points_k, q, valid, T_kf, config, K, image_shape, pixels)
    return NormalEquations(gram[:7, :7], gram[:7, 7], gram[7, 7] / 2)


def relative_pose_step(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> PoseStep:
    """Exactly one iteration of ``solve_relative_pose``: linearise, solve, retract."""
    equations = linearize_relative_pose(points_f, points_k, q, valid, T_kf, config, K, image_shape)
    tangent, ok = solve_spd_small(equations.hessian, equations.gradient)
    return PoseStep(T_kf.retract(tangent), tangent, equations, ok)


def solve_relative_pose(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> PoseSolution:
    """Pose of a frame in its keyframe's camera from matched points.

    ``points_f[n]``, in the frame's camera, and ``points_k[n]``, in the keyframe's, show the same
    place with confidence ``q[n]`` where ``valid[n]``; ``T_kf`` is the starting pose. Only valid
    points are looked at: the others may hold anything.

    With a ``PixelFactorConfig``, ``K`` and ``image_shape = (H, W)`` are needed, ``n = H*W`` runs
    over the keyframe's pixels in order, and both pointmaps must have been slid onto their rays by
    ``constrain_to_rays``. Raises ``ValueError`` if any of that is missing.

    Failure is data: check ``status`` before using ``T_kf``.
    """

    def step(T: Sim3) -> tuple[Sim3, StepReport]:
        step = relative_pose_step(points_f, points_k, q, valid, T, config, K, image_shape)
        return step.T_kf, StepReport(
            cost=step.equations.cost,
            step_norm=jnp.sqrt(jnp.sum(step.tangent**2)),
            positive_definite=step.positive_definite,
            extra=step.equations.hessian,
        )

    result = gauss_newton(
        step,
        T_kf,
        max_iterations=config.max_iterations,
        rel_error=config.rel_error,
        delta_norm=config.delta_norm,
    )
    return PoseSolution(result.x, result.cost, result.iterations, result.status, result.extra)
