"""Training pairs rendered from procedural rooms, as a part of the training step.

Everything is a pure function of the key with static shapes: it traces under ``jit``, ``scan`` and
``vmap``, touches no host, and no two calls show the same room.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.training.augment import PhotoConfig, photograph
from experiments.training.correspondences import (
    Sight,
    nearest_pixel,
    pair_batch,
    unproject_image,
)
from experiments.training.types import PairBatch
from ops.records import Record, record
from slam.priors.rendered import transform
from slam.world import (
    PathConfig,
    RenderConfig,
    Room,
    RoomConfig,
    random_pose,
    random_room,
    render,
    sees,
)
from slam.world.dice import Dice

_COARSE = (6, 8)
"""Rays, as (rows, columns), that stand for an image when overlap is estimated: to 2 %."""
_FREE_HEIGHT_MARGIN = 0.1
"""Metres that cameras keep from the floor and ceiling of a room's free region, and from its side.
Solids begin beyond it, so that nothing is nearer than this."""


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """What pairs are drawn from; lengths in metres, angles in degrees."""

    size: tuple[int, int] = (128, 96)
    """Width and height of the images."""
    pairs: int = 16
    """How many make a batch, each in a room of its own: drawing one is 2 % of rendering it twice."""
    correspondences: int = 512
    """Pixels of each view that a pair comes with, matched or not."""
    unmatched: float = 0.25
    """Least share of them that is not matched."""
    metric: float = 1.0
    """Share of the pairs whose scale the network is to predict."""
    overlap: tuple[float, float] = (0.25, 1.0)
    """Range of the share of view 2's pixels whose surface points view 1 sees as well."""
    candidates: int = 12
    """Second cameras drawn for each pair; the one nearest to the overlap wanted is taken."""
    translation: tuple[float, float] = (1.6, 0.5)
    """Largest distance between the cameras along each horizontal axis, and along the vertical."""
    rotation: tuple[float, float, float] = (25.0, 60.0, 20.0)
    """Largest rotation of camera 2 against camera 1 about x, y and z: pitch, yaw and roll. Besides,
    camera 2 turns towards what is ahead of camera 1, more or less so."""
    tilt: tuple[float, float] = (15.0, 10.0)
    """Further pitch and roll of camera 1, beyond the 25 and 8 of ``random_pose``."""
    field_of_view: tuple[float, float] = (45.0, 85.0)
    """Range of camera 1's horizontal field of view."""
    zoom: float = 1.6
    """Largest factor between the focal lengths of the two views."""
    zoomed: float = 0.3
    """Share of pairs whose views differ in focal length; the others have one camera."""
    principal_point: float = 0.04
    """Largest distance of the principal point from the centre, in parts of the image's sides."""
    exposure: float = 0.6
    """Of the room, in stops more or less, one for a pair."""
    room: RoomConfig = dataclasses.field(default_factory=RoomConfig)
    """What rooms are drawn from."""
    render: RenderConfig = dataclasses.field(default_factory=RenderConfig)
    """How they are rendered."""
    photo: PhotoConfig = dataclasses.field(default_factory=PhotoConfig)
    """What is done to the images after that."""

    def __post_init__(self) -> None:
        width, height = self.size
        if self.pairs < 1:
            raise ValueError(f"pairs={self.pairs} must be at least 1")
        if not 1 <= self.correspondences <= width * height:
            raise ValueError(
                f"correspondences={self.correspondences} must be from 1 to the {width * height} "
                f"pixels of an image of {width}x{height}"
            )
        if not 0.0 <= self.overlap[0] <= self.overlap[1] <= 1.0:
            raise ValueError(f"overlap={self.overlap} must be a range within 0 and 1")
        if not 0.0 < self.field_of_view[0] <= self.field_of_view[1] < 180.0:
            raise ValueError(f"field_of_view={self.field_of_view} must be a range within 0 and 180")
        if self.candidates < 1 or self.zoom < 1.0:
            raise ValueError(
                f"candidates={self.candidates} and zoom={self.zoom:g} must be at least 1"
            )


@record
class _Cameras(Record):
    """The two cameras of a pair."""

    T_WC: Float[Array, "2 4 4"]
    T_12: Float[Array, "4 4"]
    K: Float[Array, "2 3 3"]
    exposure: Float[Array, ""]


