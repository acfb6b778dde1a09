"""The folder of a run: what a slice goes on from, and everything it leaves."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from flax import nnx

import mast3r_jax
from experiments.training.config import TrainConfig, check_unchanged, read_config
from experiments.training.leaves import named_arrays
from experiments.training.metrics import CURVES, TABLE, TENSORBOARD, MetricLog, rows_until, table_of
from experiments.training.parts import export_parts, import_parts, read_manifest
from experiments.training.step import Recipe, TrainState
from mast3r_jax import CheckpointError
from slam.io.atomic import atomic_write
from slam.io.checkpoints import Checkpoints

CONFIG, RECORD = "config.json", "train.json"
CHECKPOINTS, PARTS, MODEL, PAIRS = "checkpoints", "parts", "model", "pairs.png"

DESCRIPTIONS = {
    MODEL: "averaged weights, for `mast3r-slam run --prior`",
    PARTS: "everything needed to go on elsewhere with --from",
    CHECKPOINTS: "what the next slice goes on from",
    CURVES: "picture of the metrics",
    PAIRS: "the first pairs it learned from, with matches",
    TABLE: "the metrics as a table",
    TENSORBOARD: "the metrics for TensorBoard",
    RECORD: "record of all slices: devices, speed, versions",
    CONFIG: "settings of the run",
}
"""Every file or folder of a run, in the order it is presented."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a slice goes on from."""

    step: int = 0
    """Steps made."""
    arrays: dict[str, np.ndarray] | None = None
    """The state by name; None for a new run."""
    rows: tuple[dict[str, float], ...] = ()
    """Metrics so far."""
    slices: tuple[dict[str, Any], ...] = ()
    """What ``train.json`` has of the slices so far."""


def saved_config(folder: pathlib.Path) -> TrainConfig | None:
    """Settings of the run in a folder; None if there is none.

    Raises:
        CheckpointError: they cannot be understood.
    """
    path = folder / CONFIG
    return read_config(path) if path.is_file() else None


def parts_config(parts: pathlib.Path) -> TrainConfig:
    """Settings of the run that an exported state belongs to.

    Raises:
        CheckpointError: it is no such export, or is damaged.
    """
    return _config_of(parts, read_manifest(parts)["about"])


def open_start(folder: pathlib.Path, config: TrainConfig, parts: pathlib.Path | None) -> Start:
    """Finds what to go on from, and refuses what cannot be gone on with; writes nothing.

    Args:
        folder: of the run; may not exist yet.
        config: the settings asked for.
        parts: an exported state to begin from in a new folder.

    Raises:
        CheckpointError: state and settings do not belong together, or a file is damaged.
        OSError: the folder holds other things, or cannot be written to.
    """
    _check_folder(folder)
    saved = saved_config(folder)
    if saved is not None:
        check_unchanged(str(folder), saved, config)
    step = _latest(folder)
    if step is None:
        return Start() if parts is None else _start_of_parts(parts, config)
    if parts is not None:
        raise CheckpointError(
            f"{folder}: has come to step {step} by itself; leave out --from to go on from there, "
            "or choose a new folder"
        )
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoints.keep)
    try:
        arrays = checkpoints.load(step)
    finally:
        checkpoints.close()
    table = folder / TABLE
    rows = rows_until(table.read_text(encoding="utf-8"), step) if table.is_file() else []
    return Start(step, arrays, tuple(rows), _slices(folder / RECORD))


class RunFolder:
    """Where process 0 writes: everything that changes while a run goes on."""

    def __init__(self, folder: pathlib.Path, config: TrainConfig, start: Start):
        self.folder = folder
        self.config = config
        self.slices = list(start.slices)
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*"):  # of a process that was killed while it wrote
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        with atomic_write(folder / CONFIG) as file:
            file.write(config.to_json().encode())
        self.log = MetricLog(folder, list(start.rows))
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoints.keep)

    def write(self, recipe: Recipe, state: TrainState, record: dict[str, Any]) -> None:
        """Writes everything; ``state`` is on this process's device, ``record`` of this slice.

        Raises:
            OSError: something cannot be written.
        """
        arrays = named_arrays(state)
        step = int(state.step)
        if self.checkpoints.latest() != step:
            self.checkpoints.save(step, arrays)
        slices = [*self.slices, record]
        self._export_parts(arrays, slices)
        model = nnx.merge(recipe.graph, state.ema)
        mast3r_jax.save(self.folder / MODEL, model, dtype=np.float16)
        self.log.draw()
        self.checkpoints.finish()
        with atomic_write(self.folder / RECORD) as file:
            content = {"step": step, "skipped": int(state.skipped), "slices": slices}
            file.write((json.dumps(content, indent=2) + "\n").encode())

    def _export_parts(self, arrays: dict[str, np.ndarray], slices: list[dict[str, Any]]) -> None:
        about = {"config": dataclasses.asdict(self.config), "slices": slices}
        table = np.frombuffer(table_of(self.log.rows).encode(), np.uint8)
        limit = int(self.config.checkpoints.part_megabytes * 1e6)
        export_parts(self.folder / PARTS, {**arrays, TABLE: table}, about, limit)

    def close(self) -> None:
        """Ends the threads that write."""
        self.log.close()
        self.checkpoints.close()


def _start_of_parts(parts: pathlib.Path, config: TrainConfig) -> Start:
    arrays, about = import_parts(parts)
    check_unchanged(str(parts), _config_of(parts, about), config)
    table = arrays.pop(TABLE).tobytes().decode()
    step = int(arrays["step"])
    return Start(step, arrays, tuple(rows_until(table, step)), tuple(about["slices"]))


def _config_of(parts: pathlib.Path, about: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.from_json(json.dumps(about["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{parts}: was not exported by this version of `mast3r-slam train` ({error})"
        ) from None


def _latest(folder: pathlib.Path) -> int | None:
    """The newest complete checkpoint, by the names: orbax renames a checkpoint when complete."""
    steps = [int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]
    return max(steps, default=None)


def _slices(record: pathlib.Path) -> tuple[dict[str, Any], ...]:
    if not record.is_file():
        return ()
    try:
        return tuple(json.loads(record.read_text(encoding="utf-8"))["slices"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{record}: is damaged ({error}); delete it, only the record of speeds is lost"
        ) from None


def _check_folder(folder: pathlib.Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder}: exists and is no folder; choose another one")
    inside = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if inside and CONFIG not in inside:
        raise FileExistsError(
            f"{folder}: holds other files ({inside[0]}) and no training run; choose another folder"
        )
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise PermissionError(f"{folder}: {parent} is not a folder that can be written to")
