"""Configuration and results of dense matching."""

import dataclasses

from jaxtyping import Array, Bool, Float, Int

from ops.records import Record, record


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Constants of matching; the values are those of the original's ``base`` preset."""

    max_iterations: int = 10
    """Levenberg-Marquardt iterations per pixel; all of them always run."""
    lambda_init: float = 1e-8
    """First damping; times 0.1 after an accepted step, times 10 after a refused one."""
    convergence: float = 1e-6
    """Largest squared ray difference ``|r - t|^2`` of a converged pixel (about a milliradian)."""
    max_distance: float = 0.1
    """Largest distance between two points that match, in the prior's units (metres)."""
    radius: int = 3
    """Descriptor window: ``2*radius + 1`` candidates a side."""
    dilation: int = 5
    """Stride of the first descriptor window; it shrinks by one down to 1."""


@record
class Projection(Record):
    """Result of iterative projection, per pixel of image 2."""

    uv: Float[Array, "hw 2"]
    """Position in image 1 in pixels, within ``[1, W-2] x [1, H-2]``."""
    converged: Bool[Array, "hw"]
    """Whether the two rays agree there."""


@record
class Matches(Record):
    """For every pixel of image 2, in linear order, its match in image 1."""

    index: Int[Array, "hw"]
    """Linear index ``u + W*v`` into image 1; always within the image, valid or not."""
    valid: Bool[Array, "hw"]
    """Whether the match may be used."""
    uv: Float[Array, "hw 2"]
    """The same pixel as ``(u, v)``, whole numbers."""
