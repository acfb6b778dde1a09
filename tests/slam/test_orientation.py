"""Up, found from the way people hold cameras."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam.orientation import estimate_up, levelling_rotation
from tests.slam import rim

UP = np.array([0.0, -1.0, 0.0])
"""Of the levelled world in which the walks below are made: y is down."""


def walk(yaw, pitch, roll, world: Rotation) -> np.ndarray:
    """Poses of cameras turned by degrees of yaw, then pitch (downward positive), then roll."""
    angles = np.stack(np.broadcast_arrays(yaw, -np.asarray(pitch), roll), axis=-1)
    T_WC = np.tile(np.eye(4), (len(angles), 1, 1))
    T_WC[:, :3, :3] = (world * Rotation.from_euler("YXZ", angles, degrees=True)).as_matrix()
    T_WC[:, :3, 3] = np.random.default_rng(0).normal(size=(len(angles), 3))
    return T_WC


def degrees_between(a, b) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("seed", range(5))
def test_up_of_a_level_walk_that_looks_down(seed):
    rng = np.random.default_rng(seed)
    world = Rotation.random(rng=rng)
    yaw, pitch = np.linspace(-20, 60, 50), rng.uniform(10, 50, 50)
    # Without roll the x axes lie in a plane: exact up to rounding.
    # The mean of -y is some 25 degrees off.
    up = estimate_up(walk(yaw, pitch, 0.0, world))
    assert degrees_between(up, world.apply(UP)) < 1e-3
    assert np.linalg.norm(up) == pytest.approx(1.0)
    # A degree of roll by hand in each of 50 poses leaves a fraction of a degree.
    shaken = estimate_up(walk(yaw, pitch, rng.normal(size=50), world))
    assert degrees_between(shaken, world.apply(UP)) < 1.0


@pytest.mark.parametrize("roll", [0.0, 2.0])
def test_cameras_that_do_not_turn_say_up_themselves(roll):
    """Their x axes leave up open: it is their own -y, for lack of anything better."""
    rng = np.random.default_rng(0)
    world = Rotation.random(rng=rng)
    poses = walk(rng.normal(0, 0.5, 200), 0.0, rng.normal(0, roll, 200), world)
    # The mean of 200 rolls of 2 degrees is off by 0.14 degrees.
    assert degrees_between(estimate_up(poses), world.apply(UP)) < 0.5
    still = walk(np.zeros(1), 25.0, 0.0, world)
    np.testing.assert_allclose(estimate_up(still), -still[0, :3, 1], atol=1e-12)


def test_no_pose_is_the_camera_convention():
    np.testing.assert_array_equal(estimate_up(np.empty((0, 4, 4))), UP)
    np.testing.assert_array_equal(levelling_rotation(np.empty((0, 4, 4))), np.eye(3))


@pytest.mark.parametrize("roll", [0.0, 90.0])
def test_levelled_axes_are_right_down_and_ahead(roll):
    world = Rotation.random(rng=np.random.default_rng(1))
    # From the first camera's heading half a turn to its right; all look down by 40 degrees.
    poses = walk(np.linspace(0, 180, 60), 40.0, 0.0, world)
    first = walk(np.zeros(1), 40.0, roll, world)
    R = levelling_rotation(np.concatenate([first, poses]))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1.0)
    # One camera of 61 with a roll of 90 degrees tilts the plane of all by at most about
    # (1/61 * sin 80 / 2) / (1/2 - 1/61) = 0.017, where 1/2 are the moments of half a turn.
    expected = world.inv().as_matrix()
    np.testing.assert_allclose(R, expected, atol=1e-9 if roll == 0 else 0.03)


def test_up_of_a_reconstructed_room():
    """The estimated trajectory knows up about as well as the true one, which is level in z."""
    result = rim.result()
    truth = np.stack([frame.T_WC for frame in rim.walk()])
    assert degrees_between(estimate_up(truth), np.array([0.0, 0.0, 1.0])) < 3.0
    T_WC = result.trajectory().T_WC
    to_truth = truth[0, :3, :3] @ T_WC[0, :3, :3].T
    assert degrees_between(to_truth @ estimate_up(T_WC), estimate_up(truth)) < 1.0
