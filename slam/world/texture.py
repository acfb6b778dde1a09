"""Procedural surface colour: patterns and value noise, functions of the surface point alone.

Everything is hashed on integer lattices, so a point has the same colour from every view, no two
objects look alike, and no trigonometry runs per pixel. Pattern edges are box-filtered and noise
octaves fade with the footprint of the pixel on the surface, which keeps distant texture from
aliasing (the usual "clamping" of procedural textures; Ebert et al., *Texturing and Modeling*).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ops.records import Record, record

PLAIN, STRIPES, CHECKS, DOTS, MOSAIC, BRICKS = range(6)

NUM_OCTAVES = 7
"""From ``noise_cell`` down by 64: 64 cm to 1 cm on walls, a pixel at 2 m on a 224-pixel image."""


@record
class Materials(Record):
    """How surfaces look; the leading axes are objects or, once gathered, pixels."""

    pattern: Int[Array, "*m"]
    """One of PLAIN, STRIPES, CHECKS, DOTS, MOSAIC, BRICKS."""
    colour_a: Float[Array, "*m 3"]
    """Linear RGB reflectance."""
    colour_b: Float[Array, "*m 3"]
    """Second colour: of the pattern, of joints, and of the blotches of the coarse noise."""
    cell: Float[Array, "*m 2"]
    """Width and height of a cell of the pattern, metres."""
    shift: Float[Array, "*m"]
    """How far each row of cells is shifted against the one below, in cells."""
    joint: Float[Array, "*m"]
    """Width of the joints between bricks, or radius of dots in cells of the smaller side."""
    tint: Float[Array, "*m"]
    """How much brightness varies from cell to cell."""
    noise_cell: Float[Array, "*m 2"]
    """Cell of the coarsest noise octave, metres; unequal sides give a grain."""
    noise_gain: Float[Array, "*m"]
    """Amplitude of an octave over that of the next coarser one."""
    noise_amplitude: Float[Array, "*m"]
    """Relative brightness change by noise."""
    sharpness: Float[Array, "*m"]
    """Contrast of an octave before clipping: 1 is smooth, 4 has edges."""
    blotch: Float[Array, "*m"]
    """How far the noise mixes ``colour_b`` in."""
    emission: Float[Array, "*m"]
    """Light sent out, as a multiple of the reflectance; 0 for all but lamps and windows."""
    seed: UInt32[Array, "*m"]
    """Salt of the hashes."""


def _mix(h: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Integer avalanche (the 'lowbias32' constants of C. Wellons' hash prospector)."""
    h = h ^ (h >> jnp.uint32(16))
    h = h * jnp.uint32(0x7FEB352D)
    h = h ^ (h >> jnp.uint32(15))
    h = h * jnp.uint32(0x846CA68B)
    return h ^ (h >> jnp.uint32(16))


def lattice_hash(
    x: Int[Array, "*n"], y: Int[Array, "*n"], seed: UInt32[Array, "*n"]
) -> UInt32[Array, "*n"]:
    """32 random bits for each integer lattice point ``(x, y)`` and salt."""
    return _mix(
        x.astype(jnp.uint32) * jnp.uint32(0x8DA6B343)
        + y.astype(jnp.uint32) * jnp.uint32(0xD8163841)
        + seed
    )


def unit(h: UInt32[Array, "*n"], byte: int = 0) -> Float[Array, "*n"]:
    """Byte ``byte`` (0 to 3) of a hash as a number in [0, 1]."""
    bits = (h >> jnp.uint32(8 * byte)) & jnp.uint32(0xFF)
    return bits.astype(jnp.float32) * jnp.float32(1.0 / 255.0)


def value_noise(
    x: Float[Array, "*n"], y: Float[Array, "*n"], seed: UInt32[Array, "*n"]
) -> Float[Array, "*n"]:
    """Smooth lattice noise in [-1, 1] with unit cells (value noise, cubic fade)."""
    ix, iy = jnp.floor(x), jnp.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    # One product per axis: the corners differ by a constant of the linear part of the hash.
    base = (
        ix.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x8DA6B343)
        + iy.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0xD8163841)
        + seed
    )
    v00 = unit(_mix(base))
    v10 = unit(_mix(base + jnp.uint32(0x8DA6B343)))
    v01 = unit(_mix(base + jnp.uint32(0xD8163841)))
    v11 = unit(_mix(base + jnp.uint32((0x8DA6B343 + 0xD8163841) & 0xFFFFFFFF)))
    bottom, top = v00 + fx * (v10 - v00), v01 + fx * (v11 - v01)
    return 2.0 * (bottom + fy * (top - bottom)) - 1.0


