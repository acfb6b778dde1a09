"""What ``demo`` and ``run`` share: progress, output folder, and the report at the end."""

import contextlib
import dataclasses
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from slam import runner
from slam.checkpoint import Checkpointing
from slam.cli import invocation
from slam.cli.prior import ChosenPrior
from slam.config import SlamConfig
from slam.io.frames import Source
from slam.io.open_source import is_live, stop_waiting
from slam.outputs import OutputFiles, check_folder
from slam.reconstruction import Reconstruction
from slam.snapshot import Observer

_STAGES = {
    "source": "waiting for images",
    "look up": "look up",
    "encode": "encode",
    "decode": "decode",
    "match": "match",
    "solve": "solve",
    "assess": "assess",
    "propose": "propose links",
    "verify": "verify links",
    "commit": "commit",
    "optimize": "optimise all poses",
    "adopt": "adopt poses",
    "backlog": "a piece of keyframe work",
    "take in": "take it in",
    "frame": "whole frame",
}
"""Stages of ``slam.stepper`` in the order of the report, and what it calls them."""
BROKEN_OFF = 3
"""Exit status of a run whose source gave no more frames and should have."""
NOT_STARTED = (
    "next: the prior is confident of nothing in these images. Do they show anything, and if it is "
    "a network, are its weights trained?"
)
"""What to look into when there was not even a first keyframe."""


