"""Per-edge normal equations in a kernel for NVIDIA GPUs (Pallas' Triton dialect).

``xla.py`` defines what is computed, and ``factors.weighted_rows`` each pixel's share of it. A few
programs share an edge. Each goes through its part of the pixels, block by block, and adds up the
products of the rows' entries for every place in a block; the places, and then the programs, are
added at the end, always in the same order. No row is ever written to memory. A program of an edge
that is not active ends at once.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from ops.edge_system.factors import (
    FactorConfig,
    FactorNoise,
    precisions,
    weighted_rows,
)
from ops.edge_system.types import EdgeBlocks, Edges
from ops.edge_system.xla import relative_pose
from ops.kernels import DEFAULT_BLOCKS, Block
from ops.pinhole import Intrinsics, intrinsics
from ops.robust import sqrt_or_zero
from ops.sim3 import Sim3

Ref = Any
"""Memory that a kernel reads or writes."""
SLOTS = 64
"""Numbers of a program's result: an 8 x 8 matrix, of which the upper triangle is written."""


def linearize_edges(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    noise: FactorNoise | None = None,
    *,
    block: Block = DEFAULT_BLOCKS["linearize_edges"],
    interpret: bool = False,
) -> EdgeBlocks:
    """``xla.linearize_edges``, of poses and points in single precision.

    Not to be differentiated: ``differentiable.py`` is there for that.
    """
    active = edges.active
    i, j = (jnp.where(active, end, 0) for end in (edges.i, edges.j))
    T_ij = relative_pose(T_WC[i], T_WC[j])
    linear = T_ij.scale()[:, None, None] * T_ij.rotation_matrix()
    poses = jnp.concatenate([linear.reshape(-1, 9), T_ij.translation()], axis=1)
    noise = noise or config.noise(points.dtype)
    constants = [*precisions(noise), noise.huber, *(intrinsics(K) if K is not None else ())]

    num_edges, num_pixels = edges.index.shape
    programs = pl.cdiv(num_pixels, block.pixels * block.rounds)
    kernel = functools.partial(
        edge_kernel,
        config=config,
        image_shape=image_shape,
        min_confidence=min_confidence,
        block=block,
    )

    partial = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((num_edges, programs, SLOTS), points.dtype),
        grid=(programs, num_edges),
        compiler_params=block.compiler_params,
        interpret=interpret,
    )(
        active.astype(jnp.int32),
        i,
        j,
        poses,
        jnp.stack(constants),
        points,
        confidence,
        edges.index,
        edges.valid,
        edges.q,
    )
    # what nobody has written may be anything
    written = active[:, None, None] & jnp.triu(jnp.ones((8, 8), bool)).reshape(-1)
    upper = jnp.sum(jnp.where(written, partial, 0), axis=1).reshape(-1, 8, 8)
    grams = upper + jnp.triu(upper, 1).swapaxes(1, 2)
    return EdgeBlocks(grams[:, :7, :7], grams[:, :7, 7], grams[:, 7, 7] / 2)


def edge_kernel(active: Ref, *memory: Ref, **constants: Any) -> None:
    """What ``_add_up`` does, for an edge that is active."""
    part, edge = pl.program_id(0), pl.program_id(1)  # here: interpret mode has none in a branch
    pl.when(active[edge] != 0)(lambda: _add_up(part, edge, *memory, **constants))


def _add_up(
    part: Int[Array, ""],
    edge: Int[Array, ""],
    views_i: Ref,
    views_j: Ref,
    poses: Ref,
    constants: Ref,
    points: Ref,
    confidence: Ref,
    index: Ref,
    valid: Ref,
    q: Ref,
    out: Ref,
    *,
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    min_confidence: float,
    block: Block,
) -> None:
    """Sum of the products of the rows' entries over one program's pixels."""
    num_pixels = index.shape[1]
    i, j = views_i[edge], views_j[edge]
    linear = [[poses[edge, 3 * row + column] for column in range(3)] for row in range(3)]
    translation = [poses[edge, 9 + row] for row in range(3)]
    precision, weak, huber = (constants[k] for k in range(3))
    camera = None
    if image_shape is not None:
        camera = Intrinsics(*(constants[3 + k] for k in range(4)))
    place = jnp.arange(block.pixels, dtype=jnp.int32)
    first = part * (block.pixels * block.rounds)

    def add(k: Int[Array, ""], sums: dict[tuple[int, int], Array]) -> dict[tuple[int, int], Array]:
        pixel = first + k * block.pixels + place
        exists = pixel < num_pixels
        pixel = jnp.minimum(pixel, num_pixels - 1)
        if valid.dtype == jnp.uint8:
            byte = valid[edge, lax.shift_right_logical(pixel, 3)].astype(jnp.int32)
            is_valid = lax.shift_right_logical(byte, pixel & 7) & 1 != 0
        else:
            is_valid = valid[edge, pixel]
        is_valid = is_valid & exists
        target = jnp.where(is_valid, index[edge, pixel], 0)
        seen = (confidence[i, target] > min_confidence) & (confidence[j, pixel] > min_confidence)
        is_valid = is_valid & seen

        def there(view: Array, pixel: Array) -> list[Array]:
            return [jnp.where(is_valid, points[view, pixel, c], 1) for c in range(3)]

        x, y, z = there(j, pixel)
        predicted = [
            row[0] * x + row[1] * y + row[2] * z + t
            for row, t in zip(linear, translation, strict=True)
        ]
        pixels = None
        if image_shape is not None:
            width = image_shape[1]
            pixels = [f(target, width).astype(x.dtype) for f in (lax.rem, lax.div)]
        rows = weighted_rows(
            predicted,
            there(i, target),
            sqrt_or_zero(jnp.where(is_valid, q[edge, pixel].astype(x.dtype), 0)),
            config,
            (precision, weak),
            huber,
            camera,
            image_shape,
            pixels,
        )
        sums = dict(sums)
        for row in rows:
            entries = [(k, entry) for k, entry in enumerate(row) if entry is not None]
            for (a, left), (b, right) in itertools.combinations_with_replacement(entries, 2):
                sums[a, b] = sums[a, b] + left * right
        return sums

    upper = list(itertools.combinations_with_replacement(range(8), 2))
    nothing = jnp.zeros(block.pixels, points.dtype)
    sums = lax.fori_loop(0, block.rounds, add, dict.fromkeys(upper, nothing))
    for a, b in upper:
        out[edge, part, 8 * a + b] = jnp.sum(sums[a, b])
