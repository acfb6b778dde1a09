"""What changes while the SLAM runs: one immutable pytree, in buffers of fixed capacity."""

import enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import FusedPointmap, Sim3, init_fused
from ops.edge_system import FactorNoise
from ops.records import Record, record, static_field
from slam.config import SlamConfig
from slam.graph import Graph, empty_graph
from slam.retrieval import Database, empty_database
from slam.types import Frame, TwoViewPrior, keep, retrieval_of


class Mode(enum.IntEnum):
    """What the system is doing; stored as int32."""

    STARTING = 0
    """No keyframe yet: the next usable frame becomes the first."""
    TRACKING = 1
    """The last frame was placed against the last keyframe."""
    LOST = 2
    """The last frame could not be placed; the map is as it was. The next ones are looked up in it
    until one is recognised, or a new submap is started."""


@record
class Keyframes(Record):
    """The map: keyframes in slots ``0 .. size-1`` of buffers with room for ``capacity``."""

    size: Int[Array, ""]
    """Slots in use."""
    frame_index: Int[Array, " capacity"]
    """Number of the frame each keyframe was."""
    T_WC: Sim3
    """Pose of each keyframe, camera to world, Sim(3) [capacity]."""
    submap: Int[Array, " capacity"]
    """Number of the submap each keyframe belongs to; each submap has a world frame of its own."""
    pointmap: FusedPointmap
    """Canonical pointmap of each keyframe in its own camera, pixels in linear order [capacity]."""
    encoding: Any
    """What the prior keeps of each keyframe [capacity, ...]; images are not among it."""

    @property
    def capacity(self) -> int:
        """Slots there are (static)."""
        return self.frame_index.shape[0]

    @property
    def last(self) -> Int[Array, ""]:
        """Slot of the newest keyframe; 0 when there is none."""
        return jnp.maximum(self.size - 1, 0)


@record
class NoiseModel(Record):
    """How far measurements are trusted, as numbers that can be traced and learned.

    Two standard deviations each; of rays, or, when calibrated, of pixels.
    """

    tracking: FactorNoise
    """When a frame is placed."""
    graph: FactorNoise
    """When all keyframes are."""


@record
class Backlog(Record):
    """What a keyframe has left to be done for it; see ``slam.backlog``."""

    view: Int[Array, ""]
    """Slot of the keyframe."""
    slot: Int[Array, " candidates"]
    """Keyframes that were looked up for it, best first."""
    waiting: Bool[Array, " candidates"]
    """Which of them are still to be verified."""
    poses: Bool[Array, ""]
    """Whether the graph has links that the poses have not been optimised for."""


@record
class SlamState(Record):
    """Everything ``step`` carries from one frame to the next."""

    mode: Int[Array, ""]
    """A ``Mode``."""
    keyframes: Keyframes
    """The map."""
    graph: Graph
    """Which keyframes see the same place, and where."""
    database: Database | None
    """How keyframes are looked up; None with a prior that has no retrieval model."""
    T_kf: Sim3
    """Pose of the last tracked frame in the camera of the last keyframe."""
    match_init: Int[Array, " hw"]
    """Where matching starts: for each pixel of the last keyframe, a pixel of the next frame."""
    image_shape: tuple[int, int] = static_field()
    """Height and width of the working resolution."""
    failures: Int[Array, ""]
    """Frames since the camera was lost that were looked up in vain."""
    K: Float[Array, "3 3"] | None
    """Intrinsics at the working resolution, or None: then the camera is uncalibrated."""
    noise: NoiseModel | None = None
    """What takes the place of the configuration's standard deviations, if anything."""
    backlog: Backlog | None = None
    """Work that waits, with ``GraphConfig.spread``; None without."""


