"""Several processes, on one host or many, that train together."""

import dataclasses
import json
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.training.step import Recipe

T = TypeVar("T")
_TEXT = 1 << 16
"""Bytes that everything the processes must agree on fits into, as JSON."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which process of how many this is."""

    coordinator: str | None = None
    """Where process 0 can be reached by the others, as HOST:PORT with a free port."""
    processes: int = 1
    """Processes in all; each is started with the same command line but for its number."""
    process_id: int = 0
    """Number of this process, from 0. Only process 0 reads and writes files."""

    def __post_init__(self) -> None:
        if not 0 <= self.process_id < self.processes:
            raise ValueError(
                f"process_id={self.process_id} must be from 0 to {self.processes - 1}, below the "
                "number of processes"
            )
        if self.processes > 1 and self.coordinator is None:
            raise ValueError(f"coordinator=None must be HOST:PORT for {self.processes} processes")


def join(hosts: Hosts) -> None:
    """Waits for the other processes; before the first computation, and a no-op for one process."""
    if hosts.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(hosts.coordinator, hosts.processes, hosts.process_id)


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
