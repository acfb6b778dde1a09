"""Time, memory and compilations of a long run, frame by frame.

    python -m experiments.long_run --out docs/figures

Walks many rounds through a procedural room. Keeps for every frame the seconds of each stage, the
bytes of the map's buffers and of the process, and which stages were compiled; prints them in
summary, writes ``long_run.csv`` (one line a frame) and ``long_run.png``.

Exit status 1 when a frame is lost, when a stage is compiled again without a buffer having doubled
since its last call, or when tracking a frame takes more than ``--growth`` times as long in the
last tenth of the run as in the first. That is judged by the 10th percentile: other programs on the
machine make frames slower, never faster.
"""

import csv
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from slam.config import SlamConfig
from slam.io.procedural import parse_procedural
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.runner import Progress, run
from slam.stepper import Stepper

EVERY_FRAME = ("look up", "encode", "decode", "match", "solve", "assess", "commit")
"""Stages that every frame passes: tracking."""
KEYFRAME = ("propose", "verify", "optimize", "adopt")
"""Stages that a new keyframe adds."""
_PAGE = 4096
_MIB = 2.0**20


class RecordingStepper(Stepper):
    """A stepper that keeps what each frame cost."""

    def __init__(self, config: SlamConfig) -> None:
        super().__init__(config)
        self.records: list[dict[str, Any]] = []

    def __call__(self, prior: Any, state: Any, frame: Any, *more: Any) -> Any:
        """One step; adds a record."""
        compiled, calls = self.cache_sizes(), self._calls()
        state, output, dense = super().__call__(prior, state, frame, *more)
        seconds = {
            stage: self.timer.later[stage][-1] if self.timer.later[stage] else first
            for stage, first in self.timer.first.items()
            if self._calls()[stage] > calls.get(stage, 0)
        }
        again = {n: size - compiled[n] for n, size in self.cache_sizes().items()}
        self.records.append(
            {
                "frame": int(output.frame_index),
                "seconds": seconds,
                "compiled": {n.replace("_", " "): count for n, count in again.items() if count},
                "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
                "process_bytes": resident_bytes(),
                "keyframes": int(output.num_keyframes),
                "factors": int(state.graph.size),
                "new_links": int(output.new_links),
            }
        )
        return state, output, dense

    def _calls(self) -> dict[str, int]:
        return {name: 1 + len(self.timer.later[name]) for name in self.timer.first}


def resident_bytes() -> float:
    """Memory that the process holds; NaN where the system does not tell."""
    try:
        return float(pathlib.Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return float("nan")


def unexplained(records: Sequence[dict[str, Any]], growth: Sequence[dict[str, int]]) -> list[str]:
    """Compilations beyond each stage's first call and its first after a buffer doubled.

    ``growth`` has the frames after which buffers were doubled.
    """
    called: dict[str, int] = {}
    strange = []
    for record in records:
        for stage, count in record["compiled"].items():
            last = called.get(stage)
            doubled = last is None or any(last <= g["frame"] < record["frame"] for g in growth)
            if not doubled or count > 1:
                strange.append(f"{stage} {count} times at frame {record['frame']}")
        called |= dict.fromkeys(record["seconds"], record["frame"])
    return strange


@dataclasses.dataclass(frozen=True)
class LongRun:
    """Run for long and watch time, memory and compilations."""

    frames: int = 2000
    """Length of the walk."""
    laps: float = 10.0
    """Rounds of the loop."""
    seed: int = 0
    """Room, walk and noise."""
    size: tuple[int, int] = (96, 64)
    """Width and height of the images in pixels."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What the prior gets wrong."""
    growth: float = 1.2
    """How many times slower tracking may be at the end than at the start."""
    out: pathlib.Path = pathlib.Path("outputs/long_run")
    """Folder for the files."""

    def execute(self) -> int:
        """Run, print, write; returns the exit status."""
        width, height = self.size
        source = parse_procedural(
            f"procedural:room?seed={self.seed}&frames={self.frames}&laps={self.laps:g}"
            f"&size={width}x{height}"
        )
        prior = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=self.seed))
        stepper = RecordingStepper(SlamConfig(size=width))
        result = run(source, prior, stepper=stepper, on_progress=_report, time_every=1)
        records, growth = stepper.records, result.timing["growth"]
        device = jax.devices()[0].device_kind
        print(f"{self.frames} frames of {width}x{height} on {device}, jax {jax.__version__}")
        print(f"{result.name}: {result.verdict()}; {result.evaluate()}")
        slower = print_stages(records)
        print_backend(records)
        print_memory(records, growth)
        strange = print_compilations(records, growth)
        self.out.mkdir(parents=True, exist_ok=True)
        write_csv(self.out / "long_run.csv", records)
        plot(self.out / "long_run.png", records, result)
        print(f"written: {self.out}/long_run.csv, long_run.png")
        complete = bool(result.placed_in().all())
        return int(bool(strange) or not complete or not slower < self.growth)


