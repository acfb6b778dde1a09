"""Adding keyframes to the map, and room for more."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ops import FusedPointmap, Sim3
from slam.slots import add_slots, same_types, write_slot
from slam.state import Keyframes, SlamState


def append(
    keyframes: Keyframes,
    index: Int[Array | np.ndarray, ""],
    T_WC: Sim3,
    submap: Int[Array, ""],
    pointmap: FusedPointmap,
    encoding: Any,
    where: Bool[Array, ""],
) -> Keyframes:
    """Add frame ``index`` in the next free slot if ``where``; the caller has checked there is room.

    What is kept of its encoding is rounded to the types of the buffers.
    """
    slot = jnp.minimum(keyframes.size, keyframes.capacity - 1)
    buffers = (keyframes.frame_index, keyframes.T_WC, keyframes.submap)
    contents = (index, T_WC, submap)
    frame_index, poses, submaps = write_slot(buffers, slot, contents, where)
    kept = same_types(encoding, keyframes.encoding)
    return Keyframes(
        size=keyframes.size + where.astype(jnp.int32),
        frame_index=frame_index,
        T_WC=poses,
        submap=submaps,
        pointmap=write_slot(keyframes.pointmap, slot, pointmap, where),
        encoding=write_slot(keyframes.encoding, slot, kept, where),
    )


def grow(
    state: SlamState, capacity: int | None = None, edge_capacity: int | None = None
) -> SlamState:
    """The same state with room for more; shapes change, so ``jit`` recompiles.

    Args:
        state: what to enlarge; nothing in it is lost.
        capacity: keyframe slots, as before when omitted.
        edge_capacity: slots for directed factors of the graph, as before when omitted.
    """
    keyframes, graph = state.keyframes, state.graph
    extra = (capacity or keyframes.capacity) - keyframes.capacity
    extra_edges = (edge_capacity or graph.capacity) - graph.capacity
    if extra < 0:
        raise ValueError(f"cannot shrink {keyframes.capacity} keyframe slots to {capacity}")
    if extra_edges < 0:
        raise ValueError(f"cannot shrink {graph.capacity} factor slots to {edge_capacity}")
    poses = [keyframes.T_WC.wxyz_xyz_scale, Sim3.identity((extra,)).wxyz_xyz_scale]
    return state.replace(
        keyframes=add_slots(keyframes, extra).replace(T_WC=Sim3(jnp.concatenate(poses))),
        database=add_slots(state.database, extra),
        graph=add_slots(graph, extra_edges),
    )
