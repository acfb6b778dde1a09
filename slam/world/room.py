"""Random furnished rooms as one record of fixed-shape arrays.

World axes: z up, the floor at ``z = 0``, the room centred on ``x = y = 0``; metres. A room is a
closed box with solids in it (boxes, spheres, upright cylinders), and keeps one region free: the
upright elliptic cylinder ``(x/a)^2 + (y/b)^2 < 1`` between two heights, where cameras may go.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ops.records import Record, record, static_field
from slam.world import looks
from slam.world.dice import Dice
from slam.world.texture import Materials

NUM_FACES = 6
"""Faces of the room, in the order -x, +x, -y, +y, floor, ceiling: object ids 0 to 5."""


@dataclasses.dataclass(frozen=True)
class RoomConfig:
    """What rooms are drawn from; counts are static shapes, lengths are metres."""

    length: tuple[float, float] = (5.0, 7.5)
    """Range of the two horizontal sides."""
    height: tuple[float, float] = (2.5, 3.1)
    """Range of the height."""
    margin: float = 1.15
    """Between the walls and the free ellipse at its vertices; wall furniture is 0.25-0.6 deep."""
    free_height: tuple[float, float] = (0.8, 2.15)
    """Below and above these heights, furniture and lamps may stand in the free ellipse."""
    clutter: float = 0.85
    """Probability of each piece of furniture being there."""
    cabinets_per_wall: int = 2
    pictures_per_wall: int = 3
    tables: int = 4
    table_boxes: int = 6
    table_spheres: int = 3
    table_cylinders: int = 4
    floor_boxes: int = 5
    floor_spheres: int = 4
    floor_cylinders: int = 4
    lamps: int = 2

    @property
    def num_solids(self) -> int:
        """How many solids a room has, active or not."""
        boxes = 4 * (self.cabinets_per_wall + self.pictures_per_wall) + 3 * self.tables
        things = self.table_boxes + self.table_spheres + self.table_cylinders
        standing = self.floor_boxes + self.floor_spheres + self.floor_cylinders
        return boxes + things + standing + self.lamps


@record
class Room(Record):
    """A furnished room; solids are boxes, then spheres, then cylinders."""

    size: Float[Array, "3"]
    """Inner length, width and height."""
    centre: Float[Array, "n 3"]
    """Centres of the solids."""
    half: Float[Array, "n 3"]
    """Half extents of boxes; radius three times for spheres; radius twice and half height."""
    yaw: Float[Array, "n"]
    """Rotation of the solids about z, radians."""
    active: Bool[Array, "n"]
    """Which solids exist."""
    materials: Materials
    """Looks of the six faces of the room, then of the solids: row = object id."""
    light_position: Float[Array, "l 3"]
    light_colour: Float[Array, "l 3"]
    """Linear RGB intensity of each point light at its centre."""
    ambient: Float[Array, "3"]
    """Linear RGB light from everywhere."""
    free_semi_axes: Float[Array, "2"]
    """Semi-axes ``a, b`` of the region without solids."""
    free_height: Float[Array, "2"]
    """Lowest and highest z of that region."""
    num_boxes: int = static_field()
    num_spheres: int = static_field()


@record
class _Solids(Record):
    """Solids on their way into a room."""

    centre: Float[Array, "n 3"]
    half: Float[Array, "n 3"]
    yaw: Float[Array, "n"]
    active: Bool[Array, "n"]


def _solids(centre: Array, half: Array, yaw: Array | None = None, active: Array | None = None):
    n = centre.shape[0]
    return _Solids(
        centre=centre,
        half=half,
        yaw=jnp.zeros(n, jnp.float32) if yaw is None else yaw,
        active=jnp.ones(n, bool) if active is None else active,
    )


def _against_walls(
    dice: Dice, size: Array, per_wall: int, width: Array, depth: Array, low: Array, high: Array
) -> _Solids:
    """Boxes with their backs on the four walls, each in its own stretch of wall."""
    n = 4 * per_wall
    wall = jnp.repeat(jnp.arange(4), per_wall)
    slot = jnp.tile(jnp.arange(per_wall), 4)
    along_x = wall >= 2  # walls -y and +y run along x
    length = jnp.where(along_x, size[0], size[1])
    stretch = length / per_wall
    width = jnp.minimum(width, stretch - 0.1)
    jitter = (stretch - width) * dice.uniform((n,), -0.5, 0.5)
    along = (slot.astype(jnp.float32) + 0.5) * stretch - 0.5 * length + jitter
    sign = jnp.where(wall % 2 == 0, -1.0, 1.0)
    across = sign * (0.5 * jnp.where(along_x, size[1], size[0]) - 0.5 * depth)
    centre = jnp.stack(
        [
            jnp.where(along_x, along, across),
            jnp.where(along_x, across, along),
            0.5 * (low + high),
        ],
        axis=-1,
    )
    half = 0.5 * jnp.stack(
        [jnp.where(along_x, width, depth), jnp.where(along_x, depth, width), high - low], axis=-1
    )
    return _solids(centre, half)


def _on_floor(dice: Dice, size: Array, n: int, half: Array) -> tuple[Array, Array]:
    """Centres (standing on the floor, anywhere) and yaws for solids of the given half extents."""
    room = 0.5 * size[:2] - jnp.max(half[:, :2], axis=-1, keepdims=True) * 1.42
    xy = dice.uniform((n, 2), -1.0, 1.0) * room
    return jnp.concatenate([xy, half[:, 2:]], axis=-1), dice.uniform((n,), -jnp.pi, jnp.pi)


def _tables(dice: Dice, size: Array, n: int) -> _Solids:
    """Tables: a top (the first ``n`` boxes) and two panels each (the rest)."""
    half = dice.between(n, (0.4, 0.25, 0.18), (0.8, 0.45, 0.38))
    standing, yaw = _on_floor(dice, size, n, half)
    # Half of the tables stand squarely, turned by a multiple of a right angle.
    square = jnp.round(yaw / (0.5 * jnp.pi)) * (0.5 * jnp.pi)
    yaw = jnp.where(dice.chance(0.5, (n,)), square, yaw)
    height = 2.0 * half[:, 2]
    top_centre = standing.at[:, 2].set(height - 0.02)
    top_half = half.at[:, 2].set(0.02)
    panel_half = jnp.stack(
        [jnp.full(n, 0.02), half[:, 1] - 0.04, 0.5 * (height - 0.04)], axis=-1
    ).astype(jnp.float32)
    direction = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), jnp.zeros(n)], axis=-1)
    offset = direction * (half[:, :1] - 0.08)
    base = standing.at[:, 2].set(0.5 * (height - 0.04))
    return _solids(
        jnp.concatenate([top_centre, base + offset, base - offset]),
        jnp.concatenate([top_half, panel_half, panel_half]),
        jnp.concatenate([yaw, yaw, yaw]),
    )


def _on_tables(dice: Dice, tops: _Solids, *halves: Array) -> list[_Solids]:
    """Groups of things standing on random table tops; they exist where their table does."""
    half = jnp.concatenate(halves)
    n = half.shape[0]
    which = jnp.floor(dice.uniform((n,)) * tops.centre.shape[0]).astype(jnp.int32)
    top = jax.tree.map(lambda leaf: leaf[which], tops)
    room = top.half[:, :2] - jnp.max(half[:, :2], axis=-1, keepdims=True)
    x, y = (dice.uniform((n, 2), -1.0, 1.0) * jnp.maximum(room, 0.0)).T
    c, s = jnp.cos(top.yaw), jnp.sin(top.yaw)
    z = top.half[:, 2] + half[:, 2]
    centre = top.centre + jnp.stack([c * x - s * y, s * x + c * y, z], axis=-1)
    yaw = top.yaw + dice.uniform((n,), -0.6, 0.6)
    return _split(_Solids(centre=centre, half=half, yaw=yaw, active=top.active), halves)


def _standing(dice: Dice, size: Array, *halves: Array) -> list[_Solids]:
    """Groups of solids anywhere on the floor."""
    half = jnp.concatenate(halves)
    centre, yaw = _on_floor(dice, size, half.shape[0], half)
    return _split(_solids(centre, half, yaw), halves)


def _split(solids: _Solids, like: tuple[Array, ...]) -> list[_Solids]:
    ends = np.cumsum([part.shape[0] for part in like])
    return [
        jax.tree.map(lambda leaf, a=end - part.shape[0], b=end: leaf[a:b], solids)
        for part, end in zip(like, ends, strict=True)
    ]


def _leaves_free(solids: _Solids, semi_axes: Array, height: Array) -> Bool[Array, "n"]:
    """Whether each solid stays out of the free region (exact for its bounding box)."""
    c, s = jnp.abs(jnp.cos(solids.yaw)), jnp.abs(jnp.sin(solids.yaw))
    extent = jnp.stack(
        [
            c * solids.half[:, 0] + s * solids.half[:, 1],
            s * solids.half[:, 0] + c * solids.half[:, 1],
        ],
        axis=-1,
    )
    # In coordinates that make the ellipse a unit circle a bounding box stays one; compare the
    # distance of its nearest point.
    nearest = jnp.maximum(jnp.abs(solids.centre[:, :2]) - extent, 0.0) / semi_axes
    outside = jnp.sum(nearest**2, axis=-1) >= 1.0
    below = solids.centre[:, 2] + solids.half[:, 2] <= height[0]
    above = solids.centre[:, 2] - solids.half[:, 2] >= height[1]
    return outside | below | above


def _concatenate(parts: list[_Solids]) -> _Solids:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnames="config")
def random_room(key: PRNGKeyArray, config: RoomConfig = RoomConfig()) -> Room:
    """A random furnished room, a pure function of the key (traces under ``vmap``).

    Solids that would reach into the free region are inactive, so every point of that region is
    outside every solid whatever the key.
    """
    c = config
    # 16 numbers place a solid at the most.
    dice = Dice(key, 64 + (16 + looks.NUMBERS_PER_MATERIAL) * (NUM_FACES + c.num_solids))
    size = jnp.concatenate([dice.uniform((2,), *c.length), dice.uniform((1,), *c.height)])
    semi_axes = 0.5 * size[:2] - c.margin
    free_height = jnp.array(c.free_height, jnp.float32)

    n = 4 * c.cabinets_per_wall
    tall = dice.chance(0.4, (n,))
    top = jnp.where(tall, dice.uniform((n,), 1.6, 2.3), dice.uniform((n,), 0.5, 1.1))
    width, depth = dice.uniform((n,), 0.6, 2.0), dice.uniform((n,), 0.25, 0.6)
    cabinets = _against_walls(
        dice, size, c.cabinets_per_wall, width, depth, jnp.zeros(n, jnp.float32), top
    )

    n = 4 * c.pictures_per_wall
    middle, tallness = dice.uniform((n,), 1.35, 1.75), dice.uniform((n,), 0.4, 1.1)
    low, high = middle - 0.5 * tallness, middle + 0.5 * tallness
    width, depth = dice.uniform((n,), 0.4, 1.4), dice.uniform((n,), 0.02, 0.06)
    pictures = _against_walls(dice, size, c.pictures_per_wall, width, depth, low, high)

    n = c.lamps
    lamp_xy = (dice.uniform((n, 2), -0.12, 0.12) + jnp.linspace(-0.22, 0.22, n)[:, None]) * size[:2]
    lamp_z = jnp.broadcast_to(size[2] - 0.03, (n, 1))
    lamp_centre = jnp.concatenate([lamp_xy, lamp_z], axis=-1)
    lamps = _solids(lamp_centre, jnp.tile(jnp.array([[0.35, 0.35, 0.03]]), (n, 1)))

    # A table stands or falls with its top, and so do the things on it.
    tables = _tables(dice, size, c.tables)
    tops = jax.tree.map(lambda leaf: leaf[: c.tables], tables)
    stands = dice.chance(c.clutter, (c.tables,)) & _leaves_free(tops, semi_axes, free_height)
    tables = tables.replace(active=jnp.tile(stands, 3))
    tops = tops.replace(active=stands)
    ball, tube = jnp.array([0, 0, 0]), jnp.array([0, 0, 1])
    books, fruit, vases = _on_tables(
        dice,
        tops,
        dice.between(c.table_boxes, (0.06, 0.05, 0.02), (0.2, 0.15, 0.2)),
        dice.between(c.table_spheres, (0.06,), (0.16,))[:, ball],
        dice.between(c.table_cylinders, (0.04, 0.06), (0.12, 0.22))[:, tube],
    )
    crates, balls, columns = _standing(
        dice,
        size,
        dice.between(c.floor_boxes, (0.12, 0.12, 0.1), (0.34, 0.34, 0.6)),
        dice.between(c.floor_spheres, (0.12,), (0.35,))[:, ball],
        dice.between(c.floor_cylinders, (0.1, 0.15), (0.28, 0.9))[:, tube],
    )

    groups = [
        (cabinets, looks.CABINETS),
        (pictures, looks.PICTURES),
        (tables, looks.TABLES),
        (lamps, looks.LAMPS),
        (crates, looks.CRATES),
        (books, looks.THINGS),
        (fruit, looks.THINGS),
        (balls, looks.THINGS),
        (vases, looks.THINGS),
        (columns, looks.THINGS),
    ]
    solids = _concatenate([group for group, _ in groups])
    certain = jnp.concatenate(
        [jnp.full(group.yaw.shape, group is tables or group is lamps) for group, _ in groups]
    )
    active = solids.active & (certain | dice.chance(c.clutter, solids.active.shape))
    active = active & _leaves_free(solids, semi_axes, free_height)

    choices = [looks.WALLS] * 4 + [looks.FLOORS, looks.CEILINGS]
    for group, kinds in groups:
        choices += [kinds] * group.yaw.shape[0]
    materials = looks.random_materials(dice, choices)
    # The panels of a table are made of what its top is made of.
    rows = np.arange(len(choices))
    first = NUM_FACES + cabinets.yaw.shape[0] + pictures.yaw.shape[0]
    rows[first : first + 3 * c.tables] = first + np.tile(np.arange(c.tables), 3)
    materials = jax.tree.map(lambda leaf: leaf[rows], materials)
    tone = dice.uniform((c.lamps + 1, 2))
    warm = looks.hsv(0.04 + 0.12 * tone[1:, 0], 0.3 * tone[1:, 1], jnp.ones(c.lamps))
    sky = looks.hsv(0.5 + 0.2 * tone[0, 0], 0.25 * tone[0, 1], jnp.ones(()))
    strength = dice.uniform((c.lamps, 1), 2.4, 3.4) * (2.0 / c.lamps)
    return Room(
        size=size,
        centre=solids.centre,
        half=solids.half,
        yaw=solids.yaw,
        active=active,
        materials=materials,
        light_position=lamp_centre - jnp.array([0.0, 0.0, 0.2]),
        light_colour=warm * strength,
        ambient=sky * dice.uniform((), 0.14, 0.22),
        free_semi_axes=semi_axes,
        free_height=free_height,
        num_boxes=sum(g.yaw.shape[0] for g in (cabinets, pictures, tables, lamps, crates, books)),
        num_spheres=c.table_spheres + c.floor_spheres,
    )
