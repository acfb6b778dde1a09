"""Arrays of a run in the middle, by name: orbax, complete or absent, bit for bit."""

import contextlib
import hashlib
import logging
import pathlib
from collections.abc import Iterator

import numpy as np
import orbax.checkpoint as ocp

from mast3r_jax import CheckpointError

STATE, CHECKSUM = "state", "sha256"
"""Names of the item and, in it, of the checksum: orbax's own covers its indices, not the data."""


class Checkpoints:
    """The checkpoints in a folder, by step; only one process may write there.

    A checkpoint takes its name when it is complete. What a killed process has left half-written is
    removed when the folder is opened.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=False,
                    cleanup_tmp_directories=True,
                    # Without this, orbax would wait for the other processes of a distributed run.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=0,
                        active_processes={0},
                        barrier_sync_key_prefix="training",
                    ),
                ),
            )

    def latest(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Starts to write a checkpoint; the arrays must not change until ``finish``."""
        item = ocp.args.StandardSave({**arrays, CHECKSUM: _checksum(arrays)})
        self._manager.save(step, args=ocp.args.Composite(**{STATE: item}))

    def finish(self) -> None:
        """Waits until the checkpoint is complete.

        Raises:
            OSError: it could not be written.
        """
        self._manager.wait_until_finished()

    def load(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint.

        Raises:
            CheckpointError: it is damaged.
        """
        args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore()})
        try:
            with _quiet():
                arrays = dict(self._manager.restore(step, args=args)[STATE])
            whole = np.array_equal(arrays.pop(CHECKSUM), _checksum(arrays))
        except (ValueError, KeyError, OSError):
            whole = False
        if not whole:
            raise CheckpointError(
                f"{self.folder / str(step)}: is damaged; delete this folder to go on from the "
                "checkpoint before it"
            )
        return arrays

    def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        self._manager.close()


def _checksum(arrays: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of states that are restored without a description, which is meant here."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
