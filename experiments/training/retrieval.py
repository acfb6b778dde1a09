"""The retrieval model of a network that was trained here: whitening, selection, codebook.

Published heads come with trained layers; this one is of the training-free kind (Duisterhof et al.,
"MASt3R-SfM", 2024, section 4.1). Tokens are whitened, those far from the mean are kept, what is
kept is whitened again, and the codebook is the k-means of that (``ops.asmk``; Tolias et al. 2013).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from experiments.training.pairs import PairConfig, procedural_pairs
from mast3r_jax import MASt3R, RetrievalModel
from mast3r_jax.retrieval import Whitening
from ops import asmk

_ANY = 3e38
"""Squared distance while there is no centroid."""
_CHUNK = 4096
"""Points compared with all centroids at a time: 16 MB for a codebook of 1024."""


@dataclasses.dataclass(frozen=True)
class RetrievalFit:
    """How a retrieval model is made from tokens."""

    views: int = 4096
    """Images whose tokens are looked at, half of them in pairs of one room."""
    num_centroids: int = 1024
    """Size of the codebook: a fourth of a megabyte at 128 channels. The published one has 64 times
    as many for images of 16 times as many tokens."""
    keep: float = 0.6
    """Share of an image's tokens that describe it; the published head keeps 300 of 768."""
    iterations: int = 20
    """Of k-means."""
    weakest: float = 1e-4
    """Directions with less than so much of the largest variance are left out. The normalisation at
    the encoder's end leaves one with none, and in bfloat16 tokens are rounded to 0.4 %: whitening
    would blow that up to the size of everything else."""

    def __post_init__(self) -> None:
        if self.views < 4 or self.views % 2:
            raise ValueError(f"views={self.views} must be even and at least 4")
        if self.num_centroids < 1 or self.iterations < 1:
            raise ValueError(
                f"num_centroids={self.num_centroids} and iterations={self.iterations} must be at "
                "least 1"
            )
        if not (0 < self.keep <= 1 and 0 < self.weakest < 1):
            raise ValueError(f"keep={self.keep:g} and weakest={self.weakest:g} must be shares")


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How well images are found again by their codes."""

    views: int
    """Images that were looked for, in a database of as many."""
    found: float
    """Share whose best hit is the other view of their room."""
    related: float
    """Median score of the other view."""
    unrelated: float
    """Score that one view of another room in a hundred exceeds."""


def view_tokens(
    model: MASt3R, key: PRNGKeyArray, config: PairConfig, views: int
) -> Float32[np.ndarray, "v n c"]:
    """The encoder's tokens of views of procedural rooms, those of one pair side by side.

    Rounded up to whole batches of ``config.pairs`` pairs.
    """

    @jax.jit
    def tokens(model: MASt3R, key: PRNGKeyArray) -> Float[Array, "b 2 n c"]:
        pairs = procedural_pairs(key, config)
        both = [model.encode(images) for images in (pairs.images_1, pairs.images_2)]
        return jnp.stack(both, axis=1).astype(jnp.float32)

    keys = jax.random.split(key, -(-views // (2 * config.pairs)))
    found = [np.asarray(tokens(model, key)) for key in keys]
    return np.concatenate(found).reshape(-1, *found[0].shape[2:])


def fit_retrieval(
    tokens: Float32[np.ndarray, "v n c"], key: PRNGKeyArray, config: RetrievalFit = RetrievalFit()
) -> RetrievalModel:
    """The retrieval model for the encoder whose tokens of many views these are.

    Raises:
        ValueError: fewer tokens are kept than the codebook is to have centroids.
    """
    channels = tokens.shape[-1]
    draft = RetrievalModel(
        prewhiten=pca_whitening(tokens.reshape(-1, channels), config.weakest),
        projector=(),
        postwhiten=None,
        centroids=jnp.zeros((1, channels), jnp.float32),
        num_features=-config.keep,
    )
    kept = jax.jit(jax.vmap(draft.select))(tokens).reshape(-1, channels)
    if len(kept) < config.num_centroids:
        raise ValueError(
            f"{len(tokens)} views have {len(kept)} tokens to keep, fewer than "
            f"num_centroids={config.num_centroids}; look at more views"
        )
    postwhiten = pca_whitening(np.asarray(kept), config.weakest)
    centroids, _ = kmeans(key, postwhiten(kept), config.num_centroids, config.iterations)
    return draft.replace(postwhiten=postwhiten, centroids=centroids)


def pca_whitening(x: Float[np.ndarray, "n c"], weakest: float) -> Whitening:
    """Makes the covariance of rows the identity, strongest direction first; float32.

    Directions with less than ``weakest`` of the largest variance are mapped to 0.
    """
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    centred = wide - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(x))
    variance, directions = variance[::-1], directions[:, ::-1]
    strong = variance > weakest * variance[0]
    factor = np.where(strong, 1.0 / np.sqrt(np.where(strong, variance, 1.0)), 0.0)
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(directions * factor, jnp.float32))


@functools.partial(jax.jit, static_argnames=("k", "iterations"))
def kmeans(
    key: PRNGKeyArray, points: Float[Array, "n d"], k: int, iterations: int
) -> tuple[Float[Array, "k d"], Float[Array, ""]]:
    """``k`` centroids of points, and the mean squared distance to the nearest of them.

    Lloyd's iterations from k-means++ (Arthur and Vassilvitskii, SODA 2007). A centroid that is
    nearest to no point moves to one of the points that are worst off.
    """
    square = jnp.sum(jnp.square(points), axis=1)

    def nearest(centroids: Float[Array, "k d"]):
        def one(point: Float[Array, "d"]):
            product = jnp.matmul(centroids, point, precision="highest")
            distance = jnp.sum(jnp.square(centroids), axis=1) - 2 * product
            best = jnp.argmin(distance)
            return best, distance[best]

        index, distance = jax.lax.map(one, points, batch_size=min(_CHUNK, len(points)))
        return index, jnp.maximum(square + distance, 0)

    def lloyd(_, centroids: Float[Array, "k d"]):
        index, distance = nearest(centroids)
        count = jnp.zeros(k, points.dtype).at[index].add(1)
        total = jnp.zeros_like(centroids).at[index].add(points)
        empty = count == 0
        _, worst = jax.lax.top_k(distance, k)
        rank = jnp.maximum(jnp.cumsum(empty) - 1, 0)
        mean = total / jnp.maximum(count, 1)[:, None]
        return jnp.where(empty[:, None], points[worst[rank]], mean)

    def seed(number, carry):
        centroids, distance, key = carry
        key, draw = jax.random.split(key)
        chosen = points[jax.random.categorical(draw, jnp.log(distance))]
        gap = jnp.sum(jnp.square(points - chosen), axis=1)
        return centroids.at[number].set(chosen), jnp.minimum(distance, gap), key

    # All points weigh the same in the first draw; no distance is known yet.
    start = jnp.zeros((k, points.shape[1]), points.dtype), jnp.full(len(points), _ANY), key
    centroids, _, _ = jax.lax.fori_loop(0, k, seed, start)
    centroids = jax.lax.fori_loop(0, iterations, lloyd, centroids)
    return centroids, jnp.mean(nearest(centroids)[1])


def look_up_views(retrieval: RetrievalModel, tokens: Float32[np.ndarray, "v n c"]) -> Lookup:
    """Looks for every second view of ``view_tokens`` among the first ones of all rooms."""
    codes = jax.jit(jax.vmap(retrieval.encode_both))(tokens)
    database = jax.tree.map(lambda x: x[0::2], codes[0])
    queries = jax.tree.map(lambda x: x[1::2], codes[1])
    score = functools.partial(asmk.score, num_centroids=retrieval.num_centroids)
    scores = jax.jit(lambda q, d: jax.lax.map(lambda code: score(code, d), q))(queries, database)
    scores = np.asarray(scores)
    own = np.eye(len(scores), dtype=bool)
    return Lookup(
        views=len(scores),
        found=float(np.mean(scores[own] > np.where(own, -np.inf, scores).max(axis=1))),
        related=float(np.median(scores[own])),
        unrelated=float(np.quantile(scores[~own], 0.99)),
    )
