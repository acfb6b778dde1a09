"""Dense matching in kernels for NVIDIA GPUs (Pallas' Triton dialect); ``xla.py`` defines it.

A program takes a few pixels of image 2 and gathers what it needs of image 1. Projection gathers
numbers, one channel of one corner for all its pixels at a time, from an image whose channels lie
one after the other: it needs few registers. Refinement gathers rows of descriptors, filled up with
zeros to a power of two, as blocks have to be.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from ops import rays
from ops.kernels import DEFAULT_BLOCKS, Block
from ops.matching.types import MatchConfig
from ops.matching.xla import ray_image
from ops.robust import sqrt_or_zero

Column = Float[Array, "n"]
"""A number for each of a program's pixels."""
Ref = Any
"""Memory that a kernel reads or writes."""


def project(
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    init: Int[Array, "hw"],
    config: MatchConfig,
    *,
    block: Block = DEFAULT_BLOCKS["project"],
    interpret: bool = False,
) -> tuple[Float[Array, "hw 2"], Bool[Array, "hw"]]:
    """``xla.project``, of pointmaps in single precision."""
    height, width = points_11.shape[:2]
    count = height * width
    kernel = functools.partial(
        project_kernel, height=height, width=width, pixels=block.pixels, config=config
    )
    u, v, converged = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((count,), points_11.dtype),
            jax.ShapeDtypeStruct((count,), points_11.dtype),
            jax.ShapeDtypeStruct((count,), jnp.int32),
        ),
        grid=(pl.cdiv(count, block.pixels),),
        compiler_params=block.compiler_params,
        interpret=interpret,
    )(ray_image(points_11).T, rays.normalize(points_21).reshape(-1, 3).T, init)
    return jnp.stack([u, v], axis=-1), converged != 0


def project_kernel(
    table: Ref,
    targets: Ref,
    init: Ref,
    out_u: Ref,
    out_v: Ref,
    out_converged: Ref,
    *,
    height: int,
    width: int,
    pixels: int,
    config: MatchConfig,
) -> None:
    """Levenberg-Marquardt on ``|r(p) - t|^2`` for one program's pixels."""
    pixel = _pixels(pixels, height * width)
    target = [targets[c, pixel] for c in range(3)]

    def look(u: Column, v: Column) -> tuple[Column, ...]:
        """Cost; ``J^T e`` (two numbers); ``J^T J`` (three)."""
        left, top = jnp.floor(u), jnp.floor(v)
        du, dv = u - left, v - top
        corner = left.astype(jnp.int32) + width * top.astype(jnp.int32)
        offsets = (0, 1, width, width + 1)
        weights = ((1 - du) * (1 - dv), du * (1 - dv), (1 - du) * dv, du * dv)

        def sample(channel: int) -> Column:
            terms = [table[channel, corner + o] * w for o, w in zip(offsets, weights, strict=True)]
            return terms[0] + terms[1] + terms[2] + terms[3]

        r, along_u, along_v = ([sample(3 * part + c) for c in range(3)] for part in range(3))
        length = sqrt_or_zero(_dot(r, r))
        inverse = jnp.where(length > 0, 1, 0) / jnp.where(length > 0, length, 1)
        e = [x * inverse - t for x, t in zip(r, target, strict=True)]
        ends = (e, e), (along_u, e), (along_v, e)
        slopes = (along_u, along_u), (along_u, along_v), (along_v, along_v)
        return tuple(_dot(*pair) for pair in (*ends, *slopes))

    def iterate(_: Int[Array, ""], state: tuple[Any, ...]) -> tuple[Any, ...]:
        u, v, equations, damping = state
        cost, b1, b2, a11, a12, a22 = equations
        a11, a22 = a11 + damping, a22 + damping
        determinant = a11 * a22 - a12 * a12
        inverse = 1 / jnp.where(determinant == 0, 1, determinant)
        new_u = _moved(u, (a12 * b2 - a22 * b1) * inverse, width)
        new_v = _moved(v, (a12 * b1 - a11 * b2) * inverse, height)
        proposed = look(new_u, new_v)
        better = proposed[0] < cost
        return (
            jnp.where(better, new_u, u),
            jnp.where(better, new_v, v),
            tuple(jnp.where(better, *pair) for pair in zip(proposed, equations, strict=True)),
            damping * jnp.where(better, 0.1, 10.0),
        )

    start = init[pixel]
    u = jnp.clip(lax.rem(start, width).astype(target[0].dtype), 1, width - 2)
    v = jnp.clip(lax.div(start, width).astype(target[0].dtype), 1, height - 2)
    equations = look(u, v)
    damping = jnp.full_like(u, config.lambda_init)
    u, v, equations, _ = lax.fori_loop(
        0, config.max_iterations, iterate, (u, v, equations, damping)
    )
    seen = (target[0] != 0) | (target[1] != 0) | (target[2] != 0)
    out_u[pixel] = u
    out_v[pixel] = v
    out_converged[pixel] = ((equations[0] < config.convergence) & seen).astype(jnp.int32)


