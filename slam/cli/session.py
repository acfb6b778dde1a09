"""What ``demo`` and ``run`` share: progress, output folder, and the report at the end."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import rich.box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from slam import runner
from slam.config import SlamConfig
from slam.io.frames import Source, SourceError
from slam.outputs import OutputFiles
from slam.reconstruction import Reconstruction
from slam.types import TwoViewPrior


def run_and_report(
    source: Source,
    prior: TwoViewPrior,
    config: SlamConfig,
    out: pathlib.Path | None,
    *,
    calibrated: bool = False,
    overwrite: bool = False,
    min_confidence: float = 1.5,
    prior_name: str,
) -> int:
    """Run, write every output into one folder, print what happened and where it is.

    Returns:
        0, or 1 when no frame beyond the first could be placed.
    """
    console = Console()
    folder = choose_folder(out, source.name, overwrite)
    console.print(
        f"[bold]{source.name}[/]: {source.num_frames or 'unknown number of'} frames, "
        f"prior: {prior_name}",
        highlight=False,
    )
    with progress_display(console) as on_progress:
        result = runner.run(
            source, prior, config, calibrated=calibrated, on_progress=on_progress, num_panels=3
        )
    files = result.save(folder, min_confidence=min_confidence, overwrite=overwrite)
    print_report(console, result, files)
    return 0 if result.tracked.sum() > min(1, result.num_frames - 1) else 1


def choose_folder(out: pathlib.Path | None, name: str, overwrite: bool) -> pathlib.Path:
    """The folder to write: the one asked for, or a fresh ``outputs/NAME``.

    Raises:
        SourceError: the folder asked for has something in it already.
    """
    if out is not None:
        if out.exists() and not out.is_dir():
            raise SourceError(f"{out}: is a file; --out needs the name of a folder")
        if out.exists() and any(out.iterdir()) and not overwrite:
            raise SourceError(f"{out}: is not empty; choose another --out or add --overwrite")
        return out
    folder, number = pathlib.Path("outputs") / name, 2
    while folder.exists():
        folder, number = pathlib.Path("outputs") / f"{name}-{number}", number + 1
    return folder


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
        clock: dict[str, float] = {}

        def on_progress(progress: runner.Progress) -> None:
            now = time.perf_counter()
            began = clock.setdefault("first", now)
            fps = f"{progress.frame / (now - began):5.1f} fps" if progress.frame else "compiled"
            bar.update(
                task,
                total=progress.total,
                completed=progress.frame + 1,
                fps=fps,
                mode=progress.mode.name.lower(),
                keyframes=f"{progress.num_keyframes} keyframes",
            )

        yield on_progress


def print_report(console: Console, result: Reconstruction, files: OutputFiles) -> None:
    """Verdict, accuracy, time by stage, and where the files are; fits 80 columns."""
    console.print(f"\n[bold]{result.verdict()}[/]", highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False)

    rows = result.accuracy()
    if rows:
        table = Table(
            title="absolute trajectory error against ground truth",
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
        )
        for column in ("poses", "alignment", "number", "RMSE [m]", "of path", "scale"):
            table.add_column(
                column, justify="left" if column in ("poses", "alignment") else "right"
            )
        for poses, alignment, error in rows:
            table.add_row(
                poses,
                alignment,
                str(error.num_poses),
                f"{error.rmse:.4f}",
                f"{error.percent_of_path:.2f} %",
                f"{error.scale:.3f}",
            )
        console.print(table)

    table = Table(
        title=f"{result.timing['fps_after_first_frame']:.1f} frames per second "
        f"(first frame, with compilation: {result.timing['first_frame_s']:.1f} s; "
        f"all: {result.timing['total_s']:.1f} s)",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for column in ("stage", "median [ms]", "99th percentile [ms]", "first call [s]", "fps alone"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, row in result.timing["stages"].items():
        table.add_row(
            name,
            f"{1e3 * row['median_s']:.1f}",
            f"{1e3 * row['p99_s']:.1f}",
            f"{row['first_s']:.2f}",
            f"{1 / max(row['median_s'], 1e-9):.0f}" if row["median_s"] > 1e-5 else "-",
        )
    console.print(table)

    console.print(f"[bold]results in {files.folder}/[/]", highlight=False)
    for path, what in files.described():
        console.print(f"  {path:<24} {what}", highlight=False)