def tracking_ms(record: dict[str, Any]) -> float:
    """Milliseconds of the stages that every frame passes; NaN if one of them was compiled."""
    if set(record["compiled"]) & set(EVERY_FRAME):
        return float("nan")
    return 1e3 * sum(record["seconds"].get(stage, 0.0) for stage in EVERY_FRAME)


def print_stages(records: Sequence[dict[str, Any]]) -> float:
    """The median time of each stage along the run; returns how much slower tracking became."""
    parts = np.array_split(np.arange(len(records)), 10)
    shown = [parts[k] for k in (0, 2, 4, 6, 9)]
    print("\nmilliseconds, median        frames " + "".join(f"{p[0]:5d}- " for p in shown))

    def line(name: str, values: np.ndarray, percentile: float = 50) -> np.ndarray:
        row = np.array([np.nanpercentile(values[part], percentile) for part in shown])
        print(f"  {name:<32}" + "".join(f"{m:7.1f}" for m in row))
        return row

    for stage in EVERY_FRAME:
        line(stage, _stage_ms(records, stage))
    tracking = np.array([tracking_ms(r) for r in records])
    line("tracking, sum of these", tracking)
    undisturbed = line("the same, 10th percentile", tracking, 10)
    for stage in KEYFRAME:
        line(f"{stage} (new keyframes)", _stage_ms(records, stage))
    slower = float(undisturbed[-1] / undisturbed[0])
    print(f"tracking takes {slower:.2f} times as long in the last tenth as in the first")
    return slower


def print_backend(records: Sequence[dict[str, Any]]) -> None:
    """Time of the global optimisation by size of the map."""
    optimised = [r for r in records if "optimize" in r["seconds"] and not r["compiled"]]
    print("\nkeyframes  factors   optimise all poses, ms   verify links, ms   (medians)")
    for part in np.array_split(np.arange(len(optimised)), 8):
        rows = [optimised[k] for k in part]
        if rows:
            size, factors, optimize, verify = (
                np.median([get(r) for r in rows])
                for get in (
                    lambda r: r["keyframes"],
                    lambda r: r["factors"],
                    lambda r: 1e3 * r["seconds"]["optimize"],
                    lambda r: 1e3 * r["seconds"]["verify"],
                )
            )
            print(f"{size:9.0f}{factors:9.0f}{optimize:25.0f}{verify:19.0f}")


def print_memory(records: Sequence[dict[str, Any]], growth: Sequence[dict[str, int]]) -> None:
    """Bytes of the map and of the process, wherever buffers doubled."""
    print("\nafter frame  keyframes  factors   map MiB   process MiB")
    frames = sorted({1, *(g["frame"] for g in growth), *(g["frame"] + 1 for g in growth)})
    for frame in [f for f in frames if f < len(records)] + [len(records) - 1]:
        r = records[frame]
        print(
            f"{frame:11d}{r['keyframes']:11d}{r['factors']:9d}{r['state_bytes'] / _MIB:10.1f}"
            f"{r['process_bytes'] / _MIB:14.0f}"
        )


