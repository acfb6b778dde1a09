"""The keyframe graph: which keyframes see the same place, and pixel by pixel where.

A link joins two keyframes and is kept as two directed factors, one for each of the matchings
between them, in buffers of fixed capacity: a factor costs 4 bytes a pixel for the index, 2 for the
weight, and a bit for whether it counts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from ops import Edges
from ops.edge_system import pack_valid
from ops.records import Record, record
from slam.slots import write_slot

_LARGEST_QUALITY = 6e4
"""Weights are kept as float16, whose largest number is 65504."""


@record
class Graph(Record):
    """Directed factors in slots ``0 .. size-1``: pixel n of ``j`` matches ``index[n]`` of ``i``."""

    size: Int[Array, ""]
    """Slots in use."""
    i: Int[Array, " capacity"]
    """Keyframe whose pixels are pointed at."""
    j: Int[Array, " capacity"]
    """Keyframe whose pixels are matched."""
    index: Int[Array, "capacity hw"]
    """Linear pixel index into ``i`` for each pixel of ``j``."""
    valid: UInt8[Array, "capacity bytes"]
    """Whether the match counts, packed by ``ops.edge_system.pack_valid``."""
    quality: Float[Array, "capacity hw"]
    """Geometric mean of the two descriptor confidences, in half precision."""

    @property
    def capacity(self) -> int:
        """Slots there are (static)."""
        return self.i.shape[0]

    def edges(self) -> Edges:
        """The same factors as the solver takes them."""
        mask = jnp.arange(self.capacity, dtype=jnp.int32) < self.size
        return Edges(self.i, self.j, self.index, self.valid, self.quality, mask)


@record
class Links(Record):
    """Matches between a new view and candidate keyframes, in both directions."""

    slot: Int[Array, " links"]
    """The candidate keyframes."""
    proposed: Bool[Array, " links"]
    """Which of the places hold a candidate; the rest of the record is of no use elsewhere."""
    index: Int[Array, "links 2 hw"]
    """Matches: 0, of the view's pixels in the candidate; 1, of the candidate's in the view."""
    valid: Bool[Array, "links 2 hw"]
    """Which of them are valid and confident."""
    quality: Float[Array, "links 2 hw"]
    """Geometric means of the descriptor confidences."""
    fraction: Float[Array, "links 2"]
    """Shares of valid and confident matches."""


def empty_graph(capacity: int, num_pixels: int) -> Graph:
    """No factors yet."""
    packed = jax.eval_shape(pack_valid, jax.ShapeDtypeStruct((capacity, num_pixels), jnp.bool_))
    return Graph(
        size=jnp.int32(0),
        i=jnp.zeros(capacity, jnp.int32),
        j=jnp.zeros(capacity, jnp.int32),
        index=jnp.zeros((capacity, num_pixels), jnp.int32),
        valid=jnp.zeros(packed.shape, packed.dtype),
        quality=jnp.zeros((capacity, num_pixels), jnp.float16),
    )


def add_links(
    graph: Graph, links: Links, slot: Int[Array, ""], accepted: Bool[Array, " links"]
) -> tuple[Graph, Bool[Array, " links"]]:
    """Add the accepted links between keyframe ``slot`` and their candidates, two factors each.

    Returns the graph, and which links it took in: one without room is left out whole.
    """
    room = (graph.capacity - graph.size) // 2
    kept = accepted & (jnp.cumsum(accepted, dtype=jnp.int32) <= room)
    ends = jnp.stack([links.slot, jnp.full_like(links.slot, slot)], axis=1)
    quality = jnp.minimum(links.quality, _LARGEST_QUALITY).astype(graph.quality.dtype)
    factors = (ends, ends[:, ::-1], links.index, pack_valid(links.valid), quality)
    first = graph.size + 2 * (jnp.cumsum(kept, dtype=jnp.int32) - 1)
    places = first[:, None] + jnp.arange(2, dtype=jnp.int32)
    buffers = write_slot(
        (graph.i, graph.j, graph.index, graph.valid, graph.quality),
        places.reshape(-1),
        jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), factors),
        jnp.repeat(kept, 2),
    )
    size = graph.size + 2 * jnp.sum(kept, dtype=jnp.int32)
    return Graph(size, *buffers), kept
