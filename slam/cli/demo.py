"""``mast3r-slam demo``: the whole system on a room that is made on the spot."""

import dataclasses
import pathlib

from slam.cli.session import run_and_report
from slam.config import SlamConfig
from slam.io.procedural import parse_procedural
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior


@dataclasses.dataclass(frozen=True)
class Demo:
    """Reconstruct a procedural room, seen by a hand-held camera.

    The room, its textures and the camera path follow from the seed. The two-view prior is the
    renderer itself, disturbed by the noise below, so no weights are needed: what is demonstrated
    is the SLAM, and the error it prints is against the exact ground truth."""

    seed: int = 0
    """Room, furniture, textures and camera path."""
    frames: int = 150
    """Length of the walk."""
    size: int = 128
    """Long side of the images in pixels; a multiple of 16."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What the prior gets wrong."""
    out: pathlib.Path | None = None
    """Folder for the results (default: a new folder under outputs/)."""
    overwrite: bool = False
    """Write into --out even if it has something in it."""

    def execute(self) -> int:
        """Run the demo; returns the exit status."""
        height = self.size * 3 // 4
        source = parse_procedural(
            f"procedural:room?seed={self.seed}&frames={self.frames}&size={self.size}x{height}"
        )
        return run_and_report(
            source,
            RenderedGeometryPrior(self.noise),
            SlamConfig(size=self.size),
            self.out,
            overwrite=self.overwrite,
            prior_name=f"rendered geometry, {100 * self.noise.depth:g} % depth noise",
        )
