"""Ray casting of procedural rooms: colour, exact depth, points, normals and object ids.

Every surface is intersected in closed form. Rays keep a unit z component in the camera, so the
ray parameter of a hit *is* its depth. Shading does not depend on the viewer (Lambert, point lights
with shadows): a surface point has one colour in all views, up to the filtering of its texture.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ops.records import Record, record
from slam.world.camera import undistort
from slam.world.room import NUM_FACES, Room
from slam.world.texture import surface_colour

_FAR = 1e9
"""Ray parameter of a miss; every ray hits the room, so it never leaves this file."""


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """Static choices of the renderer."""

    shadows: bool = True
    """Whether lights are occluded by solids."""
    supersampling: int = 1
    """Colour is the mean of this many samples squared; depth is that of the pixel's centre."""
    light_reach: float = 2.2
    """Distance in metres at which a lamp's light has halved."""


@record
class View(Record):
    """What a camera sees."""

    rgb: Float[Array, "h w 3"]
    """Display-referred (gamma 2) colour in [0, 1]."""
    depth: Float[Array, "h w"]
    """Along the camera's z axis, metres."""
    points_W: Float[Array, "h w 3"]
    """Surface points in the world."""
    normals_W: Float[Array, "h w 3"]
    """Unit outward normals of the surfaces in the world, towards the camera."""
    object_id: Int[Array, "h w"]
    """0 to 5: the room's -x, +x, -y, +y walls, floor, ceiling; from 6 on: solid ``id - 6``."""


Vector = tuple[Array, Array, Array]
"""Components held apart: long contiguous arrays are what vectorises."""


def _vector(component: Callable[[int], Array]) -> Vector:
    return component(0), component(1), component(2)


def _away_from_zero(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < 1e-9, 1e-9, x)


def _slab(origin: Array, direction: Array, half: Array) -> tuple[Array, Array]:
    """Where a ray enters and leaves ``|x| < half``."""
    inverse = 1.0 / _away_from_zero(direction)
    middle, reach = -origin * inverse, half * jnp.abs(inverse)
    return middle - reach, middle + reach


def _round(o: tuple[Array, ...], d: tuple[Array, ...], radius: Array) -> tuple[Array, Array]:
    """Where a ray enters and leaves a circle or ball about the origin; empty if it misses."""
    a = jnp.maximum(sum(x * x for x in d), 1e-12)
    middle = -sum(x * y for x, y in zip(o, d, strict=True)) / a
    # Measured from the point of closest approach: no cancellation far from a small ball.
    square = (radius**2 - sum((x + middle * y) ** 2 for x, y in zip(o, d, strict=True))) / a
    reach = jnp.sqrt(jnp.maximum(square, 0.0))
    return middle - reach, jnp.where(square > 0.0, middle + reach, -_FAR)


def _box(o: Vector, d: Vector, half: Vector) -> tuple[Array, Array]:
    x, y, z = (_slab(o[i], d[i], half[i]) for i in range(3))
    return (
        jnp.maximum(jnp.maximum(x[0], y[0]), z[0]),
        jnp.minimum(jnp.minimum(x[1], y[1]), z[1]),
    )


def _sphere(o: Vector, d: Vector, half: Vector) -> tuple[Array, Array]:
    return _round(o, d, half[0])


def _cylinder(o: Vector, d: Vector, half: Vector) -> tuple[Array, Array]:
    side, caps = _round(o[:2], d[:2], half[0]), _slab(o[2], d[2], half[2])
    return jnp.maximum(side[0], caps[0]), jnp.minimum(side[1], caps[1])


