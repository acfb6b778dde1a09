"""Dense matching in plain JAX: the definition every kernel is held against."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import image, rays
from ops.matching.types import MatchConfig

Out = TypeVar("Out")


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
    return _in_chunks(some, (targets, init), config.projection_chunk, on_cpu=4096)


def _project(
    table: Float[Array, "hw 9"],
    target: Float[Array, "n 3"],
    start: Int[Array, "n"],
    height: int,
    width: int,
    config: MatchConfig,
) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
    """Levenberg-Marquardt on ``|r(p) - t|^2`` for some pixels.

    The sample at the current position travels along with it, so that an iteration looks the image
    up once, at its proposal.
    """

    def look(uv: Float[Array, "n 2"]) -> tuple[Float[Array, "n 9"], Float[Array, "n"]]:
        sample = image.bilinear(table, uv, width)
        r = rays.normalize(sample[:, :3])
        error = r - target
        sample = jnp.concatenate([error, sample[:, 3:]], axis=-1)
        return sample, rays.dot(error, error)

    limit = jnp.asarray([width - 2, height - 2], target.dtype)
    uv = jnp.clip(image.pixel_coordinates(start, width).astype(target.dtype), 1, limit)
    sample, cost = look(uv)
    damping = jnp.full_like(cost, config.lambda_init)

    def iterate(_: Int[Array, ""], state: tuple[Array, ...]) -> tuple[Array, ...]:
        uv, sample, cost, damping = state
        e, du, dv = sample[:, :3], sample[:, 3:6], sample[:, 6:]
        a11 = rays.dot(du, du) + damping
        a12 = rays.dot(du, dv)
        a22 = rays.dot(dv, dv) + damping
        b1, b2 = rays.dot(du, e), rays.dot(dv, e)
        determinant = a11 * a22 - a12 * a12
        inverse = 1 / jnp.where(determinant == 0, 1, determinant)
        step = jnp.stack([a12 * b2 - a22 * b1, a12 * b1 - a11 * b2], axis=-1) * inverse[:, None]
        proposal = jnp.clip(uv + step, 1, limit)
        # A prediction that is not a number must not become an index.
        proposal = jnp.where(jnp.isfinite(proposal), proposal, uv)
        new_sample, new_cost = look(proposal)
        better = new_cost < cost
        return (
            jnp.where(better[:, None], proposal, uv),
            jnp.where(better[:, None], new_sample, sample),
            jnp.where(better, new_cost, cost),
            damping * jnp.where(better, 0.1, 10.0),
        )

    uv, _, cost, _ = jax.lax.fori_loop(
        0, config.max_iterations, iterate, (uv, sample, cost, damping)
    )
    seen = jnp.any(target != 0, axis=-1)  # a point at the camera itself has no ray
    return uv, (cost < config.convergence) & seen


def refine_matches(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    index: Int[Array, "hw"],
    config: MatchConfig,
) -> Int[Array, "hw"]:
    """``api.refine_matches`` without argument checks."""
    height, width, channels = descriptors_1.shape
    table = descriptors_1.reshape(-1, channels)

    def refine(query: Float[Array, "n d"], start: Int[Array, "n"]) -> Int[Array, "n"]:
        return _refine(table, query, start, height, width, config)

    queries = descriptors_2.reshape(-1, channels)
    return _in_chunks(refine, (queries, index), config.refinement_chunk, on_cpu=512)


def _refine(
    table: Float[Array, "hw d"],
    query: Float[Array, "n d"],
    start: Int[Array, "n"],
    height: int,
    width: int,
    config: MatchConfig,
) -> Int[Array, "n"]:
    """Best descriptor in shrinking windows, for some pixels.

    Candidates are scanned column by column (u outer, v inner); of equals the first one wins, in a
    window and across windows.
    """
    reach = jnp.arange(-config.radius, config.radius + 1, dtype=start.dtype)
    offset_u, offset_v = (x.reshape(-1) for x in jnp.meshgrid(reach, reach, indexing="ij"))
    query = query.astype(jnp.float32)

    def narrow(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, best_score = state
        dilation = config.dilation - k
        u = (best % width)[:, None] + dilation * offset_u
        v = (best // width)[:, None] + dilation * offset_v
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        candidate = jnp.where(inside, u + width * v, 0)
        rows = table.at[candidate].get(mode="promise_in_bounds")
        score = jnp.sum(rows.astype(jnp.float32) * query[:, None, :], axis=-1)
        score = jnp.where(inside & ~jnp.isnan(score), score, -jnp.inf)
        first = jnp.argmax(score, axis=-1)[:, None]
        top = jnp.take_along_axis(score, first, axis=-1)[:, 0]
        chosen = jnp.take_along_axis(candidate, first, axis=-1)[:, 0]
        better = top > best_score
        return jnp.where(better, chosen, best), jnp.where(better, top, best_score)

    worst = jnp.full(start.shape, -jnp.inf, jnp.float32)
    return jax.lax.fori_loop(0, config.dilation, narrow, (start, worst))[0]


def _in_chunks(
    function: Callable[..., Out], arrays: tuple[Array, ...], chunk: int | None, *, on_cpu: int
) -> Out:
    """Apply a function of pixels to some of them at a time; see ``MatchConfig`` for ``chunk``."""
    if chunk is None:
        return jax.lax.platform_dependent(
            *arrays,
            cpu=lambda *xs: _in_chunks(function, xs, on_cpu, on_cpu=on_cpu),
            default=function,
        )
    count = arrays[0].shape[0]
    if chunk == 0 or count <= chunk:
        return function(*arrays)
    pieces = -(-count // chunk)
    padding = pieces * chunk - count

    def split(x: Array) -> Array:
        x = jnp.concatenate([x, jnp.zeros((padding, *x.shape[1:]), x.dtype)])
        return x.reshape(pieces, chunk, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(pieces * chunk, *x.shape[2:])[:count]

    mapped = jax.lax.map(lambda xs: function(*xs), tuple(split(x) for x in arrays))
    return jax.tree.map(join, mapped)
