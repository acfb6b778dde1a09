"""Alignment and trajectory error against closed forms, scipy and a numerical optimum."""

import json

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from slam.evaluation import align_sim3, associate, ate, ate_rmse, evaluate


def walk(count: int = 40, seed: int = 0) -> np.ndarray:
    """A path with extent in all three directions."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(count, 3)), axis=0) * 0.1


def saddle(e: float) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a square, and the same bent up and down by ``e`` in turn.

    The bends correlate with no direction of the square, so no rotation or shift helps.
    """
    square = np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], np.float64)
    bent = square.copy()
    bent[:, 2] = [e, -e, e, -e]
    return bent, square


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.01, 1.0, 37.0])
def test_known_similarity_is_recovered(seed, scale):
    R = Rotation.random(rng=seed).as_matrix()
    t = np.array([3.0, -20.0, 0.5])
    estimate = walk(seed=seed)
    got = align_sim3(estimate, scale * estimate @ R.T + t)
    assert got.scale == pytest.approx(scale, rel=1e-12)
    np.testing.assert_allclose(got.rotation, R, atol=1e-12)
    np.testing.assert_allclose(got.translation, t, atol=1e-11)
    s, rotation, translation = got  # unpacks
    np.testing.assert_allclose(
        got.apply(estimate), s * estimate @ rotation.T + translation, atol=1e-13
    )


def test_rigid_alignment_agrees_with_scipy():
    estimate, reference = walk(seed=1), 2.0 * walk(seed=1) + 0.3 * walk(seed=2)
    got = align_sim3(estimate, reference, with_scale=False)
    centred = estimate - estimate.mean(0), reference - reference.mean(0)
    expected, distance = Rotation.align_vectors(centred[1], centred[0])
    assert got.scale == 1.0
    np.testing.assert_allclose(got.rotation, expected.as_matrix(), atol=1e-12)
    rmse = ate_rmse(estimate, reference, with_scale=False)
    assert rmse == pytest.approx(distance / np.sqrt(len(estimate)), rel=1e-10)


@pytest.mark.parametrize("with_scale", [True, False])
def test_no_numerical_optimum_is_better(with_scale):
    estimate, reference = walk(seed=3), 0.7 * walk(seed=3)[:, [1, 2, 0]] + 0.2 * walk(seed=4)

    def residuals(x):
        scale = np.exp(x[6]) if with_scale else 1.0
        moved = scale * Rotation.from_rotvec(x[:3]).apply(estimate) + x[3:6]
        return (moved - reference).ravel()

    # A third of a turn about (1, 1, 1) undoes the permutation: start near it.
    start = np.concatenate([-2 * np.pi / 3 / np.sqrt(3) * np.ones(3), np.zeros(4)])
    best = min(
        least_squares(residuals, start * sign, xtol=1e-12, ftol=1e-12).cost for sign in (1, -1)
    )
    rmse = ate_rmse(estimate, reference, with_scale)
    # The optimiser stops within 1e-12 relative of its minimum; Umeyama's must not be above it.
    assert rmse == pytest.approx(np.sqrt(2 * best / len(estimate)), rel=1e-8)


def test_a_mirror_image_is_not_matched_by_a_reflection():
    estimate = walk(seed=5)
    mirrored = estimate * [1, 1, -1]
    got = align_sim3(estimate, mirrored)
    assert np.linalg.det(got.rotation) == pytest.approx(1.0, abs=1e-12)
    expected, _ = Rotation.align_vectors(mirrored - mirrored.mean(0), estimate - estimate.mean(0))
    np.testing.assert_allclose(got.rotation, expected.as_matrix(), atol=1e-10)
    assert ate_rmse(estimate, mirrored) > 0.01


@pytest.mark.parametrize("e", [0.1, 0.5])
def test_statistics_in_closed_form(e):
    bent, square = saddle(e)
    rigid = ate(bent, square, with_scale=False)
    assert [rigid.rmse, rigid.mean, rigid.median, rigid.max] == pytest.approx([e] * 4, rel=1e-12)
    assert rigid.scale == 1.0 and rigid.num_poses == 4
    assert rigid.path_length == pytest.approx(6.0)  # three sides
    assert rigid.percent_of_path == pytest.approx(100 * e / 6)
    # Umeyama: scale = tr(DS) / var(estimate), rmse^2 = var(reference) - tr(DS)^2 / var(estimate).
    similar = ate(bent, square)
    assert similar.scale == pytest.approx(2 / (2 + e**2), rel=1e-12)
    assert similar.rmse == pytest.approx(np.sqrt(2 * e**2 / (2 + e**2)), rel=1e-12)


def test_mean_median_and_maximum_differ_where_they_should():
    reference = np.concatenate([walk(200), walk(200)])
    estimate = reference.copy()
    estimate[7, 0] += 1e-3  # one outlier, too small to move the alignment noticeably
    result = ate(estimate, reference, with_scale=False)
    # The shift of the mean is 1e-3 / 400, and the rotation's share is of the same order.
    assert result.max == pytest.approx(1e-3, rel=0.02)
    assert result.rmse == pytest.approx(1e-3 / np.sqrt(400), rel=0.02)
    assert result.median < result.mean < result.rmse < result.max


