"""Clips of procedural rooms as stacked frames, and what else the learning experiments share."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure

from mast3r_jax import Pointmap
from ops import RayFactorConfig, Sim3
from ops.records import Record, record
from slam.clip import run_clip
from slam.config import GraphConfig, RetrievalConfig, SlamConfig, TrackingConfig
from slam.decisions import Decisions
from slam.frontend import View, decode_pair
from slam.io.atomic import atomic_write
from slam.io.preparation import prepare_frames
from slam.io.procedural import ProceduralSource
from slam.io.procedural_options import ProceduralOptions
from slam.losses import trajectory_loss
from slam.state import NoiseModel, init_state
from slam.types import Frame, TwoViewPrior

T = TypeVar("T")

COLORS = ("#888888", "#1f5fbf", "#e07b00", "#1a9850", "#8e44ad", "#c51b3a")
"""Of the things compared, in order; the first is what there was before."""


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """How the rooms are filmed."""

    frames: int = 16
    """Frames of a clip."""
    stride: int = 2
    """The walk's frames, 3.5 cm and up to 2.5 degrees apart, of which one is taken."""
    size: tuple[int, int] = (64, 48)
    """Width and height of the images in pixels, multiples of 16."""


def clip_config(options: ClipOptions, keyframes: int = 4) -> SlamConfig:
    """A map no larger than a clip needs, solvers that converge, and no confidence that is too low.

    The derivative is that of the minimum; and a match that counts or not, as its confidence
    crosses a threshold, is a step no derivative sees.
    """
    # As far as float32 goes: beyond, nothing but rounding is left of a step.
    rays = RayFactorConfig(max_iterations=20, rel_error=0.0, delta_norm=1e-5)
    return SlamConfig(
        size=options.size[0],
        keyframe_capacity=keyframes,
        edge_capacity=2 * keyframes,
        retrieval=RetrievalConfig(num_candidates=1),
        tracking=TrackingConfig(min_descriptor_confidence=0.0, rays=rays),
        graph=GraphConfig(min_descriptor_confidence=0.0, rays=rays),
    )


def film(seed: int, options: ClipOptions, k1: float = 0.0, k2: float = 0.0) -> Frame:
    """The beginning of a walk through the room ``seed``, stacked, through a lens that distorts."""
    length = options.frames * options.stride
    scene = ProceduralOptions(seed=seed, frames=length, size=options.size, k1=k1, k2=k2)
    walk = ProceduralSource(scene).select(slice(0, length, options.stride))
    prepared = (frame for _, frame in prepare_frames(walk, options.size[0]))
    return stacked(
        [frame.replace(index=jnp.asarray(n, jnp.int32)) for n, frame in enumerate(prepared)]
    )


Views = tuple[Pointmap, Pointmap]
"""Both views of some pairs [pairs, H, W, ...]."""


@record
class Clip(Record):
    """Frames, and what a prior said to all pairs of them that the SLAM asks for."""

    frames: Frame
    """The frames [F], with true poses."""
    views: Views
    """What was said, and at the end a pair of which nothing is known."""
    row: Int[Array, "frames frames"]
    """Where in ``views`` the pair of two frames is."""
    is_keyframe: Bool[Array, "frames"]
    """Which frames become keyframes."""


@record
class RecordedEncoding(Record):
    """A frame, by its number."""

    features: Float[Array, "*batch n c"]
    """Nothing: there is no retrieval."""
    index: Int[Array, "*batch"]
    """Number of the frame in its clip."""


@record
class RecordedPrior(Record):
    """Looks up what is to be said to each pair of frames."""

    views: Views
    """As in ``Clip``."""
    row: Int[Array, "frames frames"]
    """As in ``Clip``."""

    def encode(self, frame: Frame) -> RecordedEncoding:
        """The frame's number."""
        return RecordedEncoding(jnp.zeros((1, 1), jnp.float32), jnp.asarray(frame.index))

    def decode(self, encoding_1: RecordedEncoding, encoding_2: RecordedEncoding) -> Views:
        """Recorded pointmaps of a batch of pairs; without confidence for one not recorded."""
        rows = self.row[encoding_1.index, encoding_2.index]
        view_1, view_2 = jax.tree.map(lambda x: x[rows], self.views)
        return view_1, view_2


