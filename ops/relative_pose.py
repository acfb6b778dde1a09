"""The pose of one image relative to another, from matched points (paper, section 3.4).

Gauss-Newton on ``T_kf``, which maps the frame's points into the keyframe's camera. With ``z`` the
keyframe's measurement, ``h(T_kf X_f)`` its prediction and ``J = dh/dxi`` under ``T <- exp(xi) T``,

    H = sum w J^T J,   xi = H^-1 sum w J^T (z - h),   cost = 1/2 sum w (z - h)^2,

where ``w = q/sigma^2`` times Huber's weight of the whitened component. All three sums are entries
of one 8 x 8 Gram matrix, that of the rows ``sqrt(w) [J | z - h]``.

The pose has derivatives in the points, their confidences, the intrinsics and the noise: those of
the minimum that the iterations approach, or of the iterations themselves.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import pinhole
from ops.edge_system.curvature import factor_curvature, factor_gradient
from ops.edge_system.factors import FactorConfig, FactorNoise, checked_calibration, factor_gram
from ops.edge_system.factors import PixelFactorConfig as PixelFactorConfig
from ops.edge_system.factors import RayFactorConfig as RayFactorConfig
from ops.gauss_newton import StepReport, gauss_newton
from ops.implicit import implicitly, solve_linear
from ops.linear import solve_spd_small
from ops.records import Record, record
from ops.sim3 import Sim3
from ops.status import SolverStatus

Derivative = Literal["implicit", "unrolled"]
"""Of what converged (``ops/implicit.py``), or step by step back through the iterations."""


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


@record
class PoseCurvature(Record):
    """The robust cost of a relative pose problem around a pose, to second order and exactly."""

    gradient: Float[Array, "7"]
    """Derivative of the cost under ``T_kf <- exp(xi) T_kf``; zero at the solution."""
    hessian: Float[Array, "7 7"]
    """Its second derivative, with that of the residuals and of the robust weights."""
    definite: Bool[Array, ""]
    """Whether the cost curves upwards in all directions: at a solution where it does not, the
    measurements do not determine the pose to first order, and its implicit derivative is taken
    as 0."""


def linearize_relative_pose(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    pixels: Float[Array, "n 2"] | None = None,
    noise: FactorNoise | None = None,
) -> NormalEquations:
    """Normal equations of ``solve_relative_pose`` at one pose; same arguments."""
    K, image_shape, pixels = _calibration(points_k, config, K, image_shape, pixels)
    gram = factor_gram(points_f, points_k, q, valid, T_kf, config, K, image_shape, pixels, noise)
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
    *,
    pixels: Float[Array, "n 2"] | None = None,
    noise: FactorNoise | None = None,
) -> PoseStep:
    """Exactly one iteration of ``solve_relative_pose``: linearise, solve, retract."""
    equations = linearize_relative_pose(
        points_f, points_k, q, valid, T_kf, config, K, image_shape, pixels=pixels, noise=noise
    )
    tangent, ok = solve_spd_small(equations.hessian, equations.gradient)
    return PoseStep(T_kf.retract(tangent), tangent, equations, ok)


def relative_pose_curvature(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    pixels: Float[Array, "n 2"] | None = None,
    noise: FactorNoise | None = None,
) -> PoseCurvature:
    """How well a pose is determined, and by how much it misses the minimum; same arguments."""
    K, image_shape, pixels = _calibration(points_k, config, K, image_shape, pixels)
    noise = noise or config.noise(points_f.dtype)
    gradient, hessian = factor_curvature(
        points_f, points_k, q, valid, T_kf, config, K, image_shape, pixels, noise
    )
    return PoseCurvature(gradient, hessian, solve_spd_small(hessian, gradient)[1])


def solve_relative_pose(
    points_f: Float[Array, "n 3"],
    points_k: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T_kf: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    pixels: Float[Array, "n 2"] | None = None,
    noise: FactorNoise | None = None,
    derivative: Derivative = "implicit",
) -> PoseSolution:
    """Pose of a frame in its keyframe's camera from matched points.

    ``points_f[n]``, in the frame's camera, and ``points_k[n]``, in the keyframe's, show the same
    place with confidence ``q[n]`` where ``valid[n]``; ``T_kf`` is the starting pose. Only valid
    points are looked at: the others may hold anything.

    With a ``PixelFactorConfig``, ``K`` and ``image_shape = (H, W)`` are needed, ``n = H*W`` runs
    over the keyframe's pixels in order, and both pointmaps must have been slid onto their rays by
    ``constrain_to_rays``. Raises ``ValueError`` if any of that is missing. ``pixels`` are where the
    keyframe's pixels lie in the image of an ideal pinhole camera: those of a lens that distorts, in
    place of the grid.

    Failure is data: check ``status`` before using ``T_kf``.

    ``T_kf`` can be differentiated in ``points_f``, ``points_k``, ``q``, ``K``, ``pixels`` and
    ``noise`` (which takes the place of the configuration's), in forward and reverse mode; the rest
    of the solution has no derivative. ``"implicit"`` is the derivative of the minimum, exact as far
    as the solver converged, for the price of about one iteration; it is 0 after a failure, and
    where ``relative_pose_curvature`` is not definite. ``"unrolled"`` is that of the iterations, all
    ``config.max_iterations`` of them, in the starting pose too; the solution is the same.
    """
    K, image_shape, pixels = _calibration(points_k, config, K, image_shape, pixels)
    if noise is None:
        noise = config.noise(points_f.dtype)
    problem = _Problem(points_f, points_k, q, valid, T_kf, K, pixels, noise)
    if derivative == "unrolled":
        T_kf, report = _iterate(problem, config, image_shape, unrolled=True)
        return PoseSolution(T_kf, *report)

    def condition(T: Sim3, _: Any, p: _Problem) -> Float[Array, "7"]:
        return p.at(factor_gradient, T, config, image_shape)

    def follow(T: Sim3, report: Any, p: _Problem, change: Float[Array, "7"]) -> Float[Array, "7"]:
        _, H = p.at(factor_curvature, T, config, image_shape)
        status = report[2]
        H = jnp.where(status < SolverStatus.NOT_FINITE, H, 0)  # has no solution: gives 0
        return solve_linear(H, change, jnp.matmul, lambda H, g: solve_spd_small(H, g)[0])

    solve = implicitly(
        lambda p: _iterate(p, config, image_shape),
        condition,
        follow,
        lambda T, report, p, xi: T.retract(xi),
    )
    T_kf, report = solve(problem)
    return PoseSolution(T_kf, *report)


@record
class _Problem(Record):
    """Everything the pose depends on."""

    points_f: Float[Array, "n 3"]
    points_k: Float[Array, "n 3"]
    q: Float[Array, "n"]
    valid: Bool[Array, "n"]
    T_kf: Sim3
    K: Float[Array, "3 3"] | None
    pixels: Float[Array, "n 2"] | None
    noise: FactorNoise

    def at(
        self,
        function: Callable[..., Any],
        T_kf: Sim3,
        config: FactorConfig,
        image_shape: tuple[int, int] | None,
    ) -> Any:
        """A function of ``ops.edge_system.curvature`` at another pose, of the relative noise."""
        return function(
            self.points_f,
            self.points_k,
            self.q,
            self.valid,
            T_kf,
            config,
            self.K,
            image_shape,
            self.pixels,
            self.noise.relative(),
        )


def _calibration(
    points: Float[Array, "n 3"],
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    pixels: Float[Array, "n 2"] | None,
) -> tuple[Array | None, tuple[int, int] | None, Array | None]:
    """Intrinsics, image shape and every keyframe pixel's ``(u, v)``, if calibrated."""
    if not isinstance(config, PixelFactorConfig):
        return None, None, None
    K, image_shape = checked_calibration(points.shape[0], K, image_shape)
    return (
        K,
        image_shape,
        pinhole.pixel_grid(image_shape, points.dtype) if pixels is None else pixels,
    )


def _iterate(
    p: _Problem, config: FactorConfig, image_shape: tuple[int, int] | None, unrolled: bool = False
) -> tuple[Sim3, tuple[Array, Array, Array, Array]]:
    """The pose and the other fields of a ``PoseSolution``, by Gauss-Newton."""

    def step(T: Sim3) -> tuple[Sim3, StepReport]:
        step = relative_pose_step(
            p.points_f,
            p.points_k,
            p.q,
            p.valid,
            T,
            config,
            p.K,
            image_shape,
            pixels=p.pixels,
            noise=p.noise,
        )
        return step.T_kf, StepReport(
            cost=step.equations.cost,
            step_norm=jax.lax.stop_gradient(jnp.sqrt(jnp.sum(step.tangent**2))),
            positive_definite=step.positive_definite,
            extra=step.equations.hessian,
        )

    result = gauss_newton(
        step,
        p.T_kf,
        max_iterations=config.max_iterations,
        rel_error=config.rel_error,
        delta_norm=config.delta_norm,
        unrolled=unrolled,
    )
    return result.x, (result.cost, result.iterations, result.status, result.extra)
