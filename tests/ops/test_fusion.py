"""Fusion modes against the original, and the three of its defects that are mended."""

import jax.numpy as jnp
import numpy as np
import pytest

from ops.fusion import FUSION_MODES, average_confidence, fuse, init_fused

AT_THE_WRAP = 2  # the stored cloud's first points straddle azimuth pi


def sequence(data: dict[str, np.ndarray], mode: str, score: str = "median"):
    """The fused pointmap after the first and each later prediction."""
    X, C = jnp.asarray(data["X"]), jnp.asarray(data["C"])
    states = [init_fused(X[0], C[0], score=score)]
    for points, confidence in zip(X[1:], C[1:], strict=True):
        states.append(fuse(mode, states[-1], points, confidence, score=score))
    return states


# Averages: a few roundings of float32 relative to the points' size (about 5); everything else
# copies its input and is exact.
@pytest.mark.parametrize(
    ("name", "mode", "score", "rtol"),
    [
        ("weighted_pointmap", "weighted_pointmap", "median", 1e-6),
        ("weighted_spherical", "weighted_spherical", "median", 2e-6),
        ("indep_conf", "indep_conf", "median", 0),
        ("best_score", "best_score", "median", 0),
        ("best_score_mean", "best_score", "mean", 0),
        ("recent", "recent", "median", 0),
    ],
)
def test_modes_match_the_original(golden, name, mode, score, rtol):
    data = golden("slam/fusion")
    keep = slice(AT_THE_WRAP, None) if mode == "weighted_spherical" else slice(None)
    for k, fused in enumerate(sequence(data, mode, score)):
        size = np.abs(data["X"]).max()
        np.testing.assert_allclose(
            fused.points[keep], data[f"{name}_X"][k, keep], rtol=0, atol=rtol * size
        )
        np.testing.assert_allclose(fused.confidence, data[f"{name}_C"][k], rtol=rtol)
        np.testing.assert_allclose(average_confidence(fused), data[f"{name}_avgC"][k], rtol=rtol)
        assert int(fused.count) == data[f"{name}_N"][k]
        assert int(fused.updates) == data[f"{name}_N_updates"][k]


def test_first_keeps_the_first(golden):
    """Mended: the original's mode ``first`` keeps the second prediction."""
    data = golden("slam/fusion")
    assert not np.array_equal(data["first_X"][1], data["X"][0])
    for k, fused in enumerate(sequence(data, "first")):
        np.testing.assert_array_equal(fused.points, data["X"][0])
        np.testing.assert_array_equal(fused.confidence, data["C"][0])
        assert (int(fused.count), int(fused.updates)) == (1, k + 1)


def test_best_score_works_on_a_stored_keyframe(golden):
    """Mended: the original loses the score with the keyframe's first object, and crashes.

    Here it is a leaf of the record: what was stored as arrays continues where it stopped.
    """
    data = golden("slam/fusion")
    X, C = jnp.asarray(data["X"]), jnp.asarray(data["C"])
    stored = init_fused(X[0], C[0])
    restored = type(stored)(**{k: jnp.asarray(np.asarray(v)) for k, v in vars(stored).items()})
    assert float(restored.score) == np.median(data["C"][0])
    fused = fuse("best_score", restored, X[2], C[2])  # 3.88 beats 2.94
    np.testing.assert_array_equal(fused.points, X[2])
    assert float(fused.score) == np.median(data["C"][2])


def test_spherical_average_goes_the_short_way_round(golden):
    """Mended: the original averages azimuths of pi - a and a - pi to 0, to the other side."""
    data = golden("slam/fusion")
    X, C = data["X"].astype(np.float64), data["C"].astype(np.float64)
    direction, weight = np.zeros((AT_THE_WRAP, 2)), np.zeros(AT_THE_WRAP)
    for k, fused in enumerate(sequence(data, "weighted_spherical")):
        xy = X[k, :AT_THE_WRAP, :2]
        weight += C[k, :AT_THE_WRAP]
        # azimuth measured from the negative x axis does not wrap there: average that
        share = C[k, :AT_THE_WRAP] / weight
        angle = np.arctan2(-xy[:, 1], -xy[:, 0])
        direction[:, 0] += share * (angle - direction[:, 0])
        azimuth = np.arctan2(*-np.asarray(fused.points[:AT_THE_WRAP], np.float64)[:, 1::-1].T)
        np.testing.assert_allclose(azimuth, direction[:, 0], rtol=0, atol=1e-6)
        radius = np.linalg.norm(fused.points[:AT_THE_WRAP], axis=-1)
        np.testing.assert_allclose(radius, np.linalg.norm(X[0, :AT_THE_WRAP], axis=-1), rtol=2e-6)


def test_spherical_average_of_points_on_the_optical_axis_is_finite():
    points = jnp.asarray([[0, 0, 2], [0, 0, -2], [0, 0, 0]], jnp.float32)
    fused = fuse("weighted_spherical", init_fused(points, jnp.ones(3)), points, jnp.ones(3))
    np.testing.assert_allclose(fused.points, points, atol=1e-6)


def test_even_median_is_the_lower_one():
    fused = init_fused(jnp.zeros((4, 3)), jnp.asarray([4.0, 1.0, 2.0, 3.0]))
    assert float(fused.score) == 2.0


def test_unknown_names_are_refused():
    fused = init_fused(jnp.zeros((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"weighted_pointmap.*first"):
        fuse("weighted_pointmaps", fused, jnp.zeros((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match="'median' or 'mean'"):
        init_fused(jnp.zeros((2, 3)), jnp.ones(2), score="mode")
    assert len(FUSION_MODES) == 6
