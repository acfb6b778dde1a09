"""One frame through the system: a pure function from state to state.

``step`` is a column of stages. Each stage only proposes; ``commit`` alone changes the map, and a
frame that could not be placed leaves every buffer of it bit-identical. The runner compiles the
stages one by one: they can be timed, those that only a new keyframe or a lost camera needs are
left out elsewhere, and since few of them see the buffers of the map, a map that grows recompiles
neither the network nor the solver of a frame's pose. Wrapped in one ``jax.jit``, or scanned over a
clip, ``step`` is the same computation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mast3r_jax.retrieval import RetrievalModel
from ops import FusedPointmap, GraphSolution, PoseSolution, Sim3, SolverStatus
from ops.edge_system import FactorNoise
from ops.matching import valid_fraction
from ops.records import Record, record
from slam import backend, backlog, linking
from slam.config import SlamConfig
from slam.decisions import Decisions, LinkChoice, MatchChoice
from slam.frontend import View, decode_pair
from slam.graph import Links, add_links
from slam.keyframes import append
from slam.linking import Candidates
from slam.retrieval import add
from slam.slots import blank_unless, read_slot, same_types, select, write_slot
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
from slam.types import Frame, TwoViewPrior, retrieval_of


@record
class Views(Record):
    """The frame and its partner as the prior sees them, both in the frame's camera."""

    frame: View
    keyframe: View


@record
class Reference(Record):
    """What a frame is placed against: the last keyframe, without the rest of the map."""

    mode: Int[Array, ""]
    """The ``Mode`` before this frame."""
    room: Bool[Array, ""]
    """Whether the buffers have room for another keyframe."""
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
    noise: FactorNoise | None
    """How far measurements are trusted, unless the configuration says it."""

    @property
    def alone(self) -> Bool[Array, ""]:
        """The frame is looked at by itself: there is no keyframe yet, or the camera is lost.

        With no room for the keyframe that recognition would make it, a lost camera's frame is
        tried against the last keyframe instead.
        """
        return (self.mode == Mode.STARTING) | ((self.mode == Mode.LOST) & self.room)


@record
class Assessment(Record):
    """What a frame turned out to be."""

    started: Bool[Array, ""]
    """It becomes the first keyframe."""
    tracked: Bool[Array, ""]
    """It was placed against the last keyframe."""
    due: Bool[Array, ""]
    """It is placed, and should become a keyframe."""
    searching: Bool[Array, ""]
    """The camera was lost before it, it shows something to be recognised by, and there is room."""
    room: Bool[Array, ""]
    """Whether there is room for a keyframe."""
    alone: Bool[Array, ""]
    """It was looked at by itself; what was matched and solved then says nothing of the map."""
    T_kf: Sim3
    """Pose in the last keyframe's camera, if tracked."""
    pointmap: FusedPointmap
    """The last keyframe's canonical pointmap, with what this frame adds to it, if tracked."""

    @property
    def wants_links(self) -> Bool[Array, ""]:
        """Whether the frame is to be linked with keyframes."""
        return (self.due & self.room) | self.searching


def look_up(state: SlamState) -> Reference:
    """Stage 1: read what the next stages need of the map."""
    keyframes = state.keyframes
    return Reference(
        mode=state.mode,
        room=keyframes.size < keyframes.capacity,
        encoding=read_slot(keyframes.encoding, keyframes.last),
        pointmap=read_slot(keyframes.pointmap, keyframes.last),
        T_kf=state.T_kf,
        match_init=state.match_init,
        K=state.K,
        noise=None if state.noise is None else state.noise.tracking,
    )


def encode(prior: TwoViewPrior, frame: Frame) -> Any:
    """Stage 2: what the prior extracts from the image alone."""
    return prior.encode(frame)


def decode(prior: TwoViewPrior, reference: Reference, encoding: Any) -> Views:
    """Stage 3: pointmaps of the frame and of the last keyframe (or of the frame twice)."""
    partner = select(reference.alone, encoding, same_types(reference.encoding, encoding))
    return Views(*decode_pair(prior, encoding, partner))


def match_stage(
    config: SlamConfig, reference: Reference, views: Views, given: MatchChoice | None = None
) -> Correspondence:
    """Stage 4: pixels of the keyframe found in the frame."""
    keyframe = _canonical(config, reference, views)
    return correspond(config, views.frame, views.keyframe, keyframe, reference.match_init, given)


