"""Procedural pairs against the independent ray caster of the tests, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.pairs import PairConfig, procedural_pairs, random_scenes
from tests.quick import quick_jit
from tests.slam.world import ray_caster

# Tiny images, and enough pairs to speak of most of them.
CONFIG = PairConfig(size=(32, 24), pairs=8, correspondences=160)
HEIGHT, WIDTH = 24, 32


@pytest.fixture(scope="module")
def drawn():
    """``drawn(seeds, motion)``: scenes and pairs of three keys, from one compiled scan."""

    @quick_jit
    def program(keys, motion):
        def one(_, key):
            scenes = random_scenes(key, CONFIG, motion)
            return None, (scenes, procedural_pairs(key, CONFIG, motion))

        return jax.lax.scan(one, None, keys)[1]

    @functools.cache
    def draw(seeds, motion):
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        result = program(keys, jnp.float32(motion))
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), result)

    return draw


SEEDS = (0, 1, 2)


def each(drawn):
    """Every pair drawn at full motion: scene and batch without their leading axis."""
    for b in range(len(SEEDS) * CONFIG.pairs):
        yield jax.tree.map(lambda x, b=b: x[b], drawn(SEEDS, 1.0))


def cast(scene, view, pixels):
    """Points in the room that the pixels of a view see, [n, 3], and depths, by the ray caster."""
    T_WC, K = scene.T_WC[view].astype(np.float64), scene.K[view].astype(np.float64)
    rays = np.linalg.solve(K, np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1).T).T
    depth, ids = ray_caster.cast(scene.room, T_WC[:3, 3], rays @ T_WC[:3, :3].T)
    return T_WC[:3, 3] + depth[:, None] * rays @ T_WC[:3, :3].T, depth, ids


def in_camera(T_WC, points):
    return (points - T_WC[:3, 3].astype(np.float64)) @ T_WC[:3, :3].astype(np.float64)


def project(scene, view, points_W):
    """Pixel and depth of points in the room."""
    points = in_camera(scene.T_WC[view], points_W)
    uv = points @ scene.K[view].astype(np.float64).T
    return uv[:, :2] / uv[:, 2:], points[:, 2]


def hidden(scene, view, points_W):
    """Whether something stands before points, by more than a hundredth of their distance."""
    origin = scene.T_WC[view, :3, 3].astype(np.float64)
    first, _ = ray_caster.cast(scene.room, origin, points_W - origin)
    return first < 0.99


def all_pixels():
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float64)


@pytest.mark.slow
def test_points_are_those_of_the_ray_caster_in_view_1s_camera(drawn):
    for scene, pair in each(drawn):
        for view, points in ((0, pair.points_1), (1, pair.points_2)):
            expected = in_camera(scene.T_WC[0], cast(scene, view, all_pixels())[0])
            error = np.linalg.norm(points.reshape(-1, 3) - expected, axis=1)
            # At a silhouette float32 may see the other surface.
            assert np.mean(error < 1e-4) > 0.99
        assert pair.valid_1.all() and pair.valid_2.all()


@pytest.mark.slow
def test_relative_pose_is_rigid_and_that_of_the_cameras(drawn):
    for scene, pair in each(drawn):
        T_1, T_2 = scene.T_WC.astype(np.float64)
        np.testing.assert_allclose(pair.T_12, np.linalg.inv(T_1) @ T_2, atol=5e-6)
        R = pair.T_12[:3, :3].astype(np.float64)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(R) > 0


def test_matched_pixels_see_one_surface_point_within_a_pixel(drawn):
    apart, same = [], []
    for scene, pair in each(drawn):
        pixels_1, pixels_2 = (
            p[pair.matched].astype(np.float64) for p in (pair.pixels_1, pair.pixels_2)
        )
        points_1, depth_1, ids_1 = cast(scene, 0, pixels_1)
        points_2, depth_2, ids_2 = cast(scene, 1, pixels_2)
        # As either camera sees it, the other's point lies in the pixel.
        for view, points, pixels in ((0, points_2, pixels_1), (1, points_1, pixels_2)):
            uv, z = project(scene, view, points)
            assert (z > 0).all()
            assert np.quantile(np.abs(uv - pixels).max(axis=1), 0.995) < 0.501
        width = np.maximum(depth_1 / scene.K[0, 0, 0], depth_2 / scene.K[1, 0, 0])
        apart.append(np.linalg.norm(points_1 - points_2, axis=1) / width)
        same.append(ids_1 == ids_2)
        assert hidden(scene, 0, points_2).mean() < 0.03
    apart, same = np.concatenate(apart), np.concatenate(same)
    # Slanted surfaces are longer in a pixel than it is wide.
    assert np.median(apart) < 0.6 and np.quantile(apart, 0.95) < 1.2 and apart.max() < 5.0
    assert same.mean() > 0.97
    assert len(apart) > 1000


def test_no_pixel_occurs_twice_and_the_asked_share_is_unmatched(drawn):
    most = CONFIG.correspondences - round(CONFIG.unmatched * CONFIG.correspondences)
    for _, pair in each(drawn):
        for pixels in (pair.pixels_1, pair.pixels_2):
            assert (pixels >= 0).all() and (pixels < [WIDTH, HEIGHT]).all()
            assert len(np.unique(pixels, axis=0)) == CONFIG.correspondences
        assert 0 < pair.matched.sum() <= most
    counts = [pair.matched.sum() for _, pair in each(drawn)]
    assert np.median(counts) == most


def test_overlap_is_in_the_range_and_spread_over_it(drawn):
    shares = []
    for scene, _ in each(drawn):
        points = cast(scene, 1, all_pixels())[0]
        uv, z = project(scene, 0, points)
        seen = (
            (z > 0) & (uv > -0.5).all(axis=1) & (uv < np.array([WIDTH, HEIGHT]) - 0.5).all(axis=1)
        )
        shares.append(np.mean(seen & ~hidden(scene, 0, points)))
    low, high = CONFIG.overlap
    # The estimate that decides is good to a few hundredths.
    shares = np.array(shares)
    assert np.mean((shares > low - 0.05) & (shares <= high)) > 0.85
    assert np.ptp(shares) > 0.5 * (high - low)


def test_images_span_the_networks_range_and_show_something(drawn):
    for _, pair in each(drawn):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pair))
        for image in (pair.images_1, pair.images_2):
            assert image.min() >= -1 and image.max() <= 1
            assert image.std() > 0.02


def test_the_key_decides_alone(drawn):
    again = drawn((2, 3, 0), 1.0)[1]
    first = drawn(SEEDS, 1.0)[1]
    n = CONFIG.pairs
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(mine[:n], theirs[2 * n :])
        np.testing.assert_array_equal(mine[2 * n :], theirs[:n])
    images = np.concatenate([first.images_1, again.images_1[n : 2 * n]])
    for i in range(len(images)):
        others = np.abs(np.delete(images, i, axis=0) - images[i]).mean(axis=(1, 2, 3))
        assert others.min() > 0.05


def test_motion_scales_what_tells_the_views_apart(drawn):
    still, pairs = drawn(SEEDS, 0.0)
    np.testing.assert_array_equal(pairs.T_12, np.broadcast_to(np.eye(4), pairs.T_12.shape))
    np.testing.assert_array_equal(still.K[:, 0], still.K[:, 1])
    np.testing.assert_array_equal(pairs.points_1, pairs.points_2)
    np.testing.assert_array_equal(pairs.pixels_1[pairs.matched], pairs.pixels_2[pairs.matched])
    scenes, pairs = drawn(SEEDS, 1e-3)
    assert np.linalg.norm(pairs.T_12[:, :3, 3], axis=1).max() < 1e-3 * np.linalg.norm(
        [1.6, 1.6, 0.5]
    )
    # The turn towards what lies a metre ahead comes on top of the rotation's own range.
    assert np.abs(pairs.T_12[:, :3, :3] - np.eye(3)).max() < 1e-3 * (np.pi / 2 + 3)
    np.testing.assert_allclose(scenes.K[:, 1], scenes.K[:, 0], rtol=1e-3)
    far = drawn(SEEDS, 1.0)[1].T_12
    assert np.median(np.linalg.norm(far[:, :3, 3], axis=1)) > 0.2


def test_cameras_stay_in_the_free_region(drawn):
    for scene, _ in each(drawn):
        position = scene.T_WC[:, :3, 3].astype(np.float64)
        assert ray_caster.clearance(scene.room, position).min() > 0.05


def test_traces_under_vmap_as_the_trainer_uses_it():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5))
    pairs = jax.eval_shape(jax.vmap(lambda key: procedural_pairs(key, CONFIG)), keys)
    assert pairs.images_1.shape == (5, CONFIG.pairs, HEIGHT, WIDTH, 3)
    assert pairs.matched.shape == (5, CONFIG.pairs, CONFIG.correspondences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 0}, "pairs=0 must be at least 1"),
        ({"correspondences": 769, "size": (32, 24)}, "correspondences=769 .* 768 pixels .* 32x24"),
        ({"overlap": (0.5, 0.2)}, r"overlap=\(0.5, 0.2\) must be a range within 0 and 1"),
        ({"field_of_view": (60.0, 180.0)}, "field_of_view=.* must be a range within 0 and 180"),
        ({"zoom": 0.5}, "zoom=0.5 must be at least 1"),
    ],
)
def test_config_refuses_what_has_no_meaning(change, message):
    with pytest.raises(ValueError, match=message):
        PairConfig(**change)