@record
class StepOutput(Record):
    """What ``step`` reports of one frame; stacks over frames under ``lax.scan``."""

    frame_index: Int[Array, ""]
    """Number of the frame."""
    mode: Int[Array, ""]
    """The ``Mode`` this frame ended in; only TRACKING frames have a pose."""
    keyframe: Int[Array, ""]
    """Slot of the keyframe that carries this frame's pose."""
    T_kf: Sim3
    """Pose of the frame in that keyframe's camera: ``T_WC = keyframes.T_WC[keyframe] @ T_kf``."""
    is_keyframe: Bool[Array, ""]
    """Whether this frame became that keyframe."""
    relocalized: Bool[Array, ""]
    """Whether the camera was lost and found itself again in this frame."""
    submap: Int[Array, ""]
    """Number of the submap of that keyframe, at this time: submaps may be joined later."""
    match_fraction: Float[Array, ""]
    """Share of keyframe pixels with a valid, confident match; 0 where there was no keyframe to
    match with, as in all figures of matching and solving."""
    unique_fraction: Float[Array, ""]
    """Number of distinct frame pixels among the valid matches, over all pixels."""
    iterations: Int[Array, ""]
    """Gauss-Newton iterations of the pose solver."""
    cost: Float[Array, ""]
    """Robust cost of the last iteration."""
    status: Int[Array, ""]
    """The solver's ``ops.SolverStatus``."""
    retrieved: Int[Array, " candidates"]
    """Slots of the keyframes that were looked up as seeing the same place, best first."""
    is_retrieved: Bool[Array, " candidates"]
    """Which of them exist."""
    new_links: Int[Array, ""]
    """Links that this frame added to the graph."""
    graph_iterations: Int[Array, ""]
    """Gauss-Newton iterations over all keyframe poses; 0 when the graph did not change."""
    graph_cost: Float[Array, ""]
    """Robust cost of the last of them."""
    graph_status: Int[Array, ""]
    """The outcome, an ``ops.SolverStatus``; after a failure the poses are as they were."""
    graph_floating: Int[Array, ""]
    """Keyframes that no link with matches ties to the rest of their submap; they are not moved."""
    num_keyframes: Int[Array, ""]
    """Keyframes in the map after this frame."""
    full: Bool[Array, ""]
    """A keyframe was due but the buffers are full: grow them."""
    graph_full: Bool[Array, ""]
    """A link was left out because the graph's buffers are full: grow them."""


def identity_match(image_shape: tuple[int, int]) -> Int[Array, " hw"]:
    """The warm start that says nothing: every pixel matches itself."""
    return jnp.arange(image_shape[0] * image_shape[1], dtype=jnp.int32)


def init_state(
    prior: TwoViewPrior,
    config: SlamConfig,
    frame: Frame,
    K: Float[Array, "3 3"] | None = None,
    noise: NoiseModel | None = None,
) -> SlamState:
    """An empty map for frames shaped like ``frame``; nothing of the frame's content is used.

    Args:
        prior: decides what is kept of a keyframe; only its output shapes matter here.
        config: gives the capacity of the buffers.
        frame: any frame of the sequence (or its ``jax.eval_shape``).
        K: intrinsics at the working resolution to run calibrated, None to run without.
        noise: in place of the configuration's standard deviations.
    """
    height, width = frame.image.shape[:2]
    capacity = config.keyframe_capacity
    encoding = jax.eval_shape(lambda prior, frame: keep(prior, prior.encode(frame)), prior, frame)
    waiting = config.retrieval.num_candidates
    model, num_tokens = retrieval_of(prior), encoding.features.shape[0]

    def buffer(shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.zeros((capacity, *shape), dtype)

    blank = jax.eval_shape(
        init_fused,
        jax.ShapeDtypeStruct((height * width, 3), jnp.float32),
        jax.ShapeDtypeStruct((height * width,), jnp.float32),
    )
    return SlamState(
        mode=jnp.int32(Mode.STARTING),
        keyframes=Keyframes(
            size=jnp.int32(0),
            frame_index=buffer((), jnp.int32),
            T_WC=Sim3.identity((capacity,)),
            submap=buffer((), jnp.int32),
            pointmap=jax.tree.map(lambda x: buffer(x.shape, x.dtype), blank),
            encoding=jax.tree.map(lambda x: buffer(x.shape, x.dtype), encoding),
        ),
        graph=empty_graph(config.edge_capacity, height * width),
        database=None if model is None else empty_database(model, num_tokens, capacity),
        T_kf=Sim3.identity(),
        match_init=identity_match((height, width)),
        image_shape=(height, width),
        failures=jnp.int32(0),
        # A copy: the state is donated on every step, and the caller's array would die with it.
        K=None if K is None else jnp.array(K, jnp.float32),
        noise=jax.tree.map(jnp.array, noise),
        backlog=Backlog(
            view=jnp.int32(0),
            slot=jnp.zeros(waiting, jnp.int32),
            waiting=jnp.zeros(waiting, bool),
            poses=jnp.asarray(False),
        )
        if config.graph.spread
        else None,
    )