def solve_stage(
    config: SlamConfig, reference: Reference, views: Views, correspondence: Correspondence
) -> PoseSolution:
    """Stage 5: pose of the frame in the keyframe's camera."""
    keyframe = _canonical(config, reference, views)
    return solve_pose(
        config.tracking,
        views.frame,
        keyframe,
        correspondence,
        reference.T_kf,
        reference.K,
        reference.noise,
    )


def assess(
    config: SlamConfig,
    reference: Reference,
    views: Views,
    correspondence: Correspondence,
    solution: PoseSolution,
    given: Bool[Array, ""] | None = None,
) -> Assessment:
    """Stage 6: decide what the frame is.

    A usable first frame becomes the first keyframe. A placed frame refines the last keyframe's
    pointmap, and becomes a keyframe itself when the view has moved on, or when that is ``given``.
    """
    tracking = config.tracking
    seen = _shows_enough(config, views.frame)
    started = (reference.mode == Mode.STARTING) & seen
    tracked = ~reference.alone & ~is_lost(tracking, correspondence, solution)
    T_kf = select(tracked, solution.T_kf, reference.T_kf)
    canonical = _canonical(config, reference, views)
    moved_on = needs_keyframe(tracking, correspondence) if given is None else given
    return Assessment(
        started=started,
        tracked=tracked,
        due=started | (tracked & moved_on),
        searching=(reference.mode == Mode.LOST) & reference.alone & seen,
        room=reference.room,
        alone=reference.alone,
        T_kf=T_kf,
        pointmap=fuse_keyframe(tracking, canonical, views.keyframe, T_kf),
    )


def propose(
    config: SlamConfig,
    model: RetrievalModel | None,
    state: SlamState,
    encoding: Any,
    assessment: Assessment,
) -> tuple[Candidates, Any]:
    """Stage 7, when links are wanted: keyframes that may see the same place."""
    return linking.propose(config, model, state, encoding, assessment.tracked)


def verify(
    prior: TwoViewPrior, config: SlamConfig, encoding: Any, candidates: Candidates, encodings: Any
) -> Links:
    """Stage 8, when links are wanted: match the frame with them, both ways."""
    return linking.verify(prior, config, encoding, candidates, encodings)


