"""Short clips as one differentiable program: ``step`` scanned, and what to hold it against.

Gradients flow from the poses of all frames and from the map back through global optimisation,
tracking, fusion and the weights of matches into the prior, the intrinsics and the noise model.
Discrete choices have none; recorded and given back (``Decisions``), they stay as they are, and the
clip is a smooth function.
"""

import math

import jax
from jaxtyping import Array, Bool

from ops import Sim3
from ops.records import Record, record
from slam.config import SlamConfig
from slam.decisions import Decisions
from slam.pipeline import step_by_decisions
from slam.state import Mode, SlamState, StepOutput
from slam.types import Frame, TwoViewPrior


@record
class Clip(Record):
    """Result of ``run_clip``."""

    state: SlamState
    """After the last frame."""
    outputs: StepOutput
    """Report of every frame, stacked."""
    decisions: Decisions
    """All discrete choices that were made, stacked."""

    @property
    def placed(self) -> Bool[Array, " frames"]:
        """Which frames have a pose."""
        return self.outputs.mode == Mode.TRACKING

    def trajectory(self) -> Sim3:
        """Camera to world of every frame [frames], on the final poses of the keyframes.

        Where a frame is not ``placed``, that of the last one that was.
        """
        return self.state.keyframes.T_WC[self.outputs.keyframe] @ self.outputs.T_kf


def run_clip(
    prior: TwoViewPrior,
    config: SlamConfig,
    state: SlamState,
    frames: Frame,
    given: Decisions | None = None,
    *,
    segment: int | None = None,
) -> Clip:
    """Take in the frames of a clip one after the other, remembering little for the way back.

    The derivatives of a step need what the step computed. Only the states between segments of
    frames are kept; on the way back a segment is run again, keeping the states between its frames,
    and then each of its steps: at most the memory of ``frames/segment + segment`` states and one
    step, for two more runs forward. Buffers do not grow here: ``config.keyframe_capacity`` and
    ``edge_capacity`` decide how much a state is, so keep them as small as the clip allows.

    Weights of the graph are kept in the precision of the points, not in half as elsewhere: what is
    rounded has no smooth derivative.

    Args:
        prior: two-view prior, a pytree.
        config: static.
        state: of ``init_state``, or where another clip ended; not donated.
        frames: with a leading axis on every leaf.
        given: choices with the same leading axis; what is None in them is chosen anew.
        segment: frames in a segment, a divisor of their number; by default the largest one up to
            its root. Choose lengths that have one: a prime number of frames is kept state by state.

    Raises:
        ValueError: ``segment`` does not divide the number of frames, or ``GraphConfig.spread`` is
            on: choices are recorded of one frame at a time.
    """
    if config.graph.spread:
        raise ValueError("run_clip: needs a configuration without graph.spread")
    count = jax.tree.leaves(frames)[0].shape[0]
    if segment is None:
        segment = max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)
    if segment < 1 or count % segment:
        raise ValueError(f"run_clip: {count} frames do not divide into segments of {segment}")
    dtype = state.keyframes.pointmap.points.dtype
    state = state.replace(graph=state.graph.replace(quality=state.graph.quality.astype(dtype)))

    @jax.checkpoint
    def one(state: SlamState, item: tuple[Frame, Decisions]) -> tuple[SlamState, tuple]:
        frame, choices = item
        state, *made = step_by_decisions(prior, config, state, frame, choices)
        return state, tuple(made)

    @jax.checkpoint
    def several(state: SlamState, items: tuple[Frame, Decisions]) -> tuple[SlamState, tuple]:
        return jax.lax.scan(one, state, items)

    def split(x: Array) -> Array:
        return x.reshape(count // segment, segment, *x.shape[1:])

    items = jax.tree.map(split, (frames, Decisions() if given is None else given))
    state, made = jax.lax.scan(several, state, items)
    outputs, decisions = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), made)
    return Clip(state, outputs, decisions)
