"""``mast3r-slam demo``: the whole system on a room that is made on the spot."""

import dataclasses

from slam.cli.options import Flag, Folder, Size, without_loop_closure
from slam.cli.prior import (
    RENDERED,
    ChosenPrior,
    DemoPriorName,
    default_prior,
    network_prior,
    rendered_prior,
    require_weights,
    trained_size,
)
from slam.cli.session import Session, run_and_report
from slam.config import SlamConfig
from slam.io.frames import SourceError
from slam.io.procedural import parse_procedural
from slam.priors.rendered import GeometryNoise

_SIZE = (128, 96)
"""Width and height of the images, unless the network was trained on others."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Reconstruct a furnished room seen by a hand-held camera; needs no files."""

    seed: int = 0
    """Room, furniture, textures and camera path all follow from it."""
    frames: int = 150
    """Length of the walk; 150 is once around."""
    prior: DemoPriorName = None
    """What looks at the images: a network, or `rendered`: the renderer itself, so no weights are
    needed."""
    size: Size = None
    """Long side of the images in pixels, a multiple of 16."""
    out: Folder = None
    """Folder for the results."""
    overwrite: Flag = False
    """Replace the results of an earlier run in --out."""
    no_loop_closure: Flag = False
    """Do not look for earlier views of the same place."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What the `rendered` prior gets wrong. The errors printed at the end are against the exact
    path of the camera."""

    def execute(self) -> int:
        """Run the demo; returns the exit status."""
        width, height = self.image_size()
        uri = f"procedural:room?seed={self.seed}&frames={self.frames}&size={width}x{height}"
        config = SlamConfig(size=max(width, height))
        return run_and_report(
            parse_procedural(uri),
            self.open_prior(),
            without_loop_closure(config) if self.no_loop_closure else config,
            Session(self.out, self.overwrite),
            about={"source": uri},
        )

    def image_size(self) -> tuple[int, int]:
        """Width and height of the images."""
        if self.size is None:
            return trained_size(self.prior) or _SIZE
        if self.size < 32 or self.size % 16:
            raise SourceError(f"--size {self.size}: must be a multiple of 16, and at least 32")
        return self.size, self.size * 3 // 4

    def open_prior(self) -> ChosenPrior:
        """The prior asked for; else the network of the package, or the renderer without one.

        Raises:
            SourceError: there are no such weights.
            CheckpointError: the weights cannot be used.
        """
        name = self.prior or default_prior() or RENDERED
        if name == RENDERED:
            chosen = rendered_prior(self.noise)
            advice = "next: try more frames or less noise; run.json has the solver's figures"
            return dataclasses.replace(chosen, advice=advice)
        if self.noise != GeometryNoise():
            raise SourceError("--noise.*: is for --prior rendered; leave one out, or add the other")
        require_weights(name)
        return network_prior(name)
