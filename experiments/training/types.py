"""What a training step eats, wherever it comes from."""

from jaxtyping import Array, Bool, Float, Int

from ops.records import Record, record


@record
class PairBatch(Record):
    """Pairs of views with true geometry; ``b`` pairs of equal size, ``n`` correspondences each."""

    images_1: Float[Array, "b h w 3"]
    """RGB of view 1 in [-1, 1], as the network takes it."""
    images_2: Float[Array, "b h w 3"]
    """RGB of view 2."""
    points_1: Float[Array, "b h w 3"]
    """View 1's surface points in view 1's camera, metres; anything finite where not valid."""
    points_2: Float[Array, "b h w 3"]
    """View 2's surface points in view 1's camera, metres."""
    valid_1: Bool[Array, "b h w"]
    """Where ``points_1`` is known."""
    valid_2: Bool[Array, "b h w"]
    """Where ``points_2`` is known."""
    pixels_1: Int[Array, "b n 2"]
    """Pixels ``(u, v)`` of view 1 that show the same surface points as ``pixels_2``."""
    pixels_2: Int[Array, "b n 2"]
    """Pixels ``(u, v)`` of view 2."""
    matched: Bool[Array, "b n"]
    """Which of the correspondences are true; the others are pixels drawn at random."""
    metric: Bool[Array, "b"]
    """Whether the pair's units are metres that the network is to predict."""
    T_12: Float[Array, "b 4 4"]
    """View 2's camera to view 1's, for evaluation."""
