"""Walks through procedural rooms as a source with exact ground truth.

``procedural:room?seed=3&frames=150`` needs no file and no network connection. The keys are the
fields of ``ProceduralOptions``.
"""

import collections
import functools
import math
from collections.abc import Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slam.io.frames import SourceError, SourceFrame
from slam.io.procedural_options import (
    ProceduralOptions,
    check_options,
    format_uri,
    parse_options,
)
from slam.world import (
    PathConfig,
    RenderConfig,
    Room,
    camera_path,
    focal_path,
    random_room,
    render,
)
from slam.world.camera import distort, undistort
from slam.world.path import turn_per_frame

_CHUNK_PIXELS = 16 * 128 * 96
"""Pixels rendered by one call: enough to amortise it, little enough to start at once."""
_OTHER_ROOM_W = np.array([30.0, 0.0, 0.0])
"""Where the middle of the other room is: rooms are 7.5 m long at the most."""


def parse_procedural(uri: str) -> "ProceduralSource":
    """The source described by ``procedural:room?key=value&...``.

    Raises ``SourceError`` naming the key, the value and what is accepted.
    """
    return ProceduralSource(parse_options(uri), name=uri)


class ProceduralSource:
    """A walk through a procedural room; the same options give the same frames.

    Iteration renders ahead in chunks. With lens distortion (``distortion`` not None) the images
    are distorted and ``K`` describes only the pinhole behind the lens: open the source with
    ``rectify=True``, or treat the recording as uncalibrated.

    Raises ``SourceError`` for options out of range and for a distortion that folds the image.
    """

    def __init__(self, options: ProceduralOptions, name: str = "") -> None:
        self.uri = name or format_uri(options)
        check_options(self.uri, options)
        self.options = options
        self.name = f"procedural-room-{options.seed}"
        self.num_frames: int | None = options.frames
        path = PathConfig(laps=options.laps)
        turn = turn_per_frame(options.frames, path)
        self.laps = turn * (options.frames - 1) / (2.0 * math.pi)
        """Rounds of the loop that the walk makes if nothing carries the camera off."""
        position, self.elsewhere = _itinerary(options)
        """Frames in the other room, bool [T]."""
        self.covered: np.ndarray = _covered(options)
        """Frames with a covered lens, bool [T]."""
        key = jax.random.key(options.seed)
        self.room, walk = _visit(key, options.frames, path, position[~self.elsewhere])
        self.other_room: Room | None = None
        """The room of the frames ``elsewhere``, in coordinates of its own."""
        self._T_RC = np.empty((options.frames, 4, 4))  # R: the room that the camera is in
        self._T_RC[~self.elsewhere] = walk
        if self.elsewhere.any():
            key = jax.random.fold_in(key, 1)
            self.other_room, walk = _visit(key, options.frames, path, position[self.elsewhere])
            self._T_RC[self.elsewhere] = walk
        self.T_WC: np.ndarray = self._T_RC.copy()
        """Camera to world of every frame, [T, 4, 4]."""
        self.T_WC[self.elsewhere, :3, 3] += _OTHER_ROOM_W
        self.timestamps: np.ndarray = np.arange(options.frames) / options.fps
        """Seconds from the first frame, [T]."""
        self.K: np.ndarray = _intrinsics(options)
        """Pinhole intrinsics of every frame, [T, 3, 3]; equal unless zooming."""
        coefficients = (options.k1, options.k2, options.p1, options.p2)
        self.distortion: np.ndarray | None = np.array(coefficients) if any(coefficients) else None
        """Brown-Conrady ``k1, k2, p1, p2`` in OpenCV's order, None for a pinhole camera."""
        self._check_distortion()

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.select(slice(None))

    def select(self, positions: slice) -> Iterator[SourceFrame]:
        """The frames at ``positions``, rendering no others; ``index`` counts all frames."""
        width, height = self.options.size
        length = min(max(1, _CHUNK_PIXELS // (width * height)), 16)
        indices = np.arange(self.options.frames)[positions]
        ahead: collections.deque = collections.deque()
        # One room a chunk.
        changes = np.flatnonzero(np.diff(self.elsewhere[indices])) + 1
        for part in np.split(indices, changes):
            for start in range(0, len(part), length):
                chunk = part[start : start + length]
                # Dispatched before the previous chunk is handed out; JAX computes it meanwhile.
                ahead.append((chunk, self._render(chunk, length)))
                if len(ahead) > 1:
                    yield from self._frames(*ahead.popleft())
        for item in ahead:
            yield from self._frames(*item)

    def _render(self, chunk: np.ndarray, length: int) -> tuple[Array, Array]:
        # A short chunk repeats its last frame: one shape, one compilation.
        padded = np.concatenate([chunk, np.full(length - len(chunk), chunk[-1])])
        width, height = self.options.size
        # A slow drift with a period of 8 s; two incommensurate waves, 1 at the most.
        time = self.timestamps[padded]
        drift = 0.6 * np.sin(2.0 * np.pi * time / 8.0) + 0.4 * np.sin(2.0 * np.pi * time / 3.1)
        other = self.other_room if self.elsewhere[chunk[0]] else None
        return _render_chunk(
            self.room if other is None else other,
            jnp.asarray(self._T_RC[padded], jnp.float32),
            jnp.asarray(self.K[padded], jnp.float32),
            jnp.asarray(2.0 ** (self.options.exposure * drift), jnp.float32),
            None if self.distortion is None else jnp.asarray(self.distortion, jnp.float32),
            shape=(height, width),
            config=RenderConfig(supersampling=self.options.spp),
        )

    def _frames(self, chunk: np.ndarray, rendered: tuple[Array, Array]) -> Iterator[SourceFrame]:
        rgb, depth = (np.asarray(values) for values in rendered)
        for row, index in enumerate(chunk.tolist()):
            yield SourceFrame(
                index=index,
                timestamp=float(self.timestamps[index]),
                rgb=self._sense(rgb[row], index),
                depth=depth[row].copy(),
                T_WC=self.T_WC[index].copy(),
                K=self.K[index].copy(),
                distortion=self.distortion,
                origin=f"{self.uri} frame {index}",
            )

    def _sense(self, rgb: np.ndarray, index: int) -> np.ndarray:
        """From ideal colour to what a sensor reports: blur, then noise, then 8 bits."""
        if self.covered[index]:
            return np.zeros(rgb.shape, np.uint8)
        levels = 255.0 * rgb
        if self.options.blur > 0:
            levels = cv2.GaussianBlur(levels, (0, 0), self.options.blur)
        if self.options.noise > 0:
            rng = np.random.default_rng((self.options.seed, index))
            levels = levels + self.options.noise * rng.standard_normal(levels.shape)
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)

    def _check_distortion(self) -> None:
        """Every pixel on the border must have a ray that the lens bends to just there."""
        if self.distortion is None:
            return
        width, height = self.options.size
        u, v = np.meshgrid(np.linspace(0, width - 1, 33), np.linspace(0, height - 1, 33))
        K = self.K[0]
        xy = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], axis=-1)
        coefficients = jnp.asarray(self.distortion, jnp.float32)
        ideal = undistort(jnp.asarray(xy, jnp.float32), coefficients)
        error = np.abs(np.asarray(distort(ideal, coefficients)) - xy) * K[0, 0]
        # A true inverse keeps the order of pixels; a fold sends some of them backwards.
        x, y = np.moveaxis(np.asarray(ideal), -1, 0)
        ordered = (np.diff(x, axis=1) > 0).all() and (np.diff(y, axis=0) > 0).all()
        if not (np.isfinite(error).all() and error.max() < 0.01 and ordered):
            o = self.options
            raise SourceError(
                f"{self.uri}: k1={o.k1:g} k2={o.k2:g} p1={o.p1:g} p2={o.p2:g} folds the image at "
                f"fov={o.fov:g}; lower the coefficients or the fov"
            )


