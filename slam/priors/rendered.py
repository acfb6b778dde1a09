"""A prior that knows the geometry: depth and poses in, pointmaps with realistic errors out.

It stands in for the network wherever ground truth exists: procedural scenes, and RGB-D sequences
with poses. What it gets wrong is chosen (``GeometryNoise``), so the SLAM behind it can be judged
apart from any network, and a run is reproducible to the bit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mast3r_jax.pointmap import Pointmap
from mast3r_jax.retrieval import RetrievalModel
from ops import pinhole
from ops.records import Record, record, static_field
from slam.priors.places import place_features, place_retrieval
from slam.types import Frame

DESCRIPTOR_SIZE = 24
"""As MASt3R's."""
COVERED_BELOW = 8
"""An image whose brightest value (of 255) stays below this shows nothing: a covered lens."""
DRIFT_FRAMES = 30.0
"""Over as many frames ``GeometryNoise.drift`` changes: a walk at 30 frames a second makes two
keyframes in that time, so that errors of successive keyframes are related."""
_TOKEN_STREAM, _DRIFT_STREAM = 2**32 - 1, 2**32 - 2
"""Folded into the seed where frame numbers are elsewhere; no frame has such a number."""


@dataclasses.dataclass(frozen=True)
class GeometryNoise:
    """What the rendered-geometry prior gets wrong; all sizes are relative to distance."""

    depth: float = 0.01
    """Standard deviation of white noise along each ray, at unit noise level; new in each pair."""
    bias: float = 0.005
    """Standard deviation of a smooth error over the image that belongs to a frame."""
    scale: float = 0.01
    """Standard deviation of the log-scale of each pair's prediction."""
    descriptor: float = 0.02
    """Norm of the noise added to unit descriptors; new in each pair."""
    feature: float = 0.2
    """Norm of the noise added to retrieval features of norm about 1; new in each frame."""
    drift: float = 0.0
    """Standard deviation of a smooth error over the image that each view of a pair has for itself
    and that changes slowly from pair to pair, over some 30 frames. Neither pixels nor successive
    frames average it out, and what a keyframe gets wrong as the new view of one pair does not
    cancel what it gets wrong as the old view of the next: scale and shape drift along a walk, and
    differently each time a place is passed."""
    seed: int = 0
    """Of all of the above."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"noise.{name}={value:g} must be at least 0 and below 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"noise.seed={self.seed} must be at least 0 and below 2^31")

    @classmethod
    def none(cls) -> "GeometryNoise":
        """Exact geometry."""
        return cls(**{name: 0.0 for name in _SIZES})  # type: ignore[arg-type]


_SIZES = tuple(f.name for f in dataclasses.fields(GeometryNoise) if f.name != "seed")


@record
class GeometryEncoding(Record):
    """What the prior keeps of a frame: its true geometry."""

    features: Float[Array, "*batch n c"]
    """Retrieval features, see ``slam.priors.places``."""
    index: Int[Array, "*batch"]
    """Number of the frame; with the partner's it seeds the noise of a pair."""
    points_C: Float[Array, "*batch h w 3"]
    """True points in the frame's own camera, metres; where depth is unknown, on the right ray."""
    seen: Bool[Array, "*batch h w"]
    """Pixels with known depth, in an image that shows something."""
    T_WC: Float[Array, "*batch 4 4"]
    """True camera-to-world transform."""


