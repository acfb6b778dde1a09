"""Normal equations of the edges of a pose graph (paper, section 3.5).

``implementation`` chooses who computes: ``"xla"`` is plain JAX and runs anywhere, ``"pallas"`` is a
kernel for NVIDIA GPUs, None takes the kernel where it was measured to be faster
(``ops/kernels.py``). A named implementation that cannot run raises ``NotImplementedError``.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ops import kernels
from ops.edge_system import pallas, xla
from ops.edge_system.factors import (
    FactorConfig,
    FactorNoise,
    PixelFactorConfig,
    checked_calibration,
)
from ops.edge_system.types import EdgeBlocks, Edges
from ops.sim3 import Sim3


def linearize_edges(
    T_WC: Sim3,
    points: Float[Array, "n hw 3"],
    confidence: Float[Array, "n hw"],
    edges: Edges,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    min_confidence: float = 0.0,
    noise: FactorNoise | None = None,
    implementation: str | None = None,
) -> EdgeBlocks:
    """Normal equations of every active edge in its own relative pose ``T_ij``.

    A residual compares pixel n of view j, moved by ``T_ij = T_i^-1 T_j``, with pixel ``index[n]``
    of view i, so it depends on ``T_ij`` alone: a 7 x 7 block and 7 numbers say everything about an
    edge. ``points[k]`` are view k's points in its own camera, ``confidence`` their average
    confidences; a match counts if it is valid and both points are more confident than
    ``min_confidence``. With a ``PixelFactorConfig``, ``K`` and ``image_shape = (H, W)`` are needed
    and the points must have been slid onto their rays by ``constrain_to_rays``; the measured pixel
    is the whole-numbered ``index``. ``noise`` takes the place of the configuration's.

    Raises ``ValueError`` for shapes that do not belong together, a missing calibration and an
    unknown implementation.
    """
    num_views, num_pixels = confidence.shape
    if points.shape != (num_views, num_pixels, 3) or T_WC.batch_axes != (num_views,):
        raise ValueError(
            f"linearize_edges: {T_WC.batch_axes} poses, points {points.shape} and confidences "
            f"{confidence.shape}; expected (N,), (N, HW, 3) and (N, HW)"
        )
    if edges.index.shape[1] != num_pixels:
        raise ValueError(
            f"linearize_edges: edges match {edges.index.shape[1]} pixels, the views have "
            f"{num_pixels}"
        )
    if isinstance(config, PixelFactorConfig):
        K, image_shape = checked_calibration(num_pixels, K, image_shape)
    else:
        K, image_shape = None, None

    def by(function: Callable[..., EdgeBlocks]) -> Callable[..., EdgeBlocks]:
        return lambda T_WC, points, confidence, edges, K, noise, **block: function(
            T_WC,
            points,
            confidence,
            edges,
            config,
            K,
            image_shape,
            min_confidence,
            noise=noise,
            **block,
        )

    return kernels.run(
        "linearize_edges",
        implementation,
        by(xla.linearize_edges),
        by(pallas.linearize_edges),
        T_WC,
        points,
        confidence,
        edges,
        K,
        noise,
        kind="rays" if K is None else "pixels",
        obstacle=kernels.only("points", points.dtype, jnp.float32),
    )
