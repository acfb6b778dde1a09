"""What a run has brought so far, on the host."""

import dataclasses

import jax
import numpy as np

from slam.state import StepOutput


@dataclasses.dataclass
class Collected:
    """Grows as the run goes on."""

    outputs: list[StepOutput] = dataclasses.field(default_factory=list)
    """Report of every frame."""
    timestamps: list[float] = dataclasses.field(default_factory=list)
    """Seconds on the source's clock, of every frame."""
    references: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Ground truth [4, 4] of every frame, NaN where there is none."""
    images: list[np.ndarray] = dataclasses.field(default_factory=list)
    """uint8 [H, W, 3] of every keyframe."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the user should know."""
    growth: list[dict[str, int]] = dataclasses.field(default_factory=list)
    """At which frames which buffers became how large."""

    def frames(self) -> StepOutput:
        """The reports, stacked."""
        return jax.tree.map(lambda *x: np.stack(x), *self.outputs)

    def images_of(self, image_shape: tuple[int, int]) -> np.ndarray:
        """The images, stacked: uint8 [K, H, W, 3]."""
        return np.stack(self.images) if self.images else np.zeros((0, *image_shape, 3), np.uint8)
