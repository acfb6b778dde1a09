"""Several processes, on one host or many, that train together."""

import json
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.training.step import Recipe
from slam.io.frames import SourceError

T = TypeVar("T")
_TEXT = 1 << 16
"""Bytes that everything the processes must agree on fits into, as JSON."""


def join(coordinator: str | None, processes: int, process_id: int) -> None:
    """Waits for the other processes; to be called before the first computation.

    Args:
        coordinator: where process 0 can be reached, as HOST:PORT, any port that is free there.
        processes: how many train together; with one, nothing happens.
        process_id: which one this is, from 0. Only process 0 reads and writes files.

    Raises:
        SourceError: the three do not fit together.
    """
    if not 0 <= process_id < processes:
        raise SourceError(
            f"--process-id {process_id}: must be at least 0 and below --processes {processes}"
        )
    if processes > 1:
        if coordinator is None:
            raise SourceError(
                f"--processes {processes}: they find each other by --coordinator HOST:PORT, an "
                "address of process 0 with a free port"
            )
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, process_id)


def of_first(tree: T) -> T:
    """Process 0's arrays, on all processes; the others pass arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def agreed(values: dict[str, Any]) -> dict[str, Any]:
    """Process 0's values, anything that JSON can hold, on all processes."""
    text = json.dumps(values).encode()
    assert len(text) <= _TEXT, len(text)
    buffer = np.zeros(_TEXT, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(of_first(buffer).tobytes().rstrip(b"\0"))


def on_all_devices(recipe: Recipe, tree: Any) -> Any:
    """Arrays of the host, which all processes hold alike, replicated over the mesh."""

    def put(value: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(value.shape, recipe.replicated, lambda at: value[at])

    return jax.tree.map(put, tree)


def proposals(recipe: Recipe, steps: int) -> jax.Array:
    """What this process proposes, on each of its devices: see ``train_many``."""
    mine = np.full(jax.local_device_count(), steps, np.int32)
    return jax.make_array_from_process_local_data(recipe.divided, mine)
