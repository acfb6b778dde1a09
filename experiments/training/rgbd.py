"""Training pairs from recordings with depth and poses: RGB-D sequences in the layout of TUM's."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from experiments.training.augment import photograph
from experiments.training.correspondences import Sight, look_up, pair_batch, unproject_image
from experiments.training.pairs import PairConfig
from experiments.training.types import PairBatch
from mast3r_jax.image import ImageTransform
from ops.records import Record, record
from slam.io.frames import SourceError, SourceFrame
from slam.io.open_source import open_source
from slam.priors.rendered import depth_edges, fill, transform

TOLERANCE = 0.02
"""Relative error of depth to be expected, of sensor and poses together."""
_ROWS = 24
"""About as many rows of pixels, and columns as far apart, tell the overlap of two frames."""


@record
class RgbdPairs(Record):
    """A recording at training resolution, and which of its frames make pairs.

    A pytree: numpy arrays as read; give it to a jitted function as an argument (``jax.device_put``
    keeps it on the device), not by closure, which would write the images into the program.
    """

    images: UInt8[Array | np.ndarray, "t h w 3"]
    """RGB."""
    depth: Float[Array | np.ndarray, "t h w"]
    """Along z, metres, 0 where unknown."""
    K: Float[Array | np.ndarray, "t 3 3"]
    """Intrinsics, integer pixel centres."""
    frames: Int[Array | np.ndarray, "m 2"]
    """The two frames of every pair."""
    T_12: Float[Array | np.ndarray, "m 4 4"]
    """Their relative pose, view 2's camera to view 1's."""
    overlap: Float[Array | np.ndarray, "m"]
    """Share of view 2's known surface points that view 1 shows too."""


def read_rgbd_pairs(
    location: str | os.PathLike[str],
    config: PairConfig,
    *,
    depth_scale: float | None = None,
    gap: tuple[int, int] = (1, 60),
) -> RgbdPairs:
    """Reads a recording, and finds its pairs of frames, in both orders, that overlap as wanted.

    Images are brought to ``config.size`` by resizing and cutting their centre, those of a lens that
    distorts after they were rectified. A pair's frames are ``gap`` frames apart, and within
    ``config.overlap``. ``location`` and ``depth_scale`` are those of ``slam.open_source``: a folder
    in the layout of TUM's, or any source that knows depth, poses and intrinsics.

    Raises ``SourceError`` for what cannot be read, lacks one of them, or has no such pair.
    """
    if not 1 <= gap[0] <= gap[1]:
        raise SourceError(f"gap={gap} must be a range of at least one frame")
    source = open_source(
        location, depth_scale=depth_scale, rectify=True, center_principal_point=False
    )
    images, depths, intrinsics, poses, numbers = [], [], [], [], []
    for frame in source:
        depth, T_WC, K = _geometry(location, frame)
        plan = _plan(frame.rgb.shape[:2], config.size)
        depth = plan.sample_nearest(depth)
        if not (np.isfinite(T_WC).all() and depth.any()):
            continue
        images.append(plan.resample(frame.rgb))
        depths.append(depth.astype(np.float32))
        intrinsics.append(_intrinsics(K, plan))
        poses.append(T_WC)
        numbers.append(frame.index)
    i, j = _within(np.array(numbers, np.int64), gap)
    if not len(i):
        raise SourceError(
            f"{location}: of {len(numbers)} frames with depth and pose none are {gap[0]} to "
            f"{gap[1]} frames apart; widen the gap, or take a longer recording"
        )
    T = np.stack(poses)
    every = RgbdPairs(
        images=np.stack(images),
        depth=np.stack(depths),
        K=np.stack(intrinsics).astype(np.float32),
        frames=np.stack([i, j], axis=-1).astype(np.int32),
        # In double precision: positions may count from far away.
        T_12=(np.linalg.inv(T[i]) @ T[j]).astype(np.float32),
        overlap=np.zeros(len(i), np.float32),
    )
    shares = np.asarray(_overlaps(every))
    low, high = config.overlap
    chosen = (shares >= low) & (shares <= high)
    if not chosen.any():
        raise SourceError(
            f"{location}: frames {gap[0]} to {gap[1]} apart overlap by {shares.min():.2f} to "
            f"{shares.max():.2f}, none by {low:g} to {high:g}; change the gap or the overlap"
        )
    return every.replace(
        frames=every.frames[chosen], T_12=every.T_12[chosen], overlap=shares[chosen]
    )


