"""Dense matching in plain JAX: the definition every kernel is held against."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import image, rays
from ops.matching.types import MatchConfig
from ops.rays import Column

Out = TypeVar("Out")
CPU_PROJECTION_CHUNK = 65536
"""Pixels projected at a time on a CPU; elsewhere all at once."""
CPU_REFINEMENT_CHUNK = 2048
"""Pixels refined at a time on a CPU, so that 49 partial products of each stay in the cache."""
CPU_LANES = 8
"""Channels of a descriptor that a CPU multiplies at a time: the floats of a 256-bit register."""


def ray_image(points: Float[Array, "h w 3"]) -> Float[Array, "hw 9"]:
    """Unit rays of a pointmap and their derivatives along u and v: rows ``(r, dr/du, dr/dv)``."""
    r = rays.normalize(points)
    return jnp.concatenate([r, *image.scharr(r)], axis=-1).reshape(-1, 9)


def project(
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    init: Int[Array, "hw"],
    config: MatchConfig,
) -> tuple[Float[Array, "hw 2"], Bool[Array, "hw"]]:
    """Positions and convergence of ``api.iterative_projection``, without derivatives."""
    height, width = points_11.shape[:2]
    table = ray_image(points_11)

    def some(
        target: Float[Array, "n 3"], start: Int[Array, "n"]
    ) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
        return _project(table, target, start, height, width, config)

    targets = rays.normalize(points_21).reshape(-1, 3)

    def run(chunk: int, *arrays: Array) -> tuple[Array, Array]:
        return _in_chunks(some, arrays, chunk)

    return jax.lax.platform_dependent(
        targets,
        init,
        cpu=functools.partial(run, CPU_PROJECTION_CHUNK),
        default=functools.partial(run, 0),
    )


def _project(
    table: Float[Array, "hw 9"],
    target: Float[Array, "n 3"],
    start: Int[Array, "n"],
    height: int,
    width: int,
    config: MatchConfig,
) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
    """Levenberg-Marquardt on ``|r(p) - t|^2`` for some pixels.

    The normal equations at the current position travel along with it, so that an iteration looks
    the image up once, at its proposal.
    """
    targets = [target[:, k] for k in range(3)]

    def look(u: Column, v: Column) -> tuple[Column, ...]:
        """Cost; ``J^T e`` (two numbers); ``J^T J`` (three)."""
        sample = image.bilinear(table, jnp.stack([u, v], axis=-1), width)
        r, du, dv = ([sample[:, 3 * part + k] for k in range(3)] for part in range(3))
        length = rays.norm(sample[:, :3])
        inverse = jnp.where(length > 0, 1, 0) / jnp.where(length > 0, length, 1)
        e = [r[k] * inverse - targets[k] for k in range(3)]

        def dot(a: list[Column], b: list[Column]) -> Column:
            return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]

        return dot(e, e), dot(du, e), dot(dv, e), dot(du, du), dot(du, dv), dot(dv, dv)

    def kept(proposal: Column, current: Column, limit: int) -> Column:
        """Within the image; what is not a number must not become an index."""
        proposal = jnp.clip(proposal, 1, limit)
        return jnp.where(jnp.isnan(proposal), current, proposal)

    def iterate(_: Int[Array, ""], state: tuple[Any, ...]) -> tuple[Any, ...]:
        u, v, equations, damping = state
        cost, b1, b2, a11, a12, a22 = equations
        a11, a22 = a11 + damping, a22 + damping
        determinant = a11 * a22 - a12 * a12
        inverse = 1 / jnp.where(determinant == 0, 1, determinant)
        new_u = kept(u + (a12 * b2 - a22 * b1) * inverse, u, width - 2)
        new_v = kept(v + (a12 * b1 - a11 * b2) * inverse, v, height - 2)
        proposed = look(new_u, new_v)
        better = proposed[0] < cost
        return (
            jnp.where(better, new_u, u),
            jnp.where(better, new_v, v),
            tuple(jnp.where(better, *pair) for pair in zip(proposed, equations, strict=True)),
            damping * jnp.where(better, 0.1, 10.0),
        )

    u = jnp.clip((start % width).astype(target.dtype), 1, width - 2)
    v = jnp.clip((start // width).astype(target.dtype), 1, height - 2)
    equations = look(u, v)
    damping = jnp.full_like(u, config.lambda_init)
    u, v, equations, _ = jax.lax.fori_loop(
        0, config.max_iterations, iterate, (u, v, equations, damping)
    )
    seen = jnp.any(target != 0, axis=-1)  # a point at the camera itself has no ray
    return jnp.stack([u, v], axis=-1), (equations[0] < config.convergence) & seen


def refine_matches(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    index: Int[Array, "hw"],
    config: MatchConfig,
) -> Int[Array, "hw"]:
    """``api.refine_matches`` without argument checks."""
    height, width = descriptors_1.shape[:2]

    def run(chunk: int, lanes: int, table: Array, queries: Array, index: Array) -> Array:
        table, queries = (_multiple_of(lanes, x) for x in (table, queries))

        def refine(query: Float[Array, "n d"], start: Int[Array, "n"]) -> Int[Array, "n"]:
            return _refine(table, query, start, height, width, config, lanes)

        return _in_chunks(refine, (queries, index), chunk)

    rows = (x.reshape(-1, x.shape[-1]) for x in (descriptors_1, descriptors_2))
    return jax.lax.platform_dependent(
        *rows,
        index,
        cpu=functools.partial(run, CPU_REFINEMENT_CHUNK, CPU_LANES),
        default=functools.partial(run, 0, 1),
    )


def _refine(
    table: Float[Array, "hw d"],
    query: Float[Array, "n d"],
    start: Int[Array, "n"],
    height: int,
    width: int,
    config: MatchConfig,
    lanes: int,
) -> Int[Array, "n"]:
    """Best descriptor in shrinking windows, for some pixels.

    Candidates are scanned column by column (u outer, v inner); of equals the first one wins, in a
    window and across windows. Products are summed over ``d / lanes`` groups of ``lanes`` channels
    first: side by side, in one vector register.
    """
    side = 2 * config.radius + 1
    reach = jnp.arange(-config.radius, config.radius + 1, dtype=start.dtype)[:, None]
    place = jnp.arange(side * side, dtype=start.dtype)[:, None]
    groups = query.shape[-1] // lanes
    query = query.astype(jnp.float32)

    def narrow(k: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        u, v, best = state
        dilation = config.dilation - k
        us, vs = u + dilation * reach, v + dilation * reach
        nearest_u, nearest_v = jnp.clip(us, 0, width - 1), jnp.clip(vs, 0, height - 1)
        candidate = (nearest_u[:, None] + width * nearest_v).reshape(side * side, -1)
        rows = table.at[candidate].get(mode="promise_in_bounds")
        products = rows.astype(jnp.float32) * query
        partial = jnp.sum(products.reshape(*candidate.shape, groups, lanes), axis=2)
        # Lane by lane: XLA would make one slow sum of two sums.
        score = functools.reduce(jnp.add, [partial[..., lane] for lane in range(lanes)])
        inside = ((us == nearest_u)[:, None] & (vs == nearest_v)).reshape(candidate.shape)
        score = jnp.where(inside & ~jnp.isnan(score), score, -jnp.inf)
        # Not by argmax, which XLA computes number by number on one core.
        highest = jnp.max(score, axis=0)
        first = jnp.min(jnp.where(score == highest, place, side * side), axis=0)
        better = highest > best
        u = jnp.where(better, u + dilation * (first // side - config.radius), u)
        v = jnp.where(better, v + dilation * (first % side - config.radius), v)
        return u, v, jnp.where(better, highest, best)

    worst = jnp.full(start.shape, -jnp.inf, jnp.float32)
    start_uv = start % width, start // width
    u, v, _ = jax.lax.fori_loop(0, config.dilation, narrow, (*start_uv, worst))
    return u + width * v


def _multiple_of(lanes: int, rows: Float[Array, "n d"]) -> Float[Array, "n d2"]:
    """Rows with zeros added, to a multiple of ``lanes`` channels."""
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[-1] % lanes)))


def _in_chunks(function: Callable[..., Out], arrays: tuple[Array, ...], chunk: int) -> Out:
    """Apply a function of pixels in even parts of at most ``chunk``; 0 for all at once."""
    count = arrays[0].shape[0]
    pieces = -(-count // chunk) if chunk else 1
    if pieces <= 1:
        return function(*arrays)
    chunk = -(-count // pieces)
    padding = pieces * chunk - count

    def split(x: Array) -> Array:
        x = jnp.concatenate([x, jnp.zeros((padding, *x.shape[1:]), x.dtype)])
        return x.reshape(pieces, chunk, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(pieces * chunk, *x.shape[2:])[:count]

    mapped = jax.lax.map(lambda xs: function(*xs), tuple(split(x) for x in arrays))
    return jax.tree.map(join, mapped)
