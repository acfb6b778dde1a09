"""Retrieval by known geometry: a place is found again, and nothing is taken for another place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import asmk
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.priors.places import place_retrieval
from tests.slam import scenes

EXACT = RenderedGeometryPrior(GeometryNoise.none())
THRESHOLD = 5e-3
"""The score above which MASt3R-SLAM takes an image for one of the same place."""


@functools.cache
def coder(query):
    """Frames to codes, by the prior's own features and retrieval model."""

    def encode(prior, frames):
        features = jax.lax.map(lambda frame: prior.encode(frame).features, frames)
        return jax.lax.map(lambda tokens: prior.retrieval.encode(tokens, query=query), features)

    return jax.jit(encode)


def views(poses, first=0, bright=True, T_moved=None):
    """Frames of a box seen from inside, in which every direction shows another place."""
    frames = [scenes.frame(first + i, T, bright) for i, T in enumerate(poses)]
    if T_moved is not None:
        frames = [f.replace(T_WC=jnp.asarray(T_moved @ f.T_WC, jnp.float32)) for f in frames]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *frames)


def scores(queries, database):
    """Of every query against every image, with the default noise."""
    prior = RenderedGeometryPrior()
    asked, stored = coder(True)(prior, queries), coder(False)(prior, database)
    one = functools.partial(asmk.score, num_centroids=prior.retrieval.num_centroids)
    return np.asarray(jax.vmap(one, in_axes=(0, None))(asked, stored))


YAWS = np.arange(8) * np.pi / 4
AROUND = [scenes.pose(yaw) for yaw in YAWS]
"""The camera sees 67 degrees: neighbouring views overlap by a third, the others not at all."""
AGAIN = [scenes.pose(yaw + 0.15, (0.15, -0.1, 0.1), 0.05) for yaw in YAWS]
OTHER_WORLD = np.eye(4)
OTHER_WORLD[:3, :3] = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
OTHER_WORLD[:3, 3] = [310, -120, 55]


@pytest.mark.slow
@pytest.mark.parametrize("T_moved", [np.eye(4), OTHER_WORLD])
def test_the_same_place_is_found_wherever_the_world_is(T_moved):
    found = scores(views(AGAIN, 100, T_moved=T_moved), views(AROUND, T_moved=T_moved))
    np.testing.assert_array_equal(found.argmax(1), np.arange(8))
    assert found.diagonal().min() > 4 * THRESHOLD
    steps = np.abs((np.arange(8)[:, None] - np.arange(8) + 4) % 8 - 4)
    assert found[steps >= 2].max() < THRESHOLD


@pytest.mark.slow
def test_another_place_of_the_same_shape_is_not_found():
    assert scores(views(AGAIN, 100, T_moved=OTHER_WORLD), views(AROUND)).max() < THRESHOLD


def test_a_covered_lens_resembles_nothing():
    dark = views(AROUND, 100, bright=False)
    assert scores(dark, views(AROUND)).max() < THRESHOLD
    # Nor another frame with a covered lens.
    assert scores(dark, views(AROUND, 200, bright=False)).max() < THRESHOLD


@pytest.mark.slow
def test_what_has_no_depth_is_a_feature_of_no_place():
    frames = [scenes.frame(i, np.eye(4)) for i in (0, 1)]
    frames = [f.replace(depth=f.depth.at[:, 48:80].set(0.0)) for f in frames]
    one, two = np.stack([EXACT.encode(f).features for f in frames]).reshape(2, 12, 16, -1)
    cosine = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
    # Patches of 8 pixels that see are the same; of two random vectors of 64 numbers, 1 / 8.
    np.testing.assert_allclose(np.delete(cosine, np.s_[6:10], axis=1), 1.0, atol=1e-5)
    assert np.abs(cosine[:, 6:10]).max() < 0.7


def test_a_frame_of_unknown_pose_has_features_of_no_place():
    covered = scenes.frame(0, np.eye(4), bright=False)
    unknown = scenes.frame(0, np.eye(4)).replace(T_WC=jnp.full((4, 4), jnp.nan))
    features = EXACT.encode(unknown).features
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features, EXACT.encode(covered).features)


def test_the_codebook_may_be_made_inside_a_trace():
    place_retrieval.cache_clear()
    traced = jax.jit(lambda: EXACT.retrieval.centroids.sum())()
    assert EXACT.retrieval is EXACT.retrieval
    np.testing.assert_allclose(np.asarray(EXACT.retrieval.centroids).sum(), traced, atol=0.05)
