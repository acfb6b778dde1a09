"""What a two-view prior predicts for one image of a pair."""

from jaxtyping import Array, Float

from ops.records import Record, record


@record
class Pointmap(Record):
    """Dense prediction for one view of a batch of pairs, in the camera frame of view 1.

    Both views of a pair are expressed in the FIRST view's camera (x right, y down, z forward).
    """

    points: Float[Array, "*batch h w 3"]
    """3D point of each pixel, in view 1's camera frame; metres when the prior is metric."""
    confidence: Float[Array, "*batch h w"]
    """Confidence of the point, above 1 for MASt3R."""
    descriptors: Float[Array, "*batch h w d"]
    """Unit-norm local feature of each pixel."""
    descriptor_confidence: Float[Array, "*batch h w"]
    """Confidence of the descriptor, above 0."""
