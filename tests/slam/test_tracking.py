"""Tracking against the original's own numbers, stage by stage from its stored inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import FusedPointmap, Matches, SolverStatus, lie_convert
from slam.config import TrackingConfig
from slam.frontend import View
from slam.tracking import fuse_keyframe, grade, is_lost, needs_keyframe, solve_pose

CASES = ("small", "med", "initidx", "large")
MODES = ("rays", "calib")
# Float32 against float64 in the original itself: <= 3.1e-5 in rays, <= 2e-6 with calibration. Two
# float32 programs may sit on opposite sides of the float64 answer.
POSE_TOLERANCE = {"rays": 2 * 3.1e-5, "calib": 2 * 2e-6}


def views_of(case):
    height, width = (int(x) for x in case["hw"])

    def view(points, confidence, quality):
        return View(
            points=jnp.asarray(points).reshape(height, width, 3),
            confidence=jnp.asarray(confidence).reshape(height, width),
            descriptors=jnp.zeros((height, width, 24)),
            descriptor_confidence=jnp.asarray(quality).reshape(height, width),
            usable=jnp.ones((height, width), bool),
        )

    return view(case["Xff"], case["Cff"], case["Qff"]), view(case["Xkf"], case["Ckf"], case["Qkf"])


def keyframe_of(case):
    return FusedPointmap(
        points=jnp.asarray(case["kf_X"]).reshape(-1, 3),
        confidence=jnp.asarray(case["kf_C"]).reshape(-1),
        count=jnp.int32(case["kf_N"]),
        updates=jnp.int32(case["kf_N"]),
        score=jnp.float32(0),
    )


@pytest.fixture(scope="module")
def placed():
    """One compiled program per mode, shared by the cases."""

    def place(config, views, keyframe, matches, T_kf, K):
        view_f, view_k = views
        found = grade(config, matches, view_f, view_k, keyframe)
        solution = solve_pose(config, view_f, keyframe, found, T_kf, K)
        fused = fuse_keyframe(config, keyframe, view_k, solution.T_kf)
        return (
            found,
            solution,
            fused,
            is_lost(config, found, solution),
            needs_keyframe(config, found),
        )

    return jax.jit(place, static_argnums=0)


def run_case(placed, case, mode):
    matches = Matches(
        index=jnp.asarray(case["idx_f2k"], jnp.int32).reshape(-1),
        valid=jnp.asarray(case["valid_match_k"], bool).reshape(-1),
        uv=jnp.zeros((case["idx_f2k"].size, 2)),
    )
    T_WCk = lie_convert.from_lietorch(jnp.asarray(case["T_WCk"]).reshape(8))
    T_WCf = lie_convert.from_lietorch(jnp.asarray(case["T_WCf_init"]).reshape(8))
    K = jnp.asarray(case["K"], jnp.float32) if mode == "calib" else None
    T_kf = T_WCk.inverse() @ T_WCf
    result = placed(TrackingConfig(), views_of(case), keyframe_of(case), matches, T_kf, K)
    return T_WCk, result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_tracking_golden(golden, placed, name, mode):
    case = golden(f"slam/track_{name}_{mode}")
    T_WCk, (found, solution, fused, lost, new_keyframe) = run_case(placed, case, mode)

    np.testing.assert_allclose(found.quality, case["Qk"].reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(found.match_fraction, case["match_frac_k"], atol=1e-6)
    np.testing.assert_allclose(found.unique_fraction, case["unique_frac_f"], atol=1e-6)
    assert not bool(lost)
    assert bool(new_keyframe) == bool(case["new_kf"])
    assert int(solution.iterations) == len(case["costs"])
    assert int(solution.status) in (SolverStatus.CONVERGED_COST, SolverStatus.CONVERGED_STEP)
    T_WCf = lie_convert.to_lietorch(T_WCk @ solution.T_kf)
    np.testing.assert_allclose(T_WCf, case["T_WCf"].reshape(8), atol=POSE_TOLERANCE[mode])
    # Points lie within 5 m: a pose off by the tolerance moves them by at most six times as much.
    atol = 6 * POSE_TOLERANCE[mode]
    np.testing.assert_allclose(fused.points, case["kf_X_after"].reshape(-1, 3), atol=atol)
    np.testing.assert_allclose(fused.confidence, case["kf_C_after"].reshape(-1), rtol=1e-6)
    assert int(fused.count) == int(case["kf_N_after"])


@pytest.mark.parametrize("mode", MODES)
def test_a_frame_without_matches_is_lost(golden, placed, mode):
    case = golden(f"slam/track_reloc_{mode}")
    assert bool(case["try_reloc"])
    _, (found, _, _, lost, _) = run_case(placed, case, mode)
    assert bool(lost)
    np.testing.assert_allclose(found.match_fraction, case["match_frac_k"], atol=1e-6)
