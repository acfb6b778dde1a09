"""Dense matching of two pointmaps: projective search, then descriptors (paper, section 3.2).

``implementation`` chooses who computes: ``"xla"`` is plain JAX and runs anywhere, ``"pallas"`` are
kernels for NVIDIA GPUs, None takes a kernel where it was measured to be faster
(``ops/kernels.py``). A named implementation that cannot run raises ``NotImplementedError``.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import kernels, rays
from ops.image import pixel_coordinates
from ops.matching import pallas, xla
from ops.matching.differentiable import projection
from ops.matching.types import MatchConfig, Matches, Projection


def match(
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    init: Int[Array, "hw"] | None = None,
    config: MatchConfig = MatchConfig(),  # noqa: B008 - frozen
    implementation: str | None = None,
) -> Matches:
    """For every pixel of image 2 its match in image 1.

    ``points_11`` and ``points_21`` are the pointmaps of images 1 and 2, both in camera 1;
    ``init[n]`` is the linear index ``u + W*v`` in image 1 where the search for pixel n of image 2
    starts (default: the same pixel). Each pixel is projected into image 1 by
    ``iterative_projection``, truncated to whole pixels, declared valid if that converged and the
    two points are closer than ``config.max_distance``, and moved by ``refine_matches``.

    ``vmap`` gives batches. Predictions that are not finite give invalid matches. Raises
    ``ValueError`` for shapes that do not belong together and for an unknown implementation.
    """
    _same_image("match", points_21.shape, points_11.shape)
    _same_image("match", descriptors_1.shape[:2], points_11.shape[:2])
    # Whole pixels have no derivative: what leads to them need not be kept for one.
    points_11, points_21, descriptors_1, descriptors_2 = jax.lax.stop_gradient(
        (points_11, points_21, descriptors_1, descriptors_2)
    )
    projection = iterative_projection(points_11, points_21, init, config, implementation)
    width = points_11.shape[1]
    start = _linear_index(projection.uv, width)
    valid = projection.converged & _close(points_11, points_21, start, config.max_distance)
    index = refine_matches(descriptors_1, descriptors_2, start, config, implementation)
    return Matches(index, valid, pixel_coordinates(index, width).astype(points_11.dtype))


def iterative_projection(
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    init: Int[Array, "hw"] | None = None,
    config: MatchConfig = MatchConfig(),  # noqa: B008 - frozen
    implementation: str | None = None,
) -> Projection:
    """Where in image 1 the rays towards the points of image 2 are seen.

    Minimises ``|r(p) - t|^2`` over the position p for every pixel of image 2, where ``r`` is image
    1's pointmap as unit rays, bilinear between its pixels, and ``t`` the ray towards the pixel's
    point: ``config.max_iterations`` Levenberg-Marquardt iterations with the derivatives of ``r``
    by Scharr's stencil, each step clamped to ``[1, W-2] x [1, H-2]`` and accepted if the cost
    falls. No camera model is involved. Arguments and errors as in ``match``.

    The positions have derivatives in both pointmaps, those of the minimum found (0 where it was not
    found, or lies at the border). What ``match`` makes of them, whole pixels, has none.
    """
    _same_image("iterative_projection", points_21.shape, points_11.shape)
    height, width = points_11.shape[:2]
    if height < 3 or width < 3:
        raise ValueError(
            f"iterative_projection: an image of {height} x {width} pixels has no interior; at "
            "least 3 x 3 are needed"
        )
    if init is None:
        init = jnp.arange(height * width, dtype=jnp.int32)
    if init.shape != (height * width,):
        raise ValueError(
            f"iterative_projection: init has shape {init.shape}, expected one linear index for "
            f"each of the {height * width} pixels of image 2"
        )
    project = functools.partial(
        kernels.run,
        "project",
        kernels.checked(implementation),
        functools.partial(xla.project, config=config),
        functools.partial(pallas.project, config=config),
        kind=points_11.dtype.name,
        obstacle=kernels.only("points", points_11.dtype, jnp.float32),
    )
    return projection(project, points_11, points_21, init)


def refine_matches(
    descriptors_1: Float[Array, "h w d"],
    descriptors_2: Float[Array, "h w d"],
    index: Int[Array, "hw"],
    config: MatchConfig = MatchConfig(),  # noqa: B008 - frozen
    implementation: str | None = None,
) -> Int[Array, "hw"]:
    """Move each match to the most similar descriptor nearby.

    For the dilations 5, 4, 3, 2, 1 (``config.dilation``) a 7x7 window of that stride, centred on
    the best pixel so far, is searched for the largest dot product with the descriptor of image 2;
    a later candidate must be strictly better. Products accumulate in float32 whatever the
    descriptors' type. ``index`` and the result are linear indices into image 1.
    """
    _same_image("refine_matches", descriptors_2.shape, descriptors_1.shape)
    return kernels.run(
        "refine_matches",
        implementation,
        functools.partial(xla.refine_matches, config=config),
        functools.partial(pallas.refine_matches, config=config),
        descriptors_1,
        descriptors_2,
        index,
        kind=descriptors_1.dtype.name,
        obstacle=kernels.only(
            "descriptors", descriptors_1.dtype, jnp.float32, jnp.float16, jnp.bfloat16
        ),
    )


def _linear_index(uv: Float[Array, "n 2"], width: int) -> Int[Array, "n"]:
    """Linear index of positions truncated to whole pixels."""
    whole = uv.astype(jnp.int32)
    return whole[:, 0] + width * whole[:, 1]


def _close(
    points_11: Float[Array, "h w 3"],
    points_21: Float[Array, "h w 3"],
    index: Int[Array, "hw"],
    max_distance: float,
) -> Bool[Array, "hw"]:
    """Whether the matched points of both images are close to each other."""
    difference = points_11.reshape(-1, 3)[index] - points_21.reshape(-1, 3)
    return rays.norm(difference) < max_distance


def _same_image(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name}: shapes {tuple(expected)} and {tuple(shape)} differ; both images must have "
            "the same size"
        )
