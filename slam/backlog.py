"""Work on the graph that can wait, a piece for each frame after a keyframe.

With ``GraphConfig.spread`` a new keyframe is linked with the one before it at once. The keyframes
that were looked up for it wait here, and are verified one at a time in the frames that follow; when
none is left all poses are optimised. So no frame takes much longer than another: what a live camera
needs. The links are the same, some frames later.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ops import GraphSolution, SolverStatus
from ops.records import Record, record
from slam import backend, linking
from slam.config import SlamConfig
from slam.graph import Links, add_links
from slam.slots import blank_unless, read_slot, select
from slam.state import Backlog, SlamState, StepOutput
from slam.types import TwoViewPrior


@record
class Piece(Record):
    """One piece of work, done: what it found is not yet in the map."""

    verified: Bool[Array, ""]
    """A link was verified: ``links`` holds it."""
    candidate: Int[Array, ""]
    """Which of the waiting ones it was."""
    links: Links
    """Of the waiting keyframe, with that candidate."""
    optimized: Bool[Array, ""]
    """All poses were optimised: ``solution`` holds them."""
    solution: GraphSolution
    """What came out."""


def postpone(
    backlog: Backlog, candidates: linking.Candidates, view: Int[Array, ""], stored: Bool[Array, ""]
) -> Backlog:
    """Remember what is left to do for keyframe ``view``; ``stored``: it has got new links."""
    later = candidates.later[1:]
    backlog = backlog.replace(poses=backlog.poses | stored)
    if not later.shape[0]:  # nothing is looked up
        return backlog
    begins = jnp.any(later)
    return Backlog(
        view=jnp.where(begins, view, backlog.view),
        slot=jnp.where(begins, candidates.slot[1:], backlog.slot),
        waiting=jnp.where(begins, later, backlog.waiting),
        poses=backlog.poses,
    )


def left(backlog: Backlog) -> Bool[Array, ""]:
    """Whether there is anything to do."""
    return jnp.any(backlog.waiting) | backlog.poses


def work(
    prior: TwoViewPrior, config: SlamConfig, state: SlamState, idle: Bool[Array, ""] | bool = True
) -> Piece:
    """Do the next piece, if the frame was ``idle`` (had no links of its own to see to)."""
    backlog = state.backlog
    assert backlog is not None
    verifies = idle & jnp.any(backlog.waiting)
    optimizes = idle & ~jnp.any(backlog.waiting) & backlog.poses
    k = jnp.argmax(backlog.waiting).astype(jnp.int32)

    def verify() -> Links:
        slot, encodings = backlog.slot[k], state.keyframes.encoding
        candidate = linking.only(slot)
        encoding = read_slot(encodings, backlog.view)
        return linking.verify(prior, config, encoding, candidate, read_slot(encodings, slot[None]))

    return Piece(
        verified=verifies,
        candidate=k,
        links=blank_unless(verifies, verify),
        optimized=optimizes,
        solution=blank_unless(optimizes, lambda: backend.optimize(config, state)),
    )


def adopt(
    config: SlamConfig, state: SlamState, output: StepOutput, piece: Piece
) -> tuple[SlamState, StepOutput]:
    """Take a piece of work into the map, and into the report of the frame it was done in."""
    backlog = state.backlog
    assert backlog is not None
    holds = jnp.min(piece.links.fraction, axis=-1) >= config.graph.min_match_fraction
    holds = holds & piece.links.proposed & piece.verified
    graph, stored = add_links(state.graph, piece.links, backlog.view, holds)
    keyframes = backend.join_submaps(state.keyframes, backlog.view, piece.links.slot, stored)
    good = piece.optimized & (piece.solution.status < SolverStatus.NOT_FINITE)
    done = piece.verified & (jnp.arange(backlog.waiting.shape[0]) == piece.candidate)
    linked = jnp.any(stored)

    def told(new: Array, old: Array) -> Array:
        return jnp.where(piece.optimized, new, old)

    return (
        state.replace(
            graph=graph,
            keyframes=keyframes.replace(T_WC=select(good, piece.solution.T_WC, keyframes.T_WC)),
            backlog=backlog.replace(
                waiting=backlog.waiting & ~done,
                poses=(backlog.poses | linked) & ~piece.optimized,
            ),
        ),
        output.replace(
            submap=keyframes.submap[output.keyframe],
            new_links=output.new_links + jnp.sum(stored, dtype=jnp.int32),
            graph_iterations=told(piece.solution.iterations, output.graph_iterations),
            graph_cost=told(piece.solution.cost, output.graph_cost),
            graph_status=told(piece.solution.status, output.graph_status),
            graph_floating=told(piece.solution.floating, output.graph_floating),
            graph_full=output.graph_full | jnp.any(holds & ~stored),
        ),
    )
