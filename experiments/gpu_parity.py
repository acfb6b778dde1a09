"""Programs on a device against the same on the CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.gpu_inputs import pose_graph, two_views
from mast3r_jax import MASt3R, MASt3RConfig
from ops import (
    PixelFactorConfig,
    RayFactorConfig,
    Sim3,
    match,
    optimize_graph,
    solve_relative_pose,
    solve_spd,
)


def parity(size: tuple[int, int]) -> dict[str, Any]:
    """The device against the CPU, on the same inputs and programs, for images of that size."""
    cases = _cases(size)
    figures: dict[str, Any] = {}
    for name, (function, arguments, tolerance) in cases.items():
        results = []
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            placed = jax.device_put(arguments, device)
            results.append(jax.device_get(jax.jit(function)(*placed)))
        worst, differing = difference(*results)
        holds = worst <= tolerance and differing <= 0.01
        figures[name] = {"error": worst, "tolerance": tolerance, "differing": differing,
                         "holds": holds}  # fmt: skip
    return {"cases": figures, "holds": all(case["holds"] for case in figures.values())}


def difference(found: Any, expected: Any) -> tuple[float, float]:
    """Largest error of the numbers, and the share of whole numbers that differ.

    Errors are relative to the largest number of an array; what is not finite is infinitely wrong.
    """
    worst, differing = 0.0, 0.0
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if not np.issubdtype(a.dtype, np.floating):
            differing = max(differing, float(np.mean(a != b)))
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            worst = np.inf
        else:
            worst = max(worst, float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)))
    return worst, differing


def _cases(size: tuple[int, int]) -> dict[str, tuple[Callable[..., Any], tuple, float]]:
    """Functions of arrays, their arguments, and the error allowed relative to the largest number.

    Of whole numbers (matched pixels, iterations, statuses) 1 % may differ: ties of rounding.
    """
    width, height = size
    two, graph = two_views(size), pose_graph((32, 24), 5, 12)
    maps = [two[k] for k in ("points_1", "points_2", "descriptors_1", "descriptors_2")]
    points = two["points_1"].reshape(-1, 3)
    moved = Sim3.exp(jnp.asarray([0.1, -0.05, 0.02, 0.03, 0.02, -0.04, 0.05])).apply(points)
    q, valid = jnp.full(len(points), 2.0), jnp.ones(len(points), bool)

    def pose(config: Any) -> Callable[..., Any]:
        return lambda f, k, q, valid, K: (
            solve_relative_pose(
                f, k, q, valid, Sim3.identity(), config, K, (height, width)
            ).T_kf.wxyz_xyz_scale
        )

    pose_arguments = (points, moved, q, valid, two["K"])
    rng = np.random.default_rng(1)
    A = rng.normal(size=(7 * 16, 7 * 16))
    spd = jnp.asarray(A @ A.T + 7 * np.eye(7 * 16), jnp.float32)
    model = MASt3R(MASt3RConfig.small(), rngs=nnx.Rngs(0))
    image = jnp.asarray(rng.uniform(-1, 1, (1, 96, 128, 3)), jnp.float32)
    return {
        "match": (lambda *maps: _discrete(match(*maps)), tuple(maps), 1e-4),
        "pose, rays": (pose(RayFactorConfig()), pose_arguments, 1e-5),
        "pose, pixels": (pose(PixelFactorConfig()), pose_arguments, 1e-4),
        "graph": (
            lambda start, points, confidence, edges: (
                optimize_graph(
                    start, points, confidence, edges, RayFactorConfig(max_iterations=10)
                ).T_WC.wxyz_xyz_scale
            ),
            (graph["start"], graph["points"], graph["confidence"], graph["edges"]),
            1e-4,
        ),
        "Cholesky": (
            lambda H, g: solve_spd(H, g, size=jnp.asarray(7 * 16, jnp.int32)),
            (spd, jnp.ones(7 * 16)),
            1e-4,
        ),
        "network": (lambda m, x: m(x, x)[0].points, (model, image), 2e-2),
    }


def _discrete(matches: Any) -> tuple[Any, Any]:
    return matches.index, matches.valid
