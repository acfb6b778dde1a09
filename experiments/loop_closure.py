"""What loop closure is worth: the same walks, with the same errors, with loop links and without.

    python -m experiments.loop_closure --seeds 0 1 2

Each seed is a new room, a walk of two rounds through it, and new noise. The errors of the prior
drift along the walk (``GeometryNoise.drift``), and differently in the second round: without loop
links, successive keyframes alone are linked, and the second round comes to lie beside the first.
Images, noise and every parameter but ``graph.loop_closure`` are equal in both runs.

Drift is 0.5 % of the distance unless told otherwise, as large as the error that each frame's
geometry has in any case (``GeometryNoise.bias``): that one belongs to the frame and cancels between
successive keyframes, this one does not.

Prints the absolute trajectory error, aligned by Sim(3), in centimetres, of every frame and of the
keyframes. Exit status 1 when fewer than ``--enough`` seeds gain ``--gain`` in the error of every
frame.
"""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import tyro

from slam.config import GraphConfig, SlamConfig
from slam.io.frames import Source, SourceFrame
from slam.io.procedural import parse_procedural
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.runner import run
from slam.stepper import Stepper


class Kept:
    """A source whose frames are rendered once and kept in memory."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.num_frames = source.num_frames
        self.frames = list(source)

    def __iter__(self) -> Iterator[SourceFrame]:
        return iter(self.frames)


@dataclasses.dataclass(frozen=True)
class LoopClosure:
    """Run two rounds through procedural rooms with and without loop closure."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Rooms to try."""
    frames: int = 400
    """Length of each walk."""
    laps: float = 2.0
    """Rounds of the loop."""
    size: tuple[int, int] = (96, 64)
    """Width and height of the images in pixels."""
    noise: GeometryNoise = dataclasses.field(default_factory=lambda: GeometryNoise(drift=0.005))
    """What the prior gets wrong."""
    gain: float = 2.0
    """How many times smaller loop closure has to make the error."""
    enough: int | None = None
    """On how many seeds; four of five if not told."""

    def execute(self) -> int:
        """Run all seeds; returns the exit status."""
        width, height = self.size
        noise = ", ".join(f"{k} {v:g}" for k, v in dataclasses.asdict(self.noise).items())
        print(f"{self.frames} frames of {width}x{height}, {self.laps:g} rounds; noise: {noise}")
        print("               without            with loop closure")
        print("          every     key-     every     key-    loop   key-     gain      all")
        print("seed      frame   frames     frame   frames   links frames    every     placed")
        config = SlamConfig(size=width)
        without = dataclasses.replace(config, graph=GraphConfig(loop_closure=False))
        steppers = Stepper(without), Stepper(config)
        gains = []
        for seed in self.seeds:
            source = Kept(
                parse_procedural(
                    f"procedural:room?seed={seed}&frames={self.frames}&laps={self.laps:g}"
                    f"&size={width}x{height}"
                )
            )
            prior = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=seed))
            results = [run(source, prior, stepper=stepper) for stepper in steppers]
            errors = [centimetres(result) for result in results]
            complete = all(result.placed_in().all() for result in results)
            # Not a number when a run has no error to speak of: no gain.
            gains.append(errors[0][0] / errors[1][0])
            print(
                f"{seed:4d}  {errors[0][0]:9.2f}{errors[0][1]:9.2f} {errors[1][0]:9.2f}"
                f"{errors[1][1]:9.2f}  {int(results[1].is_loop_link.sum()):6d} "
                f"{results[1].num_keyframes:6d}   {gains[-1]:6.2f}       "
                f"{'yes' if complete else 'no'}",
                flush=True,
            )
            for result in results:
                for note in result.notes:
                    print(f"      note: {note}")
        good, total = int(np.sum(np.asarray(gains) >= self.gain)), len(self.seeds)
        enough = (4 * total + 4) // 5 if self.enough is None else self.enough
        print(
            f"gain: median {np.median(gains):.2f}, from {min(gains):.2f} to {max(gains):.2f}; "
            f"at least {self.gain:g} on {good} of {total} seeds, "
            f"{100 * (total - good) / total:.0f} % fall short; {enough} are asked for"
        )
        return int(good < enough)


def centimetres(result: Reconstruction) -> tuple[float, float]:
    """Error of every frame and of the keyframes; NaN where undefined."""
    errors = result.evaluate(), result.evaluate(keyframes_only=True)
    every, keyframes = (float("nan") if e is None else 100 * e.rmse for e in errors)
    return every, keyframes


if __name__ == "__main__":
    sys.exit(tyro.cli(LoopClosure).execute())
