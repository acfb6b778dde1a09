"""Pose, fusion, normal equations of edges, and optimisation of all poses."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.bench import inputs, work
from experiments.bench.matching import cpp_peer
from experiments.bench.peers import cpp
from experiments.bench.plan import Plan, Size, written
from experiments.bench.stage import Agreement, Stage
from experiments.bench.timing import compiled
from ops import (
    Edges,
    PixelFactorConfig,
    RayFactorConfig,
    Sim3,
    fuse,
    init_fused,
    match,
    optimize_graph,
    solve_relative_pose,
)
from ops.edge_system import EdgeBlocks, linearize_edges

GRAM_TOLERANCE = 1e-3
"""Of the entries of normal equations, in units of what the two diagonal entries allow."""
EDGES = 6
"""Edges that are linearised in one call: a handful."""
ITERATIONS = 10
"""Of the optimisation, as the system makes them."""
_Factors = RayFactorConfig | PixelFactorConfig


def geometry_stages(plan: Plan) -> Iterator[Stage]:
    """All stages that are asked for, at every size."""
    for size in plan.sizes:
        if plan.wants("pose-rays", "pose-pixels", "fusion"):
            yield from _of_two_views(plan, size)
        if plan.wants("edges-rays", "edges-pixels", "optimize"):
            yield from _of_a_graph(plan, size)


def _of_two_views(plan: Plan, size: Size) -> Iterator[Stage]:
    """Everything that follows the match of a frame with its keyframe."""
    on, shape, pixels = written(size), (size[1], size[0]), size[0] * size[1]
    views = inputs.two_views(size)
    view_f, view_k, K = views.view_1, views.view_2, views.K
    found = jax.jit(match)(*views.maps)
    points_f, points_k = view_f.points.reshape(-1, 3), view_k.points.reshape(-1, 3)
    confidence_f = view_f.descriptor_confidence.reshape(-1)[found.index]
    q = jnp.sqrt(confidence_f * view_k.descriptor_confidence.reshape(-1))
    # Both pointmaps are in the frame's camera; the keyframe's own is this one moved away from it.
    T_kf = Sim3.exp(jnp.asarray([0.03, -0.02, 0.05, 0.02, 0.1, -0.01, 0.01], jnp.float32))
    for name, config, components in (
        ("pose-rays", RayFactorConfig(), 4),
        ("pose-pixels", PixelFactorConfig(), 3),
    ):
        if not plan.wants(name):
            continue
        if isinstance(config, PixelFactorConfig):
            measured = _as_seen_by_the_keyframe(points_k, T_kf, K, shape)
            ours = inputs.constrained(points_f, K, size)[found.index]
            valid = found.valid & jnp.isfinite(measured).all(-1)
        else:
            measured, ours, valid = T_kf.apply(points_k), points_f[found.index], found.valid

        def solve(f: Array, k: Array, q: Array, valid: Array, K: Array, config=config) -> Any:
            return solve_relative_pose(f, k, q, valid, Sim3.identity(), config, K, shape)

        call, seconds = compiled(solve, ours, measured, q, valid, K, cached=plan.quick)
        solution = call()
        iterations = int(solution.iterations)
        about = {"iterations": iterations, "status": int(solution.status)}
        counted = work.pose(pixels, components, iterations)
        yield Stage(name, on, call, seconds, counted, about=about)
    if plan.wants("fusion"):
        confidence = view_k.confidence.reshape(-1)
        fused = init_fused(points_k, confidence)
        call, seconds = compiled(
            lambda fused, points, confidence: fuse("weighted_pointmap", fused, points, confidence),
            fused, points_k * 1.01, confidence, cached=plan.quick,
        )  # fmt: skip
        yield Stage("fusion", on, call, seconds, work.fusion(pixels))


def _as_seen_by_the_keyframe(
    points_f: Float[Array, "hw 3"], T_kf: Sim3, K: Float[Array, "3 3"], shape: tuple[int, int]
) -> Float[Array, "hw 3"]:
    """Points on the rays of their pixels, as a calibrated keyframe holds them."""
    depth = T_kf.apply(points_f)[:, 2:]
    return inputs.constrained(jnp.broadcast_to(depth, points_f.shape), K, (shape[1], shape[0]))


def _of_a_graph(plan: Plan, size: Size) -> Iterator[Stage]:
    """Edges of a graph of keyframes, and the graph as a whole."""
    graph = inputs.graph(size, plan.keyframes)
    shape, pixels = (size[1], size[0]), size[0] * size[1]
    for name, config, components in (
        ("edges-rays", RayFactorConfig(), 4),
        ("edges-pixels", PixelFactorConfig(), 3),
    ):
        if plan.wants(name):
            yield _edges(plan, size, graph, name, config, components)
    if plan.wants("optimize"):
        config = RayFactorConfig(max_iterations=ITERATIONS, rel_error=0.0, delta_norm=1e-8)
        call, seconds = compiled(
            lambda start, points, confidence, edges, K: optimize_graph(
                start, points, confidence, edges, config, K, shape
            ),
            graph.start, graph.points, graph.confidence, graph.edges, graph.K, cached=plan.quick,
        )  # fmt: skip
        solution = call()
        count, iterations = len(graph.edges.i), int(solution.iterations)
        about = {"iterations": iterations, "status": int(solution.status), "edges": count}
        counted = work.optimization(pixels, count, 4, plan.keyframes, iterations)
        on = f"{written(size)}, {plan.keyframes} kf"
        yield Stage("optimize", on, call, seconds, counted, about=about)


def _edges(
    plan: Plan, size: Size, graph: inputs.Graph, name: str, config: _Factors, components: int
) -> Stage:
    """The first edges of the graph, beside C++."""
    shape, pixels = (size[1], size[0]), size[0] * size[1]
    edges = jax.tree.map(lambda x: x[:EDGES], graph.edges)
    count = len(edges.i)
    views = 1 + int(max(edges.i.max(), edges.j.max()))
    poses, points = Sim3(graph.start.wxyz_xyz_scale[:views]), graph.points[:views]
    confidence = graph.confidence[:views]
    if isinstance(config, PixelFactorConfig):
        points = inputs.constrained(points, graph.K, size)

    def linearize(poses: Sim3, points: Array, confidence: Array, edges: Edges, K: Array) -> Any:
        return linearize_edges(poses, points, confidence, edges, config, K, shape)

    call, seconds = compiled(
        linearize, poses, points, confidence, edges, graph.K, cached=plan.quick
    )
    blocks = call()
    peers = plan.beside(
        lambda: cpp_peer(
            lambda: cpp.Linearization(
                poses.wxyz_xyz_scale, points, confidence, edges, config, graph.K, shape
            ),
            lambda grams: gram_difference(grams, blocks),
        )
    )
    about = {"edges": count, "valid": float(jnp.mean(edges.valid, dtype=jnp.float32))}
    counted = work.edges(pixels, count, components)
    return Stage(name, f"{written(size)}, {count} edges", call, seconds, counted, peers, about)


def gram_difference(grams: np.ndarray, blocks: EdgeBlocks) -> Agreement:
    """Largest difference of entries, each over the root of its row's and column's diagonal."""
    ours = np.zeros((len(grams), 8, 8))
    ours[:, :7, :7] = blocks.hessian
    ours[:, :7, 7] = ours[:, 7, :7] = blocks.gradient
    ours[:, 7, 7] = 2 * np.asarray(blocks.cost)
    unit = np.sqrt(np.einsum("eaa->ea", ours))
    error = np.abs(grams - ours) / np.maximum(unit[:, :, None] * unit[:, None], 1e-30)
    error = float(error.max())
    return Agreement("entries, relative", error if np.isfinite(error) else np.inf, GRAM_TOLERANCE)
