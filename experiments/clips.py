"""Clips of procedural rooms as stacked frames, and what else the learning experiments share."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from ops import RayFactorConfig
from ops.records import Record, record
from slam.clip import Clip, run_clip
from slam.config import GraphConfig, RetrievalConfig, SlamConfig, TrackingConfig
from slam.decisions import Decisions
from slam.io.atomic import atomic_write
from slam.io.preparation import prepare_frames
from slam.io.procedural import ProceduralSource
from slam.io.procedural_options import ProceduralOptions
from slam.state import NoiseModel, init_state
from slam.types import Frame, TwoViewPrior

P = TypeVar("P")

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


@record
class Sample(Record):
    """A clip with everything random in it; of several, stacked, when there is a leading axis."""

    frames: Frame
    """The frames [F], with depth, true poses and intrinsics."""
    seed: Int[Array, "*samples"]
    """Of the room, and of the noise of the prior that looks at it."""


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


def play(
    prior: TwoViewPrior,
    config: SlamConfig,
    frames: Frame,
    noise: NoiseModel | None = None,
    given: Decisions | None = None,
) -> Clip:
    """Run a clip from an empty map; unless choices are given, with keyframes at even distances."""
    count = frames.index.shape[0]
    if given is None:
        every = -(-count // config.keyframe_capacity)
        given = Decisions(is_keyframe=jnp.arange(count) % every == 0)
    state = init_state(prior, config, jax.tree.map(lambda x: x[0], frames), noise=noise)
    return run_clip(prior, config, state, frames, given)


def film(seed: int, options: ClipOptions, k1: float = 0.0, k2: float = 0.0) -> Sample:
    """The beginning of a walk through the room ``seed``, through a lens with radial distortion."""
    length = options.frames * options.stride
    scene = ProceduralOptions(seed=seed, frames=length, size=options.size, k1=k1, k2=k2)
    walk = ProceduralSource(scene).select(slice(0, length, options.stride))
    frames = [frame for _, frame in prepare_frames(walk, options.size[0])]
    return Sample(stacked(frames), jnp.int32(seed))


def stacked(items: Sequence[P]) -> P:
    """Equal trees as one, with a leading axis on every leaf."""
    return jax.tree.map(lambda *x: jnp.stack(x), *items)


def mean_of(
    error: Callable[..., Float[Array, ""]], parameters: P, *batches: Any
) -> tuple[Float[Array, ""], P]:
    """Mean over a batch of ``error(parameters, *items)``, and its derivative in the parameters.

    One item after the other, forward and back: the memory of one, and one program for any number.
    """
    differentiated = jax.value_and_grad(error)
    values, slopes = jax.lax.map(lambda items: differentiated(parameters, *items), batches)
    return jnp.mean(values), jax.tree.map(lambda x: jnp.mean(x, axis=0), slopes)


def spread(values: Sequence[float]) -> dict[str, Any]:
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
