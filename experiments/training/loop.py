"""The loop of a slice, whose device is always one dispatch ahead of its host."""

import dataclasses
import math
import platform
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from experiments.training.config import TrainConfig
from experiments.training.hosts import on_all_devices, proposals
from experiments.training.leaves import local_copy
from experiments.training.pace import Pace
from experiments.training.run_folder import RunFolder
from experiments.training.step import Dispatch, Recipe, TrainState, train_many
from experiments.training.timing import StepTimes
from slam.outputs import package_version

PACKAGES = ("mast3r-slam-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Whose versions the record of a slice has."""

End = Literal["steps", "time", "signal", "divergence"]
"""Why a slice ended: all steps were made, the minutes were over, somebody asked, or steps whose
gradient is not finite followed one another."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a slice has come."""

    step: int
    """Steps made, since the start of the run."""
    last_step: int
    """Where the run ends."""
    loss: float
    """Mean over the steps since the last report; not a number before the first."""
    pairs_per_second: float
    """Of the last dispatches; not a number while unknown."""
    seconds_left: float
    """Until the slice ends, whatever ends it; not a number while unknown."""
    written: bool = False
    """Checkpoint and exports are up to date."""


class Loop:
    """A slice while it goes on.

    Args:
        config: settings of the run.
        recipe: what a step needs.
        writer: where everything is written; None in all processes but the first.
        last_step: where the run ends.
        began: ``time.monotonic()`` when the slice began.
        deadline: when everything must be written, by the same clock.
        report: called with each row of metrics, and when everything has been written.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        writer: RunFolder | None,
        *,
        last_step: int,
        began: float,
        deadline: float,
        report: Callable[[Progress], None],
    ):
        self.step_times: StepTimes | None = None
        self._config = config
        self._recipe = recipe
        self._writer = writer
        self._last_step = last_step
        self._began = began
        self._deadline = deadline
        self._report = report
        self._pace = Pace(
            dispatch_seconds=config.dispatch.seconds,
            max_steps=config.dispatch.max_steps,
            deadline=deadline,
            reserve=config.checkpoints.reserve,
        )
        self._interrupted = self._diverged = False
        self._first_step = self._step = self._steady_steps = 0
        self._started = self._ready = math.nan  # when the first and the last dispatch were done
        self._disturbed = True  # by compiling or writing, since the last dispatch was done
        self._unlogged: list[dict[str, np.ndarray]] = []
        self._logged = began
        self._loss = math.nan
        self._written: tuple[int, float] | None = None  # step and time

    def interrupt(self) -> None:
        """Ends the slice after the dispatches under way; may be called by a signal handler."""
        self._interrupted = True
        self._pace.stop()

    def run(self, state: TrainState, step: int) -> tuple[End, int, dict[str, Any]]:
        """Trains on; returns why it ended, the step, and the record of the slice."""
        recipe, max_steps = self._recipe, self._config.dispatch.max_steps
        last_step = on_all_devices(recipe, np.asarray(self._last_step, np.int32))
        self._first_step = self._step = step
        previous: Dispatch | None = None
        pending, snapshot = 0, None
        while True:
            steps = self._pace.proposal(time.monotonic(), pending)
            # Sent before the metrics of the previous one are waited for. Every process that has
            # proposed 0 goes on to do so: all of them leave this loop in the same place.
            wanted = proposals(recipe, steps)
            state, dispatch = train_many(recipe, max_steps, state, wanted, last_step)
            made = None if previous is None else self._take(previous)
            previous, pending = dispatch, steps
            if snapshot is not None:
                self._write(snapshot)
                snapshot = None
            if made == 0:
                break
            if self._write_is_due():
                snapshot = local_copy(state)  # of the dispatch whose metrics are taken next
        self._log()
        if self._writer is not None and (self._written or (step,))[0] != self._step:
            self._write(local_copy(state))
        return self._end(), self._step, self._record()

    def _take(self, dispatch: Dispatch) -> int:
        """Waits for a dispatch; returns its steps."""
        steps = int(dispatch.steps)
        now = time.monotonic()
        if steps == 0:
            return 0
        if not self._disturbed:
            self._pace.took(steps, now - self._ready)
        if math.isnan(self._started):
            self._started = now
        else:
            self._steady_steps += steps
        self._ready, self._disturbed = now, False
        self._step += steps
        metrics = {name: np.asarray(rows)[:steps] for name, rows in dispatch.metrics.items()}
        if metrics["skipped_in_a_row"][-1] >= self._config.optimizer.patience:
            self._diverged = True
            self._pace.stop()
        self._unlogged.append(metrics)
        if now - self._logged >= self._config.dispatch.seconds:
            self._log()
        return steps

    def _log(self) -> None:
        """A row of metrics, means over the steps since the last one."""
        if not self._unlogged:
            return
        metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *self._unlogged)
        self._unlogged, self._logged = [], time.monotonic()
        row = {"step": float(self._step), "pairs": float(self._step * self._batch)}
        for name in ["loss", *sorted(metrics.keys() - {"loss", "skipped", "skipped_in_a_row"})]:
            values = metrics[name]
            finite = values[np.isfinite(values)]
            row[name] = float(finite.mean()) if finite.size else math.nan
        row["skipped"] = float(metrics["skipped"][-1])
        rate = self._pairs_per_second()
        if rate is not None:
            row["pairs_per_second"] = rate
        if self._writer is not None:
            self._writer.log.add(row)
        self._loss = row["loss"]
        self._tell()

    def _tell(self, written: bool = False) -> None:
        seconds = self._pace.step_seconds
        left = math.nan if seconds is None else (self._last_step - self._step) * seconds
        rate = self._pairs_per_second()
        self._report(
            Progress(
                step=self._step,
                last_step=self._last_step,
                loss=self._loss,
                pairs_per_second=math.nan if rate is None else rate,
                seconds_left=min(left, self._deadline - time.monotonic()),
                written=written,
            )
        )

    @property
    def _batch(self) -> int:
        return self._config.pairs.pairs

    def _pairs_per_second(self) -> float | None:
        seconds = self._pace.step_seconds
        return None if seconds is None else self._batch / seconds

    def _write_is_due(self) -> bool:
        if self._writer is None or self._pace.step_seconds is None:
            return False
        if self._written is None:  # at once: how long it takes must be known
            return True
        return time.monotonic() - self._written[1] > 60 * self._config.checkpoints.minutes

    def _write(self, snapshot: TrainState) -> None:
        assert self._writer is not None
        begin = time.monotonic()
        self._log()  # the table has all steps of the checkpoint
        self._writer.write(self._recipe, snapshot, self._record())
        end = time.monotonic()
        self._pace.wrote(end - begin)
        self._written, self._disturbed = (self._step, end), True
        self._tell(written=True)

    def _end(self) -> End:
        if self._diverged:
            return "divergence"
        if self._interrupted:
            return "signal"
        return "steps" if self._step >= self._last_step else "time"

    def _record(self) -> dict[str, Any]:
        """This slice's entry in ``train.json``."""
        seconds = self._ready - self._started
        rate = self._steady_steps * self._batch / seconds if self._steady_steps else None
        record = {
            "from_step": self._first_step,
            "to_step": self._step,
            "pairs": (self._step - self._first_step) * self._batch,
            "seconds": round(time.monotonic() - self._began, 2),
            "seconds_to_first_step": round(self._started - self._began, 2),
            "pairs_per_second": rate,
            "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "versions": {
                "python": platform.python_version(),
                **{name: package_version(name) for name in PACKAGES},
            },
        }
        if self.step_times is not None:
            step = self._pace.step_seconds or 0.0
            record["step_seconds"] = {"whole": step, **dataclasses.asdict(self.step_times)}
            record["shares"] = self.step_times.shares(step)
        return record
