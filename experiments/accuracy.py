"""Accuracy of tracking on rooms nobody has seen: absolute trajectory error over many seeds.

    python -m experiments.accuracy --seeds 100 101 102

Each seed is a new room, a new walk and new noise; the prior is the rendered geometry, disturbed by
``--noise``. Prints the error of every frame and of the keyframes, aligned by Sim(3), in metres and
in percent of the path. Exit status 1 when a frame is lost or an error exceeds ``--limit``.
"""

import dataclasses
import sys

import tyro

from slam.config import SlamConfig
from slam.io.procedural import parse_procedural
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.runner import run


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Track procedural rooms and compare with the truth."""

    seeds: tuple[int, ...] = tuple(range(100, 110))
    """Rooms to try."""
    frames: int = 150
    """Length of each walk."""
    size: int = 128
    """Long side of the images in pixels."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What the prior gets wrong."""
    limit: float = 1.0
    """Largest error allowed, in percent of the path."""

    def execute(self) -> int:
        """Run all seeds; returns the exit status."""
        height = self.size * 3 // 4
        noise = ", ".join(f"{k} {v:g}" for k, v in dataclasses.asdict(self.noise).items())
        print(f"{self.frames} frames of {self.size}x{height}; noise: {noise}")
        print("seed   placed  keyframes   every frame          keyframes            fps")
        failures = 0
        for seed in self.seeds:
            uri = f"procedural:room?seed={seed}&frames={self.frames}&size={self.size}x{height}"
            prior = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=seed))
            result = run(parse_procedural(uri), prior, SlamConfig(size=self.size))
            every, keyframes = result.evaluate(), result.evaluate(keyframes_only=True)
            placed = int(result.tracked.sum())
            figures = [
                "undefined".ljust(20)
                if error is None
                else f"{error.rmse:.4f} m = {error.percent_of_path:.2f} %".ljust(20)
                for error in (every, keyframes)
            ]
            # An error that is not a number is a failure too.
            good = every is not None and every.percent_of_path < self.limit
            failures += not (good and placed == self.frames)
            fps = result.timing["fps_after_first_frame"]
            print(
                f"{seed:4d} {placed:4d}/{self.frames:<4d} {result.num_keyframes:6d}      "
                f"{figures[0]} {figures[1]} {fps:.1f}",
                flush=True,
            )
        total = len(self.seeds)
        print(f"{total - failures} of {total} seeds below {self.limit:g} % with every frame placed")
        return int(failures > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(Accuracy).execute())