def _moved(position: Column, step: Column, size: int) -> Column:
    """A position after a step, kept inside; it stays where it is if that is not a number."""
    there = position + step
    # Asked before it is clamped: a GPU's minimum of a limit and what is not a number is the limit.
    return jnp.where(there == there, jnp.clip(there, 1, size - 2), position)


def refine_matches(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    index: Int[Array, "hw"],
    config: MatchConfig,
    *,
    block: Block = DEFAULT_BLOCKS["refine_matches"],
    interpret: bool = False,
) -> Int[Array, "hw"]:
    """``xla.refine_matches``; descriptors in single or half precision are read as they are."""
    height, width, channels = descriptors_1.shape
    padding = ((0, 0), (0, pl.next_power_of_2(channels) - channels))

    def rows(descriptors: Float[Array, "h w d"]) -> Float[Array, "hw padded"]:
        # what is found, whole numbers, has no derivative
        return jnp.pad(lax.stop_gradient(descriptors).reshape(-1, channels), padding)

    kernel = functools.partial(
        refine_kernel, height=height, width=width, pixels=block.pixels, config=config
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(index.shape, index.dtype),
        grid=(pl.cdiv(height * width, block.pixels),),
        compiler_params=block.compiler_params,
        interpret=interpret,
    )(rows(descriptors_1), rows(descriptors_2), index)


def refine_kernel(
    table: Ref,
    queries: Ref,
    starts: Ref,
    out: Ref,
    *,
    height: int,
    width: int,
    pixels: int,
    config: MatchConfig,
) -> None:
    """Best descriptor in shrinking windows, for one program's pixels."""
    pixel = _pixels(pixels, height * width)
    channel = jnp.arange(table.shape[1], dtype=jnp.int32)[None, :]
    query = queries[pixel[:, None], channel].astype(jnp.float32)
    side = 2 * config.radius + 1

    def narrow(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        dilation = config.dilation - k
        first_u = lax.rem(state[0], width) - dilation * config.radius
        first_v = lax.div(state[0], width) - dilation * config.radius

        def candidate(n: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
            best, best_score = state
            u = first_u + dilation * lax.div(n, side)
            v = first_v + dilation * lax.rem(n, side)
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            there = jnp.where(inside, u + width * v, 0)
            rows = table[there[:, None], channel].astype(jnp.float32)
            score = jnp.sum(rows * query, axis=1)
            better = inside & (score > best_score)  # never of what is not a number
            return jnp.where(better, there, best), jnp.where(better, score, best_score)

        return lax.fori_loop(0, side * side, candidate, state)

    start = starts[pixel]
    worst = jnp.full(start.shape, -jnp.inf, jnp.float32)
    out[pixel] = lax.fori_loop(0, config.dilation, narrow, (start, worst))[0]


def _pixels(pixels: int, count: int) -> Int[Array, "n"]:
    """This program's pixels. The last program may have some twice: it writes the same twice."""
    pixel = pl.program_id(0) * pixels + jnp.arange(pixels, dtype=jnp.int32)
    return pixel if count % pixels == 0 else jnp.minimum(pixel, count - 1)


def _dot(a: list[Column], b: list[Column]) -> Column:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