def _nearest_solid(
    room: Room, origin: Float[Array, "3"], d: Vector
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """Ray parameter and index of the first solid on rays from one point outside all solids."""
    # One row a solid and a scan over rows: a small program, and the rays stay in the cache.
    frame = jnp.stack([jnp.cos(room.yaw), jnp.sin(room.yaw)], axis=-1)
    half = jnp.where(room.active[:, None], room.half, -1.0)
    table = jnp.concatenate([room.centre - origin, half, frame], axis=-1)
    spheres = room.num_boxes + room.num_spheres
    parts = (
        (_box, table[: room.num_boxes]),
        (_sphere, table[room.num_boxes : spheres]),
        (_cylinder, table[spheres:]),
    )
    carry = jnp.full_like(d[0], _FAR), jnp.zeros(d[0].shape, jnp.int32), jnp.int32(0)
    for intersect, rows in parts:

        def nearer(carry, row, intersect=intersect):
            best, best_index, index = carry
            x, y, z, hx, hy, hz, c, s = row
            o = (-c * x - s * y, s * x - c * y, -z)
            local = (c * d[0] + s * d[1], c * d[1] - s * d[0], d[2])
            near, far = intersect(o, local, (hx, hy, hz))
            hit = (hx > 0.0) & (near < far) & (near > 0.0) & (near < best)
            return (jnp.where(hit, near, best), jnp.where(hit, index, best_index), index + 1), None

        carry, _ = jax.lax.scan(nearer, carry, rows)
    return carry[0], carry[1]


def _room_exit(
    size: Float[Array, "3"], origin: Float[Array, "3"], d: Vector
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """Ray parameter and face where rays from inside leave the room."""
    o = (origin[0], origin[1], origin[2] - 0.5 * size[2])
    exits = [_slab(o[i], d[i], 0.5 * size[i])[1] for i in range(3)]
    t = jnp.minimum(jnp.minimum(exits[0], exits[1]), exits[2])
    axis = jnp.where(t == exits[0], 0, jnp.where(t == exits[1], 1, 2))
    positive = jnp.select([axis == 0, axis == 1], [d[0] > 0, d[1] > 0], d[2] > 0)
    return t, (2 * axis + positive.astype(axis.dtype)).astype(jnp.int32)


_WALL, _BOX, _BALL, _TUBE = range(4)


def _shapes(room: Room) -> Float[Array, "m 9"]:
    """One row for each object id: centre, inverse half extents, cos and sin of yaw, kind."""
    walls = jnp.tile(0.5 * room.size, (NUM_FACES, 1))
    n = room.yaw.shape[0]
    counts = (NUM_FACES, room.num_boxes, room.num_spheres, n - room.num_boxes - room.num_spheres)
    kind = np.repeat(np.array([_WALL, _BOX, _BALL, _TUBE], np.float32), counts)
    yaw = jnp.concatenate([jnp.zeros(NUM_FACES, jnp.float32), room.yaw])
    return jnp.concatenate(
        [
            jnp.concatenate([walls * jnp.array([0.0, 0.0, 1.0]), room.centre]),
            1.0 / jnp.concatenate([walls, room.half]),
            jnp.stack([jnp.cos(yaw), jnp.sin(yaw), jnp.asarray(kind)], axis=-1),
        ],
        axis=-1,
    )


def _surface(
    room: Room, object_id: Int[Array, "n"], p: Vector
) -> tuple[Vector, Float[Array, "n"], Float[Array, "n"], UInt32[Array, "n"]]:
    """World normals, texture coordinates in metres, and face numbers of surface points.

    Texture coordinates are the two local axes across the dominant one of the local normal, for
    round solids too: a projection from six sides, stretched at most by sqrt(3).
    """
    cx, cy, cz, ix, iy, iz, c, s, kind = _shapes(room)[object_id].T
    x, y, z = p[0] - cx, p[1] - cy, p[2] - cz
    x, y = c * x + s * y, c * y - s * x
    # In units of the half extents the nearest face is that of the largest coordinate; a tube's
    # side is one face, at the distance from its axis.
    a, b, h = x * ix, y * iy, z * iz
    rim = jnp.sqrt(a * a + b * b)
    tube, cap = kind == _TUBE, jnp.abs(h) >= rim
    h = jnp.where(tube & ~cap, 0.0, h)
    a, b = (jnp.where(tube & cap, 0.0, q) for q in (a, b))
    along_z = (jnp.abs(h) > jnp.abs(a)) & (jnp.abs(h) > jnp.abs(b))
    along_x = ~along_z & (jnp.abs(a) >= jnp.abs(b))
    along_y = ~along_z & ~along_x
    inwards = jnp.where(kind == _WALL, -1.0, 1.0)
    round_ = (kind == _BALL) | (tube & ~cap)
    scale = jax.lax.rsqrt(jnp.maximum(a * a + b * b + h * h, 1e-12))
    nx, ny, nz = (
        jnp.where(round_, q * scale, jnp.where(chosen, inwards * jnp.sign(q), 0.0))
        for q, chosen in ((a, along_x), (b, along_y), (h, along_z))
    )
    normal = (c * nx - s * ny, s * nx + c * ny, nz)
    u, v = jnp.where(along_x, y, x), jnp.where(along_z, y, z)
    positive = jnp.where(along_x, a, jnp.where(along_y, b, h)) > 0
    axis = jnp.where(along_x, 0, jnp.where(along_y, 2, 4)).astype(jnp.uint32)
    return normal, u, v, axis + positive.astype(jnp.uint32)


def sees(
    room: Room, origin: Float[Array, "3"], points_W: Float[Array, "*n 3"]
) -> Bool[Array, "*n"]:
    """Whether no solid hides surface points of a room from a place outside every solid."""
    d = _vector(lambda i: (points_W[..., i] - origin[i]).reshape(-1))
    t, _ = _nearest_solid(room, origin, d)
    # A point's own surface is hit at 1, up to rounding.
    return (t > 1.0 - 1e-3).reshape(points_W.shape[:-1])


def _light(room: Room, p: Vector, normal: Vector, config: RenderConfig) -> Float[Array, "n 3"]:
    """Linear RGB light arriving at surface points."""
    # Corners of the room see less of it: darken within a few decimetres of other faces.
    occlusion = jnp.ones_like(p[0])
    for i, (low, high) in enumerate(
        ((-0.5 * room.size[0], 0.5 * room.size[0]), (-0.5 * room.size[1], 0.5 * room.size[1]),
         (jnp.zeros_like(room.size[2]), room.size[2]))
    ):  # fmt: skip
        gap = jnp.minimum(p[i] - low, high - p[i])
        facing = normal[i] * normal[i]
        occlusion = occlusion * (1.0 - 0.45 * (1.0 - facing) * jnp.exp2(-gap / 0.18))
    sky = (0.85 + 0.15 * normal[2]) * occlusion

    def add(total, light):
        position, colour = light
        # From the light to the surface, lifted off itself: rays then share their origin.
        d = _vector(lambda i: p[i] + 4e-3 * normal[i] - position[i])
        square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        cosine = -(d[0] * normal[0] + d[1] * normal[1] + d[2] * normal[2])
        cosine = jnp.maximum(cosine, 0.0) * jax.lax.rsqrt(square + 1e-6)
        lit = cosine / (1.0 + square / config.light_reach**2)
        if config.shadows:
            t, _ = _nearest_solid(room, position, d)
            lit = jnp.where(t < 1.0, 0.0, lit)
        return total + lit[:, None] * colour, None

    start = sky[:, None] * room.ambient
    return jax.lax.scan(add, start, (room.light_position, room.light_colour))[0]


def _cast(
    room: Room,
    T_WC: Float[Array, "4 4"],
    rays_C: Float[Array, "n 3"],
    angle: Float[Array, ""],
    exposure: Float[Array, ""],
    config: RenderConfig,
):
    """Colour and geometry along rays with unit z; ``angle`` is the width of a pixel at z = 1."""
    origin = T_WC[:3, 3]
    x, y = rays_C[:, 0], rays_C[:, 1]
    d = _vector(lambda i: T_WC[i, 0] * x + T_WC[i, 1] * y + T_WC[i, 2])
    t_wall, face = _room_exit(room.size, origin, d)
    t_solid, solid = _nearest_solid(room, origin, d)
    is_solid = t_solid < t_wall
    t = jnp.where(is_solid, t_solid, t_wall)
    object_id = jnp.where(is_solid, solid + NUM_FACES, face)
    p = _vector(lambda i: origin[i] + t * d[i])
    normal, u, v, side = _surface(room, object_id, p)

    length = jnp.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    cosine = -(d[0] * normal[0] + d[1] * normal[1] + d[2] * normal[2]) / length
    # Geometric mean of a footprint's two sides: grazing surfaces keep some of their texture.
    width = t * angle * length * jax.lax.rsqrt(jnp.maximum(cosine, 0.1))
    materials = jax.tree.map(lambda leaf: leaf[object_id], room.materials)
    materials = materials.replace(seed=materials.seed + side * jnp.uint32(0x632BE5AB))
    albedo = surface_colour(u, v, materials, width)
    light = _light(room, p, normal, config) + materials.emission[:, None]
    radiance = exposure * albedo * light
    # Shoulder towards 1, then gamma 2.
    rgb = jnp.sqrt(radiance * (1.0 + radiance / 4.0) / (1.0 + radiance))
    return jnp.clip(rgb, 0.0, 1.0), t, jnp.stack(p, -1), jnp.stack(normal, -1), object_id


@functools.partial(jax.jit, static_argnames=("shape", "config"))
def render(
    room: Room,
    T_WC: Float[Array, "4 4"],
    K: Float[Array, "3 3"],
    shape: tuple[int, int],
    distortion: Float[Array, "4"] | None = None,
    exposure: Float[Array, ""] | float = 1.0,
    config: RenderConfig = RenderConfig(),
) -> View:
    """The view of a camera in a room; traces under ``vmap`` (rooms, poses, intrinsics).

    ``shape`` is (height, width). Pixel ``(u, v)`` (integer at its centre) looks along
    ``K^-1 (u, v, 1)``; with ``distortion`` (Brown-Conrady ``k1, k2, p1, p2``, OpenCV's order) the
    image is the distorted one and the pixel looks along the undistorted direction. The camera must
    be in the room and outside every solid, which the room's free region guarantees.
    """
    height, width = shape
    v, u = jnp.mgrid[0:height, 0:width].astype(jnp.float32)
    exposure = jnp.asarray(exposure, jnp.float32)
    angle = jax.lax.rsqrt(K[0, 0] * K[1, 1])

    def cast(offset: Array):
        y = (v.reshape(-1) + offset[1] - K[1, 2]) / K[1, 1]
        x = (u.reshape(-1) + offset[0] - K[0, 2] - K[0, 1] * y) / K[0, 0]
        xy = jnp.stack([x, y], axis=-1)
        if distortion is not None:
            xy = undistort(xy, distortion)
        rays = jnp.concatenate([xy, jnp.ones_like(xy[:, :1])], axis=-1)
        return _cast(room, T_WC, rays, angle / config.supersampling, exposure, config)

    rgb, depth, points, normals, object_id = cast(jnp.zeros(2, jnp.float32))
    if config.supersampling > 1:
        grid = (jnp.arange(config.supersampling, dtype=jnp.float32) + 0.5) / config.supersampling
        offsets = jnp.stack(jnp.meshgrid(grid - 0.5, grid - 0.5), axis=-1).reshape(-1, 2)
        rgb = jnp.mean(jax.lax.map(lambda offset: cast(offset)[0], offsets), axis=0)
    return View(
        rgb=rgb.reshape(height, width, 3),
        depth=depth.reshape(height, width),
        points_W=points.reshape(height, width, 3),
        normals_W=normals.reshape(height, width, 3),
        object_id=object_id.reshape(height, width),
    )
