"""Truth and measures against scenes and errors in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from experiments.quality.measures import (
    FIGURES,
    patch_descriptors,
    point_errors,
    pose_errors,
    share_close,
    similar_share,
    summarize,
)
from experiments.quality.truth import (
    FramePair,
    PairChoice,
    choose_pairs,
    mean_pointmaps,
    pairs_of,
    true_geometry,
)
from slam.io.frames import SourceError
from slam.types import Frame

HEIGHT, WIDTH, FOCAL = 24, 32, 30.0
K = np.array([[FOCAL, 0, 15.5], [0, FOCAL + 2, 11.5], [0, 0, 1]], np.float32)
V, U = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
WALL = 3.0
"""Distance of the wall that all cameras look at, at right angles."""
truth_of = jax.jit(true_geometry)


def camera(x: float = 0.0, z: float = 0.0, index: int = 0, **fields) -> Frame:
    """A camera at (x, 0, z) that looks along z at the wall."""
    T_WC = np.eye(4, dtype=np.float32)
    T_WC[[0, 2], 3] = x, z
    values = {
        "image": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        "depth": np.full((HEIGHT, WIDTH), WALL - z, np.float32),
        "T_WC": T_WC,
        "K": K,
    } | fields
    return Frame(index=np.array(index, np.int32), timestamp=np.zeros((), np.float32), **values)


def test_a_wall_is_seen_where_it_should_be():
    truth = truth_of(FramePair(camera(0.2, 0.5), camera(-0.1, 0.0)))
    x, y = (U - 15.5) / FOCAL * WALL, (V - 11.5) / (FOCAL + 2) * WALL
    own = np.stack([x, y, np.full_like(x, WALL)], axis=-1)
    np.testing.assert_allclose(truth.own_2, own, atol=1e-5)
    points = own + np.array([-0.3, 0, -0.5])
    np.testing.assert_allclose(truth.points_2, points, atol=1e-5)
    target = np.stack(
        [
            15.5 + FOCAL * points[..., 0] / points[..., 2],
            11.5 + (FOCAL + 2) * points[..., 1] / points[..., 2],
        ],
        axis=-1,
    )
    inside = (np.abs(target - [15.5, 11.5]) < [WIDTH / 2, HEIGHT / 2]).all(-1)
    np.testing.assert_array_equal(truth.seen, inside)
    np.testing.assert_allclose(np.asarray(truth.target)[inside], target[inside], atol=1e-3)
    assert float(truth.overlap) == pytest.approx(inside.mean())
    assert float(share_close(jnp.asarray(target, jnp.float32), truth)) == 1.0
    half = np.where(U[..., None] < 16, target, target + np.array([2.1, 0]))
    expected = (inside & (U < 16)).sum() / inside.sum()
    assert float(share_close(jnp.asarray(half, jnp.float32), truth)) == pytest.approx(expected)


def test_what_is_hidden_or_unknown_is_not_seen():
    near = np.full((HEIGHT, WIDTH), WALL, np.float32)
    near[:, 20:] = 1.0  # a board before the right of camera 1
    near[:4] = 0.0
    behind = np.full((HEIGHT, WIDTH), WALL, np.float32)
    behind[:, :2] = 0.0
    truth = truth_of(FramePair(camera(depth=near), camera(depth=behind)))
    expected = (U < 20) & (V >= 4) & (U >= 2)
    np.testing.assert_array_equal(truth.seen, expected)
    np.testing.assert_array_equal(truth.valid_1, near > 0)
    assert float(truth.overlap) == pytest.approx(expected.sum() / (U >= 2).sum())


def test_errors_of_points_are_relative_and_free_of_scale():
    truth = truth_of(FramePair(camera(0.2), camera(-0.1)))
    one, two = truth.points_1, truth.points_2
    errors = jax.jit(point_errors)
    np.testing.assert_allclose(errors(7 * one, 7 * two, truth), 0, atol=1e-6)
    # View 2 too far by a fifth: with s the new mean distance in units of the true one.
    lengths = [np.linalg.norm(np.asarray(x, np.float64), axis=-1) for x in (one, two)]
    s = (lengths[0].sum() + 1.2 * lengths[1].sum()) / (lengths[0].sum() + lengths[1].sum())
    expected = (1 - 1 / s, 1.2 / s - 1)
    np.testing.assert_allclose(errors(one, 1.2 * two, truth), expected, atol=1e-5)
    # What is not known does not count.
    hole = truth.replace(valid_1=truth.valid_1.at[:, :20].set(False))
    spoilt = one.at[:, :20].set(jnp.nan)
    np.testing.assert_allclose(errors(spoilt, two, hole), 0, atol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 0.01, 3.0, 90.0, 179.0])
def test_errors_of_poses_are_angles(degrees):
    rng = np.random.default_rng(0)
    true, axis = Rotation.random(random_state=1), rng.standard_normal(3)
    error = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
    t_12 = rng.standard_normal(3)
    T_12 = np.eye(4, dtype=np.float32)
    T_12[:3, :3], T_12[:3, 3] = true.as_matrix(), t_12
    truth = truth_of(FramePair(camera(), camera())).replace(T_12=jnp.asarray(T_12))
    R_21 = (error * true.inv()).as_matrix()
    t_21 = -true.inv().as_matrix() @ t_12
    turned = Rotation.from_rotvec(
        np.deg2rad(degrees)
        * np.cross(t_21, [0, 0, 1.0])
        / np.linalg.norm(np.cross(t_21, [0, 0, 1.0]))
    ).apply(5 * t_21)
    found = pose_errors(jnp.asarray(R_21, jnp.float32), jnp.asarray(turned, jnp.float32), truth)
    np.testing.assert_allclose(found, degrees, atol=1e-3 if degrees < 10 else 1e-2)
    still = truth.replace(T_12=truth.T_12.at[:3, 3].set(0.001))
    assert np.isnan(pose_errors(jnp.asarray(R_21, jnp.float32), jnp.ones(3), still)[1])


def test_patches_and_descriptors_find_what_moved():
    """Two cuts of one picture, 3 pixels apart; the wall moves by as many."""
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + 3, 3), np.uint8)
    frames = camera(0.0, image=picture[:, :WIDTH]), camera(3 * WALL / FOCAL, image=picture[:, 3:])
    truth = truth_of(FramePair(*frames))
    np.testing.assert_array_equal(truth.seen, U + 3 < WIDTH)
    np.testing.assert_allclose(np.asarray(truth.target)[:, :-3, 0], U[:, :-3] + 3, atol=1e-3)
    one, two = (patch_descriptors(jnp.asarray(f.image)) for f in frames)
    reference = picture[4:11, 5:12].astype(np.float64)
    reference = (reference - reference.mean((0, 1))).reshape(-1)
    np.testing.assert_allclose(one[7, 8], reference / np.linalg.norm(reference), atol=1e-5)
    share = jax.jit(similar_share)
    assert float(share(one, two, truth, jax.random.key(0))) > 0.95  # but for the borders
    assert float(share(one, one, truth, jax.random.key(0))) < 0.05  # finds the same pixel
    flat = patch_descriptors(jnp.zeros((HEIGHT, WIDTH, 3), jnp.uint8))
    assert np.isfinite(flat).all()


def test_mean_pointmaps_are_means_in_units_of_the_mean_distance():
    cameras = [camera(0.0), camera(0.3, 0.2), camera(-0.2, 0.5)]
    pairs = FramePair(
        *(jax.tree.map(lambda *x: np.stack(x), *cs) for cs in (cameras, cameras[::-1]))
    )
    expected = []
    for view in range(2):
        total = 0
        for n in range(3):
            truth = truth_of(FramePair(cameras[n], cameras[2 - n]))
            both = [np.asarray(x, np.float64) for x in (truth.points_1, truth.points_2)]
            total = total + both[view] / np.mean([np.linalg.norm(x, axis=-1) for x in both])
        expected.append(total / 3)
    for found, mean in zip(mean_pointmaps(pairs), expected, strict=True):
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-5)


def test_pairs_have_the_overlap_that_was_asked_for():
    """Beside a wall, each step of a tenth of the view takes a tenth of the overlap."""
    step = 0.1 * WIDTH * WALL / FOCAL
    frames = [camera(step * n, index=n) for n in range(12)]
    choice = PairChoice(starts=2, overlaps=(0.8, 0.5), reach=8)
    pairs = choose_pairs(frames, choice, "walk")
    assert pairs_of(pairs).tolist() == [[0, 2], [5, 0], [3, 5], [8, 3]]
    # Frames without a pose take no part.
    lost = [
        f.replace(T_WC=np.full((4, 4), np.nan, np.float32)) if f.index == 2 else f for f in frames
    ]
    assert 2 not in pairs_of(choose_pairs(lost, choice, "walk"))
    with pytest.raises(SourceError, match="walk: has 8 frames, 9 are needed"):
        choose_pairs(frames[:8], choice, "walk")
    with pytest.raises(SourceError, match="walk: has no depth, no K; a prior is judged on"):
        choose_pairs([frames[0].replace(depth=None, K=None)], choice, "walk")


def test_summaries_take_medians_of_errors_and_means_of_shares():
    columns = {name: np.array([1.0, 5.0, np.inf, np.nan]) for name in FIGURES}
    columns["placed"] = np.array([1.0, 1.0, 0.0, 0.0])
    columns["matches"] = np.array([0.2, 0.4, np.nan, np.nan])
    columns["descriptors"] = np.full(4, np.nan)
    columns["scale"] = np.array([1.0, np.inf, np.inf, np.nan])
    found = summarize(columns)
    assert found["points_1"] == found["rotation"] == 5.0 and found["placed"] == 0.5
    assert found["matches"] == pytest.approx(0.3) and found["descriptors"] is None
    assert found["scale"] == np.inf
