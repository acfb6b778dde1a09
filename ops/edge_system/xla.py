"""Per-edge normal equations in plain JAX: the definition every kernel is held against."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.edge_system.factors import FactorConfig, FactorNoise, factor_gram
from ops.edge_system.types import EdgeBlocks, Edges, unpack_valid
from ops.image import pixel_coordinates
from ops.sim3 import Sim3

PIXELS_AT_A_TIME = 16384
"""Most pixels of an edge linearised together on a CPU; elsewhere an edge is done at once.

Best milliseconds of an edge of rays / of pixels, two cores: 35,840 pixels by 11,952 0.93 / 1.0, by
4,096 1.2 / 1.3, at once 1.4 / 1.5; 196,608 by 4,096 5.8 / 6.6, by 16,384 4.8 / 5.6, at once 10 /
9.5. The columns of 16,384 rays take 0.5 MiB.
"""

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
    chunk: int | None = None,
    together: int = 1,
    noise: FactorNoise | None = None,
) -> EdgeBlocks:
    """``api.linearize_edges`` without argument checks.

    One edge after the other, or so many ``together``; active ones first and no others, so that
    neither time nor memory depends on how many edges there is room for. ``chunk`` pixels of an
    edge are taken at a time; None has both chosen by the platform.
    """
    capacity = edges.i.shape[0]

    def run(pixels_at_a_time: int, together: int, *arrays: Array) -> Float[Array, "e 8 8"]:
        T_WC, points, confidence, edges, K, noise = jax.tree.unflatten(structure, arrays)
        order = jnp.argsort(~edges.active, stable=True).astype(jnp.int32)
        count = jnp.sum(edges.active, dtype=jnp.int32)

        def gram(edge: Int[Array, ""]) -> Float[Array, "8 8"]:
            return _edge_gram(
                edge,
                T_WC,
                points,
                confidence,
                edges,
                config,
                K,
                image_shape,
                min_confidence,
                noise,
                pixels_at_a_time,
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
    num_pixels = points.shape[1]
    if chunk is None:
        grams = jax.lax.platform_dependent(
            *leaves,
            cpu=functools.partial(run, even_share(num_pixels), 1),
            default=functools.partial(run, num_pixels, EDGES_TOGETHER),
        )
    else:
        grams = run(min(chunk, num_pixels), together, *leaves)
    return EdgeBlocks(grams[:, :7, :7], grams[:, :7, 7], grams[:, 7, 7] / 2)


def even_share(num_pixels: int) -> int:
    """Pixels in each of as few equal parts as ``PIXELS_AT_A_TIME`` allows, a multiple of 16."""
    parts = -(-num_pixels // PIXELS_AT_A_TIME)
    return min(16 * -(-num_pixels // (16 * parts)), num_pixels)


def _edge_gram(
    edge: Int[Array, ""],
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise | None,
    chunk: int,
) -> Float[Array, "8 8"]:
    """Gram matrix of one edge's rows, accumulated over chunks of its pixels."""
    num_pixels = points.shape[1]
    i, j = edges.i[edge], edges.j[edge]
    T_ij = relative_pose(T_WC[i], T_WC[j])
    points_i, confidence_i = points[i], confidence[i]
    points_j, confidence_j = points[j], confidence[j]
    index, q, valid = edges.index[edge], edges.q[edge], edges.valid[edge]
    if valid.dtype == jnp.uint8:
        valid = unpack_valid(valid, num_pixels)
    index = jnp.where(valid, index, 0)
    seen_i = confidence_i.at[index].get(mode="promise_in_bounds") > min_confidence
    valid = valid & seen_i & (confidence_j > min_confidence)

    def add(gram: Float[Array, "8 8"], first: Int[Array, ""]) -> tuple[Float[Array, "8 8"], None]:
        # A gather and not a slice: XLA computes a slice anew, and one number at a time, wherever it
        # is used. On a CPU that makes the whole two to three times slower.
        pixel = first + jnp.arange(chunk, dtype=first.dtype)
        exists = pixel < num_pixels
        pixel = jnp.minimum(pixel, num_pixels - 1)

        def part(array: Array) -> Array:
            return array.at[pixel].get(mode="promise_in_bounds")

        target = part(index)
        pixels = None
        if image_shape is not None:
            pixels = pixel_coordinates(target, image_shape[1]).astype(points.dtype)
        return gram + factor_gram(
            part(points_j),
            points_i.at[target].get(mode="promise_in_bounds"),
            part(q).astype(points.dtype),
            part(valid) & exists,
            T_ij,
            config,
            K,
            image_shape,
            pixels,
            noise,
        ), None

    firsts = jnp.arange(0, num_pixels, chunk, dtype=jnp.int32)
    return jax.lax.scan(add, jnp.zeros((8, 8), points.dtype), firsts)[0]


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
