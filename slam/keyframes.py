"""Reading and writing the keyframe buffers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ops import FusedPointmap, Sim3
from slam.state import Keyframes, SlamState
from slam.types import Frame


def read_slot(tree: Any, slot: Int[Array, ""]) -> Any:
    """One slot of every buffer of a pytree."""
    return jax.tree.map(lambda buffer: buffer[slot], tree)


def write_slot(tree: Any, slot: Int[Array, ""], value: Any, where: Bool[Array, ""]) -> Any:
    """Write one slot of every buffer if ``where``, else write back what was there.

    The write itself is unconditional, so that a donated buffer is updated in place; a
    ``lax.cond`` over whole buffers copies them.
    """

    def write(buffer: Array, item: Array) -> Array:
        return buffer.at[slot].set(jnp.where(where, item, buffer[slot]))

    return jax.tree.map(write, tree, value)


def select(condition: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """Leaf-wise ``jnp.where`` over two equal pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def append(
    keyframes: Keyframes,
    frame: Frame,
    T_WC: Sim3,
    pointmap: FusedPointmap,
    encoding: Any,
    where: Bool[Array, ""],
) -> Keyframes:
    """Add a keyframe in the next free slot if ``where``; the caller has checked there is room."""
    slot = jnp.minimum(keyframes.size, keyframes.capacity - 1)
    contents = (keyframes.frame_index, keyframes.T_WC, keyframes.image)
    frame_index, poses, image = write_slot(contents, slot, (frame.index, T_WC, frame.image), where)
    return Keyframes(
        size=keyframes.size + where.astype(jnp.int32),
        frame_index=frame_index,
        T_WC=poses,
        image=image,
        pointmap=write_slot(keyframes.pointmap, slot, pointmap, where),
        encoding=write_slot(keyframes.encoding, slot, encoding, where),
    )


def grow(state: SlamState, capacity: int) -> SlamState:
    """The same state with room for ``capacity`` keyframes; shapes change, so ``jit`` recompiles."""
    keyframes = state.keyframes
    extra = capacity - keyframes.capacity
    if extra < 0:
        raise ValueError(f"cannot shrink {keyframes.capacity} keyframe slots to {capacity}")

    def pad(buffer: Array) -> Array:
        if buffer.ndim == 0:  # the number of slots in use
            return buffer
        return jnp.concatenate([buffer, jnp.zeros((extra, *buffer.shape[1:]), buffer.dtype)])

    poses = [keyframes.T_WC.wxyz_xyz_scale, Sim3.identity((extra,)).wxyz_xyz_scale]
    padded = jax.tree.map(pad, keyframes)
    return state.replace(keyframes=padded.replace(T_WC=Sim3(jnp.concatenate(poses))))
