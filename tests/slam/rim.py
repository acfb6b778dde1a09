"""A short walk and its reconstruction, shared by the tests of everything around the step.

Image size, prior and capacity are those of ``test_step``, so the compiled programs are too.
"""

import dataclasses
import functools

import numpy as np

from slam import runner
from slam.config import SlamConfig
from slam.io.frames import SourceFrame
from slam.io.open_source import open_source
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.stepper import Stepper

URI = "procedural:room?seed=3&frames=40&size=128x96"
STRIDE = 3
"""Every third frame: the view moves on fast enough for a few keyframes."""
CONFIG = SlamConfig(size=128, keyframe_capacity=4)
EXACT = RenderedGeometryPrior(GeometryNoise.none())


class Frames:
    """Source frames in memory."""

    def __init__(self, frames: list[SourceFrame], name: str = "walk") -> None:
        self.frames, self.name = frames, name
        self.num_frames: int | None = len(frames)

    def __iter__(self):
        return iter(self.frames)


@functools.cache
def walk() -> tuple[SourceFrame, ...]:
    """14 frames of a procedural room."""
    return tuple(open_source(URI, stride=STRIDE))


def source(count: int | None = None, **changes) -> Frames:
    """The first frames of the walk, with fields replaced."""
    return Frames([dataclasses.replace(frame, **changes) for frame in walk()[:count]])


def covered(frame: SourceFrame) -> SourceFrame:
    """The same frame with a hand on the lens."""
    return dataclasses.replace(frame, rgb=np.zeros_like(frame.rgb))


@functools.cache
def progress() -> list[runner.Progress]:
    """What the progress callback of ``result`` was told."""
    result()
    return _told


_told: list[runner.Progress] = []


@functools.cache
def stepper(config: SlamConfig = CONFIG) -> Stepper:
    """One for all tests, for its programs are compiled once for each."""
    return Stepper(config)


@functools.cache
def result() -> Reconstruction:
    """The whole walk, reconstructed from exact geometry."""
    return runner.run(source(), EXACT, stepper=stepper(), on_progress=_told.append, num_panels=3)