def rgbd_pairs(key: PRNGKeyArray, recording: RgbdPairs, config: PairConfig) -> PairBatch:
    """A batch of random pairs of a recording, photographed anew; traces under ``jit``.

    Of ``config`` it takes the number of pairs and of correspondences, the shares of unmatched ones
    and of metric pairs, and what is done to the images. Points are not valid where depth is not
    known, and nothing is matched where it breaks.
    """
    which_key, metric_key, photo_key, match_key = jax.random.split(key, 4)
    which = jax.random.randint(which_key, (config.pairs,), 0, recording.frames.shape[0])
    frames, T_12 = (jnp.asarray(x)[which] for x in (recording.frames, recording.T_12))
    rgb = jnp.asarray(recording.images)[frames].astype(jnp.float32) / 255.0
    return pair_batch(
        match_key,
        photograph(photo_key, rgb, config.photo),
        jax.vmap(jax.vmap(functools.partial(_sight, recording)))(frames),
        T_12,
        jax.random.uniform(metric_key, (config.pairs,)) < config.metric,
        n=config.correspondences,
        unmatched=config.unmatched,
        tolerance=TOLERANCE,
    )


def _sight(recording: RgbdPairs, frame: Int[Array, ""]) -> Sight:
    """What a frame shows; normals from differences between neighbouring pixels."""
    depth, K = jnp.asarray(recording.depth)[frame], jnp.asarray(recording.K)[frame]
    known = depth > 0
    filled = fill(depth, known)
    points = unproject_image(filled, K)
    across, down = jnp.gradient(points, axis=(1, 0))
    normals = jnp.cross(down, across)
    square = jnp.sum(normals * normals, axis=-1, keepdims=True)
    normals = normals * jax.lax.rsqrt(jnp.maximum(square, 1e-20))
    padded = jnp.pad(known, 1, constant_values=True)
    whole = known & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    whole = whole & ~depth_edges(filled, known)
    return Sight(points=points, normals=jnp.where(whole[..., None], normals, 0.0), known=known, K=K)


@jax.jit
def _overlaps(recording: RgbdPairs) -> Float[Array, "m"]:
    """Overlap of all pairs; of a part of the pixels, as if there were no others."""
    stride = max(1, recording.depth.shape[1] // _ROWS)
    part = slice(stride // 2, None, stride)

    def reduced(frame: Int[Array, ""]) -> Sight:
        sight = _sight(recording, frame)
        K = sight.K.at[:2, 2].add(-float(part.start)).at[:2].divide(float(stride))
        points, normals, known = (x[part, part] for x in (sight.points, sight.normals, sight.known))
        return Sight(points=points, normals=normals, known=known, K=K)

    sights = jax.lax.map(reduced, jnp.arange(recording.depth.shape[0], dtype=jnp.int32))

    def one(pair: tuple[Int[Array, "2"], Float[Array, "4 4"]]) -> Float[Array, ""]:
        frames, T_12 = pair
        sight_1, sight_2 = (jax.tree.map(lambda x, i=i: x[frames[i]], sights) for i in range(2))
        _, shown = look_up(transform(T_12, sight_2.points), sight_1, TOLERANCE)
        both = jnp.sum(shown & sight_2.known, dtype=jnp.float32)
        return both / jnp.maximum(jnp.sum(sight_2.known, dtype=jnp.float32), 1.0)

    pairs = jnp.asarray(recording.frames), jnp.asarray(recording.T_12)
    return jax.lax.map(one, pairs, batch_size=256)


def _geometry(
    location: str | os.PathLike[str], frame: SourceFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = {"depth": frame.depth, "poses": frame.T_WC, "intrinsics": frame.K}
    missing = [name for name, value in known.items() if value is None]
    if frame.depth is None or frame.T_WC is None or frame.K is None:
        raise SourceError(
            f"{location}: has no {', no '.join(missing)}; pairs are made of recordings with "
            "depth.txt, groundtruth.txt and calibration.txt"
        )
    return frame.depth, frame.T_WC, frame.K


def _plan(shape: tuple[int, ...], size: tuple[int, int]) -> ImageTransform:
    """The largest centred part of an image of ``shape`` that has the shape of ``size``."""
    target = (size[1], size[0])
    scale = max(target[0] / shape[0], target[1] / shape[1])
    resized = tuple(max(round(n * scale), m) for n, m in zip(shape, target, strict=True))
    start = tuple((n - m) // 2 for n, m in zip(resized, target, strict=True))
    return ImageTransform((shape[0], shape[1]), resized, start, target)  # type: ignore[arg-type]


def _intrinsics(K: np.ndarray, plan: ImageTransform) -> np.ndarray:
    """Where pixel centres really go; ``ImageTransform.intrinsics`` follows the original's habit,
    which is half a source pixel off."""
    K = np.array(K, np.float64)
    K[:2, 2] += 0.5
    K[0] /= plan.scale_w
    K[1] /= plan.scale_h
    K[:2, 2] -= 0.5
    K[:2, 2] -= plan.crop_start[::-1]
    return K


def _within(numbers: np.ndarray, gap: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of positions whose frame numbers differ by an amount in the range."""
    pairs = [
        (i, j)
        for i, number in enumerate(numbers)
        for j in range(
            int(np.searchsorted(numbers, number + gap[0])),
            int(np.searchsorted(numbers, number + gap[1], side="right")),
        )
    ]
    one_way = np.array(pairs, np.int64).reshape(-1, 2)
    both = np.concatenate([one_way, one_way[:, ::-1]])
    return both[:, 0], both[:, 1]
