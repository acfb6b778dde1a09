"""Edges of a pose graph in a form that can be differentiated, for the derivatives of its solution.

One edge after the other, in a loop over all there is room for, whose body is remembered as its
inputs and computed anew on the way back. The points of both ends are gathered for every edge
beforehand, so that on the way back they are scattered once: 24 bytes a pixel and an edge.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.edge_system.curvature import factor_curvature, factor_gradient
from ops.edge_system.factors import FactorConfig, FactorNoise, factor_gram
from ops.edge_system.types import EdgeBlocks, Edges
from ops.edge_system.xla import of_matched_points, relative_pose
from ops.sim3 import Sim3


def edge_blocks(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    K: Float[Array, "3 3"] | None,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise,
) -> EdgeBlocks:
    """What ``linearize_edges`` computes."""
    grams = _each_edge(
        factor_gram, T_WC, points, confidence, edges, K, config, image_shape, min_confidence, noise
    )
    return EdgeBlocks(grams[:, :7, :7], grams[:, :7, 7], grams[:, 7, 7] / 2)


def edge_gradients(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    K: Float[Array, "3 3"] | None,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise,
) -> Float[Array, "e 7"]:
    """Derivative of every edge's robust cost under ``T_ij <- exp(xi) T_ij``, uphill."""
    arguments = (T_WC, points, confidence, edges, K, config, image_shape, min_confidence, noise)
    return _each_edge(factor_gradient, *arguments)


def edge_curvatures(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    K: Float[Array, "3 3"] | None,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise,
) -> tuple[Float[Array, "e 7"], Float[Array, "e 7 7"]]:
    """``edge_gradients``, and the exact Hessian of every edge's robust cost."""
    arguments = (T_WC, points, confidence, edges, K, config, image_shape, min_confidence, noise)
    return _each_edge(factor_curvature, *arguments)


def _each_edge(
    compute: Callable[..., Array | tuple[Array, ...]],
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    K: Float[Array, "3 3"] | None,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise,
):
    """A function of one factor, of every active edge; zeros for the others."""
    active = edges.active
    i, j = (jnp.where(active, end, 0) for end in (edges.i, edges.j))
    gathered = (
        relative_pose(T_WC[i], T_WC[j]),
        (points[i], points[j]),
        (confidence[i], confidence[j]),
        (edges.index, edges.valid, edges.q),
    )

    def one(T_ij, points, confidence, matches):
        constants = (config, K, image_shape, min_confidence, noise)
        return of_matched_points(compute, T_ij, points, confidence, matches, *constants)

    shapes = jax.eval_shape(one, *(jax.tree.map(lambda x: x[0], item) for item in gathered))

    def nothing(*_: Any):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    @jax.checkpoint
    def visit(item):
        is_active, edge = item
        return jax.lax.cond(is_active, one, nothing, *edge)

    return jax.lax.map(visit, (active, gathered))