def _fractal(
    u: Float[Array, "n"], v: Float[Array, "n"], m: Materials, width: Float[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Sum of all octaves, and the coarsest alone, both about in [-1, 1]."""
    x, y = u / m.noise_cell[:, 0], v / m.noise_cell[:, 1]
    cell = jnp.minimum(m.noise_cell[:, 0], m.noise_cell[:, 1])

    def octave(carry, k):
        total, coarse, amplitude = carry
        scale = jnp.exp2(k.astype(jnp.float32))
        # An octave whose cell is under a pixel is gone, from two pixels on it is whole.
        fade = jnp.clip(cell / (scale * width) - 1.0, 0.0, 1.0)
        salt = m.seed + k.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
        value = value_noise(x * scale, y * scale, salt)
        value = jnp.clip(m.sharpness * value, -1.0, 1.0) * fade
        return (
            total + amplitude * value,
            jnp.where(k == 0, value, coarse),
            amplitude * m.noise_gain,
        ), None

    zero = jnp.zeros_like(u)
    (total, coarse, _), _ = jax.lax.scan(
        octave, (zero, zero, 0.6 + zero), jnp.arange(NUM_OCTAVES, dtype=jnp.int32)
    )
    # Bounded, so that no amplitude below 0.7 turns a surface black.
    return total * jax.lax.rsqrt(1.0 + 0.5 * total * total), coarse


def surface_colour(
    u: Float[Array, "n"],
    v: Float[Array, "n"],
    materials: Materials,
    width: Float[Array, "n"],
) -> Float[Array, "n 3"]:
    """Linear RGB reflectance of surface points.

    ``u, v`` are metres along the surface, ``materials`` one material for each point (its seed
    salted with the face), ``width`` the footprint of a pixel there in metres.
    """
    m = materials
    cu, cv = m.cell[:, 0], m.cell[:, 1]
    row = jnp.floor(v / cv)
    x = u / cu + m.shift * row
    column = jnp.floor(x)
    fx, fy = x - column, v / cv - row
    # Distances in metres to the borders of the cell and from its centre.
    dx, dy = jnp.minimum(fx, 1.0 - fx) * cu, jnp.minimum(fy, 1.0 - fy) * cv
    radius = jnp.sqrt(((fx - 0.5) * cu) ** 2 + ((fy - 0.5) * cv) ** 2)
    side = jnp.minimum(cu, cv)
    fade = jnp.clip(side / width - 1.0, 0.0, 1.0)
    border = jnp.where(m.pattern == STRIPES, dx, jnp.minimum(dx, dy))
    # An edge between two cells, box-filtered over a pixel, is a ramp through their mean.
    ramp = jnp.clip(2.0 * border / width, 0.0, 1.0)

    ix, iy = column.astype(jnp.int32), row.astype(jnp.int32)
    iy = jnp.where(m.pattern == STRIPES, 0, iy)
    h = lattice_hash(ix, iy, m.seed)
    random_0, random_1, random_2, random_3 = (unit(h, byte) for byte in range(4))

    parity = ((ix + iy) & 1).astype(jnp.float32)
    two_tone = 0.5 + (parity - 0.5) * ramp
    dot = jnp.clip((m.joint * side - radius) / width + 0.5, 0.0, 1.0)
    mosaic = 0.5 + (random_0 - 0.5) * ramp
    joint = jnp.clip((0.5 * m.joint - border) / width + 0.5, 0.0, 1.0)
    mixing = jnp.select(
        [m.pattern == PLAIN, m.pattern == DOTS, m.pattern == MOSAIC, m.pattern == BRICKS],
        [jnp.zeros_like(u), dot * fade, mosaic, joint * fade],
        two_tone,
    )
    noise, coarse = _fractal(u, v, m, width)
    mixing = jnp.clip(mixing + m.blotch * (0.7 * coarse + 0.5 * noise), 0.0, 1.0)[:, None]
    colour = m.colour_a + mixing * (m.colour_b - m.colour_a)

    # Cells differ in brightness, those of a mosaic in hue as well.
    tint = m.tint * ramp * fade * jnp.where(m.pattern == PLAIN, 0.0, 2.0)
    own_hue = jnp.where(m.pattern == MOSAIC, 0.9, 0.15)
    random = jnp.stack([random_1, random_2, random_3], axis=-1) - 0.5
    spread = random[:, :1] + own_hue[:, None] * (random - random[:, :1])
    brightness = (1.0 + m.noise_amplitude * noise)[:, None] * (1.0 + tint[:, None] * spread)
    return jnp.clip(colour * brightness, 0.01, 0.95)
