"""Inputs and timing of the checks for a GPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import without_compilation_cache
from ops import Edges, Sim3, pinhole

QUEUE = 5
"""Calls that are given to the device at once, so that it need not wait for the host."""


def measured(function: Callable[..., Any], *arguments: Any, repeats: int = 20) -> dict[str, float]:
    """Seconds to compile; then milliseconds: median and extremes of single calls, and the median of
    calls that queue up."""
    return result_and_measured(function, *arguments, repeats=repeats)[1]


def result_and_measured(
    function: Callable[..., Any], *arguments: Any, repeats: int = 20
) -> tuple[Any, dict[str, float]]:
    """What a function returns, and ``measured``."""
    call, compile_s = compiled(function, *arguments)
    times = milliseconds(call, *arguments, repeats=repeats)
    queued = milliseconds(call, *arguments, repeats=3, calls=QUEUE)
    return call(*arguments), {
        "compile_s": compile_s,
        "queued_ms": statistics.median(queued),
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
    }


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """A compiled function and the seconds that took, by the compiler and not by a cache."""
    with without_compilation_cache():
        begin = time.perf_counter()
        return jax.jit(function).lower(*arguments).compile(), time.perf_counter() - begin


def milliseconds(
    call: Callable[..., Any], *arguments: Any, repeats: int, calls: int = 1
) -> list[float]:
    """Times of a call after the first; with ``calls``, so many of them that queue up, shared out.

    A queue hides what the host needs to start a call, about as long as a short kernel.
    """
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready([call(*arguments) for _ in range(calls)])
        times.append(1e3 * (time.perf_counter() - begin) / calls)
    return times


def two_views(size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Pointmaps of two views of one bumpy surface in view 1's camera, and their descriptors."""
    width, height = size
    rng = np.random.default_rng(seed)
    K = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]], np.float32)
    pixels = pinhole.pixel_grid((height, width))
    u, v = np.asarray(pixels).T / width
    depth = 2 + 0.3 * np.sin(9 * u) * np.cos(7 * v)
    points_1 = pinhole.unproject(pixels, jnp.asarray(depth, jnp.float32), jnp.asarray(K))
    shifted = pinhole.unproject(
        pixels + jnp.asarray([3.3, -2.1]), jnp.asarray(depth, jnp.float32), jnp.asarray(K)
    )
    directions = jnp.asarray(rng.normal(size=(3, 24)), jnp.float32)

    def describe(points: jax.Array) -> jax.Array:
        waves = jnp.sin(4 * points @ directions)
        return waves / jnp.linalg.norm(waves, axis=-1, keepdims=True)

    shape = (height, width, -1)
    return {
        "points_1": points_1.reshape(shape),
        "points_2": shifted.reshape(shape),
        "descriptors_1": describe(points_1).reshape(shape),
        "descriptors_2": describe(shifted).reshape(shape),
        "K": jnp.asarray(K),
    }


def pose_graph(size: tuple[int, int], views: int, edges: int) -> dict[str, Any]:
    """A chain of views of one surface, linked both ways to their nearest, perturbed."""
    points = np.asarray(two_views(size)["points_1"]).reshape(-1, 3)
    rng, n = np.random.default_rng(0), len(points)
    T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=(views, 7)), jnp.float32))
    seen = T.inverse()[:, None].apply(jnp.asarray(points))
    pairs = [(k, k + gap) for gap in range(1, views) for k in range(views - gap)]
    pairs = [end for i, j in pairs for end in ((i, j), (j, i))][:edges]
    i, j = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))
    index = jnp.tile(jnp.arange(n, dtype=jnp.int32), (len(pairs), 1))
    graph = Edges(
        i, j, index, jnp.ones(index.shape, bool), jnp.full(index.shape, 2.0, jnp.float16),
        jnp.ones(len(pairs), bool),
    )  # fmt: skip
    start = T.retract(jnp.asarray(0.02 * rng.normal(size=(views, 7)), jnp.float32))
    return {"start": start, "points": seen, "confidence": jnp.ones((views, n)), "edges": graph}
