"""Features for image retrieval computed from known geometry, and the codebook that fits them.

They stand in for MASt3R's encoder tokens: the same surface gives the same features from everywhere,
and nothing else does. A feature is a vector of random Fourier features (Rahimi and Recht, "Random
features for large-scale kernel machines", 2007), whose inner products fall with distance as a
Gaussian does. No coordinate is special to them, so they serve any world at any place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mast3r_jax.retrieval import RetrievalModel

PLACE_PATCH = 8
"""Pixels per side of a retrieval token: 192 tokens at 128x96, where MASt3R's 16 would leave 48."""
_WAVES = 32
"""A sine and a cosine each: 64 numbers a token, whose signs fill two words of a code."""
_FREQUENCY = 4.0
"""Standard deviation of each coordinate of a wave vector, radians per metre: the similarity falls
to 1/e over 0.35 m. A patch of a 128x96 image is some 0.15 m wide at two metres, so half of it may
be missing or new. At 2 the score of neighbouring, not overlapping views nears the threshold of
5e-3; at 6 that of views which half overlap is halved."""
_NUM_CENTROIDS = 2048
"""A view of 128x96 pixels shows about a hundred of them. With half as many, images of different
places share twice as many words by chance."""
_CENTROID_NORM = 0.5
"""Of unit features. The centre of a cell lies nearer the origin than what it is the mean of, and
with centroids as long as the features the signs of residuals tell the cell more than the feature:
at 1 unrelated images score 1e-2, above the usual threshold of 5e-3; at 0.5 they score 2e-4."""
_BOX = 100.0
"""Metres; centroids are the features of random points in a cube this wide. Which cube does not
matter: in feature space its points lie as densely about those of any other place."""
_STRENGTH = 0.3
"""How much the norm of features varies, smoothly over surfaces: it decides which are kept."""
_NOTHING = 0.7
"""Norm of a feature of what cannot be seen: weaker than most places, so that it is kept last."""
_NUM_FEATURES = 150.0
"""Features kept of an image, the strongest: three in four at 128x96."""


def place_features(
    points_W: Float[Array, "h w 3"], seen: Bool[Array, "h w"], noise: float, key: Array
) -> Float[Array, "n c"]:
    """Features of the patches of an image, row-major.

    The part of a patch that is not seen, and so all of a covered image, contributes what resembles
    no place: noise of the frame's own.

    Args:
        points_W: surface points in the world, metres.
        seen: pixels whose point is known, if it is finite; height and width are multiples of
            ``PLACE_PATCH``.
        noise: norm of the noise added to features of norm about 1.
        key: of the frame.
    """
    height, width = seen.shape
    seen = seen & jnp.isfinite(points_W).all(-1)
    points_W = jnp.where(seen[..., None], points_W, 0.0)
    W, phases, strength_waves = _waves()
    dtype = points_W.dtype

    def angles(waves: np.ndarray) -> Array:
        waves_ = jnp.asarray(waves, dtype)
        return jnp.einsum("hwi,di->hwd", points_W, waves_, precision="highest")

    features = _fourier(angles(W) + jnp.asarray(phases, dtype), jnp)
    strength = 1.0 + _STRENGTH * jnp.prod(jnp.sin(angles(strength_waves)), axis=-1)
    features = features * jnp.where(seen, strength, 0.0)[..., None]
    rows, columns = height // PLACE_PATCH, width // PLACE_PATCH

    def patches(values: Float[Array, "h w c"]) -> Float[Array, "n c"]:
        blocks = values.reshape(rows, PLACE_PATCH, columns, PLACE_PATCH, -1)
        return blocks.mean((1, 3)).reshape(rows * columns, -1)

    unseen = 1.0 - patches(seen[..., None].astype(dtype))
    own = jax.random.normal(key, (rows * columns, 2 * _WAVES), dtype) / np.sqrt(2 * _WAVES)
    return patches(features) + (_NOTHING * unseen + noise) * own


@functools.cache
def place_retrieval() -> RetrievalModel:
    """The retrieval model for ``place_features``: a codebook, no whitening, no projector."""
    W, phases, _ = _waves()
    points = np.random.default_rng(1).uniform(-0.5 * _BOX, 0.5 * _BOX, (_NUM_CENTROIDS, 3))
    centroids = _CENTROID_NORM * _fourier(points @ W.T + phases, np)
    # The first call may be inside a trace, whose arrays must not outlive it.
    with jax.ensure_compile_time_eval():
        return RetrievalModel(
            prewhiten=None,
            projector=(),
            postwhiten=None,
            centroids=jnp.asarray(centroids, jnp.float32),
            num_features=_NUM_FEATURES,
        )


def _waves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wave vectors and phases of the features, and wave vectors of their strength."""
    rng = np.random.default_rng(0)
    W = _FREQUENCY * rng.standard_normal((_WAVES, 3))
    phases = rng.uniform(0.0, 2.0 * np.pi, _WAVES)
    return W, phases, _FREQUENCY * rng.standard_normal((2, 3))


def _fourier(angle, xp):
    """Unit vectors of sines and cosines, by numpy or ``jax.numpy``."""
    return xp.concatenate([xp.sin(angle), xp.cos(angle)], axis=-1) / np.sqrt(_WAVES)
