"""``mast3r-slam train RUN``: a two-view prior, on rooms that are made up as it learns."""

import contextlib
import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar

from experiments.training.config import (
    CheckpointConfig,
    DispatchConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from experiments.training.hosts import join
from experiments.training.objective import ObjectiveConfig
from experiments.training.pairs import PairConfig
from experiments.training.presets import PRESETS
from slam.cli.options import Flag
from slam.cli.session import say
from slam.io.frames import SourceError

if TYPE_CHECKING:
    from experiments.training.trainer import Outcome, Progress

Parts = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(name="from", metavar="PARTS", help_behavior_hint="(default: none)"),
]
Minutes = Annotated[
    float | None,
    tyro.conf.arg(metavar="M", help_behavior_hint="(default: until all steps are made)"),
]
Steps = Annotated[
    int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: --config.schedule.steps)")
]
Address = Annotated[
    str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(default: none)")
]
Preset = Annotated[
    str, tyro.conf.arg(metavar="|".join(PRESETS), help_behavior_hint="(default: small)")
]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a two-view prior on rooms that are made up as it learns: new ones in every step.

    Called again with the same folder, it goes on from the last checkpoint, with the same settings;
    cut into slices or not, the weights come out the same, bit for bit.
    """

    folder: Annotated[
        pathlib.Path, tyro.conf.Positional, tyro.conf.arg(name="run-folder", metavar="RUN_FOLDER")
    ]
    """Folder of the run: checkpoints, curves, weights. A new one starts a new run."""
    preset: Preset = "small"
    """Settings a new run starts from: `small` for a GPU, `toy` to try it out on a CPU."""
    minutes: Minutes = None
    """Stop early enough that everything is written when they are over."""
    steps: Steps = None
    """Stop when the run has come to this step."""
    parts: Parts = None
    """Go on from an exported state, of another machine: its folder `parts`."""
    no_shares: Flag = False
    """Neither measure the shares of rendering, forward and backward when a run starts, nor draw its
    first pairs."""
    coordinator: Address = None
    """Where the first of several processes that train together can be reached by the others."""
    processes: int = 1
    """How many train together, each on all devices that it sees, with the same command line."""
    process_id: int = 0
    """Which one this is, from 0. Only process 0 reads and writes files."""
    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """Settings of the run, which cannot be changed while it goes on."""

    def base_config(self) -> TrainConfig:
        """What the options start from: settings of the run or of the parts, or else the preset.

        Raises:
            SourceError: there is no such preset.
            CheckpointError: the settings cannot be read.
        """
        from experiments.training.run_folder import parts_config, saved_config

        if self.preset not in PRESETS:
            raise SourceError(f"--preset {self.preset}: there are {', '.join(PRESETS)}")
        saved = saved_config(self.folder)
        if saved is None and self.parts is not None:
            saved = parts_config(self.parts)
        return PRESETS[self.preset] if saved is None else saved

    def execute(self) -> int:
        """Train; returns the exit status."""
        for name, value in (("minutes", self.minutes), ("steps", self.steps)):
            if value is not None and value <= 0:
                raise SourceError(f"--{name} {value:g}: must be above 0")
        began = time.monotonic()
        join(self.coordinator, self.processes, self.process_id)
        # Its libraries take longer to import than other commands take to refuse bad input.
        from experiments.training.trainer import train

        console = Console(highlight=False, quiet=self.process_id > 0)
        heading = f"{self.folder}: {_devices()}, {self.config.pairs.pairs} pairs a step"
        try:
            with _display(console, heading) as report:
                outcome = train(
                    self.config,
                    self.folder,
                    minutes=math.inf if self.minutes is None else self.minutes,
                    last_step=self.steps,
                    parts=self.parts,
                    shares=not self.no_shares,
                    began=began,
                    report=report,
                    on_signal=lambda: print(
                        "\nfinishing the steps under way and writing; again: stop at once",
                        file=sys.stderr,
                    ),
                )
        except KeyboardInterrupt:
            print("interrupted; the run goes on from its last checkpoint", file=sys.stderr)
            return 130
        _report(console, outcome, self.folder)
        return {"divergence": 1, "signal": 130}.get(outcome.ended_by, 0)


def _devices() -> str:
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    return f"{count} x {kind}" if count > 1 else kind


@contextlib.contextmanager
def _display(console: Console, heading: str) -> Iterator[Callable[["Progress"], None]]:
    """A progress bar with pairs per second, loss and the time left; a line for each checkpoint.

    Nothing is shown before the first report: until then the input may turn out to be bad.
    """
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[left]}"),
    )
    bar = ProgressBar(*columns, console=console)
    task = bar.add_task("", total=None, rate="compiling", loss="", left="")

    def report(progress: "Progress") -> None:
        if not bar.live.is_started:
            say(console, heading)
            bar.start()
        bar.update(task, total=progress.last_step, completed=progress.step)
        if math.isfinite(progress.loss):
            rate = _rate(progress.pairs_per_second)
            loss, left = f"loss {progress.loss:.4g}", f"{_clock(progress.seconds_left)} left"
            bar.update(task, rate=rate, loss=loss, left=left)
            if progress.written:
                say(console, f"step {progress.step}: {loss}, {rate}; written")

    try:
        yield report
    finally:
        bar.stop()


def _report(console: Console, outcome: "Outcome", folder: pathlib.Path) -> None:
    """Why it ended, how fast it was, what is where, and how to go on; fits 80 columns."""
    from experiments.training.run_folder import DESCRIPTIONS, PARTS

    record: dict[str, Any] = outcome.record
    verdict = {
        "steps": f"at step {outcome.step}, where it was to end",
        "time": f"at step {outcome.step}, for the time is over",
        "signal": f"at step {outcome.step}, as asked",
        "divergence": f"at step {outcome.step}: loss or gradient were not finite again and again",
    }
    console.print()
    say(console, f"Stopped {verdict[outcome.ended_by]}", style="bold")
    if outcome.ended_by == "divergence":
        say(console, "next: a new run with a lower --config.optimizer.learning-rate")
    if record.get("pairs_per_second"):
        rate, seconds = record["pairs_per_second"], record["seconds_to_first_step"]
        say(console, f"{_rate(rate)} after the first step, which came after {seconds:.0f} s")
    if "shares" in record:
        shares = ", ".join(f"{name} {100 * x:.0f} %" for name, x in record["shares"].items())
        say(console, f"a step's time: {shares}")
    say(console, f"Results in {folder}/", style="bold")
    for name, what in DESCRIPTIONS.items():
        path = folder / name
        if path.exists():
            say(console, f"  {name + '/' if path.is_dir() else name:<14} {what}")
    if outcome.ended_by in ("time", "signal"):
        say(console, f"next: mast3r-slam train {folder}")
        say(console, f"      elsewhere: mast3r-slam train NEW_FOLDER --from {folder / PARTS}")


def _rate(pairs_per_second: float) -> str:
    return f"{pairs_per_second:.3g} pairs/s" if math.isfinite(pairs_per_second) else "compiled"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@dataclasses.dataclass(frozen=True)
class _BriefConfig(TrainConfig):
    network: tyro.conf.Suppress[NetworkConfig] = dataclasses.field(default_factory=NetworkConfig)
    pairs: tyro.conf.Suppress[PairConfig] = dataclasses.field(default_factory=PairConfig)
    objective: tyro.conf.Suppress[ObjectiveConfig] = dataclasses.field(
        default_factory=ObjectiveConfig
    )
    optimizer: tyro.conf.Suppress[OptimizerConfig] = dataclasses.field(
        default_factory=OptimizerConfig
    )
    schedule: tyro.conf.Suppress[ScheduleConfig] = dataclasses.field(default_factory=ScheduleConfig)
    dispatch: tyro.conf.Suppress[DispatchConfig] = dataclasses.field(default_factory=DispatchConfig)
    checkpoints: tyro.conf.Suppress[CheckpointConfig] = dataclasses.field(
        default_factory=CheckpointConfig
    )


@dataclasses.dataclass(frozen=True)
class BriefTrain(Train):
    """``Train`` as its help shows it: without the parameters that few will ever touch."""

    config: _BriefConfig = dataclasses.field(default_factory=_BriefConfig)
    """Settings of the run, which cannot be changed while it goes on.
    Size of images and batch, network, learning rate, steps: `mast3r-slam train --help-all`."""


def train_defaults(cls: type[Train], base: TrainConfig) -> Train:
    """What the options of ``train`` start from; the folder is missing."""
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    config = _BriefConfig if issubclass(cls, BriefTrain) else TrainConfig
    defaults = cls(folder=pathlib.Path(), config=config(**fields))  # type: ignore[arg-type]
    # How tyro is told that a field has no default; it is no value of the field's type.
    object.__setattr__(defaults, "folder", tyro.MISSING)
    return defaults
