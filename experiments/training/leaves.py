"""A training state as named arrays on the host, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.step import TrainState
from mast3r_jax import CheckpointError


def local_copy(state: TrainState) -> TrainState:
    """A copy on this process's first device, which a later donation of ``state`` leaves alone.

    It takes its turn among the device's computations; nothing waits for it.
    """
    return _copied(jax.tree.map(lambda leaf: leaf.addressable_data(0), state))


@jax.jit
def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def named_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """A state on one device as arrays on the host, by dotted name; waits for it."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {_dotted(path): np.asarray(leaf) for path, leaf in leaves}


def from_named_arrays(like: TrainState, arrays: dict[str, np.ndarray], place: str) -> TrainState:
    """The state that ``named_arrays`` took apart, on the host.

    ``like`` is ``jax.eval_shape``'s description of a state of this structure, ``place`` names where
    the arrays come from.

    Raises:
        CheckpointError: an array is missing, unknown, or has another shape or dtype.
    """
    way_out = "was it written by another version?"
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    specs = {_dotted(path): spec for path, spec in paths}
    for name in [*sorted(specs.keys() - arrays.keys()), *sorted(arrays.keys() - specs.keys())]:
        what = "has no" if name in specs else "has an unknown"
        raise CheckpointError(f"{place}: {what} {name}; {way_out}")
    for name, spec in specs.items():
        found = arrays[name]
        if found.shape != spec.shape or found.dtype != spec.dtype:
            raise CheckpointError(
                f"{place}: {name} is {found.dtype}{list(found.shape)} instead of "
                f"{spec.dtype}{list(spec.shape)}; {way_out}"
            )
    return jax.tree.unflatten(structure, [arrays[name] for name in specs])


def _dotted(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