@record
class RenderedGeometryPrior(Record):
    """Pointmaps computed from a frame's own depth, pose and intrinsics, then disturbed.

    Noise model, per pixel p of a view seen in a pair: the true point in the view's own camera is
    scaled by ``1 + depth * level(p) * white(p) + bias * field(p) + drift * slow(p)``; both views
    are then expressed in view 1's camera and scaled by ``exp(scale * n)``. ``level`` varies
    smoothly over an image between 1/2 and 2 and is 4 at depth edges; the confidence
    ``1 + 2 / level^2`` and descriptor confidence ``1 + 2 / level`` tell it truthfully. Descriptors
    are random Fourier features of the true world point: the same surface point looks the same from
    everywhere, whatever the seed.
    """

    noise: GeometryNoise = static_field()
    """Sizes of the errors; its own seed is always 0."""
    seed: Int[Array | np.ndarray, ""]
    """Seed of the noise, a leaf: programs compiled for one seed serve all."""

    def __init__(
        self,
        noise: GeometryNoise = GeometryNoise(),
        seed: Int[Array | np.ndarray, ""] | None = None,
    ) -> None:
        """A prior with the given errors; ``seed`` takes the place of ``noise.seed``."""
        object.__setattr__(self, "noise", dataclasses.replace(noise, seed=0))
        object.__setattr__(self, "seed", np.asarray(noise.seed, np.int32) if seed is None else seed)

    @property
    def retrieval(self) -> RetrievalModel:
        """Looks up earlier views by the features of ``encode``; the same for all such priors."""
        return place_retrieval()

    def encode(self, frame: Frame) -> GeometryEncoding:
        """True geometry of one frame.

        Raises:
            ValueError: when the frame lacks depth, pose or intrinsics.
        """
        depth, T_WC, K = frame.depth, frame.T_WC, frame.K
        missing = [n for n, v in (("depth", depth), ("pose", T_WC), ("intrinsics", K)) if v is None]
        if depth is None or T_WC is None or K is None:
            raise ValueError(
                f"the rendered-geometry prior needs what this source lacks: {', '.join(missing)}; "
                "use a source with depth, poses and calibration, or the MASt3R network"
            )
        depth, T_WC, K = jnp.asarray(depth), jnp.asarray(T_WC), jnp.asarray(K)
        measured = (depth > 0) & jnp.isfinite(depth)
        height, width = depth.shape
        pixels = pinhole.pixel_grid((height, width), depth.dtype).reshape(height, width, 2)
        points_C = pinhole.unproject(pixels, fill(depth, measured), K)
        shows_something = frame.image.max() >= COVERED_BELOW
        seen = measured & shows_something
        index = jnp.asarray(frame.index)
        key = jax.random.fold_in(jax.random.key(self.seed), _TOKEN_STREAM)
        return GeometryEncoding(
            features=place_features(
                transform(T_WC, points_C), seen, self.noise.feature, jax.random.fold_in(key, index)
            ),
            index=index,
            points_C=points_C,
            seen=seen,
            T_WC=T_WC,
        )

    def decode(
        self, encoding_1: GeometryEncoding, encoding_2: GeometryEncoding
    ) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs, both in view 1's camera."""
        return jax.vmap(self._decode_one)(encoding_1, encoding_2)

    def _decode_one(
        self, encoding_1: GeometryEncoding, encoding_2: GeometryEncoding
    ) -> tuple[Pointmap, Pointmap]:
        root = jax.random.key(self.seed)
        pair = jax.random.fold_in(jax.random.fold_in(root, encoding_1.index), encoding_2.index)
        scale_key, *view_keys = jax.random.split(pair, 3)
        scale = jnp.exp(self.noise.scale * jax.random.normal(scale_key))
        world_to_1 = scale * invert(encoding_1.T_WC)[:3]
        height, width = encoding_1.seen.shape
        both = jax.tree.map(lambda *views: jnp.stack(views), encoding_1, encoding_2)
        # One program for both views: drawing random numbers is most of what there is to compile.
        views = jax.vmap(self._view, in_axes=(0, None, 0, 0, 0))(
            both,
            world_to_1,
            jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, both.index),
            jnp.stack(view_keys),
            self._drift(jax.random.fold_in(root, _DRIFT_STREAM), both.index, (height, width)),
        )
        view_1, view_2 = (jax.tree.map(lambda x, n=n: x[n], views) for n in range(2))
        return view_1, view_2

    def _drift(
        self, key: Array, indices: Int[Array, "2"], shape: tuple[int, int]
    ) -> Float[Array, "2 #h #w"]:
        """The error of both views of a pair that changes slowly with its frame numbers."""
        if self.noise.drift == 0.0:
            return jnp.zeros((2, 1, 1), jnp.float32)
        times = indices.astype(jnp.float32) / DRIFT_FRAMES
        return self.noise.drift * smooth_fields(key, 2, shape, times, waves=12)

    def _view(
        self,
        encoding: GeometryEncoding,
        world_to_1: Float[Array, "3 4"],
        frame_key: Array,
        pair_key: Array,
        drift: Float[Array, "#h #w"],
    ) -> Pointmap:
        height, width = encoding.seen.shape
        level_field, bias_field = smooth_fields(frame_key, 2, (height, width))
        white = jax.random.normal(pair_key, (height, width, 1 + DESCRIPTOR_SIZE))

        level = jnp.clip(jnp.exp2(level_field), 0.5, 2.0)
        edges = depth_edges(encoding.points_C[..., 2], encoding.seen)
        level = jnp.where(edges, 4.0, level)
        error = self.noise.depth * level * white[..., 0] + self.noise.bias * bias_field + drift
        # An error of -1 would put the point into the camera.
        points = encoding.points_C * (1.0 + jnp.clip(error, -0.5, 0.5))[..., None]

        relative = jnp.matmul(world_to_1, encoding.T_WC, precision="highest")
        points_W = transform(encoding.T_WC, encoding.points_C)
        descriptors = describe(points_W)
        descriptors = (
            descriptors + self.noise.descriptor / np.sqrt(DESCRIPTOR_SIZE) * white[..., 1:]
        )
        descriptors = descriptors / jnp.linalg.norm(descriptors, axis=-1, keepdims=True)
        return Pointmap(
            points=transform(relative, points),
            confidence=jnp.where(encoding.seen, 1.0 + 2.0 / level**2, 0.0),
            descriptors=descriptors,
            descriptor_confidence=jnp.where(encoding.seen, 1.0 + 2.0 / level, 0.0),
        )


