"""What surfaces of a room look like: the ranges their materials are drawn from."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slam.world.dice import Dice
from slam.world.texture import BRICKS, CHECKS, DOTS, MOSAIC, PLAIN, STRIPES, Materials

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Look:
    """Ranges for one kind of surface; lengths in metres, colours in hue, saturation, value."""

    patterns: tuple[int, ...]
    """Drawn from with equal chances."""
    hue: Range = (0.0, 1.0)
    saturation: Range = (0.3, 0.8)
    value: Range = (0.4, 0.8)
    hue_shift: Range = (-0.1, 0.1)
    """Of the second colour against the first."""
    value_b: Range = (0.1, 0.5)
    cell: Range = (0.1, 0.3)
    """The smaller side of a cell of the pattern."""
    aspect: Range = (1.0, 1.0)
    """Width over height of a cell, below 1 for upright cells."""
    noise_cell: Range = (0.3, 0.6)
    grain: float = 1.0
    """Length over width of the cells of the noise."""
    amplitude: Range = (0.2, 0.4)
    gain: Range = (0.75, 0.95)
    sharpness: Range = (1.3, 3.0)
    blotch: float = 0.1
    tint: float = 0.1
    emission: float = 0.0


_PAPERED = Look(
    (PLAIN, STRIPES, DOTS, CHECKS, BRICKS),
    saturation=(0.08, 0.4), value=(0.55, 0.85), value_b=(0.35, 0.8),
    cell=(0.1, 0.35), amplitude=(0.12, 0.3), blotch=0.15, tint=0.08,
)  # fmt: skip
_BRICKWORK = Look(
    (BRICKS,),
    hue=(0.0, 0.12), saturation=(0.15, 0.55), value=(0.45, 0.75), value_b=(0.5, 0.75),
    cell=(0.09, 0.16), aspect=(2.0, 3.2), noise_cell=(0.2, 0.5), tint=0.3,
)  # fmt: skip
_PLANKS = Look(
    (BRICKS,),
    hue=(0.05, 0.11), saturation=(0.35, 0.65), value=(0.35, 0.7), value_b=(0.08, 0.2),
    hue_shift=(0.0, 0.02), cell=(0.1, 0.2), aspect=(5.0, 9.0), noise_cell=(0.3, 0.5), grain=5.0,
    sharpness=(1.3, 2.0), tint=0.18,
)  # fmt: skip
_TILES = Look(
    (BRICKS, CHECKS, MOSAIC),
    saturation=(0.05, 0.4), value=(0.45, 0.8), value_b=(0.15, 0.5),
    cell=(0.2, 0.45), amplitude=(0.15, 0.35), tint=0.15,
)  # fmt: skip
_PLASTER = Look(
    (PLAIN, BRICKS),
    saturation=(0.0, 0.1), value=(0.75, 0.9), value_b=(0.5, 0.7),
    cell=(0.4, 0.7), amplitude=(0.08, 0.15), blotch=0.12, tint=0.03,
)  # fmt: skip
_WOOD = Look(
    (PLAIN, BRICKS),
    hue=(0.03, 0.12), saturation=(0.4, 0.75), value=(0.3, 0.75), value_b=(0.1, 0.3),
    hue_shift=(-0.02, 0.02), cell=(0.2, 0.45), aspect=(0.6, 3.0), noise_cell=(0.16, 0.3),
    grain=6.0, amplitude=(0.2, 0.4), blotch=0.3, tint=0.06,
)  # fmt: skip
_PAINTED = Look(
    (PLAIN, BRICKS, STRIPES, CHECKS),
    saturation=(0.3, 0.75), value=(0.35, 0.85), value_b=(0.15, 0.6),
    cell=(0.2, 0.45), aspect=(0.8, 1.6), noise_cell=(0.2, 0.4), blotch=0.15, tint=0.06,
)  # fmt: skip
_BOOKS = Look(
    (MOSAIC,),
    saturation=(0.5, 0.8), value=(0.4, 0.8), value_b=(0.1, 0.3), hue_shift=(0.1, 0.5),
    cell=(0.03, 0.06), aspect=(0.12, 0.25), noise_cell=(0.1, 0.2), tint=0.5,
)  # fmt: skip
_PAINTING = Look(
    (PLAIN,),
    saturation=(0.4, 0.9), value=(0.4, 0.9), value_b=(0.1, 0.9), hue_shift=(0.1, 0.9),
    noise_cell=(0.15, 0.45), sharpness=(2.5, 5.0), blotch=0.8,
)  # fmt: skip
_POSTER = Look(
    (MOSAIC, CHECKS, DOTS, STRIPES, MOSAIC),
    saturation=(0.4, 0.95), value=(0.5, 0.9), value_b=(0.05, 0.9), hue_shift=(0.1, 0.9),
    cell=(0.06, 0.22), aspect=(0.5, 2.0), noise_cell=(0.15, 0.35), blotch=0.3, tint=0.45,
)  # fmt: skip
_BRIGHT = Look(
    (PLAIN, STRIPES, CHECKS, DOTS, MOSAIC, BRICKS),
    saturation=(0.4, 0.95), value=(0.4, 0.9), value_b=(0.1, 0.9), hue_shift=(0.05, 0.95),
    cell=(0.04, 0.12), aspect=(0.6, 1.8), noise_cell=(0.1, 0.25), blotch=0.3, tint=0.25,
)  # fmt: skip
_LAMP = Look(
    (CHECKS, BRICKS),
    saturation=(0.0, 0.1), value=(0.9, 0.95), value_b=(0.7, 0.8),
    cell=(0.15, 0.3), amplitude=(0.05, 0.1), blotch=0.02, tint=0.02, emission=2.0,
)  # fmt: skip

# What the surfaces of a group are drawn from.
WALLS = (_PAPERED, _BRICKWORK, _PAPERED)
FLOORS = (_PLANKS, _TILES)
CEILINGS = (_PLASTER,)
CABINETS = (_WOOD, _BOOKS, _PAINTED, _WOOD, _PAINTED)
PICTURES = (_POSTER, _PAINTING)
TABLES = (_WOOD, _PAINTED)
CRATES = (_WOOD, _PAINTED, _BRIGHT)
THINGS = (_BRIGHT,)
LAMPS = (_LAMP,)

_NUMBERS = 15
NUMBERS_PER_MATERIAL = _NUMBERS + 1
"""Random numbers that make a material; the last one is its seed."""


def hsv(
    h: Float[Array, "*n"], s: Float[Array, "*n"], v: Float[Array, "*n"]
) -> Float[Array, "*n 3"]:
    """Linear RGB of hue (period 1), saturation and value."""
    ramp = jnp.abs(jnp.mod(6.0 * h[..., None] + jnp.array([0.0, 4.0, 2.0]), 6.0) - 3.0)
    pure = jnp.clip(ramp - 1.0, 0.0, 1.0)
    return v[..., None] * (1.0 + s[..., None] * (pure - 1.0))


def random_materials(dice: Dice, choices: list[tuple[Look, ...]]) -> Materials:
    """For each surface, a random material of one of the looks it may have."""
    kinds = list(dict.fromkeys(look for looks in choices for look in looks))
    random = dice.uniform((len(choices), _NUMBERS))

    def one_of(options: Int[Array, "m o"], count: Int[Array, "m"], column: int) -> Array:
        index = jnp.floor(random[:, column] * count.astype(jnp.float32)).astype(jnp.int32)
        return jnp.take_along_axis(options, index[:, None], axis=1)[:, 0]

    kind = one_of(*_padded([tuple(map(kinds.index, looks)) for looks in choices]), 0)
    patterns, count = _padded([look.patterns for look in kinds])
    pattern = one_of(patterns[kind], count[kind], 1)

    def number(name: str) -> Float[Array, "m"]:
        return jnp.array([getattr(look, name) for look in kinds], jnp.float32)[kind]

    def draw(name: str, column: int) -> Float[Array, "m"]:
        low, high = jnp.array([getattr(look, name) for look in kinds], jnp.float32)[kind].T
        return low + random[:, column] * (high - low)

    hue, saturation = draw("hue", 2), draw("saturation", 3)
    side, noise_side = draw("cell", 4), draw("noise_cell", 5)
    width = jnp.where(pattern == CHECKS, 1.0, draw("aspect", 6)) * side
    # The smaller side is ``side``, whichever way the cell is turned.
    cell = jnp.stack([width, side], axis=-1) * (side / jnp.minimum(side, width))[:, None]
    bricks, dots = pattern == BRICKS, pattern == DOTS
    joint = jnp.where(dots, 0.2 + 0.22 * random[:, 7], 0.008 + 0.02 * random[:, 7])
    return Materials(
        pattern=pattern,
        colour_a=hsv(hue, saturation, draw("value", 8)),
        colour_b=hsv(hue + draw("hue_shift", 9), saturation, draw("value_b", 10)),
        cell=cell,
        shift=jnp.where(bricks, 0.2 + 0.3 * random[:, 11], 0.0),
        joint=joint,
        tint=number("tint"),
        noise_cell=jnp.stack([noise_side, noise_side / number("grain")], axis=-1),
        noise_gain=draw("gain", 12),
        noise_amplitude=draw("amplitude", 13),
        sharpness=draw("sharpness", 14),
        blotch=number("blotch"),
        emission=number("emission"),
        seed=dice.bits((len(choices),)),
    )


def _padded(rows: list[tuple[int, ...]]) -> tuple[Int[Array, "m o"], Int[Array, "m"]]:
    """Rows of unequal length as one array, and their lengths."""
    longest = max(map(len, rows))
    table = [row + (row[0],) * (longest - len(row)) for row in rows]
    return jnp.array(table, jnp.int32), jnp.array([len(row) for row in rows], jnp.int32)
