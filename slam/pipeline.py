"""One frame through the system: a pure function from state to state.

``step`` is a column of stages. Each stage only proposes; ``commit`` alone changes the map, and a
frame that could not be placed leaves every buffer of it bit-identical. The runner compiles the
stages one by one: they can be timed, and since only ``look_up`` and ``commit`` see the buffers of
the map, a map that grows recompiles neither the network nor the solver. Wrapped in one ``jax.jit``,
or scanned over a clip, ``step`` is the same computation.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops import FusedPointmap, PoseSolution, Sim3
from ops.matching import valid_fraction
from ops.records import Record, record
from slam.config import SlamConfig
from slam.frontend import View, decode_pair
from slam.keyframes import append, read_slot, select, write_slot
from slam.state import Mode, SlamState, StepOutput, identity_match
from slam.tracking import (
    Correspondence,
    correspond,
    first_pointmap,
    fuse_keyframe,
    is_lost,
    needs_keyframe,
    solve_pose,
)
from slam.types import Frame, TwoViewPrior


@record
class Views(Record):
    """The frame and its partner as the prior sees them, both in the frame's camera."""

    frame: View
    keyframe: View


@record
class Reference(Record):
    """What a frame is placed against: the last keyframe, without the rest of the map."""

    starting: Bool[Array, ""]
    """There is no keyframe yet; the fields below then hold nothing of use."""
    encoding: Any
    """The keyframe's encoding."""
    pointmap: FusedPointmap
    """The keyframe's canonical pointmap."""
    T_kf: Sim3
    """Where the solver starts."""
    match_init: Int[Array, " hw"]
    """Where the matcher starts."""
    K: Float[Array, "3 3"] | None
    """Intrinsics, when calibrated."""


def look_up(state: SlamState) -> Reference:
    """Stage 1: read what the other stages need of the map."""
    keyframes = state.keyframes
    return Reference(
        starting=state.mode == Mode.STARTING,
        encoding=read_slot(keyframes.encoding, keyframes.last),
        pointmap=read_slot(keyframes.pointmap, keyframes.last),
        T_kf=state.T_kf,
        match_init=state.match_init,
        K=state.K,
    )


def encode(prior: TwoViewPrior, frame: Frame) -> Any:
    """Stage 2: what the prior extracts from the image alone."""
    return prior.encode(frame)


def decode(prior: TwoViewPrior, reference: Reference, encoding: Any) -> Views:
    """Stage 3: pointmaps of the frame and of the last keyframe (or of the frame twice)."""
    partner = select(reference.starting, encoding, reference.encoding)
    return Views(*decode_pair(prior, encoding, partner))


def match_stage(config: SlamConfig, reference: Reference, views: Views) -> Correspondence:
    """Stage 4: pixels of the keyframe found in the frame."""
    keyframe = _canonical(config, reference.starting, reference.pointmap, views)
    return correspond(config, views.frame, views.keyframe, keyframe, reference.match_init)


def solve_stage(
    config: SlamConfig, reference: Reference, views: Views, correspondence: Correspondence
) -> PoseSolution:
    """Stage 5: pose of the frame in the keyframe's camera."""
    keyframe = _canonical(config, reference.starting, reference.pointmap, views)
    return solve_pose(
        config.tracking, views.frame, keyframe, correspondence, reference.T_kf, reference.K
    )


def commit(
    config: SlamConfig,
    state: SlamState,
    frame: Frame,
    encoding: Any,
    views: Views,
    correspondence: Correspondence,
    solution: PoseSolution,
) -> tuple[SlamState, StepOutput]:
    """Stage 6: decide, and write what was decided into the map.

    A usable first frame becomes the first keyframe, at the origin of the world. A placed frame
    refines the last keyframe's pointmap, and becomes a keyframe itself when the view has moved on.
    A lost frame changes the mode and the warm start, nothing else.
    """
    tracking = config.tracking
    keyframes = state.keyframes
    last = keyframes.last
    starting = state.mode == Mode.STARTING

    started = starting & _can_start(config, views.frame)
    tracked = ~starting & ~is_lost(tracking, correspondence, solution)
    room = keyframes.size < keyframes.capacity
    due = started | (tracked & needs_keyframe(tracking, correspondence))
    added = due & room

    canonical = _canonical(config, starting, read_slot(keyframes.pointmap, last), views)
    fused = fuse_keyframe(tracking, canonical, views.keyframe, solution.T_kf)
    keyframes = keyframes.replace(
        pointmap=write_slot(keyframes.pointmap, last, fused, tracked),
    )
    T_WC_k = select(starting, Sim3.identity(), read_slot(keyframes.T_WC, last))
    T_kf = select(tracked, solution.T_kf, state.T_kf)
    keyframes = append(
        keyframes,
        frame,
        select(starting, Sim3.identity(), T_WC_k @ T_kf),
        first_pointmap(tracking, views.frame),
        encoding,
        added,
    )

    placed = started | tracked
    mode = jnp.where(placed, Mode.TRACKING, jnp.where(starting, Mode.STARTING, Mode.LOST))
    T_kf = select(added, Sim3.identity(), T_kf)
    # The warm start belongs to one keyframe and to an unbroken track: anything else starts afresh.
    warm = tracked & ~added
    new_state = SlamState(
        mode=mode.astype(jnp.int32),
        keyframes=keyframes,
        T_kf=T_kf,
        match_init=jnp.where(warm, correspondence.matches.index, identity_match(state.image_shape)),
        K=state.K,
    )
    output = StepOutput(
        frame_index=jnp.asarray(frame.index),
        mode=new_state.mode,
        keyframe=keyframes.last,
        T_kf=T_kf,
        is_keyframe=added,
        match_fraction=correspondence.match_fraction,
        unique_fraction=correspondence.unique_fraction,
        iterations=solution.iterations,
        cost=solution.cost,
        status=solution.status,
        num_keyframes=keyframes.size,
        full=due & ~room,
    )
    return new_state, output


def step(
    prior: TwoViewPrior, config: SlamConfig, state: SlamState, frame: Frame
) -> tuple[SlamState, StepOutput]:
    """Take in one frame.

    Args:
        prior: two-view prior, a pytree.
        config: static.
        state: everything remembered so far; donate it when compiling.
        frame: the next image of the sequence.

    Returns:
        The next state, and what happened to this frame.
    """
    reference = look_up(state)
    encoding = encode(prior, frame)
    views = decode(prior, reference, encoding)
    correspondence = match_stage(config, reference, views)
    solution = solve_stage(config, reference, views, correspondence)
    return commit(config, state, frame, encoding, views, correspondence, solution)


def _canonical(
    config: SlamConfig, starting: Bool[Array, ""], stored: FusedPointmap, views: Views
) -> FusedPointmap:
    """The keyframe's canonical pointmap, or the frame's own while there is no keyframe."""
    return select(starting, first_pointmap(config.tracking, views.frame), stored)


def _can_start(config: SlamConfig, view: View) -> Bool[Array, ""]:
    """A first frame needs something to see: the same share of pixels that tracking asks for."""
    return valid_fraction(view.usable.reshape(-1)) >= config.tracking.min_match_fraction