def commit(
    config: SlamConfig,
    state: SlamState,
    frame: Frame,
    encoding: Any,
    views: Views,
    correspondence: Correspondence,
    solution: PoseSolution,
    assessment: Assessment,
    candidates: Candidates,
    links: Links,
    given: Bool[Array, " links"] | None = None,
) -> tuple[SlamState, StepOutput]:
    """Stage 9: write what was decided into the map.

    A lost frame that was recognised becomes a keyframe in the place of the best one that was looked
    up and matches, or else of the last one; after ``config.relocalization.submap_after`` failures
    it becomes the first keyframe of a new submap. Any other lost frame changes the mode, the warm
    start and a counter, nothing else. Which links hold may be ``given``.
    """
    keyframes, room = state.keyframes, assessment.room
    last, slot = keyframes.last, jnp.minimum(keyframes.size, keyframes.capacity - 1)
    tracked, searching, alone = assessment.tracked, assessment.searching, assessment.alone
    keyframes = keyframes.replace(
        pointmap=write_slot(keyframes.pointmap, last, assessment.pointmap, tracked),
    )

    relocalized, accepted = accept_links(config, assessment, links, last)
    if given is not None:
        accepted = given & room
    patience = config.relocalization.submap_after
    tired = searching & ~relocalized & (state.failures + 1 >= patience) & (patience > 0)
    separate = assessment.started | tired  # the origin of a world of its own
    added = (assessment.due | relocalized | tired) & room

    graph, stored = add_links(state.graph, links, slot, accepted)
    looked_up_first = jnp.roll(jnp.arange(accepted.shape[0], dtype=jnp.int32), -1)
    best = looked_up_first[jnp.argmax(accepted[looked_up_first])]
    nearest = jnp.where(relocalized, links.slot[best], last)
    T_WC = select(tracked, keyframes.T_WC[last] @ assessment.T_kf, keyframes.T_WC[nearest])
    keyframes = append(
        keyframes,
        jnp.asarray(frame.index),
        select(separate, Sim3.identity(dtype=T_WC.dtype), T_WC),
        jnp.where(separate, backend.next_submap(keyframes), keyframes.submap[nearest]),
        first_pointmap(config.tracking, views.frame),
        encoding,
        added,
    )
    keyframes = backend.join_submaps(keyframes, slot, links.slot, stored)
    database = state.database
    if database is not None and candidates.code is not None:
        database = add(database, slot, candidates.code, added)

    placed = assessment.started | tracked | (added & searching)
    unplaced = jnp.where(state.mode == Mode.STARTING, Mode.STARTING, Mode.LOST)
    # The warm start belongs to one keyframe and to an unbroken track: anything else starts afresh.
    warm = tracked & ~added
    new_state = SlamState(
        mode=jnp.where(placed, Mode.TRACKING, unplaced).astype(jnp.int32),
        keyframes=keyframes,
        graph=graph,
        database=database,
        T_kf=select(added, Sim3.identity(dtype=T_WC.dtype), assessment.T_kf),
        match_init=jnp.where(warm, correspondence.matches.index, identity_match(state.image_shape)),
        image_shape=state.image_shape,
        failures=jnp.where(placed, 0, state.failures + searching.astype(jnp.int32)),
        K=state.K,
        noise=state.noise,
        backlog=None
        if state.backlog is None
        else backlog.postpone(state.backlog, candidates, slot, jnp.any(stored)),
    )
    output = StepOutput(
        frame_index=jnp.asarray(frame.index),
        mode=new_state.mode,
        keyframe=keyframes.last,
        T_kf=new_state.T_kf,
        is_keyframe=added,
        relocalized=relocalized,
        submap=keyframes.submap[keyframes.last],
        match_fraction=jnp.where(alone, 0, correspondence.match_fraction),
        unique_fraction=jnp.where(alone, 0, correspondence.unique_fraction),
        iterations=jnp.where(alone, 0, solution.iterations),
        cost=jnp.where(alone, 0, solution.cost),
        status=jnp.where(alone, jnp.int32(SolverStatus.MAX_ITERATIONS), solution.status),
        retrieved=candidates.retrieved,
        is_retrieved=candidates.is_retrieved,
        new_links=jnp.sum(stored, dtype=jnp.int32),
        graph_iterations=jnp.int32(0),
        graph_cost=jnp.zeros_like(solution.cost),
        graph_status=jnp.int32(SolverStatus.MAX_ITERATIONS),
        graph_floating=jnp.int32(0),
        num_keyframes=keyframes.size,
        full=assessment.due & ~room,
        graph_full=jnp.any(accepted & ~stored),
    )
    return new_state, output


def optimize(config: SlamConfig, state: SlamState) -> GraphSolution:
    """Stage 10, when the graph has new links: poses of all keyframes.

    With ``GraphConfig.spread`` stage 10 is ``backlog.work`` and ``backlog.adopt``, in frames that
    want no links.
    """
    return backend.optimize(config, state)


def adopt(
    state: SlamState, output: StepOutput, solution: GraphSolution
) -> tuple[SlamState, StepOutput]:
    """Take over optimised poses, unless there was nothing to optimise or it failed."""
    changed = output.new_links > 0
    good = changed & (solution.status < SolverStatus.NOT_FINITE)
    T_WC = select(good, solution.T_WC, state.keyframes.T_WC)
    report = output.replace(
        graph_iterations=jnp.where(changed, solution.iterations, output.graph_iterations),
        graph_cost=jnp.where(changed, solution.cost, output.graph_cost),
        graph_status=jnp.where(changed, solution.status, output.graph_status),
        graph_floating=jnp.where(changed, solution.floating, output.graph_floating),
    )
    return state.replace(keyframes=state.keyframes.replace(T_WC=T_WC)), report


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
    return step_by_decisions(prior, config, state, frame, Decisions())[:2]