def procedural_pairs(
    key: PRNGKeyArray,
    config: PairConfig = PairConfig(),
    motion: Float[Array, ""] | float = 1.0,
) -> PairBatch:
    """Pairs of views of random rooms: new rooms, textures, lights and cameras for every key.

    ``motion``, which may be traced, scales what tells the two cameras of a pair apart: from 0,
    where their poses and intrinsics are equal, to 1, the ranges of ``config``. The overlap wanted
    is drawn for each pair from ``config.overlap`` evenly, and met as nearly as one of the
    candidates does.
    """
    views_key, metric_key, photo_key, match_key = jax.random.split(key, 4)
    motion = jnp.asarray(motion, jnp.float32)
    keys = jax.random.split(views_key, config.pairs)
    rgb, sights, T_12 = jax.vmap(lambda key: _pair(key, config, motion))(keys)
    return pair_batch(
        match_key,
        photograph(photo_key, rgb, config.photo),
        sights,
        T_12,
        jax.random.uniform(metric_key, (config.pairs,)) < config.metric,
        n=config.correspondences,
        unmatched=config.unmatched,
    )


def _pair(
    key: PRNGKeyArray, config: PairConfig, motion: Float[Array, ""]
) -> tuple[Float[Array, "2 h w 3"], Sight, Float[Array, "4 4"]]:
    """Colours of two views of a new room, their geometry, and ``T_12``."""
    width, height = config.size
    room_key, camera_key = jax.random.split(key)
    room = random_room(room_key, config.room)
    cameras = _cameras(camera_key, room, config, motion)
    view = jax.vmap(
        lambda T_WC, K: render(
            room, T_WC, K, (height, width), exposure=cameras.exposure, config=config.render
        )
    )(cameras.T_WC, cameras.K)
    normals = jnp.einsum(
        "vhwi,vij->vhwj", view.normals_W, cameras.T_WC[:, :3, :3], precision="highest"
    )
    sights = Sight(
        points=jax.vmap(unproject_image)(view.depth, cameras.K),
        normals=normals,
        known=jnp.ones(view.depth.shape, bool),
        K=cameras.K,
    )
    return view.rgb, sights, cameras.T_12


def _cameras(
    key: PRNGKeyArray, room: Room, config: PairConfig, motion: Float[Array, ""]
) -> _Cameras:
    """A camera anywhere in the room's free region, and a second one with the overlap wanted."""
    c = config
    pose_key, dice_key = jax.random.split(key)
    dice = Dice(dice_key, 16 + 9 * c.candidates)
    reach = room.free_height + jnp.array([1.0, -1.0]) * _FREE_HEIGHT_MARGIN
    path = PathConfig(clearance=_FREE_HEIGHT_MARGIN)
    T_W1 = random_pose(pose_key, room, path)
    height = reach[0] + (reach[1] - reach[0]) * dice.uniform(())
    T_W1 = T_W1.at[2, 3].set(height)
    tilt = _radians(c.tilt) * dice.uniform((2,), -1.0, 1.0)
    tilt = _rotation(jnp.stack([tilt[0], jnp.zeros(()), tilt[1]]))
    T_W1 = T_W1.at[:3, :3].set(_times(T_W1[:3, :3], tilt))
    K_1, K_2 = _intrinsics(dice, c, motion)

    # How far the candidates go is drawn too: the nearest of them hardly move at all.
    n = c.candidates
    amount = motion * dice.uniform((n, 1))
    offset = jnp.array([c.translation[0], c.translation[0], c.translation[1]])
    position = T_W1[:3, 3] + amount * offset * dice.uniform((n, 3), -1.0, 1.0)
    semi_axes = room.free_semi_axes - _FREE_HEIGHT_MARGIN
    beyond = jnp.linalg.norm(position[:, :2] / semi_axes, axis=-1, keepdims=True)
    position = jnp.concatenate(
        [
            position[:, :2] / jnp.maximum(beyond, 1.0),
            jnp.clip(position[:, 2:], reach[0], reach[1]),
        ],
        axis=-1,
    )
    t_12 = _times(position - T_W1[:3, 3], T_W1[:3, :3])
    ahead = jnp.array([0.0, 0.0, 1.0]) * dice.uniform((n, 1), 1.0, 5.0) - t_12
    gaze = dice.uniform((n, 1)) * _turn_towards(ahead)
    turn = amount * _radians(c.rotation) * dice.uniform((n, 3), -1.0, 1.0)
    R_12 = jax.vmap(_times)(jax.vmap(_rotation)(gaze), jax.vmap(_rotation)(turn))
    T_12 = jnp.zeros((n, 4, 4)).at[:, 3, 3].set(1.0).at[:, :3, :3].set(R_12)
    T_12 = T_12.at[:, :3, 3].set(t_12)
    T_W2 = jax.vmap(_times, in_axes=(None, 0))(T_W1, T_12)

    overlap = jax.vmap(lambda T_W2, T_12: _overlap(room, T_W1, T_W2, T_12, K_1, K_2, c.size))(
        T_W2, T_12
    )
    best = jnp.argmin(jnp.abs(overlap - dice.uniform((), *c.overlap)))
    return _Cameras(
        T_WC=jnp.stack([T_W1, T_W2[best]]),
        T_12=T_12[best],
        K=jnp.stack([K_1, K_2]),
        exposure=jnp.exp2(c.exposure * dice.uniform((), -1.0, 1.0)),
    )


