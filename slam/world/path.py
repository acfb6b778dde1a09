"""Smooth hand-held camera paths through a room's free region, with revisits.

World axes: z up. A camera that looks straight ahead without roll has its y axis along -z. All
motion is sums of slow sinusoids in the frame number, so speeds are bounded by construction.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slam.world.room import Room


@dataclasses.dataclass(frozen=True)
class PathConfig:
    """How the camera is carried; lengths in metres, angles in degrees, periods in frames."""

    laps: float = 1.0
    """Rounds of the loop; fewer if the frames do not suffice at ``max_degrees`` each."""
    max_metres: float = 0.038
    """Mean step along the loop; the loop shrinks to keep it, and stays within the free region."""
    max_degrees: float = 2.45
    """Turn along the loop between frames: a lap takes at least 147 frames."""
    clearance: float = 0.45
    """Between the loop and the border of the free region, so that shaking stays clear of it."""
    height: tuple[float, float] = (1.3, 1.65)
    """Range of the height above the floor, before shaking."""
    look: tuple[float, float] = (35.0, 75.0)
    """Range of the direction of view: 0 is outwards, 90 along the walk."""
    pitch: tuple[float, float] = (-20.0, 0.0)
    """Range of the elevation of the view."""
    wander: float = 0.12
    """Slow change of the loop's radius, relative."""
    shake_metres: float = 0.004
    shake_degrees: float = 0.25
    """Amplitudes of the hand's shake in position and rotation."""


def _waves(
    random: Float[Array, "k n 2"], t: Float[Array, "t"], low: float, high: float
) -> Float[Array, "k t"]:
    """Smooth noise in [-1, 1]: means of ``n`` sinusoids with periods in frames in a range."""
    period = low * (high / low) ** random[..., 0]
    phase = 2.0 * jnp.pi * random[..., 1]
    angle = 2.0 * jnp.pi * t[:, None] / period[:, None, :] + phase[:, None, :]
    return jnp.mean(jnp.sin(angle), axis=-1)


def _rotation(
    heading: Float[Array, "*t"], pitch: Float[Array, "*t"], roll: Float[Array, "*t"]
) -> Float[Array, "*t 3 3"]:
    """Camera-to-world rotation: heading about world z from +x, pitch upwards, roll clockwise."""
    ch, sh, cp, sp = jnp.cos(heading), jnp.sin(heading), jnp.cos(pitch), jnp.sin(pitch)
    cr, sr = jnp.cos(roll)[..., None], jnp.sin(roll)[..., None]
    zero = jnp.zeros_like(heading)
    forward = jnp.stack([ch * cp, sh * cp, sp], axis=-1)
    right = jnp.stack([sh, -ch, zero], axis=-1)
    down = jnp.stack([ch * sp, sh * sp, -cp], axis=-1)
    return jnp.stack([cr * right + sr * down, cr * down - sr * right, forward], axis=-1)


def _pose(rotation: Float[Array, "*t 3 3"], position: Float[Array, "*t 3"]):
    top = jnp.concatenate([rotation, position[..., None]], axis=-1)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, bottom.astype(top.dtype)], axis=-2)


def turn_per_frame(num_frames: int, config: PathConfig) -> float:
    """Radians of the loop between two frames."""
    return min(
        2.0 * math.pi * config.laps / max(num_frames - 1, 1), math.radians(config.max_degrees)
    )


@functools.partial(jax.jit, static_argnames=("num_frames", "config", "length"))
def camera_path(
    key: PRNGKeyArray,
    room: Room,
    num_frames: int,
    config: PathConfig = PathConfig(),
    length: int | None = None,
) -> Float[Array, "t 4 4"]:
    """Camera-to-world poses of a walk around the room's free region.

    The loop closes after each lap: frames a lap apart see the same place from nearby. With fewer
    frames than ``laps`` needs at the bounded speed, the walk ends before the loop closes.
    ``length`` asks for more or fewer poses than ``num_frames``: the same walk goes on, or stops.
    """
    t = jnp.arange(num_frames if length is None else length, dtype=jnp.float32)
    random = jax.random.uniform(key, (12, 3, 2), jnp.float32)
    step = turn_per_frame(num_frames, config)
    sense = jnp.where(random[11, 0, 0] < 0.5, 1.0, -1.0)
    theta = 2.0 * jnp.pi * random[11, 1, 0] + sense * step * t
    shake = _waves(random[:6], t, 9.0, 30.0)
    radius, height, roll = _waves(random[6:9], t, 60.0, 200.0)
    look, pitch = _waves(random[9:11], t, 100.0, 280.0)

    def between(bounds: tuple[float, float], wave: Array) -> Array:
        return 0.5 * (bounds[0] + bounds[1]) + 0.5 * (bounds[1] - bounds[0]) * wave

    reach = room.free_semi_axes - config.clearance
    # The mean semi-axis times the turn is the mean step.
    loop = reach * jnp.minimum(1.0, config.max_metres / (step * jnp.mean(reach)))
    loop = loop * between((1.0 - config.wander, 1.0), radius)[:, None]
    position = jnp.stack(
        [loop[:, 0] * jnp.cos(theta), loop[:, 1] * jnp.sin(theta), between(config.height, height)],
        axis=-1,
    )
    position = position + config.shake_metres * shake[:3].T
    angles = [between(config.look, look), between(config.pitch, pitch), between((-2.0, 2.0), roll)]
    look, pitch, roll = jnp.deg2rad(jnp.stack(angles) + config.shake_degrees * shake[3:])
    return _pose(_rotation(theta + sense * look, pitch, roll), position)


def focal_path(num_frames: int, zoom: float) -> Float[Array, "t"]:
    """Factors on the focal length along a path, smoothly from 1 to ``zoom`` and back, twice."""
    phase = 4.0 * jnp.pi * jnp.arange(num_frames, dtype=jnp.float32) / max(num_frames - 1, 1)
    return jnp.float32(zoom) ** (0.5 - 0.5 * jnp.cos(phase))


@functools.partial(jax.jit, static_argnames="config")
def random_pose(
    key: PRNGKeyArray, room: Room, config: PathConfig = PathConfig()
) -> Float[Array, "4 4"]:
    """A random camera-to-world pose in the free region: any heading, level within 25 degrees."""
    random = jax.random.uniform(key, (6,), jnp.float32)
    angle, heading = 2.0 * jnp.pi * random[0], 2.0 * jnp.pi * random[1]
    reach = (room.free_semi_axes - config.clearance) * jnp.sqrt(random[2])
    z = config.height[0] + random[3] * (config.height[1] - config.height[0])
    position = jnp.stack([reach[0] * jnp.cos(angle), reach[1] * jnp.sin(angle), z])
    pitch, roll = jnp.deg2rad((2.0 * random[4:] - 1.0) * jnp.array([25.0, 8.0]))
    return _pose(_rotation(heading, pitch, roll), position)
