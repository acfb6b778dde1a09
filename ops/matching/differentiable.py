"""Derivatives of the positions that iterative projection finds, whoever computed them.

They come from the condition a position satisfies (``ops/implicit.py``): the image's ray there,
``r(p)``, is the ray ``t`` sought, that is ``J^T (r(p) - t) = 0`` with the derivatives ``J`` that
the iterations use. A pixel that did not converge, or came to rest at the border, does not move.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import image, rays
from ops.implicit import follow_plane, implicitly
from ops.matching.types import Projection
from ops.matching.xla import ray_image

Project = Callable[
    [Float[Array, "h w 3"], Float[Array, "h w 3"], Int[Array, "hw"]],
    tuple[Float[Array, "hw 2"], Bool[Array, "hw"]],
]
"""Positions and convergence from both pointmaps and the start."""
_Problem = tuple[Array, Array, Array]


def projection(
    project: Project,
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    init: Int[Array, "hw"],
) -> Projection:
    """What ``project`` finds, with its derivatives in both pointmaps."""
    height, width = points_11.shape[:2]

    def slope(uv: Array, _: Array, problem: _Problem) -> Float[Array, "n 2"]:
        table, target = ray_image(problem[0]), rays.normalize(problem[1]).reshape(-1, 3)
        sample = image.bilinear(table, uv, width)
        error = rays.normalize(sample[:, :3]) - target
        return jnp.stack([rays.dot(sample[:, 3:6], error), rays.dot(sample[:, 6:], error)], axis=-1)

    def follow(
        uv: Array, converged: Array, problem: _Problem, change: Array
    ) -> Float[Array, "n 2"]:
        columns = [
            jax.jvp(
                lambda uv: slope(uv, converged, problem),
                (uv,),
                (jnp.zeros_like(uv).at[:, k].set(1),),
            )[1]
            for k in range(2)
        ]
        inside = jnp.all((uv > 1) & (uv < jnp.asarray([width - 2, height - 2], uv.dtype)), axis=-1)
        return follow_plane(jnp.stack(columns, axis=-1), change, converged & inside)

    found = implicitly(
        lambda problem: project(*problem), slope, follow, lambda uv, _, problem, xi: uv + xi
    )
    return Projection(*found((points_11, points_21, init)))