def _intrinsics(
    dice: Dice, config: PairConfig, motion: Float[Array, ""]
) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"]]:
    """Of both views: equal, or that of view 2 changed by at most the zoom that is allowed."""
    width, height = config.size
    low, high = (
        0.5 * width / math.tan(0.5 * math.radians(fov)) for fov in reversed(config.field_of_view)
    )
    focal_1 = low * (high / low) ** dice.uniform(())
    zoomed = motion * dice.chance(config.zoomed, ()).astype(jnp.float32)
    focal_2 = focal_1 * config.zoom ** (zoomed * dice.uniform((), -1.0, 1.0))
    centre = jnp.array([0.5 * (width - 1), 0.5 * (height - 1)])
    shift = jnp.array([width, height], jnp.float32) * config.principal_point
    centre = centre + shift * dice.uniform((2,), -1.0, 1.0)

    def matrix(focal: Float[Array, ""]) -> Float[Array, "3 3"]:
        K = jnp.zeros((3, 3)).at[0, 0].set(focal).at[1, 1].set(focal).at[2, 2].set(1.0)
        return K.at[:2, 2].set(centre)

    return matrix(focal_1), matrix(focal_2)


def _overlap(
    room: Room,
    T_W1: Float[Array, "4 4"],
    T_W2: Float[Array, "4 4"],
    T_12: Float[Array, "4 4"],
    K_1: Float[Array, "3 3"],
    K_2: Float[Array, "3 3"],
    size: tuple[int, int],
) -> Float[Array, ""]:
    """Share of view 2, on a coarse grid, whose surface points view 1 sees."""
    width, height = size
    # The centre of coarse pixel i lies at (i + 1/2) * side - 1/2.
    side = jnp.array([width / _COARSE[1], height / _COARSE[0], 1.0])
    K = K_2.at[:2, 2].add(0.5) / side[:, None]
    K = K.at[:2, 2].add(-0.5)
    # Nobody asks for its colours, so that the compiler leaves the shading out.
    view = render(room, T_W2, K, _COARSE, config=RenderConfig(shadows=False))
    points_1 = transform(T_12, unproject_image(view.depth, K))
    _, inside = nearest_pixel(points_1, K_1, (height, width))
    return jnp.mean(inside & sees(room, T_W1[:3, 3], view.points_W), dtype=jnp.float32)


def _radians(degrees: tuple[float, ...]) -> Float[Array, "n"]:
    return jnp.array([math.radians(angle) for angle in degrees], jnp.float32)


def _rotation(vector: Float[Array, "3"]) -> Float[Array, "3 3"]:
    return jaxlie.SO3.exp(vector).as_matrix()


def _turn_towards(direction: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Rotation vectors that turn the axis of view into a direction by the shortest way."""
    x, y, z = direction.T
    across = jnp.sqrt(x * x + y * y)
    scale = jnp.arctan2(across, z) / jnp.maximum(across, 1e-6)
    return jnp.stack([-y * scale, x * scale, jnp.zeros_like(x)], axis=-1)


def _times(a: Float[Array, "*m k"], b: Float[Array, "k n"]) -> Float[Array, "*m n"]:
    """Matrix product in full precision, which accelerators do not take by themselves."""
    return jnp.matmul(a, b, precision="highest")