def keyframe_at(count: int, keyframes: int) -> np.ndarray:
    """Which of ``count`` frames become keyframes: so many, at even distances."""
    return np.arange(count) % -(-count // keyframes) == 0


@jax.jit
def _predict(prior: TwoViewPrior, frames: Frame, pairs: Int[Array, "pairs 2"]) -> Any:
    encodings = jax.lax.map(prior.encode, frames)

    def one(pair: Int[Array, "2"]) -> tuple[View, View]:
        first, second = (jax.tree.map(lambda x, n=n: x[pair[n]], encodings) for n in range(2))
        return decode_pair(prior, first, second)

    return jax.lax.map(one, pairs)


def ask(prior: TwoViewPrior, frames: Frame, is_keyframe: np.ndarray) -> Clip:
    """What a prior says to all that a clip with these keyframes asks of it.

    That is the first frame by itself, each other one beside the last keyframe, and each keyframe
    beside the next. The prior runs once, however often the clip is run; numbers that are not finite
    have been replaced as tracking would (``slam.frontend.sanitize``).
    """
    last, pairs = 0, [(0, 0)]
    for number in range(1, len(is_keyframe)):
        pairs.append((number, last))
        if is_keyframe[number]:
            pairs.append((last, number))
            last = number
    row = np.full((len(is_keyframe), len(is_keyframe)), len(pairs), np.int32)
    row[tuple(np.transpose(pairs))] = np.arange(len(pairs))
    views = _predict(prior, frames, jnp.asarray(pairs, jnp.int32))

    def kept(view: View) -> Pointmap:
        pointmap = Pointmap(
            view.points, view.confidence, view.descriptors, view.descriptor_confidence
        )
        return jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), pointmap)

    both = kept(views[0]), kept(views[1])
    return Clip(frames, both, jnp.asarray(row), jnp.asarray(is_keyframe))


def without_descriptors(views: Views) -> Views:
    """All that is needed where matches are given."""
    view_1, view_2 = (view.replace(descriptors=view.descriptors[..., :0]) for view in views)
    return view_1, view_2


def _play(
    views: Views, noise: NoiseModel, clip: Clip, given: Decisions, config: SlamConfig
) -> tuple[Float[Array, ""], Decisions, Sim3]:
    prior = RecordedPrior(views, clip.row)
    state = init_state(prior, config, jax.tree.map(lambda x: x[0], clip.frames), noise=noise)
    result = run_clip(prior, config, state, clip.frames, given)
    truth, T_WC = jnp.asarray(clip.frames.T_WC), result.trajectory()
    error = trajectory_loss(T_WC, truth, result.placed)
    return jnp.where(jnp.all(result.placed), error, jnp.inf), result.decisions, T_WC


@functools.partial(jax.jit, static_argnames="config")
def run(
    views: Views, noise: NoiseModel, clip: Clip, config: SlamConfig
) -> tuple[Float[Array, ""], Decisions, Sim3]:
    """Run a clip with what is said to its pairs: trajectory error, choices, poses of all frames.

    The error is in metres, after Sim(3) alignment, and infinite if a frame is lost.
    """
    return _play(views, noise, clip, Decisions(is_keyframe=clip.is_keyframe), config)


@functools.partial(jax.jit, static_argnames="config")
def trace_back(
    views: Views, noise: NoiseModel, clip: Clip, given: Decisions, config: SlamConfig
) -> tuple[Float[Array, ""], tuple[Views, NoiseModel]]:
    """The error of ``run`` with the choices it made, and its derivatives.

    Cut here, between what is learned and the SLAM, the chain of derivatives has one long part that
    is compiled once for whatever is learned. ``views`` come ``without_descriptors``.
    """

    def error(views: Views, noise: NoiseModel) -> Float[Array, ""]:
        return _play(views, noise, clip, given, config)[0]

    return jax.value_and_grad(error, argnums=(0, 1))(views, noise)


def slope(
    predict: Callable[[T, Views], tuple[Views, NoiseModel]],
    parameters: T,
    clip: Clip,
    config: SlamConfig,
    given: Decisions | None = None,
) -> tuple[Float[Array, ""], T]:
    """Trajectory error of a clip, and its derivative in the parameters of ``predict``.

    ``predict``, compiled, makes of what the prior said what the SLAM is told, and how far it is to
    trust measurements. Unless choices are given, they are made anew.
    """
    if given is None:
        _, given, _ = run(*predict(parameters, clip.views), clip, config)
    said = without_descriptors(clip.views)
    told, back = jax.vjp(lambda parameters: predict(parameters, said), parameters)
    error, slopes = trace_back(*told, clip, given, config)
    return error, back(slopes)[0]


def stacked(items: Sequence[T]) -> T:
    """Equal trees as one, with a leading axis on every leaf."""
    return jax.tree.map(lambda *x: jnp.stack(x), *items)


def spread(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, extremes and the values themselves, for the JSON of numbers."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        "values": array.tolist(),
    }


def write_json(path: str | os.PathLike[str], numbers: dict[str, Any]) -> None:
    """Numbers of an experiment as a readable JSON file."""
    with atomic_write(path) as file:
        file.write((json.dumps(numbers, indent=1) + "\n").encode())


def write_png(path: str | os.PathLike[str], figure: Figure) -> None:
    """A figure as a PNG."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
