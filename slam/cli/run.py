"""``mast3r-slam run SOURCE``: the system on the user's own images."""

import dataclasses
import pathlib
from typing import Annotated

import jax.numpy as jnp
import tyro

import mast3r_jax
from slam.cli.session import run_and_report
from slam.config import SlamConfig
from slam.io.frames import SourceError
from slam.io.open_source import open_source
from slam.priors.mast3r import MASt3RPrior
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.types import TwoViewPrior


@dataclasses.dataclass(frozen=True)
class Run:
    """Reconstruct a video, a folder of images, a TUM-layout folder or a procedural room.

    What SOURCE is, is recognised by its content. --prior names the two-view prior: a folder of
    converted weights (see `mast3r-slam convert`), or `rendered` for sources that know depth, poses
    and intrinsics (RGB-D recordings, procedural rooms)."""

    source: Annotated[str, tyro.conf.Positional]
    """Video file, folder, or `procedural:room?seed=3&frames=150`."""
    prior: str
    """Folder of converted MASt3R weights, or `rendered`."""
    out: pathlib.Path | None = None
    """Folder for the results (default: a new folder under outputs/)."""
    overwrite: bool = False
    """Write into --out even if it has something in it."""
    start: int = 0
    """First frame to use."""
    stride: int = 1
    """Use every n-th frame."""
    max_frames: int | None = None
    """Stop after this many frames."""
    fps: float | None = None
    """Frames per second, for folders of images and videos that do not tell."""
    depth_scale: float | None = None
    """Units of a metre in depth images (TUM: 5000, millimetres: 1000)."""
    calibrated: bool = False
    """Use the source's intrinsics; otherwise none are needed or used."""
    min_confidence: float = 1.5
    """Points of the cloud are more confident than this."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """With --prior rendered: what it gets wrong."""
    config: SlamConfig = dataclasses.field(default_factory=SlamConfig)
    """The system's own parameters."""

    def execute(self) -> int:
        """Run; returns the exit status."""
        source = open_source(
            self.source,
            start=self.start,
            stride=self.stride,
            max_frames=self.max_frames,
            depth_scale=self.depth_scale,
            fps=self.fps,
        )
        prior, name = self.open_prior()
        return run_and_report(
            source,
            prior,
            self.config,
            self.out,
            calibrated=self.calibrated,
            overwrite=self.overwrite,
            min_confidence=self.min_confidence,
            prior_name=name,
        )

    def open_prior(self) -> tuple[TwoViewPrior, str]:
        """The prior asked for, and what to call it.

        Raises:
            SourceError: there are no such weights.
        """
        if self.prior == "rendered":
            noise = f"{100 * self.noise.depth:g} % depth noise"
            return RenderedGeometryPrior(self.noise), f"rendered geometry, {noise}"
        if not pathlib.Path(self.prior).exists():
            raise SourceError(
                f"{self.prior}: no such weights; convert published ones with `mast3r-slam convert`,"
                " or use --prior rendered for a source with depth and poses"
            )
        dtype = jnp.bfloat16 if self.config.precision == "bfloat16" else None
        return MASt3RPrior(mast3r_jax.load(self.prior, dtype=dtype)), f"MASt3R, {self.prior}"