@functools.partial(jax.jit, static_argnames=("shape", "config"))
def _render_chunk(
    room: Room,
    T_WC: Float[Array, "c 4 4"],
    K: Float[Array, "c 3 3"],
    exposure: Float[Array, " c"],
    distortion: Float[Array, "4"] | None,
    shape: tuple[int, int],
    config: RenderConfig,
) -> tuple[Float[Array, "c h w 3"], Float[Array, "c h w"]]:
    """Colour and depth of several frames, one after the other: each fits the cache."""

    def one(frame):
        view = render(room, frame[0], frame[1], shape, distortion, frame[2], config)
        return view.rgb, view.depth

    return jax.lax.map(one, (T_WC, K, exposure))


def _itinerary(options: ProceduralOptions) -> tuple[np.ndarray, np.ndarray]:
    """For each frame, the position on the walk it is in, and whether that is the other room's."""
    position, elsewhere = np.arange(options.frames), np.zeros(options.frames, bool)
    for at, to in options.jump:
        position[at:] = (to or 0) + np.arange(options.frames - at)
        elsewhere[at:] = to is None
    return position, elsewhere


def _covered(options: ProceduralOptions) -> np.ndarray:
    covered = np.zeros(options.frames, bool)
    for start, end in options.cover:
        covered[start : end + 1] = True
    return covered


def _visit(
    key: PRNGKeyArray, num_frames: int, config: PathConfig, positions: np.ndarray
) -> tuple[Room, np.ndarray]:
    """A room and the poses at the given positions of the walk of ``num_frames`` through it."""
    room_key, path_key = jax.random.split(key)
    room = random_room(room_key)
    # The whole walk, even if it is left early: one length, one compilation.
    length = max(num_frames, int(positions.max(initial=0)) + 1)
    return room, _rigid(camera_path(path_key, room, num_frames, config, length))[positions]


def _rigid(T_WC: Float[Array, "t 4 4"]) -> np.ndarray:
    """The same poses in float64, their rotations orthonormal to that precision."""
    T = np.array(T_WC, np.float64)
    U, _, Vt = np.linalg.svd(T[:, :3, :3])
    T[:, :3, :3] = U @ Vt
    return T


def _intrinsics(options: ProceduralOptions) -> np.ndarray:
    width, height = options.size
    focal = 0.5 * width / math.tan(0.5 * math.radians(options.fov))
    factor = np.asarray(focal_path(options.frames, options.zoom), np.float64)
    K = np.zeros((options.frames, 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = focal * factor
    # Pixel centres are integers: the middle of the image is half a pixel before its middle edge.
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 0.5 * (width - 1), 0.5 * (height - 1), 1.0
    # Rays are cast in float32; what is reported is what was used.
    return K.astype(np.float32).astype(np.float64)
