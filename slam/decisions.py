"""The discrete choices about a frame, which can be recorded and given back.

Whether a frame becomes a keyframe, which pixels match, which keyframes are linked: no derivative
goes through such a choice, and where one changes, everything after it jumps. With the choices
given, what ``step`` computes is a smooth function of the prior's predictions.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ops import Matches
from ops.image import pixel_coordinates
from ops.records import Record, record


@record
class MatchChoice(Record):
    """Which pixel of the frame each pixel of the last keyframe is, and whether it counts."""

    index: Int[Array, " hw"]
    """Linear index into the frame."""
    valid: Bool[Array, " hw"]
    """Whether the match is geometrically valid."""
    usable: Bool[Array, " hw"]
    """Whether the pose is solved from it."""

    def matches(self, width: int, dtype: DTypeLike) -> Matches:
        """The same as a matcher's result."""
        uv: Float[Array, "hw 2"] = pixel_coordinates(self.index, width).astype(jnp.dtype(dtype))
        return Matches(self.index, self.valid, uv)


@record
class LinkChoice(Record):
    """Which keyframes a new keyframe is linked with, and by which matches."""

    slot: Int[Array, " links"]
    """The candidate keyframes."""
    proposed: Bool[Array, " links"]
    """Which of the places hold a candidate."""
    accepted: Bool[Array, " links"]
    """Which of the links the graph takes in."""
    index: Int[Array, "links 2 hw"]
    """Matches as in ``slam.graph.Links``."""
    valid: Bool[Array, "links 2 hw"]
    """Which of them count."""


@record
class Decisions(Record):
    """Choices about one frame; None where ``step`` is to choose. Stacks over frames."""

    is_keyframe: Bool[Array, "*frames"] | None = None
    """Whether the frame, if it can be placed, becomes a keyframe (if there is room)."""
    matches: MatchChoice | None = None
    """Its matches with the last keyframe."""
    links: LinkChoice | None = None
    """Its links, if it becomes a keyframe. Given links are not looked up, nor is the frame entered
    into the database."""
