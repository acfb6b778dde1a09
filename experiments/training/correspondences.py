"""Which pixels of two views show the same surface point, told from their true geometry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments.training.types import PairBatch
from ops.pinhole import pixel_grid, unproject
from ops.records import Record, record
from slam.priors.rendered import invert, transform

_NEAREST = 0.05
"""Metres in front of a camera from which on a point can be seen by it."""


@record
class Sight(Record):
    """The geometry that a pinhole camera sees, in its own frame."""

    points: Float[Array, "*b h w 3"]
    """Surface points, metres; anything finite where not known."""
    normals: Float[Array, "*b h w 3"]
    """Unit normals towards the camera; zero where there is none to speak of: such a pixel is never
    matched."""
    known: Bool[Array, "*b h w"]
    """Where ``points`` are true."""
    K: Float[Array, "*b 3 3"]
    """Intrinsics, integer pixel centres."""


def unproject_image(depth: Float[Array, "h w"], K: Float[Array, "3 3"]) -> Float[Array, "h w 3"]:
    """Points in the camera's frame of an image of depth along z."""
    pixels = pixel_grid(depth.shape, depth.dtype).reshape(*depth.shape, 2)  # type: ignore[arg-type]
    return unproject(pixels, depth, K)


def nearest_pixel(
    points: Float[Array, "*n 3"], K: Float[Array, "3 3"], shape: tuple[int, int]
) -> tuple[Int[Array, "*n"], Bool[Array, "*n"]]:
    """Pixel (linear index ``u + W*v``) nearest to where points in a camera's frame project.

    And whether they do project into the image of the given (height, width); the index is 0 if not.
    """
    height, width = shape
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    front = z > _NEAREST
    inverse = 1.0 / jnp.where(front, z, 1.0)
    u = jnp.round(K[0, 0] * x * inverse + K[0, 2])
    v = jnp.round(K[1, 1] * y * inverse + K[1, 2])
    inside = front & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return jnp.where(inside, u + width * v, 0.0).astype(jnp.int32), inside


def look_up(
    points: Float[Array, "*n 3"], sight: Sight, tolerance: float
) -> tuple[Int[Array, "*n"], Bool[Array, "*n"]]:
    """Pixel nearest to where points in a camera's frame project, and whether it shows them.

    It does if the point is off the tangent plane of the surface that the pixel shows by at most
    half the width of a pixel plus ``tolerance``, both times its depth.
    """
    index, inside = nearest_pixel(points, sight.K, sight.known.shape)  # type: ignore[arg-type]
    gap = points - sight.points.reshape(-1, 3)[index]
    off = jnp.abs(jnp.sum(gap * sight.normals.reshape(-1, 3)[index], axis=-1))
    close = off <= (0.5 / sight.K[0, 0] + tolerance) * points[..., 2]
    return index, inside & close & sight.known.reshape(-1)[index]


def mutual_pixels(
    sight_1: Sight, sight_2: Sight, T_12: Float[Array, "4 4"], tolerance: float
) -> tuple[Int[Array, "hw"], Bool[Array, "hw"]]:
    """For each pixel of view 2 the one of view 1 that shows the same point, and whether one does.

    Both views must show the other's point at just the other's pixel (nearest pixel), by surfaces
    that face the same way. So no pixel of either view is in two pairs, and the two points of a pair
    lie within half a pixel of each other as either camera sees them.
    """
    points_2 = transform(T_12, sight_2.points).reshape(-1, 3)
    points_1 = transform(invert(T_12), sight_1.points).reshape(-1, 3)
    to_1, shown_1 = look_up(points_2, sight_1, tolerance)
    to_2, shown_2 = look_up(points_1, sight_2, tolerance)
    normals_2 = jnp.einsum(
        "ij,nj->ni", T_12[:3, :3], sight_2.normals.reshape(-1, 3), precision="highest"
    )
    # Both sides of a board project to the same pixels, and both faces of an edge meet in one.
    alike = jnp.sum(sight_1.normals.reshape(-1, 3)[to_1] * normals_2, axis=-1) > 0.5
    itself = to_2[to_1] == jnp.arange(to_1.shape[0])
    return to_1, shown_1 & shown_2[to_1] & alike & itself


def sample_correspondences(
    chance: Float[Array, "2 hw"],
    to_1: Int[Array, "hw"],
    matched: Bool[Array, "hw"],
    n: int,
    unmatched: float,
) -> tuple[Int[Array, "n"], Int[Array, "n"], Bool[Array, "n"]]:
    """``n`` pixels of each view (linear indices), the first of them matched, and which are.

    ``to_1`` and ``matched`` are those of ``mutual_pixels``; ``chance`` are random numbers in [0, 1)
    for the pixels of both views. At least the share ``unmatched`` is not matched: pixels at random
    of those that are in none of the pairs chosen. No view's pixel occurs twice.
    """
    most = n - round(unmatched * n)
    # One by one in random order: the pixels that are matched, then the others.
    _, pixels_2 = jax.lax.top_k(jnp.where(matched, 1.0, 0.0) + chance[1], n)
    true = matched[pixels_2] & (jnp.arange(n) < most)
    partner = to_1[pixels_2]
    taken = jnp.zeros(to_1.shape, bool).at[partner].max(true)
    _, others = jax.lax.top_k(jnp.where(taken, -1.0, chance[0]), n)
    # From the first on: images of few pixels have just enough.
    rank = jnp.maximum(jnp.arange(n) - jnp.sum(true), 0)
    return jnp.where(true, partner, others[rank]), pixels_2, true


def pair_batch(
    key: PRNGKeyArray,
    images: Float[Array, "b 2 h w 3"],
    sights: Sight,
    T_12: Float[Array, "b 4 4"],
    metric: Bool[Array, "b"],
    *,
    n: int,
    unmatched: float,
    tolerance: float = 0.0,
) -> PairBatch:
    """Training pairs from images in [-1, 1], the geometry both views see, and relative poses.

    ``sights`` has leading axes ``b 2``. ``tolerance`` is the error of depth to be expected,
    relative. Raises ``ValueError`` if the images have fewer than ``n`` pixels.
    """
    height, width = images.shape[2:4]
    if n > height * width:
        raise ValueError(
            f"{n} correspondences of images with {height * width} pixels; ask for less"
        )
    sight_1, sight_2 = (jax.tree.map(lambda leaf, v=v: leaf[:, v], sights) for v in range(2))

    def match(chance, sight_1, sight_2, T_12):
        to_1, matched = mutual_pixels(sight_1, sight_2, T_12, tolerance)
        return sample_correspondences(chance, to_1, matched, n, unmatched)

    chance = jax.random.uniform(key, (images.shape[0], 2, height * width))
    index_1, index_2, matched = jax.vmap(match)(chance, sight_1, sight_2, T_12)
    pixels_1, pixels_2 = (
        jnp.stack([index % width, index // width], axis=-1) for index in (index_1, index_2)
    )
    return PairBatch(
        images_1=images[:, 0],
        images_2=images[:, 1],
        points_1=sight_1.points,
        points_2=jax.vmap(transform)(T_12, sight_2.points),
        valid_1=sight_1.known,
        valid_2=sight_2.known,
        pixels_1=pixels_1,
        pixels_2=pixels_2,
        matched=matched,
        metric=metric,
        T_12=T_12,
    )