def test_error_does_not_depend_on_the_estimates_frame():
    estimate, reference = walk(seed=6) + 0.01 * walk(seed=7), walk(seed=6)
    R = Rotation.random(rng=9).as_matrix()
    moved = 5.0 * estimate @ R.T + [1.0, 2.0, 3.0]
    assert ate_rmse(moved, reference) == pytest.approx(ate_rmse(estimate, reference), rel=1e-10)
    assert ate_rmse(moved, reference, False) > 1.0  # whereas the scale counts when rigid


def test_unknown_reference_poses_are_left_out():
    estimate, reference = walk(seed=6) + 0.01 * walk(seed=7), walk(seed=6)
    gap = reference.copy()
    gap[[0, 5, 6]] = np.nan
    keep = np.isfinite(gap).all(axis=1)
    got = ate(estimate, gap)
    assert got.num_poses == 37
    assert got == ate(estimate[keep], reference[keep])


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_poses_are_said_to_be_too_few(count, with_scale):
    result = ate(walk(count), walk(count), with_scale)
    assert np.isnan([result.rmse, result.mean, result.median, result.max]).all()
    assert result.num_poses == count
    assert f"only {count} matched poses" in result.note
    assert str(result) == f"ATE undefined: {result.note}"


def test_a_still_reference_does_not_make_a_perfect_score():
    # A similarity could shrink the estimate to the point and report an error of zero.
    estimate, still = walk(), np.ones((40, 3))
    result = ate(estimate, still)
    spread = np.sqrt(np.mean(np.sum((estimate - estimate.mean(0)) ** 2, axis=1)))
    assert result.rmse == pytest.approx(spread) and result.scale == 1.0
    assert np.isnan(result.percent_of_path) and result.path_length == 0
    assert "the reference does not move" in result.note


def test_a_still_estimate_is_scored_by_the_references_spread():
    reference = walk()
    result = ate(np.full((40, 3), 7.0), reference)
    spread = np.sqrt(np.mean(np.sum((reference - reference.mean(0)) ** 2, axis=1)))
    assert result.rmse == pytest.approx(spread)
    assert "the estimate does not move" in result.note


def test_nothing_moves():
    result = ate(np.zeros((5, 3)), np.ones((5, 3)))
    assert result.rmse == 0 and "the estimate and the reference do not move" in result.note


def test_motion_along_a_line_is_scored_and_noted():
    line = np.outer(np.linspace(0, 4, 20), [1.0, 2.0, -1.0])
    result = ate(3.0 * line + 1.0, line)
    assert result.rmse < 1e-12 and result.scale == pytest.approx(1 / 3)
    assert "along a line" in result.note


def test_an_estimate_that_is_not_finite_has_no_error():
    estimate = walk()
    estimate[3] = np.nan
    result = ate(estimate, walk())
    assert np.isnan(result.rmse) and "1 of 40 estimated positions are not finite" in result.note


def test_alignment_itself_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="no poses to align"):
        align_sim3(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="must be finite"):
        align_sim3(np.full((4, 3), np.nan), np.zeros((4, 3)))


def test_single_precision_input_is_computed_in_double():
    reference = walk()
    estimate = (walk() + 100).astype(np.float32)
    # float32 keeps 4e-6 of coordinates near 100.
    assert ate_rmse(estimate, reference) < 1e-5


def test_result_reads_well_and_goes_into_json():
    result = ate(walk(seed=6) + 0.01 * walk(seed=7), walk(seed=6))
    text = str(result)
    assert f"ATE RMSE {result.rmse:.4f} m" in text and "40 poses, Sim(3), scale" in text
    assert json.loads(json.dumps(vars(result)))["rmse"] == result.rmse


def greedy_by_definition(times_1, times_2, limit):
    """All pairs within the limit, closest first, each stamp at most once."""
    pairs = [(abs(a - b), i, j) for i, a in enumerate(times_1) for j, b in enumerate(times_2)]
    got = {}
    for difference, i, j in sorted(pairs):
        if difference <= limit and i not in got and j not in got.values():
            got[i] = j
    return sorted(got.items())


@pytest.mark.parametrize("seed", range(5))
def test_association_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    times_1 = np.sort(rng.uniform(0, 2, 40))
    times_2 = rng.uniform(0, 2, 70)  # in no order
    i, j = associate(times_1, times_2, 0.02)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == greedy_by_definition(
        times_1, times_2, 0.02
    )


def test_association_survives_the_rounding_of_large_stamps():
    i, j = associate(np.array([1305031102.18]), np.array([1305031102.20]), 0.02)
    assert i.tolist() == j.tolist() == [0]
    assert not len(associate(np.array([1.0]), np.array([1.03]), 0.02)[0])
    assert not len(associate(np.zeros(0), np.array([1.0]), 0.02)[0])


def test_evaluation_matches_by_time_and_reports_both_alignments():
    reference = walk(100)
    times = np.arange(100) * 0.01
    R = Rotation.random(rng=1).as_matrix()
    estimate = 0.25 * reference[::5] @ R.T + 4.0
    result = evaluate(times[::5] + 0.004, estimate, times, reference)
    assert result.sim3.rmse < 1e-12 and result.sim3.scale == pytest.approx(4.0)
    assert result.sim3.num_poses == result.se3.num_poses == 20
    # Rigidly, what remains is the missing three quarters of the spread.
    kept = reference[::5]
    spread = np.sqrt(np.mean(np.sum((kept - kept.mean(0)) ** 2, axis=1)))
    assert result.se3.rmse == pytest.approx(0.75 * spread)
