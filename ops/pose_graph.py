"""All poses of a graph of views at once (paper, section 3.5).

Gauss-Newton on the poses ``T_WC`` of all views, their pointmaps held. A factor sees the relative
pose ``T_ij = T_i^-1 T_j`` alone, and with left updates ``T <- exp(xi) T`` of the poses

    T_ij' = exp(A (xi_j - xi_i)) T_ij,    A = Ad(T_i^-1),

so an edge with the normal equations ``G, b`` in ``T_ij`` (``ops/edge_system``) adds
``B = A^T G A`` to the blocks ii and jj of the whole matrix, ``-B`` to ij and ji, ``A^T b`` to the
gradient of j and takes it from that of i. These sums, and the factorisation, are in double
precision whatever the poses are in: along a chain of hundreds of views the matrix's condition
number exceeds what single precision can hold.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.cholesky import solve_spd
from ops.double import dot_general
from ops.edge_system import EdgeBlocks, Edges, FactorConfig, linearize_edges
from ops.gauss_newton import StepReport, gauss_newton
from ops.records import Record, record
from ops.sim3 import Sim3


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
    adjoints = _adjoints(T_WC, edges)
    with jax.enable_x64(True):
        system = _assemble(adjoints, blocks, edges, free)
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
    """
    free = _free(edges, fixed, T_WC.batch_axes[0])

    def step(T: Sim3) -> tuple[Sim3, StepReport]:
        blocks = linearize_edges(
            T,
            points,
            confidence,
            edges,
            config,
            K,
            image_shape,
            min_confidence=min_confidence,
            implementation=implementation,
        )
        moving = free & _held(blocks, edges, free)
        tangent, ok = _solve(T, blocks, edges, moving)
        return _where(moving, T.retract(tangent), T), StepReport(
            cost=jnp.sum(blocks.cost),
            step_norm=jnp.sqrt(jnp.sum(tangent * tangent)),
            positive_definite=ok & (jnp.any(moving) | ~jnp.any(free)),
            extra=jnp.sum(free & ~moving, dtype=jnp.int32),
        )

    # A view without an edge may hold anything, even what is not a number.
    identity = Sim3.identity(T_WC.batch_axes, T_WC.dtype)
    result = gauss_newton(
        step,
        _where(_touched(edges, T_WC.batch_axes[0]), T_WC, identity),
        max_iterations=config.max_iterations,
        rel_error=config.rel_error,
        delta_norm=config.delta_norm,
    )
    return GraphSolution(
        _where(free, result.x, T_WC), result.cost, result.iterations, result.status, result.extra
    )


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


def _adjoints(T_WC: Sim3, edges: Edges) -> Float[Array, "e 7 7"]:
    """``A`` of every edge: how a motion of a pose in the world looks in the camera of i."""
    return T_WC[jnp.where(edges.active, edges.i, 0)].inverse().adjoint()


def _assemble(
    adjoints: Float[Array, "e 7 7"], blocks: EdgeBlocks, edges: Edges, free: Bool[Array, "n"]
) -> tuple[Float[Array, "7*n 7*n"], Float[Array, "7*n"]]:
    """Matrix and gradient over all poses in double precision; to be called with x64 enabled."""
    active = edges.active
    i, j = (jnp.where(active, end, 0) for end in (edges.i, edges.j))
    A, G, b = (x.astype(jnp.float64) for x in (adjoints, blocks.hessian, blocks.gradient))
    B = _per_edge(_per_edge(A, G, 1), A, 2)
    downhill = _per_edge(A, b, 1)

    n = free.shape[0]
    rows, columns = jnp.concatenate([i, j, i, j]), jnp.concatenate([i, j, j, i])
    moves = jnp.tile(active, 4) & free[rows] & free[columns]
    values = jnp.where(moves[:, None, None], jnp.concatenate([B, B, -B, -B]), 0)
    diagonal = jnp.where(free, 0.0, 1.0)[:, None] * jnp.ones(7)
    H = jnp.diag(diagonal.reshape(-1)).reshape(n, 7, n, 7).at[rows, :, columns, :].add(values)
    ends = jnp.concatenate([j, i])
    values = jnp.concatenate([downhill, -downhill])
    values = jnp.where((jnp.tile(active, 2) & free[ends])[:, None], values, 0)
    g = jnp.zeros((n, 7)).at[ends].add(values)
    return H.reshape(7 * n, 7 * n), g.reshape(-1)


def _per_edge(left: Array, right: Array, axis: int) -> Array:
    """Product of each edge's arrays over ``axis`` of the left and the first of the right."""
    dimensions = (((axis,), (1,)), ((0,), (0,)))
    return dot_general(left, right, dimensions)


def _solve(
    T_WC: Sim3, blocks: EdgeBlocks, edges: Edges, free: Bool[Array, "n"]
) -> tuple[Float[Array, "n 7"], Bool[Array, ""]]:
    """The step of every pose, zero for those that do not move, and whether it could be solved."""
    n, adjoints = free.shape[0], _adjoints(T_WC, edges)
    with jax.enable_x64(True):
        H, g = _assemble(adjoints, blocks, edges, free)
        last = jnp.max(jnp.where(free, jnp.arange(1, n + 1, dtype=jnp.int32), 0))
        tangent, ok = solve_spd(H, g, size=7 * last)
        tangent = tangent.astype(T_WC.dtype).reshape(n, 7)
    return jnp.where(free[:, None] & ok, tangent, 0), ok
