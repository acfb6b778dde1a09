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
_CLEARANCE = 0.1
"""Metres that cameras keep from the border of a room's free region, behind which solids begin."""


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """What pairs are drawn from; lengths in metres, angles in degrees."""

    size: tuple[int, int] = (128, 96)
    """Width and height of the images."""
    pairs: int = 16
    """How many make a batch. Each has a room of its own: drawing it takes 2 % of rendering it."""
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
    pitch: tuple[float, float] = (-25.0, 5.0)
    """Range of what is added to camera 1's elevation, within 25 of level; people look down more."""
    roll: float = 12.0
    """Most that is added to camera 1's roll, within 8 of upright."""
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
class Scene(Record):
    """A room and the two cameras of a pair in it; with leading axes, several."""

    room: Room
    T_WC: Float[Array, "*b 2 4 4"]
    """Both cameras to the room."""
    T_12: Float[Array, "*b 4 4"]
    """Camera 2 to camera 1."""
    K: Float[Array, "*b 2 3 3"]
    """Intrinsics of both, integer pixel centres."""
    exposure: Float[Array, "*b"]
    """Factor on the light in the room."""


def procedural_pairs(
    key: PRNGKeyArray, config: PairConfig, motion: Float[Array, ""] | float = 1.0
) -> PairBatch:
    """Pairs of views of random rooms: new rooms, textures, lights and cameras for every key.

    ``motion`` is that of ``random_scenes``. All surfaces are known.
    """
    scenes = random_scenes(key, config, motion)
    rgb, sights = jax.vmap(lambda scene: _views(scene, config))(scenes)
    metric_key, photo_key, match_key = _keys(key, config)[config.pairs :]
    return pair_batch(
        match_key,
        photograph(photo_key, rgb, config.photo),
        sights,
        scenes.T_12,
        jax.random.uniform(metric_key, (config.pairs,)) < config.metric,
        n=config.correspondences,
        unmatched=config.unmatched,
    )


def random_scenes(
    key: PRNGKeyArray, config: PairConfig, motion: Float[Array, ""] | float = 1.0
) -> Scene:
    """What ``procedural_pairs`` of the same key shows: ``config.pairs`` along the leading axis.

    ``motion``, which may be traced, scales what tells the two cameras of a pair apart: from 0,
    where their poses and intrinsics are equal, to 1, the ranges of ``config``. The overlap wanted
    is drawn for each pair from ``config.overlap`` evenly, and met as nearly as one of its
    candidates does.
    """
    motion = jnp.asarray(motion, jnp.float32)

    def one(key: PRNGKeyArray) -> Scene:
        room_key, first_key, dice_key = jax.random.split(key, 3)
        room = random_room(room_key, config.room)
        dice = Dice(dice_key, 16 + 9 * config.candidates)
        T_W1 = _first_camera(first_key, dice, room, config)
        K_1, K_2 = _intrinsics(dice, config, motion)
        T_12 = _candidates(dice, room, T_W1, config, motion)
        T_W2 = jax.vmap(_times, in_axes=(None, 0))(T_W1, T_12)
        overlap = jax.vmap(lambda T_W2, T_12: _overlap(room, T_W1, T_W2, T_12, K_1, K_2, config))(
            T_W2, T_12
        )
        best = jnp.argmin(jnp.abs(overlap - dice.uniform((), *config.overlap)))
        return Scene(
            room=room,
            T_WC=jnp.stack([T_W1, T_W2[best]]),
            T_12=T_12[best],
            K=jnp.stack([K_1, K_2]),
            exposure=jnp.exp2(config.exposure * dice.uniform((), -1.0, 1.0)),
        )

    return jax.vmap(one)(_keys(key, config)[: config.pairs])


def _keys(key: PRNGKeyArray, config: PairConfig) -> Array:
    """One for each scene, and three for the images of all."""
    return jax.random.split(key, config.pairs + 3)


