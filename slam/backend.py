"""All keyframe poses at once: global optimisation over the graph, and submaps that meet.

Each submap has a world frame of its own, that of its first keyframe, which the optimisation holds
fixed. When a link joins two submaps the newer one is moved, as one piece, into the older one's
world, and from then on only the older one's first keyframe is fixed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ops import GraphSolution, Sim3, average_confidence, constrain_to_rays, optimize_graph
from slam.config import SlamConfig
from slam.slots import select
from slam.state import Keyframes, SlamState
from slam.tracking import NEVER_PREDICTED


def optimize(config: SlamConfig, state: SlamState) -> GraphSolution:
    """Poses of all keyframes that agree best with all factors of the graph (section 3.5)."""
    keyframes, image_shape = state.keyframes, state.image_shape
    points, factor = keyframes.pointmap.points, config.graph.rays
    if state.K is not None:
        K, factor = state.K, config.graph.pixels
        points = jax.vmap(lambda points: constrain_to_rays(points, K, image_shape))(points)
    return optimize_graph(
        keyframes.T_WC,
        points,
        jax.vmap(average_confidence)(keyframes.pointmap),
        state.graph.edges(),
        factor,
        state.K,
        image_shape,
        fixed=first_of_submap(keyframes),
        min_confidence=max(config.graph.min_point_confidence, NEVER_PREDICTED),
        noise=None if state.noise is None else state.noise.graph,
    )


def first_of_submap(keyframes: Keyframes) -> Bool[Array, " capacity"]:
    """Which keyframes are the oldest of their submap."""
    slots = jnp.arange(keyframes.capacity, dtype=jnp.int32)
    submap = jnp.where(slots < keyframes.size, keyframes.submap, keyframes.capacity)
    first = jnp.full(keyframes.capacity + 1, keyframes.capacity, jnp.int32).at[submap].min(slots)
    return first[submap] == slots


def next_submap(keyframes: Keyframes) -> Int[Array, ""]:
    """A number that no keyframe's submap has."""
    used = jnp.arange(keyframes.capacity, dtype=jnp.int32) < keyframes.size
    return jnp.max(jnp.where(used, keyframes.submap, -1)) + 1


def join_submaps(
    keyframes: Keyframes,
    slot: Int[Array, ""],
    linked: Int[Array, " links"],
    accepted: Bool[Array, " links"],
) -> Keyframes:
    """Move submaps that keyframe ``slot`` is linked to, or its own, into the oldest one's world.

    Two linked keyframes are put in the same place, which is where the optimisation starts from, as
    it does after a relocalisation.
    """

    def join(link: Int[Array, ""], worlds: tuple[Sim3, Array]) -> tuple[Sim3, Array]:
        T_WC, submap = worlds
        ends = linked[link], slot
        submaps = submap[ends[0]], submap[ends[1]]
        newer_is_first = submaps[0] > submaps[1]
        moving, staying = select(newer_is_first, ends, ends[::-1])
        move = accepted[link] & (submaps[0] != submaps[1])
        moved = ((T_WC[staying] @ T_WC[moving].inverse()) @ T_WC).normalize()
        members = move & (submap == submap[moving])
        T_WC = Sim3(jnp.where(members[:, None], moved.wxyz_xyz_scale, T_WC.wxyz_xyz_scale))
        return T_WC, jnp.where(members, submap[staying], submap)

    # A loop that is not unrolled: written out, it is half of what compiling a frame's end takes.
    T_WC, submap = jax.lax.fori_loop(0, linked.shape[0], join, (keyframes.T_WC, keyframes.submap))
    return keyframes.replace(T_WC=T_WC, submap=submap)
