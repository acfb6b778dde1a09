"""All poses of a graph of views at once (paper, section 3.5).

Gauss-Newton on the poses ``T_WC`` of all views, their pointmaps held. A factor sees the relative
pose ``T_ij = T_i^-1 T_j`` alone, and with left updates ``T <- exp(xi) T`` of the poses

    T_ij' = exp(A (xi_j - xi_i)) T_ij,    A = Ad(T_i^-1),

so an edge with the normal equations ``G, b`` in ``T_ij`` (``ops/edge_system``) adds
``B = A^T G A`` to the blocks ii and jj of the whole matrix, ``-B`` to ij and ji, ``A^T b`` to the
gradient of j and takes it from that of i. These sums, and the factorisation, are in double
precision whatever the poses are in: along a chain of hundreds of views the matrix's condition
number exceeds what single precision can hold.

The poses have derivatives, as that of a single view has (``ops/relative_pose.py``). To second
order, with the cost's exact Hessian ``S`` and gradient ``g`` in ``T_ij``,

    T_ij' = exp(A (xi_j - xi_i) - [A xi_i, A xi_j]/2) T_ij,

so the blocks off the diagonal are ``-A^T (S + N/2) A`` and its transpose with
``N(a, b) = g . [a, b]``: an edge pulls at its poses, and only all edges of a pose are in balance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.cholesky import solve_spd, solve_spd_linear
from ops.double import dot_general
from ops.edge_system import EdgeBlocks, Edges, FactorConfig, FactorNoise, linearize_edges
from ops.edge_system import differentiable as edge_derivatives
from ops.gauss_newton import StepReport, gauss_newton
from ops.implicit import implicitly, solve_linear
from ops.records import Record, record
from ops.relative_pose import Derivative
from ops.sim3 import Sim3
from ops.status import SolverStatus


@record
class GraphSolution(Record):
    """Proposed poses of all views, and how they came about."""

    T_WC: Sim3
    """Camera to world of each view; after a failure, the last ones that were good."""
    cost: Float[Array, ""]
    """Robust cost of the last linearisation, one step before ``T_WC``."""
    iterations: Int[Array, ""]
    """Linearisations made."""
    status: Int[Array, ""]
    """A ``SolverStatus`` as int32."""
    floating: Int[Array, ""]
    """Views that could not move, as no chain of edges with matches ties them to a fixed one."""


@record
class GraphEquations(Record):
    """A linearised pose graph; unknowns in order of the views, each (tau, omega, sigma): m = 7n."""

    blocks: EdgeBlocks
    """Every edge in its own relative pose."""
    hessian: Float[Array, "m m"]
    """``sum w J^T J``; the rows of views that do not move are those of the identity."""
    gradient: Float[Array, "m"]
    """``sum w J^T (z - h)``, the downhill side: the step is ``hessian^-1 gradient``."""
    cost: Float[Array, ""]
    """``1/2 sum w (z - h)^2``."""
    free: Bool[Array, "n"]
    """Which views move: not fixed, and touched by an edge."""


def linearize_graph(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    fixed: Bool[Array, "n"] | None = None,
    min_confidence: float = 0.0,
    implementation: str | None = None,
) -> GraphEquations:
    """Normal equations of ``optimize_graph`` at the given poses; same arguments.

    In the precision of the poses; the optimisation itself assembles and solves them in double.
    """
    blocks = linearize_edges(
        T_WC,
        points,
        confidence,
        edges,
        config,
        K,
        image_shape,
        min_confidence=min_confidence,
        implementation=implementation,
    )
    free = _free(edges, fixed, T_WC.batch_axes[0])
    with jax.enable_x64(True):
        system = _assemble(T_WC, blocks, edges, free)
        H, g = (x.astype(T_WC.dtype) for x in system)
    return GraphEquations(blocks, H, g, jnp.sum(blocks.cost), free)


def optimize_graph(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    fixed: Bool[Array, "n"] | None = None,
    min_confidence: float = 0.0,
    noise: FactorNoise | None = None,
    derivative: Derivative = "implicit",
    implementation: str | None = None,
) -> GraphSolution:
    """Poses of all views that agree best with every edge, starting at ``T_WC``.

    ``points[k]`` are view k's points in its own camera in pixel order, ``confidence[k]`` their
    average confidences; a match counts if its edge exists, it is valid, and both its points are
    more confident than ``min_confidence``. Views that are ``fixed`` (default: the first) or have
    no edge come out bit-identical; what else belongs to a view without an edge is not looked at.
    Stopping is the configuration's; the original makes at most 10 iterations and stops when the
    step's norm is below 1e-8. ``points``, ``K`` and ``image_shape`` in calibrated mode,
    ``implementation`` and errors raised: see ``edge_system.linearize_edges``.

    A group of views that hang together needs a fixed one: nothing else determines where the group
    is. Views without are left where they are and counted as ``floating``; if no other view can
    move, the status is NOT_POSITIVE_DEFINITE. Failure is data: check ``status`` before using the
    result. A graph without edges has nothing to move, and converges at once by step.

    The poses can be differentiated in ``points``, ``edges.q``, ``K``, ``noise`` (which takes the
    place of the configuration's) and in the poses that do not move; ``derivative`` and what is said
    of it are those of ``solve_relative_pose``. Unrolled iterations assemble and solve their systems
    in the precision of the poses.
    """
    if noise is None:
        noise = config.noise(T_WC.dtype)
    num_views = T_WC.batch_axes[0]
    problem = _Problem(T_WC, points, confidence, edges, K, _free(edges, fixed, num_views), noise)
    rest = (config, image_shape, min_confidence)

    def solve(p: _Problem, unrolled: bool = False) -> tuple[Sim3, tuple[Array, ...]]:
        return _iterate(p, *rest, implementation, unrolled)

    def condition(T: Sim3, report: Any, p: _Problem) -> Float[Array, "n 7"]:
        T = _where(report[-1], T, p.T_WC)
        gradients = p.at(edge_derivatives.edge_gradients, T, p.noise.relative(), *rest)
        return jnp.where(report[-1][:, None], _at_poses(T, gradients, p.edges), 0)

    def follow(
        T: Sim3, report: Any, p: _Problem, change: Float[Array, "n 7"]
    ) -> Float[Array, "n 7"]:
        _, _, status, _, moving = report
        moving = moving & (status < SolverStatus.NOT_FINITE)
        gradients, hessians = p.at(edge_derivatives.edge_curvatures, T, p.noise.relative(), *rest)
        blocks = EdgeBlocks(hessians, -gradients, jnp.zeros_like(gradients[:, 0]))
        H = _assembled(T, blocks, p.edges, moving)
        last = _used(moving)
        change = jnp.where(moving[:, None], change, 0).reshape(-1)
        tangent = solve_linear(H, change, _times, lambda H, g: _solve_wide(H, g, last)[0])
        return tangent.reshape(-1, 7)

    def move(T: Sim3, report: Any, p: _Problem, xi: Float[Array, "n 7"]) -> Sim3:
        return _where(report[-1], T.retract(xi), p.T_WC)

    if derivative == "unrolled":
        T, report = solve(problem, unrolled=True)
    else:
        T, report = implicitly(solve, condition, follow, move)(problem)
    return GraphSolution(T, *report[:-1])


@record
class _Problem(Record):
    """Everything the poses depend on."""

    T_WC: Sim3
    points: Float[Array, "n hw 3"]
    confidence: Float[Array, "n hw"]
    edges: Edges
    K: Float[Array, "3 3"] | None
    free: Bool[Array, "n"]
    noise: FactorNoise

    def at(
        self,
        function: Callable[..., Any],
        T_WC: Sim3,
        noise: FactorNoise,
        config: FactorConfig,
        image_shape: tuple[int, int] | None,
        min_confidence: float,
    ) -> Any:
        """A function of ``ops.edge_system.differentiable`` at other poses, its noise as given."""
        return function(
            T_WC,
            self.points,
            self.confidence,
            self.edges,
            self.K,
            config,
            image_shape,
            min_confidence,
            noise,
        )


def _iterate(
    p: _Problem,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    implementation: str | None,
    unrolled: bool,
) -> tuple[Sim3, tuple[Array, ...]]:
    """The poses, the other fields of a ``GraphSolution``, and which views moved."""
    edges, free, T_WC = p.edges, p.free, p.T_WC

    def linearize(T: Sim3) -> EdgeBlocks:
        if unrolled:
            blocks = edge_derivatives.edge_blocks
            return p.at(blocks, T, p.noise, config, image_shape, min_confidence)
        return linearize_edges(
            T,
            p.points,
            p.confidence,
            edges,
            config,
            p.K,
            image_shape,
            min_confidence=min_confidence,
            noise=p.noise,
            implementation=implementation,
        )

    def step(T: Sim3) -> tuple[Sim3, StepReport]:
        blocks = linearize(T)
        moving = free & _held(blocks, edges, free)
        tangent, ok = _solve(T, blocks, edges, moving, unrolled)
        return _where(moving, T.retract(tangent), T), StepReport(
            cost=jnp.sum(blocks.cost),
            step_norm=jax.lax.stop_gradient(jnp.sqrt(jnp.sum(tangent * tangent))),
            positive_definite=ok & (jnp.any(moving) | ~jnp.any(free)),
            extra=moving,
        )

    # A view without an edge may hold anything, even what is not a number.
    identity = Sim3.identity(T_WC.batch_axes, T_WC.dtype)
    result = gauss_newton(
        step,
        _where(_touched(edges, T_WC.batch_axes[0]), T_WC, identity),
        max_iterations=config.max_iterations,
        rel_error=config.rel_error,
        delta_norm=config.delta_norm,
        unrolled=unrolled,
    )
    moving = result.extra
    floating = jnp.sum(free & ~moving, dtype=jnp.int32)
    report = (result.cost, result.iterations, result.status, floating, moving)
    return _where(free, result.x, T_WC), report


def _touched(edges: Edges, num_views: int) -> Bool[Array, "n"]:
    """Which views have an edge."""
    active = edges.active
    touched = jnp.zeros(num_views, bool)
    for end in (edges.i, edges.j):
        touched = touched.at[jnp.where(active, end, 0)].max(active)
    return touched


def _free(edges: Edges, fixed: Bool[Array, "n"] | None, num_views: int) -> Bool[Array, "n"]:
    """Which views move."""
    if fixed is None:
        fixed = jnp.arange(num_views) == 0
    return _touched(edges, num_views) & ~fixed


def _held(blocks: EdgeBlocks, edges: Edges, free: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Which views hang, by edges with at least one match, together with one that does not move.

    A group that floats makes the matrix singular, but rounding can hide that from a factorisation.
    """
    useful = edges.active & (jnp.trace(blocks.hessian, axis1=-2, axis2=-1) != 0)
    i, j = (jnp.where(useful, end, 0) for end in (edges.i, edges.j))

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        held, _ = state
        wider = held.at[i].max(held[j] & useful)
        wider = wider.at[j].max(wider[i] & useful)
        return wider, jnp.any(wider != held)

    start = ~free, jnp.ones((), bool)
    return jax.lax.while_loop(lambda state: state[1], spread, start)[0]


def _where(choice: Bool[Array, "n"], a: Sim3, b: Sim3) -> Sim3:
    return Sim3(jnp.where(choice[:, None], a.wxyz_xyz_scale, b.wxyz_xyz_scale))


def _used(moving: Bool[Array, "n"]) -> Int[Array, ""]:
    """How many views there are up to the last that moves."""
    numbers = jnp.arange(1, moving.shape[0] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(moving, numbers, 0))


def _at_poses(T_WC: Sim3, gradients: Float[Array, "e 7"], edges: Edges) -> Float[Array, "n 7"]:
    """Derivative of the whole cost in every pose, from that of each edge in its ``T_ij``."""
    adjoints = _adjoints(T_WC, edges)
    pull = jnp.einsum("eab,ea->eb", adjoints, gradients, precision=jax.lax.Precision.HIGHEST)
    pull = jnp.where(edges.active[:, None], pull, 0)
    i, j = (jnp.where(edges.active, end, 0) for end in (edges.i, edges.j))
    n = T_WC.batch_axes[0]
    return (
        jnp.zeros((n, 7), pull.dtype)
        .at[jnp.concatenate([j, i])]
        .add(jnp.concatenate([pull, -pull]))
    )


def _adjoints(T_WC: Sim3, edges: Edges) -> Float[Array, "e 7 7"]:
    """``A`` of every edge: how a motion of a pose in the world looks in the camera of i."""
    return T_WC[jnp.where(edges.active, edges.i, 0)].inverse().adjoint()


def _assemble(
    T_WC: Sim3,
    blocks: EdgeBlocks,
    edges: Edges,
    free: Bool[Array, "n"],
    *,
    exact: bool = False,
    wide: bool = True,
) -> tuple[Float[Array, "7*n 7*n"], Float[Array, "7*n"]]:
    """Matrix and downhill side over all poses.

    In double precision, to be called with x64 enabled, unless ``wide`` is False. ``exact`` is for
    blocks with exact Hessians: then so is the matrix.
    """
    active = edges.active
    i, j = (jnp.where(active, end, 0) for end in (edges.i, edges.j))
    A, G, b = _adjoints(T_WC, edges), blocks.hessian, blocks.gradient
    if wide:
        A, G, b = (x.astype(jnp.float64) for x in (A, G, b))
    product = _per_edge if wide else _per_edge_narrow
    B = product(product(A, G, 1), A, 2)
    downhill = product(A, b, 1)
    across = [-B, -B]
    if exact:
        C = product(product(A, _bracket_form(-b) / 2, 1), A, 2)
        across = [-(B + C), -(B - C)]

    n = free.shape[0]
    rows, columns = jnp.concatenate([i, j, i, j]), jnp.concatenate([i, j, j, i])
    moves = jnp.tile(active, 4) & free[rows] & free[columns]
    values = jnp.where(moves[:, None, None], jnp.concatenate([B, B, *across]), 0)
    diagonal = jnp.where(free, 0, 1).astype(B.dtype)[:, None] * jnp.ones(7, B.dtype)
    H = jnp.diag(diagonal.reshape(-1)).reshape(n, 7, n, 7).at[rows, :, columns, :].add(values)
    ends = jnp.concatenate([j, i])
    values = jnp.concatenate([downhill, -downhill])
    values = jnp.where((jnp.tile(active, 2) & free[ends])[:, None], values, 0)
    g = jnp.zeros((n, 7), B.dtype).at[ends].add(values)
    return H.reshape(7 * n, 7 * n), g.reshape(-1)


def _bracket_form(g: Float[Array, "e 7"]) -> Float[Array, "e 7 7"]:
    """The antisymmetric form ``N(a, b) = g . [a, b]`` of the Lie bracket of sim(3).

    ``[a, b] = (sigma_a tau_b + omega_a x tau_b - sigma_b tau_a - omega_b x tau_a,
    omega_a x omega_b, 0)``.
    """
    tau, omega = g[:, :3], g[:, 3:6]
    o = jnp.zeros_like(g[:, 0])

    def cross(v: Float[Array, "e 3"]) -> Float[Array, "e 3 3"]:
        x, y, z = v[:, 0], v[:, 1], v[:, 2]
        return jnp.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(-1, 3, 3)

    column = tau[:, :, None]
    return jnp.concatenate(
        [
            jnp.concatenate([jnp.zeros_like(cross(tau)), -cross(tau), -column], axis=2),
            jnp.concatenate([-cross(tau), -cross(omega), jnp.zeros_like(column)], axis=2),
            jnp.concatenate([column, jnp.zeros_like(column), o[:, None, None]], axis=1).swapaxes(
                1, 2
            ),
        ],
        axis=1,
    )


def _per_edge(left: Array, right: Array, axis: int) -> Array:
    """Product of each edge's arrays over ``axis`` of the left and the first of the right."""
    return dot_general(left, right, _dimensions(axis))


def _per_edge_narrow(left: Array, right: Array, axis: int) -> Array:
    """The same product, which can be differentiated, in the session's precision."""
    return jax.lax.dot_general(left, right, _dimensions(axis), precision=jax.lax.Precision.HIGHEST)


def _dimensions(axis: int) -> Any:
    return (((axis,), (1,)), ((0,), (0,)))


def _assembled(
    T_WC: Sim3, blocks: EdgeBlocks, edges: Edges, moving: Bool[Array, "n"]
) -> Float[Array, "7*n 7*n"]:
    """The exact Hessian of the whole cost in double precision."""
    with jax.enable_x64(True):
        return _assemble(T_WC, blocks, edges, moving, exact=True)[0]


def _times(H: Float[Array, "m m"], x: Float[Array, "m"]) -> Float[Array, "m"]:
    return H.astype(x.dtype) @ x


def _solve_wide(
    H: Float[Array, "m m"], g: Float[Array, "m"], used: Int[Array, ""]
) -> tuple[Float[Array, "m"], Bool[Array, ""]]:
    with jax.enable_x64(True):
        return solve_spd(H, g, size=7 * used)


def _solve(
    T_WC: Sim3, blocks: EdgeBlocks, edges: Edges, free: Bool[Array, "n"], unrolled: bool
) -> tuple[Float[Array, "n 7"], Bool[Array, ""]]:
    """The step of every pose, zero for those that do not move, and whether it could be solved."""
    if unrolled:  # in the poses' precision: what is differentiated cannot change it on the way
        H, g = _assemble(T_WC, blocks, edges, free, wide=False)
        ok = solve_spd(*jax.lax.stop_gradient((H, g)), size=7 * _used(free))[1]
        tangent = solve_spd_linear(H, g, size=7 * _used(free))
    else:
        with jax.enable_x64(True):
            H, g = _assemble(T_WC, blocks, edges, free)
            tangent, ok = solve_spd(H, g, size=7 * _used(free))
    tangent = tangent.astype(T_WC.dtype).reshape(-1, 7)
    return jnp.where(free[:, None] & ok, tangent, 0), ok
