"""Whitening, k-means and the retrieval model made of them, on tokens whose truth is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.retrieval import (
    RetrievalFit,
    fit_retrieval,
    kmeans,
    look_up_views,
    pca_whitening,
)
from mast3r_jax import load_retrieval, save_retrieval

pytestmark = pytest.mark.slow

CHANNELS, TOKENS = 24, 16


def places(count: int, noise: float, seed: int = 0) -> np.ndarray:
    """Tokens of two views of each place, side by side: the same things, seen a little differently.

    Like an encoder's, the tokens have a mean far from 0, directions of very different strength,
    and one without any variance.
    """
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    words = world.standard_normal((40, CHANNELS))
    shown = rng.integers(0, 40, (count, 1, TOKENS))
    own = 0.7 * rng.standard_normal((count, 1, TOKENS, CHANNELS))
    views = words[shown] + own + noise * rng.standard_normal((count, 2, TOKENS, CHANNELS))
    views[:, 1] = views[:, 1, ::-1]  # the second one's tokens come in another order
    mixing = np.linalg.qr(world.standard_normal((CHANNELS, CHANNELS)))[0]
    strength = np.geomspace(3.0, 0.1, CHANNELS)
    strength[-1] = 0.0
    tokens = 5.0 + (views * strength) @ mixing
    return tokens.reshape(2 * count, TOKENS, CHANNELS).astype(np.float32)


def test_whitened_covariance_is_the_identity():
    x = places(200, 0.3).reshape(-1, CHANNELS)
    whitening = pca_whitening(x, 1e-4)
    y = np.asarray(whitening(jnp.asarray(x)), np.float64)
    # float32: the weakest direction is the thirtieth part of the strongest, beside a mean of 5
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
    expected = np.diag([1.0] * (CHANNELS - 1) + [0.0])
    np.testing.assert_allclose(y.T @ y / len(y), expected, atol=1e-3)
    # In order of strength: the first direction explains more than any other.
    V = np.asarray(whitening.projection, np.float64)
    deviation = 1 / np.linalg.norm(V[:, :-1], axis=0)
    assert (np.diff(deviation) < 0).all()
    largest = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))[-1]
    assert deviation[0] ** 2 == pytest.approx(largest, rel=1e-5)
    # Only what is asked for is kept.
    few = np.asarray(pca_whitening(x, 0.5).projection)
    strong = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True)) > 0.5 * largest
    assert (np.abs(few).max(0) > 0).sum() == strong.sum()


def test_kmeans_finds_the_best_partition():
    """Against all partitions of few points, and the true means of separated clusters."""
    rng = np.random.default_rng(1)
    points = rng.standard_normal((9, 2)) + 4 * rng.integers(0, 3, (9, 1))
    best = np.inf
    for labels in itertools.product(range(3), repeat=9):
        groups = [points[np.array(labels) == n] for n in range(3)]
        if all(map(len, groups)):
            best = min(best, sum(((g - g.mean(0)) ** 2).sum() for g in groups) / 9)
    found = [
        float(kmeans(jax.random.key(seed), jnp.asarray(points, jnp.float32), 3, 10)[1])
        for seed in range(10)
    ]
    assert min(found) == pytest.approx(best, rel=1e-5)
    assert all(value >= best * (1 - 1e-5) for value in found)

    corners = 100.0 * np.array(list(itertools.product((0, 1), repeat=4)))
    points = np.repeat(corners, 50, axis=0) + rng.standard_normal((800, 4))
    centroids, distance = kmeans(jax.random.key(0), jnp.asarray(points, jnp.float32), 16, 10)
    means = points.reshape(16, 50, 4).mean(1)
    order = np.lexsort(np.round(np.asarray(centroids) / 100).T[::-1])
    np.testing.assert_allclose(np.asarray(centroids)[order], means, rtol=1e-5, atol=1e-4)
    error = ((points.reshape(16, 50, 4) - means[:, None]) ** 2).sum(-1).mean()
    assert float(distance) == pytest.approx(error, rel=1e-4)


def test_no_centroid_is_wasted():
    """More centroids than k-means++ can tell apart at first: all end at points of their own."""
    points = jnp.asarray(np.repeat(np.arange(6.0), 20)[:, None] ** 3, jnp.float32)
    centroids, distance = kmeans(jax.random.key(2), points, 6, 10)
    np.testing.assert_allclose(np.sort(np.asarray(centroids)[:, 0]), np.arange(6.0) ** 3, rtol=1e-6)
    assert float(distance) == 0.0


def test_a_place_is_found_again_and_the_model_survives_its_file(tmp_path):
    config = RetrievalFit(views=400, num_centroids=64, iterations=8)
    retrieval = fit_retrieval(places(200, 0.2), jax.random.key(0), config)
    assert (retrieval.token_dim, retrieval.num_centroids) == (CHANNELS, 64)
    assert retrieval.num_selected(TOKENS) == int(0.6 * TOKENS) and retrieval.projector == ()
    # Places that it was not made from.
    unseen = places(60, 0.2, seed=7)
    result = look_up_views(retrieval, unseen)
    assert result.views == 60 and result.found > 0.9
    assert result.related > 2 * result.unrelated
    save_retrieval(tmp_path, jax.tree.map(lambda x: x.astype(jnp.float16), retrieval))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 2 * (64 + 2 * (CHANNELS + 1)) * CHANNELS + 1000
    found = load_retrieval(tmp_path)
    assert jax.tree.structure(found) == jax.tree.structure(retrieval)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(retrieval), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other, np.float16))
    again = look_up_views(found, unseen)
    assert abs(again.found - result.found) <= 0.05
    # Views that have nothing in common are not found.
    strangers = places(60, 0.2, seed=8)
    strangers[1::2] = places(60, 0.2, seed=9)[1::2]
    assert look_up_views(retrieval, strangers).found < 0.2


def test_the_tokens_kept_are_those_far_from_the_mean():
    tokens = places(200, 0.2)
    retrieval = fit_retrieval(tokens, jax.random.key(0), RetrievalFit(num_centroids=4))
    x = tokens.reshape(-1, CHANNELS).astype(np.float64)
    centred = x - x.mean(0)
    # Mahalanobis' distance, without the direction that has no variance.
    distance = np.einsum("ni,ij,nj->n", centred, np.linalg.pinv(np.cov(x.T), 1e-6), centred)
    order = np.argsort(-distance.reshape(len(tokens), TOKENS))[0, :9]
    y = retrieval.prewhiten(jnp.asarray(tokens[0])[order])
    np.testing.assert_allclose(
        retrieval.select(jnp.asarray(tokens[0])), retrieval.postwhiten(y), atol=1e-3
    )


def test_fits_that_cannot_be_made():
    with pytest.raises(ValueError, match="4 views have 36 tokens to keep, fewer than"):
        fit_retrieval(places(2, 0.2), jax.random.key(0), RetrievalFit(num_centroids=37))
    for bad in ({"views": 3}, {"num_centroids": 0}, {"keep": 0.0}, {"weakest": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RetrievalFit(**bad)
