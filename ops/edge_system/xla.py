"""Per-edge normal equations in plain JAX: the definition every kernel is held against."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from ops.edge_system.factors import FactorConfig, FactorNoise, factor_gram
from ops.edge_system.types import EdgeBlocks, Edges, unpack_valid
from ops.image import pixel_coordinates
from ops.sim3 import Sim3

Computed = TypeVar("Computed")
"""What a function says of a factor."""

EDGES_TOGETHER = 8
"""Edges linearised together on an accelerator, which one alone does not fill; not measured yet.
The rows of eight edges of 196,608 rays take 200 MiB."""


def linearize_edges(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    together: int | None = None,
    noise: FactorNoise | None = None,
) -> EdgeBlocks:
    """``api.linearize_edges`` without argument checks.

    One edge after the other, or so many ``together``, which None leaves to the platform; active
    ones first and no others, so that neither time nor memory depends on how many edges there is
    room for.
    """
    capacity = edges.i.shape[0]

    def run(together: int, *arrays: Array) -> Float[Array, "e 8 8"]:
        T_WC, points, confidence, edges, K, noise = jax.tree.unflatten(structure, arrays)
        order = jnp.argsort(~edges.active, stable=True).astype(jnp.int32)
        count = jnp.sum(edges.active, dtype=jnp.int32)

        def gram(edge: Int[Array, ""]) -> Float[Array, "8 8"]:
            i, j = edges.i[edge], edges.j[edge]
            return of_matched_points(
                factor_gram,
                relative_pose(T_WC[i], T_WC[j]),
                (points[i], points[j]),
                (confidence[i], confidence[j]),
                (edges.index[edge], edges.valid[edge], edges.q[edge]),
                config,
                K,
                image_shape,
                min_confidence,
                noise,
            )

        def visit(k: Int[Array, ""], grams: Float[Array, "e 8 8"]) -> Float[Array, "e 8 8"]:
            if together == 1:
                return grams.at[order[k]].set(gram(order[k]))
            places = together * k + jnp.arange(together, dtype=jnp.int32)
            some = order[jnp.minimum(places, capacity - 1)]
            goals = jnp.where(places < count, some, capacity)  # past the end: dropped
            return grams.at[goals].set(jax.vmap(gram)(some), mode="drop")

        empty = jnp.zeros((capacity, 8, 8), points.dtype)
        return jax.lax.fori_loop(0, (count + together - 1) // together, visit, empty)

    leaves, structure = jax.tree.flatten((T_WC, points, confidence, edges, K, noise))
    if together is None:
        grams = jax.lax.platform_dependent(
            *leaves,
            cpu=functools.partial(run, 1),
            default=functools.partial(run, EDGES_TOGETHER),
        )
    else:
        grams = run(together, *leaves)
    return EdgeBlocks(grams[:, :7, :7], grams[:, :7, 7], grams[:, 7, 7] / 2)


def of_matched_points(
    compute: Callable[..., Computed],
    T_ij: Sim3,
    points: tuple[Float[Array, "hw 3"], Float[Array, "hw 3"]],
    confidence: tuple[Float[Array, "hw"], Float[Array, "hw"]],
    matches: tuple[Int[Array, "hw"], Bool[Array, "hw"] | UInt8[Array, "bytes"], Float[Array, "hw"]],
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise | None,
) -> Computed:
    """A function of a factor (``factors.factor_gram`` and its like), of one edge.

    ``points`` and ``confidence`` are those of views i and j; ``matches`` the edge's index,
    validity, packed or not, and confidences.
    """
    (points_i, points_j), (confidence_i, confidence_j) = points, confidence
    index, valid, q = matches
    num_pixels = len(points_j)
    if valid.dtype == jnp.uint8:
        valid = unpack_valid(valid, num_pixels)
    index = jnp.where(valid, index, 0)
    seen_i = confidence_i.at[index].get(mode="promise_in_bounds") > min_confidence
    valid = valid & seen_i & (confidence_j > min_confidence)
    pixels = None
    if image_shape is not None:
        pixels = pixel_coordinates(index, image_shape[1]).astype(points_j.dtype)
    return compute(
        points_j,
        points_i.at[index].get(mode="promise_in_bounds"),
        q.astype(points_j.dtype),
        valid,
        T_ij,
        config,
        K,
        image_shape,
        pixels,
        noise,
    )


def relative_pose(T_Wi: Sim3, T_Wj: Sim3) -> Sim3:
    """``T_ij = T_Wi^-1 T_Wj``.

    The translations are subtracted before anything else: far from the origin of the world, two
    nearby cameras keep all the digits of their distance.
    """
    inverse = Sim3.from_parts(
        T_Wi.rotation(), jnp.zeros_like(T_Wi.translation()), T_Wi.scale()
    ).inverse()
    shifted = Sim3.from_parts(
        T_Wj.rotation(), T_Wj.translation() - T_Wi.translation(), T_Wj.scale()
    )
    return inverse @ shifted
