"""Pairs of frames whose geometry is known, and what a perfect prior would say of them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from experiments.training.correspondences import nearest_pixel, unproject_image
from ops.records import Record, record
from slam.io.frames import SourceError
from slam.priors.rendered import invert, transform
from slam.types import Frame

_TOLERANCE = 0.05
"""A point is seen where it lies within so much of its depth of the surface that is seen there: on a
floor seen from afar, depth changes by several percent from pixel to pixel."""


@dataclasses.dataclass(frozen=True)
class PairChoice:
    """Which pairs of a sequence are looked at."""

    starts: int = 4
    """First views, spread evenly over the sequence."""
    overlaps: tuple[float, ...] = (0.9, 0.7, 0.5)
    """For each of them, second views of about such overlap."""
    reach: int = 30
    """Second views are at most so many frames later."""


@record
class FramePair(Record):
    """Two frames with depth, pose and intrinsics; of several pairs, with a leading axis."""

    frame_1: Frame
    """Whose camera both pointmaps are in."""
    frame_2: Frame
    """The other one."""


@record
class Truth(Record):
    """What a perfect prior would say of a pair."""

    points_1: Float[Array, "h w 3"]
    """View 1's surface points in view 1's camera, metres."""
    points_2: Float[Array, "h w 3"]
    """View 2's surface points in view 1's camera."""
    own_2: Float[Array, "h w 3"]
    """View 2's surface points in its own camera."""
    valid_1: Bool[Array, "h w"]
    """Where ``points_1`` is known."""
    valid_2: Bool[Array, "h w"]
    """Where ``points_2`` is known."""
    T_12: Float[Array, "4 4"]
    """View 2's camera to view 1's."""
    target: Float[Array, "h w 2"]
    """Where in image 1 each pixel of view 2 is to be found; anything if it is not seen there."""
    seen: Bool[Array, "h w"]
    """Which pixels of view 2 show what view 1 sees too."""
    overlap: Float[Array, ""]
    """Share of view 2's known points that view 1 sees too."""


def true_geometry(pair: FramePair) -> Truth:
    """The truth of one pair, from depth, poses and intrinsics."""
    one, two = pair.frame_1, pair.frame_2
    depth_1, depth_2, T_1, T_2, K_1, K_2 = (
        jnp.asarray(getattr(frame, name)) for name in ("depth", "T_WC", "K") for frame in (one, two)
    )
    height, width = depth_1.shape
    own_2 = unproject_image(depth_2, K_2)
    T_12 = jnp.matmul(invert(T_1), T_2, precision="highest")
    points_2 = transform(T_12, own_2)
    index, inside = nearest_pixel(points_2, K_1, (height, width))
    z = points_2[..., 2]
    depth = depth_1.reshape(-1)[index]
    valid_2, focal = depth_2 > 0, jnp.stack([K_1[0, 0], K_1[1, 1]])
    seen = valid_2 & inside & (depth > 0) & (jnp.abs(z - depth) <= _TOLERANCE * z)
    num_seen, num_known = (jnp.sum(mask).astype(jnp.float32) for mask in (seen, valid_2))
    return Truth(
        points_1=unproject_image(depth_1, K_1),
        points_2=points_2,
        own_2=own_2,
        valid_1=depth_1 > 0,
        valid_2=valid_2,
        T_12=T_12,
        target=K_1[:2, 2] + focal * points_2[..., :2] / jnp.where(inside, z, 1.0)[..., None],
        seen=seen,
        overlap=num_seen / jnp.maximum(num_known, 1.0),
    )


def choose_pairs(frames: Sequence[Frame], choice: PairChoice, name: str) -> FramePair:
    """Pairs of a sequence, stacked; every second one has the later frame as its view 1.

    Frames must follow one another; those without a pose take no part. Raises ``SourceError`` if
    depth, poses or intrinsics are missing.
    """
    missing = [f for f in ("depth", "T_WC", "K") if getattr(frames[0], f) is None]
    if missing:
        raise SourceError(
            f"{name}: has no {', no '.join(missing)}; a prior is judged on a recording with depth, "
            "poses and intrinsics"
        )
    frames = [frame for frame in frames if np.isfinite(np.asarray(frame.T_WC)).all()]
    if len(frames) <= choice.reach:
        raise SourceError(f"{name}: has {len(frames)} frames, {choice.reach + 1} are needed")
    pairs = []
    for start in np.linspace(0, len(frames) - 1 - choice.reach, choice.starts).astype(int):
        later = frames[start + 1 : start + 1 + choice.reach]
        first = _stack([frames[start]] * choice.reach), _stack(later)
        ahead, back = (np.asarray(_overlaps(FramePair(*f))) for f in (first, first[::-1]))
        for wanted in choice.overlaps:
            turned = len(pairs) % 2 == 1
            overlaps = back if turned else ahead
            pair = frames[start], later[int(np.argmin(np.abs(overlaps - wanted)))]
            pairs.append(pair[::-1] if turned else pair)
    return FramePair(_stack([p[0] for p in pairs]), _stack([p[1] for p in pairs]))


def mean_pointmaps(
    pairs: FramePair,
) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w 3"]]:
    """The mean true pointmap of each view, every pair's points in units of their mean distance."""
    truth = true_geometries(pairs)
    views = ((truth.points_1, truth.valid_1), (truth.points_2, truth.valid_2))
    points, valid = (np.stack(parts, axis=1) for parts in zip(*views, strict=True))
    lengths = np.where(valid, np.linalg.norm(points, axis=-1), 0)
    scale = lengths.sum((1, 2, 3)) / valid.sum((1, 2, 3))
    means = []
    for points, valid in views:
        total = np.where(valid[..., None], points / scale[:, None, None, None], 0).sum(0)
        means.append((total / np.maximum(valid.sum(0), 1)[..., None]).astype(np.float32))
    return means[0], means[1]


def true_geometries(pairs: FramePair) -> Truth:
    """The truth of stacked pairs, on the host."""
    return jax.device_get(_true_geometries(pairs))


def pairs_of(pairs: FramePair) -> Int[np.ndarray, "n 2"]:
    """Frame numbers of stacked pairs."""
    return np.stack([pairs.frame_1.index, pairs.frame_2.index], axis=-1)


@jax.jit
def _true_geometries(pairs: FramePair) -> Truth:
    return jax.vmap(true_geometry)(pairs)


@jax.jit
def _overlaps(pairs: FramePair) -> Float[Array, " n"]:
    return jax.lax.map(lambda pair: true_geometry(pair).overlap, pairs)


def _stack(frames: Sequence[Frame]) -> Frame:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *frames)