def transform(T: Float[Array, "_ 4"], points: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Affine transform of every point by the upper rows of a matrix."""
    return jnp.einsum("ij,hwj->hwi", T[:3, :3], points, precision="highest") + T[:3, 3]


def invert(T: Float[Array, "4 4"]) -> Float[Array, "4 4"]:
    """Inverse of a rigid transform."""
    R_inverse = T[:3, :3].T
    translation = -jnp.einsum("ij,j->i", R_inverse, T[:3, 3], precision="highest")
    return jnp.eye(4, dtype=T.dtype).at[:3, :3].set(R_inverse).at[:3, 3].set(translation)


def describe(points_W: Float[Array, "h w 3"]) -> Float[Array, "h w d"]:
    """Unit descriptors of world points: random Fourier features, wavelengths 10 cm to 3 m.

    Amplitudes grow with the root of the wavelength. The similarity of two points then falls
    smoothly with their distance, and long waves keep coarse images, where short ones alias, from
    matching at random: with equal amplitudes one match in eight was off by over a pixel at 64x48,
    with these one in two hundred.
    """
    rng = np.random.default_rng(0)  # how surfaces look is no noise: the same for every seed
    half = DESCRIPTOR_SIZE // 2
    directions = rng.standard_normal((half, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wavelengths = np.geomspace(3.0, 0.1, half)
    amplitudes = np.sqrt(wavelengths / wavelengths.sum())
    frequencies = directions * (2 * np.pi / wavelengths)[:, None]
    phases = rng.uniform(0.0, 2 * np.pi, half)
    dtype = points_W.dtype
    angle = jnp.einsum(
        "hwi,di->hwd", points_W, jnp.asarray(frequencies, dtype), precision="highest"
    ) + jnp.asarray(phases, dtype)
    amplitude = jnp.asarray(amplitudes, dtype)
    return jnp.concatenate([amplitude * jnp.sin(angle), amplitude * jnp.cos(angle)], axis=-1)


def smooth_fields(
    key: Array,
    count: int,
    shape: tuple[int, int],
    times: Float[Array, " t"] | None = None,
    waves: int = 6,
) -> Float[Array, "n h w"]:
    """Random fields over the image with unit variance and less than one period across it.

    With ``times``, they are the fields of one moment; along each coordinate ``t`` of time their
    correlation falls as ``exp(-t^2 / 2)``.
    """
    num_times = 0 if times is None else times.shape[0]
    random = jax.random.normal(key, (count, waves, 3 + num_times, 1, 1))
    v, u = jnp.mgrid[0 : shape[0], 0 : shape[1]].astype(jnp.float32)
    u, v = u / shape[1], v / shape[0]
    # A normal phase of this width is uniform for all purposes.
    angle = 4.0 * (random[:, :, 0] * u + random[:, :, 1] * v) + 8.0 * np.pi * random[:, :, 2]
    if times is not None:
        angle = angle + (random[:, :, 3:] * times[:, None, None]).sum(2)
    return jnp.cos(angle).sum(1) * np.sqrt(2.0 / waves)


def depth_edges(
    depth: Float[Array, "h w"], seen: Bool[Array, "h w"], bend: float = 0.1
) -> Bool[Array, "h w"]:
    """Pixels where the surface breaks: inverse depth bends by more than ``bend``, relatively.

    Inverse depth is linear over the image of a plane, however slanted, so its second difference
    vanishes there. Pixels whose depth is unknown take no part.
    """
    inverse = 1.0 / depth
    padded, known = jnp.pad(inverse, 1), jnp.pad(seen, 1)
    broken = jnp.zeros_like(seen)
    for before, after in (
        ((slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1))),
        ((slice(1, -1), slice(0, -2)), (slice(1, -1), slice(2, None))),
    ):
        second = padded[before] - 2.0 * inverse + padded[after]
        both = known[before] & known[after]
        broken = broken | (both & (jnp.abs(second) > bend * inverse))
    return broken


def fill(depth: Float[Array, "h w"], measured: Bool[Array, "h w"]) -> Float[Array, "h w"]:
    """Depth with its gaps at the mean distance: a guess, but one that keeps every pixel's ray."""
    count = jnp.maximum(measured.sum(dtype=depth.dtype), 1.0)
    mean = jnp.where(measured, depth, 0.0).sum() / count
    return jnp.where(measured, depth, jnp.where(mean > 0, mean, 1.0))