def print_compilations(
    records: Sequence[dict[str, Any]], growth: Sequence[dict[str, int]]
) -> list[str]:
    """Every compilation and every doubling; returns compilations that nothing explains."""
    print("\nframe  what happened")
    events = [(g["frame"], 1, _doubling(g)) for g in growth]
    events += [
        (r["frame"], 0, f"compiled: {', '.join(r['compiled'])}") for r in records if r["compiled"]
    ]
    for frame, _, text in sorted(events):
        print(f"{frame:5d}  {text}")
    strange = unexplained(records, growth)
    print(f"compilations without a reason: {'; '.join(strange) or 'none'}")
    return strange


def write_csv(path: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """One line a frame; stages that were not called are empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        stages = (*EVERY_FRAME, *KEYFRAME)
        names = ("frame", "keyframes", "factors", "new_links", "state_bytes", "process_bytes")
        writer.writerow([*names, *(f"{stage} ms" for stage in stages), "compiled"])
        for r in records:
            times = (r["seconds"].get(stage) for stage in stages)
            cells = ["" if t is None else f"{1e3 * t:.3f}" for t in times]
            writer.writerow([*(f"{r[n]:.0f}" for n in names), *cells, " ".join(r["compiled"])])


def plot(path: pathlib.Path, records: Sequence[dict[str, Any]], result: Reconstruction) -> None:
    """Tracking time, time of new keyframes, size of the map, and memory over the frames."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    frames = np.arange(len(records))
    axes[0].plot(frames, [tracking_ms(r) for r in records], ".", ms=2, color="#1f5fbf")
    axes[0].set(ylabel="tracking a frame, ms", title=f"{result.name}, {len(records)} frames")
    high = np.nanpercentile([tracking_ms(r) for r in records], 99)
    axes[0].set_ylim(0, 1.3 * float(high))
    for stage, color in (("verify", "#e07b00"), ("optimize", "#8e44ad")):
        values = _stage_ms(records, stage)
        axes[1].plot(frames, values, ".", ms=4, color=color, label=f"{stage}, at new keyframes")
    axes[1].set(ylabel="ms")
    axes[2].plot(
        frames, [r["state_bytes"] / _MIB for r in records], color="#1a9850", label="map, MiB"
    )
    axes[2].plot(
        frames, [r["process_bytes"] / _MIB for r in records], color="#888888", label="process, MiB"
    )
    axes[2].set(ylabel="MiB", xlabel="frame", yscale="log")
    twin = axes[2].twinx()
    twin.plot(frames, [r["keyframes"] for r in records], ":", color="#c51b3a")
    twin.set_ylabel("keyframes", color="#c51b3a")
    for g in result.timing["growth"]:
        for axis in axes:
            axis.axvline(g["frame"], color="#bbbbbb", lw=0.8, zorder=0)
    axes[1].plot([], [], color="#bbbbbb", lw=0.8, label="a buffer doubles")
    axes[1].set_ylim(bottom=0)
    for axis in axes[1:]:
        axis.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=90)


def _stage_ms(records: Sequence[dict[str, Any]], stage: str) -> np.ndarray:
    """Milliseconds by frame; NaN where the stage was not called, or was compiled."""
    nan = float("nan")
    return 1e3 * np.array(
        [nan if stage in r["compiled"] else r["seconds"].get(stage, nan) for r in records]
    )


def _doubling(growth: dict[str, int]) -> str:
    return "room made for " + ", ".join(
        f"{count} {name}" for name, count in growth.items() if name != "frame"
    )


def _report(progress: Progress) -> None:
    if progress.frame % 100 == 99:
        print(f"  frame {progress.frame}: {progress.num_keyframes} keyframes", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(tyro.cli(LongRun).execute())
