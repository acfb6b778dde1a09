"""Which keyframes see what a view sees: looked up by retrieval, verified by matching both ways.

A view is a new keyframe, which is linked to the previous keyframe and to earlier ones that saw the
same place (paper, section 3.5), or the view of a lost camera (section 3.6).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mast3r_jax.retrieval import RetrievalModel
from ops import match
from ops.asmk import AsmkCode
from ops.matching import valid_fraction
from ops.records import Record, record
from slam.config import SlamConfig
from slam.decisions import LinkChoice, MatchChoice
from slam.frontend import View, decode_pairs
from slam.graph import Links
from slam.retrieval import query
from slam.slots import add_slots, blank, read_slot, same_types
from slam.state import SlamState
from slam.tracking import match_quality
from slam.types import TwoViewPrior


@record
class Candidates(Record):
    """Keyframes that may see what a view sees: the last keyframe, then those looked up."""

    slot: Int[Array, " links"]
    """Slots of the keyframes; the first is the last one made, the others are best first."""
    valid: Bool[Array, " links"]
    """Which of them are to be verified."""
    retrieved: Int[Array, " candidates"]
    """Slots as they were looked up, best first."""
    is_retrieved: Bool[Array, " candidates"]
    """Which of them exist."""
    later: Bool[Array, " links"]
    """Which of the others are to be verified with the frames that follow (``slam.backlog``)."""
    code: AsmkCode | None
    """How the database would keep the view; None without a retrieval model."""


def propose(
    config: SlamConfig,
    model: RetrievalModel | None,
    state: SlamState,
    encoding: Any,
    tracked: Bool[Array, ""],
) -> tuple[Candidates, Any]:
    """Keyframes to verify against a view, and their encodings.

    Args:
        config: static.
        model: the prior's retrieval model; without one only the last keyframe is proposed.
        state: the map, without the view.
        encoding: the view's.
        tracked: whether the view was placed against the last keyframe; if not, it is lost, or the
            first.
    """
    keyframes = state.keyframes
    count = config.retrieval.num_candidates if model is not None else 0
    slots, found = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    code = None
    if model is not None:
        if state.database is None:
            raise ValueError("the state was made for a prior without a retrieval model")
        code, wanted = model.encode_both(encoding.features)
        hits = query(
            state.database,
            wanted,
            config.retrieval,
            model.num_centroids,
            exclude=jnp.arange(keyframes.capacity, dtype=jnp.int32) >= keyframes.size,
        )
        slots, found = hits.slot, hits.valid
    # The last keyframe is verified once: as one that was looked up, if the view is lost.
    is_last = slots == keyframes.last
    looked_up = jnp.where(tracked, config.graph.loop_closure & found & ~is_last, found)
    try_last = config.relocalization.try_last & (keyframes.size > 0) & ~jnp.any(found & is_last)
    slot = jnp.concatenate([keyframes.last[None], slots])
    valid = jnp.concatenate([(tracked | try_last)[None], looked_up])
    later = jnp.zeros_like(valid)
    if state.backlog is not None:  # has room for one keyframe's candidates
        others = jnp.arange(valid.shape[0]) > 0
        later = valid & others & tracked & ~jnp.any(state.backlog.waiting)
    candidates = Candidates(
        slot=slot,
        valid=valid & ~later,
        later=later,
        retrieved=slots,
        is_retrieved=found,
        code=code,
    )
    return candidates, read_slot(keyframes.encoding, slot)


def recall(state: SlamState, given: LinkChoice) -> tuple[Candidates, Any]:
    """``propose`` with candidates that are given; nothing is looked up."""
    candidates = Candidates(
        slot=given.slot,
        valid=given.proposed,
        later=jnp.zeros_like(given.proposed),
        retrieved=given.slot[1:],
        is_retrieved=given.proposed[1:],
        code=None,
    )
    return candidates, read_slot(state.keyframes.encoding, given.slot)


def only(slot: Int[Array, ""]) -> Candidates:
    """One candidate, however it was found."""
    none = jnp.zeros(0, jnp.int32)
    yes = jnp.ones(1, bool)
    return Candidates(slot[None], yes, none, none.astype(bool), later=~yes, code=None)


def verify(
    prior: TwoViewPrior,
    config: SlamConfig,
    encoding: Any,
    candidates: Candidates,
    encodings: Any,
    given: LinkChoice | None = None,
) -> Links:
    """Match a view with its candidates, in both directions, starting from nothing.

    With matches that are ``given`` only their weights are computed.
    """

    def link(candidate: Any, *choice: Array) -> tuple[Array, Array, Array, Array]:
        def both(first: Any, second: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)

        candidate = same_types(candidate, encoding)
        views = decode_pairs(prior, both(candidate, encoding), both(encoding, candidate))
        return jax.vmap(lambda *pair: _match_views(config, *pair))(*views, *choice)

    def link_if_valid(item: tuple[Bool[Array, ""], Any]) -> tuple[Array, Array, Array, Array]:
        valid, candidate = item
        nothing = jax.eval_shape(link, *candidate)
        return jax.lax.cond(valid, link, lambda *_: blank(nothing), *candidate)

    choices = () if given is None else (given.index, given.valid)

    def batch(items: tuple[Bool[Array, " links"], Any]) -> tuple[Array, Array, Array, Array]:
        def first() -> tuple[Array, Array, Array, Array]:
            alone = jax.vmap(link_if_valid)(jax.tree.map(lambda x: x[:1], items))
            return add_slots(alone, items[0].shape[0] - 1)

        return jax.lax.cond(jnp.any(items[0][1:]), lambda: jax.vmap(link_if_valid)(items), first)

    # A CPU works on one candidate after the other and leaves out those that are not there; an
    # accelerator takes them all as one batch, unless there is but the first.
    index, valid, quality, fraction = jax.lax.platform_dependent(
        (candidates.valid, (encodings, *choices)),
        cpu=functools.partial(jax.lax.map, link_if_valid),
        default=batch,
    )
    return Links(candidates.slot, candidates.valid, index, valid, quality, fraction)


def _match_views(
    config: SlamConfig,
    view_1: View,
    view_2: View,
    index: Int[Array, " hw"] | None = None,
    valid: Bool[Array, " hw"] | None = None,
) -> tuple[Int[Array, " hw"], Bool[Array, " hw"], Float[Array, " hw"], Float[Array, ""]]:
    """For every pixel of image 2 its match in image 1, and the share of good matches."""
    if index is not None and valid is not None:
        given = MatchChoice(index, valid, valid).matches(
            view_1.confidence.shape[1], view_1.points.dtype
        )
        return index, valid, match_quality(given, view_1, view_2), valid_fraction(valid)
    matches = match(
        view_1.points,
        view_2.points,
        view_1.descriptors,
        view_2.descriptors,
        config=config.match,
    )
    quality = match_quality(matches, view_1, view_2)
    valid = matches.valid & (quality > config.graph.min_descriptor_confidence)
    return matches.index, valid, quality, valid_fraction(valid)
