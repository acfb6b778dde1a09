"""Walks through procedural rooms as a source with exact ground truth.

``procedural:room?seed=3&frames=150`` needs no file and no network connection. The keys are the
fields of ``ProceduralOptions``.
"""

import collections
import dataclasses
import functools
import math
import urllib.parse
from collections.abc import Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slam.io.frames import SourceError, SourceFrame
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


@dataclasses.dataclass(frozen=True)
class ProceduralOptions:
    """A walk through a random room; every field is a key of the URI."""

    seed: int = 0
    """Which room and which walk."""
    frames: int = 150
    size: tuple[int, int] = (128, 96)
    """Width and height in pixels, ``size=128x96``."""
    laps: float = 1.0
    """Rounds of the loop, at most: the camera turns by no more than 2.45 degrees a frame, so a lap
    takes 148 frames or the walk ends before it closes."""
    zoom: float = 1.0
    """The focal length changes smoothly between 1 and ``zoom`` times that of ``fov``."""
    fov: float = 65.0
    """Horizontal field of view of the pinhole part, degrees."""
    fps: float = 30.0
    """Frames a second, for the timestamps."""
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    """Lens distortion (Brown-Conrady, OpenCV's meaning). ``K`` is then the pinhole part only."""
    spp: int = 1
    """Colour samples a pixel along each side; depth is always that of the centre."""
    noise: float = 0.0
    """Standard deviation of sensor noise, grey levels of 255."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, pixels."""
    exposure: float = 0.0
    """Amplitude of a slow drift of the exposure, stops."""


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "frames": (1, 1_000_000),
    "laps": (1e-3, 1000),
    "zoom": (1, 4),
    "fov": (20, 120),
    "fps": (0.1, 1000),
    "k1": (-2, 2),
    "k2": (-2, 2),
    "p1": (-0.5, 0.5),
    "p2": (-0.5, 0.5),
    "spp": (1, 8),
    "noise": (0, 100),
    "blur": (0, 20),
    "exposure": (0, 4),
}
_SIZES = (16, 4096)
_KEYS = tuple(field.name for field in dataclasses.fields(ProceduralOptions))


def parse_procedural(uri: str) -> "ProceduralSource":
    """The source described by ``procedural:room?key=value&...``.

    Raises ``SourceError`` naming the key, the value and what is accepted.
    """
    head, _, query = uri.partition("?")
    if head not in ("procedural:room", "procedural:"):
        raise SourceError(
            f"{uri}: unknown scene '{head.removeprefix('procedural:')}'; "
            "write procedural:room?seed=0&frames=150"
        )
    values: dict[str, int | float | tuple[int, int]] = {}
    for part in query.split("&") if query else []:
        key, equals, text = part.partition("=")
        text = urllib.parse.unquote(text)
        if key not in _KEYS:
            raise SourceError(f"{uri}: unknown key '{key}'; accepted keys: {', '.join(_KEYS)}")
        if not equals or not text:
            raise SourceError(f"{uri}: key '{key}' has no value; write {key}=VALUE")
        if key in values:
            raise SourceError(f"{uri}: key '{key}' is given twice; leave one out")
        values[key] = _parse_value(uri, key, text)
    return ProceduralSource(ProceduralOptions(**values), name=uri)  # type: ignore[arg-type]


def _parse_value(uri: str, key: str, text: str) -> int | float | tuple[int, int]:
    if key == "size":
        width, cross, height = text.partition("x")
        if not (cross and width.isdecimal() and height.isdecimal()):
            raise SourceError(f"{uri}: size={text} is not WIDTHxHEIGHT, for example size=128x96")
        return int(width), int(height)
    whole = key in ("seed", "frames", "spp")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise SourceError(f"{uri}: {key}={text} is not {kind}") from None


class ProceduralSource:
    """A walk through a procedural room; the same options give the same frames.

    Iteration renders ahead in chunks. With lens distortion (``distortion`` not None) the images
    are distorted and ``K`` describes only the pinhole behind the lens: undistort first, or treat
    the recording as uncalibrated.

    Raises ``SourceError`` for options out of range and for a distortion that folds the image.
    """

    def __init__(self, options: ProceduralOptions, name: str = "") -> None:
        self.uri = name or _uri(options)
        _check(self.uri, options)
        self.options = options
        self.name = f"procedural-room-{options.seed}"
        self.num_frames: int | None = options.frames
        path = PathConfig(laps=options.laps)
        turn = turn_per_frame(options.frames, path)
        self.laps = turn * (options.frames - 1) / (2.0 * math.pi)
        """Rounds of the loop that the walk makes."""
        room_key, path_key = jax.random.split(jax.random.key(options.seed))
        self.room: Room = random_room(room_key)
        self.T_WC: np.ndarray = _rigid(camera_path(path_key, self.room, options.frames, path))
        """Camera to world of every frame, [T, 4, 4]."""
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
        for start in range(0, len(indices), length):
            chunk = indices[start : start + length]
            # Dispatched before the previous chunk is handed out; JAX computes it meanwhile.
            ahead.append((chunk, self._render(chunk, length)))
            if len(ahead) > 1:
                yield from self._frames(*ahead.popleft())
        for item in ahead:
            yield from self._frames(*item)

    def _render(self, chunk: np.ndarray, length: int) -> tuple[Array, Array]:
        # The last chunk repeats its last frame: one shape, one compilation.
        padded = np.concatenate([chunk, np.full(length - len(chunk), chunk[-1])])
        width, height = self.options.size
        # A slow drift with a period of 8 s; two incommensurate waves, 1 at the most.
        time = self.timestamps[padded]
        drift = 0.6 * np.sin(2.0 * np.pi * time / 8.0) + 0.4 * np.sin(2.0 * np.pi * time / 3.1)
        return _render_chunk(
            self.room,
            jnp.asarray(self.T_WC[padded], jnp.float32),
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
                origin=f"{self.uri} frame {index}",
            )

    def _sense(self, rgb: np.ndarray, index: int) -> np.ndarray:
        """From ideal colour to what a sensor reports: blur, then noise, then 8 bits."""
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


def _uri(options: ProceduralOptions) -> str:
    width, height = options.size
    values = {**dataclasses.asdict(options), "size": f"{width}x{height}"}
    defaults = {**dataclasses.asdict(ProceduralOptions()), "size": "128x96"}
    changed = [f"{key}={value}" for key, value in values.items() if value != defaults[key]]
    return "procedural:room" + ("?" + "&".join(changed) if changed else "")


def _check(uri: str, options: ProceduralOptions) -> None:
    for key, (low, high) in _RANGES.items():
        value = getattr(options, key)
        if not low <= value <= high:  # also refuses NaN
            raise SourceError(f"{uri}: {key}={value:g} is not between {low:g} and {high:g}")
    if not all(_SIZES[0] <= side <= _SIZES[1] for side in options.size):
        width, height = options.size
        raise SourceError(
            f"{uri}: size={width}x{height} is not between {_SIZES[0]} and {_SIZES[1]} a side"
        )
