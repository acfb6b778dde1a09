"""``mast3r-slam bench``: how fast everything is on this machine, and beside others."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from experiments.bench.plan import STAGES, Plan, parse_size, quick_plan
from slam.cli.options import Flag, Folder
from slam.cli.session import say
from slam.io.frames import SourceError

REPORT = "bench.txt"
DESCRIPTIONS = {
    "bench.json": "everything: machine, settings, samples, ratios",
    "bench.txt": "the tables above",
    "bench.png": "the same as bars",
}
DEFAULT_BASELINE = ""
"""Stands for the baseline that comes with the package."""
Names = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="STAGE [STAGE ...]", help_behavior_hint="(default: all)"),
]
Sizes = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WxH [WxH ...]")]
OneSize = Annotated[str, tyro.conf.arg(metavar="WxH")]
NetworkSizes = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="WxH [WxH ...]", help_behavior_hint="(default: the first of --sizes)"),
]
Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N [N ...]")]
Baseline = Annotated[
    str | None,
    tyro.conf.arg(metavar="[BASELINE]", help_behavior_hint="(default: do not compare)"),
]
NewBaseline = Annotated[
    pathlib.Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure every stage alone, and the whole system, on this machine.

    Exit status: 0 done; 1 a peer's result differs from ours, or a ratio got worse than --compare
    allows; 2 the input cannot be used; 130 interrupted.
    """

    only: Names = ()
    """What to measure; nothing else should run meanwhile. All take some minutes on two cores.
    Stages: encoder, decoder, encoder-block, decoder-block, projection, refinement,
    match, pose-rays, pose-pixels, fusion, edges-rays, edges-pixels, solver, optimize, system."""
    quick: Flag = False
    """Only show that everything runs, in a minute: tiny sizes and few calls, whatever the other
    options say. These figures mean nothing."""
    sizes: Sizes = ("224x160", "512x384")
    """Images, for all stages that follow the network."""
    network: Literal["small", "vit_large"] = "small"
    """Which network; its weights are random numbers."""
    network_sizes: NetworkSizes = ()
    """Images, for the network's stages."""
    system_size: OneSize = "256x192"
    """Images of the walk through a room that the whole system is timed on."""
    frames: int = 60
    """Length of that walk."""
    spread: Flag = False
    """Spread the work on keyframes over the frames after them in that walk."""
    keyframes: int = 32
    """Keyframes of the graph that is optimised, with about six edges each."""
    solver_keyframes: Counts = (64, 256)
    """Keyframes whose linear system is solved."""
    repeats: int = 20
    """Calls of each stage and each peer, at most."""
    seconds: float = 10.0
    """A stage and its peers get no further turn after so long, once each had three. Peers are the
    same computations by others, as far as they are here: C++ (compiled on the spot if there is a
    g++), PyTorch and scipy (`pip install 'mast3r-slam-jax[bench]'`). They take turns with ours on
    the same input, and their results are compared first."""
    out: Folder = None
    """Folder for the results; those of an earlier benchmark in it are replaced."""
    compare: Baseline = None
    """Hold this run's ratios (ours over a peer's, or over a ceiling's) against a baseline, by
    default the one that comes with the package; exit status 1 if one got worse than that allows.
    Times alone are never judged."""
    write_baseline: NewBaseline = None
    """Write this run's ratios as a baseline."""

    def execute(self) -> int:
        """Measure; returns the exit status."""
        plan, console = self.plan(), Console(highlight=False)
        folder = _folder(self.out)
        # Its libraries take longer to import than other commands take to refuse bad input.
        from experiments.bench import gate, suite
        from experiments.bench.plot import PLOT, plot
        from experiments.bench.report import as_text, report

        limits = there = None
        if self.compare is not None:
            path = pathlib.Path(self.compare) if self.compare else gate.BASELINE
            limits, there = gate.read_baseline(path, jax.default_backend())
        if self.write_baseline is not None:
            gate.check_baseline(self.write_baseline)
        try:
            results = suite.run(plan, folder, lambda line: say(console, line))
        except KeyboardInterrupt:
            print(f"interrupted; what was measured is in {folder}/", file=sys.stderr)
            return 130
        (folder / REPORT).write_text(as_text(results))
        plot(results, folder / PLOT)
        console.print()
        console.print(report(results))
        say(console, f"Results in {folder}/", style="bold")
        for name, what in DESCRIPTIONS.items():
            say(console, f"  {name:<11} {what}")
        if self.write_baseline is not None:
            count = gate.write_baseline(self.write_baseline, results)
            say(console, f"{count} ratios written to {self.write_baseline}")
        failed = bool(results.disagreements)
        if limits is not None and there is not None:
            compared = gate.compare(results.ratios, limits, results.machine, there)
            if not compared.compared:
                raise SourceError(
                    f"--compare: none of the {len(limits)} ratios of the baseline was measured "
                    "in this run"
                )
            for line in compared.lines:
                say(console, line)
            failed |= bool(compared.violated)
        return 1 if failed else 0

    def plan(self) -> Plan:
        """What to do.

        Raises:
            SourceError: something is asked for that cannot be.
        """
        only = self.only or tuple(STAGES)
        if self.quick:
            return quick_plan(only)
        sizes = tuple(parse_size("sizes", size) for size in self.sizes)
        network = tuple(parse_size("network-sizes", size) for size in self.network_sizes)
        return Plan(
            network=self.network,
            sizes=sizes,
            network_sizes=network or sizes[:1],
            system_size=parse_size("system-size", self.system_size),
            frames=self.frames,
            spread=self.spread,
            keyframes=self.keyframes,
            solver_keyframes=self.solver_keyframes,
            repeats=self.repeats,
            seconds=self.seconds,
            only=only,
        )


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The same command line, ``--compare`` without a file followed by the default one."""
    spelled = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        spelled.append(argument)
        if arguments[0] == "bench" and argument == "--compare" and following.startswith("--"):
            spelled[-1] = f"--compare={DEFAULT_BASELINE}"
    return spelled


def _folder(out: pathlib.Path | None) -> pathlib.Path:
    """Where to write: what was asked for, or a fresh ``outputs/bench``.

    Raises:
        OSError: it is no folder, or holds something else.
    """
    folder, number = out or pathlib.Path("outputs/bench"), 2
    while out is None and folder.exists():
        folder, number = pathlib.Path(f"outputs/bench-{number}"), number + 1
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: exists and is no folder; choose another one")
    inside = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in inside if name not in DESCRIPTIONS]
    if foreign:
        raise FileExistsError(f"{folder}: holds other files ({foreign[0]}); choose another folder")
    return folder
