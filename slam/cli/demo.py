"""``mast3r-slam demo``: the whole system on a room that is made on the spot."""

import dataclasses

from slam.cli.options import Flag, Folder, without_loop_closure
from slam.cli.session import rendered_name, rendered_record, run_and_report
from slam.config import SlamConfig
from slam.io.frames import SourceError
from slam.io.procedural import parse_procedural
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior


@dataclasses.dataclass(frozen=True)
class Demo:
    """Reconstruct a furnished room seen by a hand-held camera; needs no files."""

    seed: int = 0
    """Room, furniture, textures and camera path all follow from it."""
    frames: int = 150
    """Length of the walk; 150 is once around."""
    size: int = 128
    """Long side of the images in pixels, a multiple of 16."""
    out: Folder = None
    """Folder for the results."""
    overwrite: Flag = False
    """Replace the results of an earlier run in --out."""
    no_loop_closure: Flag = False
    """Do not look for earlier views of the same place."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """The two-view prior is the renderer itself, so no weights are needed; this is what it gets
    wrong. The errors printed at the end are against the exact path of the camera."""

    def execute(self) -> int:
        """Run the demo; returns the exit status."""
        if self.size < 32 or self.size % 16:
            raise SourceError(f"--size {self.size}: must be a multiple of 16, and at least 32")
        height = self.size * 3 // 4
        uri = f"procedural:room?seed={self.seed}&frames={self.frames}&size={self.size}x{height}"
        config = SlamConfig(size=self.size)
        return run_and_report(
            parse_procedural(uri),
            RenderedGeometryPrior(self.noise),
            without_loop_closure(config) if self.no_loop_closure else config,
            self.out,
            overwrite=self.overwrite,
            about={"source": uri, "prior": rendered_record(self.noise)},
            prior_name=rendered_name(self.noise),
            advice="next: try more frames or less noise; run.json has the solver's figures",
        )