@dataclasses.dataclass(frozen=True)
class Session:
    """How a run is watched, kept, and gone on with."""

    out: pathlib.Path | None = None
    """Folder for the results; see ``choose_folder``."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    resume: bool = False
    """Go on with the unfinished run in ``out``."""
    map: pathlib.Path | None = None
    """Results of the run whose map is begun with."""
    keep_map: bool = True
    """Write the map for later runs."""
    checkpoint_seconds: float | None = None
    """Seconds between checkpoints; None: there are none."""
    arguments: tuple[str, ...] = ()
    """The command line, kept with the checkpoints."""
    observer: Observer | None = None
    """A viewer."""


def run_and_report(
    source: Source,
    chosen: ChosenPrior,
    config: SlamConfig,
    session: Session,
    *,
    calibrated: bool = False,
    min_confidence: float = 1.5,
    about: Mapping[str, Any],
    hints: Sequence[str] = (),
) -> int:
    """Run, write every output into one folder, print what happened and where it is.

    Interrupted once, a run of a live source ends and is written; any other is left where it can be
    gone on with. What was mapped before a source broke off is written.

    Args:
        source: images.
        chosen: two-view prior, what to call it, and what to say when the run got lost at once.
        config: of the system.
        session: what is kept of the run, and where.
        calibrated: track with the intrinsics.
        min_confidence: points of the map are more confident than this.
        about: further entries for ``run.json``; the prior has one already.
        hints: lines to print at the start, such as how the input was understood.

    Returns:
        0; 1 when no frame beyond the first could be placed; 3 when the source broke off; 130 when
        it was interrupted.
    """
    console = Console(highlight=False)
    if session.resume:
        assert session.out is not None
        folder = session.out
    else:
        folder = choose_folder(session.out, source.name, session.overwrite)
    say(console, f"{source.name}: {source.num_frames or 'unknown number of'} frames")
    say(console, f"prior: {chosen.name}")
    for hint in hints:
        say(console, hint)
    checkpoint = None
    if session.checkpoint_seconds is not None:
        checkpoint = Checkpointing(
            folder,
            session.checkpoint_seconds,
            session.resume,
            invocation.record(session.arguments),
        )
    live = is_live(source)
    stopping = live or checkpoint is not None
    with (
        progress_display(console) as on_progress,
        _first_interrupt(stopping, source, session.observer) as interrupted,
    ):
        result = runner.run(
            source,
            chosen.prior,
            config,
            calibrated=calibrated,
            on_progress=on_progress,
            observer=session.observer,
            checkpoint=checkpoint,
            map=session.map,
            stop=interrupted.is_set,
            num_panels=3,
        )
    stopped = interrupted.is_set()
    if stopped and not (live or result.broken_off):
        say(console, f"interrupted after frame {result.num_frames - 1}; to go on:")
        say(console, f"  mast3r-slam run --resume {folder}")
        return 130
    begin = time.perf_counter()
    with console.status("writing results"):
        record = {**about, "prior": chosen.about}
        files = result.save(
            folder,
            min_confidence=min_confidence,
            overwrite=session.overwrite or session.resume,
            keep_map=session.keep_map,
            about=record,
        )
    seconds = time.perf_counter() - begin
    done = result.succeeded
    advice = chosen.advice if result.num_keyframes else NOT_STARTED
    print_report(console, result, advice=None if done else advice)
    print_files(console, OutputFiles(folder, files.notes), seconds)
    if session.observer is not None and result.num_keyframes:
        say(console, f"to look at the map again: mast3r-slam view {folder}")
    if not done:
        return 1
    return BROKEN_OFF if result.broken_off and not (stopped and live) else 0


@contextlib.contextmanager
def _first_interrupt(
    wanted: bool, source: Source, observer: Observer | None
) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, if that is ``wanted``; the second one interrupts.

    A camera that gives no pictures, and a viewer that has paused the run, are waited for no longer.
    """
    event = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, stack: Any) -> None:
        event.set()
        stop_waiting(source)
        if observer is not None:
            observer.resume()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def choose_folder(out: pathlib.Path | None, name: str, overwrite: bool) -> pathlib.Path:
    """The folder to write: the one asked for, or a fresh ``outputs/NAME``.

    Raises:
        OSError: nothing may be written there; see ``slam.outputs.check_folder``.
    """
    if out is None:
        out, number = pathlib.Path("outputs") / name, 2
        while out.exists():
            out, number = pathlib.Path("outputs") / f"{name}-{number}", number + 1
    check_folder(out, overwrite)
    return out


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: names of files in brackets are no markup."""
    console.print(text, style=style, markup=False)


@contextlib.contextmanager
def progress_display(console: Console) -> Iterator[Callable[[runner.Progress], None]]:
    """A progress bar with frames per second, mode and keyframes."""
    columns = (
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]}"),
        TextColumn("{task.fields[mode]}"),
        TextColumn("{task.fields[keyframes]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, fps="compiling", mode="", keyframes="")
        begun: list[tuple[float, int]] = []

        def on_progress(progress: runner.Progress) -> None:
            now = time.perf_counter()
            if not begun:
                begun.append((now, progress.frame))
            began, first = begun[0]
            since = progress.frame - first  # a run that goes on does not begin at 0
            fps = f"{since / (now - began):5.1f} fps" if since else "compiled"
            bar.update(
                task,
                total=progress.total,
                completed=progress.frame + 1,
                fps=fps,
                mode=progress.mode.name.lower(),
                keyframes=f"{progress.num_keyframes} keyframe{'s'[: progress.num_keyframes != 1]}",
            )

        yield on_progress


def print_report(console: Console, result: Reconstruction, advice: str | None = None) -> None:
    """Verdict, what to do about it, accuracy, and time by stage; fits 80 columns."""
    console.print()
    say(console, result.verdict(), style="bold")
    if advice:
        say(console, advice)
    for note in result.notes:
        say(console, f"note: {note}")

    rows = result.accuracy()
    if rows:
        header = ("poses", "aligned by", "count", "RMSE", "of the path", "scale")
        table = _table("Absolute trajectory error against ground truth", header, texts=2)
        for poses, alignment, error in rows:
            table.add_row(
                poses,
                alignment,
                str(error.num_poses),
                _number(error.rmse, ".4f", " m"),
                _number(error.percent_of_path, ".2f", " %"),
                _number(error.scale, ".3f"),
            )
        console.print(table)
        for note in dict.fromkeys(error.note for _, _, error in rows if error.note):
            say(console, f"note: {note}")
        if rows[0][2].num_left_out:
            left_out = f"poses in other pieces of the map: {rows[0][2].num_left_out}"
            say(console, f"note: {left_out}; they are not compared")

    timing = result.timing
    rate = timing["fps_after_first_frame"]
    title = (
        f"{_number(rate, '.1f')} frames per second after the first; {timing['total_s']:.1f} s in "
        f"all, {timing['first_frame_s']:.1f} s of them for the first frame, which compiles"
    )
    header = ("stage", "calls", "median", "99th percentile", "first call", "share")
    table = _table(title, header, texts=1)
    stages = timing["stages"]
    whole = stages["frame"]["later_sum_s"]
    others = [name for name in stages if name not in _STAGES]
    every = timing.get("time_every", 1)
    for name in [*(name for name in _STAGES if name in stages), *others]:
        row = stages[name]
        total = row["later_sum_s"] * (1 if name in ("source", "frame") else every)
        table.add_row(
            _STAGES.get(name, name),
            str(row["calls"]),
            _number(1e3 * row["median_s"], ".1f", " ms"),
            _number(1e3 * row["p99_s"], ".1f", " ms"),
            _number(row["first_s"], ".2f", " s"),
            _number(100 * total / whole if whole else math.nan, ".0f", " %"),
        )
    console.print(table)
    say(console, "Median, percentile and share leave out a stage's first call, which compiles.")
    if every > 1:
        say(console, f"Stages were timed in one of {every} frames; the others overlap.")


def print_files(console: Console, files: OutputFiles, seconds: float) -> None:
    """Where the results are, and what each is."""
    say(console, f"Results in {files.folder}/, written in {seconds:.1f} s", style="bold")
    for path, what in files.described():
        say(console, f"  {path:<19} {what}")
    for note in files.notes:
        say(console, f"note: {note}")


def _table(title: str, header: tuple[str, ...], texts: int) -> Table:
    """An empty table whose first ``texts`` columns hold text, the others numbers."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD
    )
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="left" if place < texts else "right")
    return table


def _number(value: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if math.isfinite(value) else "-"
