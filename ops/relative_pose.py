"""The pose of one image relative to another, from matched points (paper, section 3.4).

Gauss-Newton on ``T_kf``, which maps the frame's points into the keyframe's camera. With ``z`` the
keyframe's measurement, ``h(T_kf X_f)`` its prediction and ``J = dh/dxi`` under ``T <- exp(xi) T``,

    H = sum w J^T J,   xi = H^-1 sum w J^T (z - h),   cost = 1/2 sum w (z - h)^2,

where ``w = q/sigma^2`` times Huber's weight of the whitened component. All three sums are entries
of one 8 x 8 Gram matrix, that of the rows ``sqrt(w) [J | z - h]``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import pinhole, rays, robust
from ops.gauss_newton import StepReport, gauss_newton
from ops.linear import solve_spd_small
from ops.records import Record, record
from ops.sim3 import Sim3


@dataclasses.dataclass(frozen=True)
class RayFactorConfig:
    """Uncalibrated measurement: unit ray and distance. Values of the original's ``base`` preset."""

    sigma_ray: float = 0.003
    """Standard deviation of a ray component, unitless (about radians)."""
    sigma_dist: float = 10.0
    """Standard deviation of the distance, scene units: weak, there for pure rotations."""
    huber: float = 1.345
    """Huber's threshold on whitened components; see ``robust.huber_weight``."""
    max_iterations: int = 50
    rel_error: float = 1e-3
    """Stop when the cost falls by less than this share."""
    delta_norm: float = 1e-3
    """Stop when the tangent step is shorter than this."""


@dataclasses.dataclass(frozen=True)
class PixelFactorConfig:
    """Calibrated measurement: pixel and log-depth. Values of the original's ``calib`` preset."""

    sigma_pixel: float = 1.0
    """Standard deviation of u and of v in pixels."""
    sigma_depth: float = 10.0
    """Standard deviation of the log-depth: weak, there for the scale."""
    pixel_border: float = -10.0
    """Predictions must lie this far inside the image; negative allows them outside."""
    depth_eps: float = 1e-6
    """Points must be at least this far in front of the camera."""
    huber: float = 1.345
    """Huber's threshold on whitened components; see ``robust.huber_weight``."""
    max_iterations: int = 50
    rel_error: float = 1e-3
    """Stop when the cost falls by less than this share."""
    delta_norm: float = 1e-3
    """Stop when the tangent step is shorter than this."""


FactorConfig = RayFactorConfig | PixelFactorConfig


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
    shown = valid[:, None]
    points_k = jnp.where(shown, points_k, 1)  # whatever hides behind an invalid match stays there
    predicted = T_kf.apply(jnp.where(shown, points_f, 1))
    q = jnp.where(valid, q, 0)
    if isinstance(config, RayFactorConfig):
        value, jacobian = rays.psi_with_jacobian(predicted)
        residual = rays.psi(points_k) - value
        sigmas = [config.sigma_ray] * 3 + [config.sigma_dist]
    else:
        K, image_shape = _calibration(points_f.shape[0], K, image_shape)
        value, in_front, jacobian = pinhole.project_with_jacobian(predicted, K, config.depth_eps)
        inside = pinhole.inside_image(value[:, :2], image_shape, config.pixel_border)
        seen_k = ~(points_k[:, 2] <= config.depth_eps)  # not a number: seen, and reported
        log_depth_k = jnp.log(jnp.where(seen_k, points_k[:, 2], 1))
        pixels = pinhole.pixel_grid(image_shape, points_k.dtype)
        residual = jnp.concatenate([pixels, log_depth_k[:, None]], axis=-1) - value
        q = jnp.where(in_front & inside & seen_k, q, 0)
        sigmas = [config.sigma_pixel] * 2 + [config.sigma_depth]
    root_information = jnp.sqrt(q)[:, None] / jnp.asarray(sigmas, q.dtype)
    root_weight = root_information * jnp.sqrt(
        robust.huber_weight(root_information * residual, config.huber)
    )
    rows = root_weight[..., None] * jnp.concatenate([jacobian, residual[..., None]], axis=-1)
    rows = rows.reshape(-1, 8)
    gram = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
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


def _calibration(
    count: int, K: Float[Array, "3 3"] | None, image_shape: tuple[int, int] | None
) -> tuple[Float[Array, "3 3"], tuple[int, int]]:
    """Intrinsics and image shape, checked."""
    if K is None or image_shape is None:
        raise ValueError(
            "a PixelFactorConfig needs K and image_shape=(H, W); without a calibration use a "
            "RayFactorConfig"
        )
    if count != image_shape[0] * image_shape[1]:
        raise ValueError(
            f"calibrated pose: {count} points for an image of {image_shape[0]} x "
            f"{image_shape[1]} pixels; pass one point per keyframe pixel, in order"
        )
    return K, image_shape