def step_by_decisions(
    prior: TwoViewPrior, config: SlamConfig, state: SlamState, frame: Frame, given: Decisions
) -> tuple[SlamState, StepOutput, Decisions]:
    """``step`` with some or all discrete choices given; also returns all that were made.

    Given the choices that it returned, and all else equal, it does the same again. Links that wait
    for later frames (``GraphConfig.spread``) are not among them.
    """
    reference = apart(look_up(state))
    encoding = apart(encode(prior, frame))
    views = apart(decode(prior, reference, encoding))
    found = apart(match_stage(config, reference, views, given.matches))
    solution = apart(solve_stage(config, reference, views, found))
    assessment = apart(assess(config, reference, views, found, solution, given.is_keyframe))

    def search() -> tuple[Candidates, Links]:
        if given.links is None:
            proposed = propose(config, retrieval_of(prior), state, encoding, assessment)
        else:
            proposed = linking.recall(state, given.links)
        candidates, encodings = apart(proposed)
        return candidates, linking.verify(
            prior, config, encoding, candidates, encodings, given.links
        )

    candidates, links = apart(blank_unless(assessment.wants_links, search))
    if given.links is None:
        _, accepted = accept_links(config, assessment, links, state.keyframes.last)
    else:
        accepted = given.links.accepted
    decisions = Decisions(
        is_keyframe=assessment.due,
        matches=MatchChoice(found.matches.index, found.matches.valid, found.usable),
        links=LinkChoice(links.slot, links.proposed, accepted, links.index, links.valid),
    )
    state, output = apart(
        commit(
            config,
            state,
            frame,
            encoding,
            views,
            found,
            solution,
            assessment,
            candidates,
            links,
            None if given.links is None else accepted,
        )
    )
    if state.backlog is None:
        poses = apart(blank_unless(output.new_links > 0, lambda: optimize(config, state)))
        return *adopt(state, output, poses), decisions
    piece = apart(backlog.work(prior, config, state, ~assessment.wants_links))
    return *backlog.adopt(config, state, output, piece), decisions


@jax.custom_jvp
def apart(results: Any) -> Any:
    """A barrier between stages: fused across it, they would round otherwise than one by one.

    Derivatives pass it as if it were not there: JAX 0.12 cannot go back through a barrier that only
    some derivatives pass.
    """
    return jax.lax.optimization_barrier(results)


@apart.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    return apart(*primals), tangents[0]


def accept_links(
    config: SlamConfig, assessment: Assessment, links: Links, last: Int[Array, ""]
) -> tuple[Bool[Array, ""], Bool[Array, " links"]]:
    """Whether a lost view is recognised, and which links go into the graph."""
    recognised, holding = judge_links(config, links, assessment.searching, last)
    relocalized = assessment.searching & recognised
    linked = (assessment.due & ~assessment.started) | relocalized
    return relocalized, holding & linked & assessment.room


def judge_links(
    config: SlamConfig, links: Links, searching: Bool[Array, ""], last: Int[Array, ""]
) -> tuple[Bool[Array, ""], Bool[Array, " links"]]:
    """Whether a lost view was recognised, and which links of a new keyframe hold.

    A link is as good as the worse of its two directions. A placed view's link with the last
    keyframe, the first, holds without being asked. A lost view is recognised by the last keyframe,
    by all keyframes that were looked up, or, unless strict, by any of them.
    """
    weaker = jnp.min(links.fraction, axis=-1)
    first = jnp.arange(weaker.shape[0]) == 0
    kept = links.proposed & (first | (weaker >= config.graph.min_match_fraction))

    rule = config.relocalization
    resembles = links.proposed & (weaker >= rule.min_match_fraction)
    looked_up = links.proposed & ~first
    enough = jnp.any(resembles & looked_up)
    if rule.strict:
        enough = enough & jnp.all(resembles | ~looked_up)
    if rule.try_last:  # by the standard of any link: a keyframe is due at a third, so often less
        near = links.proposed & (links.slot == last) & (weaker >= config.graph.min_match_fraction)
        resembles, enough = resembles | near, enough | jnp.any(near)
    return enough, jnp.where(searching, resembles & enough, kept)


def _canonical(config: SlamConfig, reference: Reference, views: Views) -> FusedPointmap:
    """The keyframe's canonical pointmap, or the frame's own when it is looked at by itself."""
    return select(reference.alone, first_pointmap(config.tracking, views.frame), reference.pointmap)


def _shows_enough(config: SlamConfig, view: View) -> Bool[Array, ""]:
    """A frame looked at by itself needs something to see: as much as tracking asks for."""
    distinct = view.descriptor_confidence > config.tracking.min_descriptor_confidence
    seen = valid_fraction((view.usable & distinct).reshape(-1))
    return seen >= config.tracking.min_match_fraction