def _views(scene: Scene, config: PairConfig) -> tuple[Float[Array, "2 h w 3"], Sight]:
    """Colours and geometry of both views of one scene."""
    width, height = config.size

    def one(T_WC: Float[Array, "4 4"], K: Float[Array, "3 3"]):
        shape, exposure = (height, width), scene.exposure
        view = render(scene.room, T_WC, K, shape, exposure=exposure, config=config.render)
        sight = Sight(
            points=unproject_image(view.depth, K),
            normals=_times(view.normals_W, T_WC[:3, :3]),
            known=jnp.ones(shape, bool),
            K=K,
        )
        return view.rgb, sight

    return jax.vmap(one)(scene.T_WC, scene.K)


def _first_camera(
    key: PRNGKeyArray, dice: Dice, room: Room, config: PairConfig
) -> Float[Array, "4 4"]:
    """Anywhere in the room's free region."""
    T_WC = random_pose(key, room, PathConfig(clearance=_CLEARANCE))
    low, high = room.free_height + jnp.array([1.0, -1.0]) * _CLEARANCE
    # About the camera's x axis, upwards is positive.
    pitch, roll = dice.uniform((), *config.pitch), dice.uniform((), -config.roll, config.roll)
    tilt = _rotation(jnp.deg2rad(jnp.stack([pitch, jnp.zeros(()), roll])))
    T_WC = T_WC.at[2, 3].set(low + (high - low) * dice.uniform(()))
    return T_WC.at[:3, :3].set(_times(T_WC[:3, :3], tilt))


def _candidates(
    dice: Dice,
    room: Room,
    T_W1: Float[Array, "4 4"],
    config: PairConfig,
    motion: Float[Array, ""],
) -> Float[Array, "n 4 4"]:
    """Random second cameras, as ``T_12``, within the room's free region."""
    n = config.candidates
    # How far they go is drawn too: some hardly move at all.
    amount = motion * dice.uniform((n, 1))
    aside, up = config.translation
    step = jnp.array([aside, aside, up]) * dice.uniform((n, 3), -1.0, 1.0)
    position = T_W1[:3, 3] + amount * step
    semi_axes = room.free_semi_axes - _CLEARANCE
    beyond = jnp.linalg.norm(position[:, :2] / semi_axes, axis=-1, keepdims=True)
    low, high = room.free_height + jnp.array([1.0, -1.0]) * _CLEARANCE
    position = jnp.concatenate(
        [position[:, :2] / jnp.maximum(beyond, 1.0), jnp.clip(position[:, 2:], low, high)], axis=-1
    )
    t_12 = _times(position - T_W1[:3, 3], T_W1[:3, :3])
    ahead = jnp.array([0.0, 0.0, 1.0]) * dice.uniform((n, 1), 1.0, 5.0) - t_12
    gaze = dice.uniform((n, 1)) * _turn_towards(ahead)
    most = jnp.deg2rad(jnp.array(config.rotation))
    turn = amount * most * dice.uniform((n, 3), -1.0, 1.0)
    R_12 = jax.vmap(_times)(jax.vmap(_rotation)(gaze), jax.vmap(_rotation)(turn))
    T_12 = jnp.zeros((n, 4, 4)).at[:, 3, 3].set(1.0)
    return T_12.at[:, :3, :3].set(R_12).at[:, :3, 3].set(t_12)


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
    config: PairConfig,
) -> Float[Array, ""]:
    """Share of view 2, on a coarse grid, whose surface points view 1 sees."""
    width, height = config.size
    # The centre of coarse pixel i lies at (i + 1/2) * side - 1/2.
    side = jnp.array([width / _COARSE[1], height / _COARSE[0], 1.0])
    K = K_2.at[:2, 2].add(0.5) / side[:, None]
    K = K.at[:2, 2].add(-0.5)
    # Nobody asks for its colours, so that the compiler leaves the shading out.
    view = render(room, T_W2, K, _COARSE, config=RenderConfig(shadows=False))
    points_1 = transform(T_12, unproject_image(view.depth, K))
    _, inside = nearest_pixel(points_1, K_1, (height, width))
    return jnp.mean(inside & sees(room, T_W1[:3, 3], view.points_W), dtype=jnp.float32)


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
