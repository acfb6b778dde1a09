"""Records that every stage of the SLAM speaks, and the protocol of its two-view prior."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mast3r_jax.pointmap import Pointmap
from mast3r_jax.retrieval import RetrievalModel
from ops.records import Record, record


@record
class Frame(Record):
    """One prepared image on its way into ``step``; everything at the working resolution.

    Leaves are numpy arrays as preparation makes them, and JAX arrays from the device on.
    """

    index: Int[Array | np.ndarray, ""]
    """Number of the frame in its source, from 0."""
    timestamp: Float[Array | np.ndarray, ""]
    """Seconds since the source's first frame (float32; absolute times stay on the host)."""
    image: UInt8[Array | np.ndarray, "h w 3"]
    """RGB, height and width multiples of 16."""
    depth: Float[Array | np.ndarray, "h w"] | None = None
    """Sensor or rendered depth along z in metres, 0 where unknown; read by priors, not by SLAM."""
    T_WC: Float[Array | np.ndarray, "4 4"] | None = None
    """Ground-truth camera-to-world transform; read by priors and evaluation, not by SLAM."""
    K: Float[Array | np.ndarray, "3 3"] | None = None
    """Pinhole intrinsics of this image in pixels; read by priors, not by SLAM."""


@runtime_checkable
class TwoViewPrior(Protocol):
    """Anything that turns two images into pointmaps: MASt3R, a renderer, a recording.

    Implementations are pytrees (weights are leaves) and both methods trace under ``jit``. One that
    has an attribute ``retrieval``, a ``RetrievalModel`` for its own features, closes loops and
    relocalises; see ``retrieval_of``. One that has a method ``keep(encoding)`` may store less of a
    keyframe's numbers than it computed; see ``keep``.
    """

    def encode(self, frame: Frame) -> Any:
        """Per-frame part of the work: a pytree of fixed-shape arrays, kept with a keyframe.

        It has an array ``features[N, C]`` (tokens, for retrieval) and whatever else ``decode``
        needs.
        """
        ...

    def decode(self, encoding_1: Any, encoding_2: Any) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs (leading axis on every leaf), both in view 1's camera."""
        ...


def keep(prior: TwoViewPrior, encoding: Any) -> Any:
    """An encoding as it is stored with a keyframe: the same pytree, in smaller types if need be.

    Only the types matter: buffers have them, and the map rounds to what its buffers have.
    """
    method = getattr(prior, "keep", None)
    return encoding if method is None else method(encoding)


def retrieval_of(prior: TwoViewPrior) -> RetrievalModel | None:
    """What a prior brings to look images up by its features, None if nothing."""
    return getattr(prior, "retrieval", None)
