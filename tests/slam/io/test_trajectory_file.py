"""TUM trajectories against scipy's rotations, round trips, and named lines."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam.io.frames import SourceError
from slam.io.trajectory_file import quaternions, read_trajectory, rotations, write_trajectory


def poses(count: int, seed: int = 0) -> np.ndarray:
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, :3, :3] = Rotation.random(count, rng=seed).as_matrix()
    T[:, :3, 3] = np.random.default_rng(seed).normal(size=(count, 3)) * 10
    return T


def half_turns() -> Rotation:
    """Rotations by pi, where w vanishes, about axes with one, two and three components."""
    axes = np.array(
        [
            [1, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
            [1, 1, 0],
            [1, 0, -1],
            [0, 1, 1],
            [1, 2, 3],
            [-3, 1, 1e-4],
        ]
    )
    return Rotation.from_rotvec(np.pi * axes / np.linalg.norm(axes, axis=1, keepdims=True))


@pytest.mark.parametrize(
    "rotation",
    [
        Rotation.random(200, rng=1),
        half_turns(),
        Rotation.from_rotvec(1e-8 * np.eye(3)),
        Rotation.identity(1),
    ],
    ids=["random", "half turns", "tiny", "identity"],
)
def test_conversions_agree_with_scipy(rotation):
    expected = rotation.as_quat()
    expected = np.where(expected[:, 3:] < 0, -expected, expected)
    got = quaternions(rotation.as_matrix())
    # At w = 0 both signs are the same rotation; compare up to sign. float64 throughout.
    agreement = np.abs(np.sum(got * expected, axis=1))
    np.testing.assert_allclose(agreement, 1.0, atol=1e-14, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-15, rtol=0)
    assert (got[:, 3] >= 0).all()
    np.testing.assert_allclose(rotations(got), rotation.as_matrix(), atol=1e-14, rtol=0)
    np.testing.assert_allclose(rotations(2.5 * got), rotation.as_matrix(), atol=1e-14, rtol=0)


def test_round_trip(tmp_path):
    T_WC, times = poses(50), 1305031102.175304 + np.arange(50) / 30
    write_trajectory(tmp_path / "t.txt", times, T_WC)
    back = read_trajectory(tmp_path / "t.txt")
    # Six decimals of a second, nine digits of a pose.
    np.testing.assert_allclose(back.timestamps, times, atol=5.1e-7, rtol=0)
    np.testing.assert_allclose(back.T_WC[:, :3, :3], T_WC[:, :3, :3], atol=5e-9, rtol=0)
    np.testing.assert_allclose(back.positions, T_WC[:, :3, 3], rtol=5e-9, atol=0)
    np.testing.assert_array_equal(back.T_WC[:, 3], np.tile([0, 0, 0, 1], (50, 1)))


def test_columns_are_those_of_the_benchmark(tmp_path):
    T = np.eye(4)[None].copy()
    T[0, :3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    T[0, :3, 3] = 1, -2, 0.5
    write_trajectory(tmp_path / "t.txt", np.array([12.25]), T)
    comment, line = (tmp_path / "t.txt").read_text().splitlines()
    assert comment.startswith("#")
    assert line.split()[0] == "12.250000"
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        [float(x) for x in line.split()[1:]], [1, -2, 0.5, 0, 0, half, half], atol=1e-8
    )


def test_scale_of_a_similarity_is_dropped(tmp_path):
    T = poses(5)
    S = T.copy()
    S[:, :3, :3] *= np.array([0.1, 0.5, 1.0, 2.0, 30.0])[:, None, None]
    write_trajectory(tmp_path / "s.txt", np.arange(5.0), S)
    np.testing.assert_allclose(read_trajectory(tmp_path / "s.txt").T_WC, T, atol=1e-7)


def test_single_precision_poses_are_accepted(tmp_path):
    T = poses(20).astype(np.float32)
    write_trajectory(tmp_path / "t.txt", np.arange(20.0), T)
    # float32 carries 6e-8 of a unit entry and of a position near 20.
    np.testing.assert_allclose(read_trajectory(tmp_path / "t.txt").T_WC, T, atol=2e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda T, t: T.__setitem__((2, 0, 3), np.nan), "a pose or timestamp is not finite"),
        (lambda T, t: t.__setitem__(1, np.inf), "a pose or timestamp is not finite"),
        (lambda T, t: T.__setitem__((3, slice(3), 0), 0.0), "pose 3 is not a rotation times"),
        (lambda T, t: T.__setitem__((1, slice(3), 0), -T[1, :3, 0]), "pose 1 is not a rotation"),
        (lambda T, t: T.__setitem__((4, 0, 0), 9.0), "pose 4 is not a rotation times"),
    ],
)
def test_bad_poses_are_refused_and_nothing_is_written(tmp_path, spoil, message):
    T, t = poses(5), np.arange(5.0)
    spoil(T, t)
    with pytest.raises(ValueError, match=message):
        write_trajectory(tmp_path / "t.txt", t, T)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_sorted_and_near_unit_quaternions_normalised(tmp_path):
    (tmp_path / "t.txt").write_text("# c\n2 0 0 2 0 0 0 1.004\n\n1,0,0,1,0,0,0.6,0.8\n")
    got = read_trajectory(tmp_path / "t.txt")
    np.testing.assert_array_equal(got.timestamps, [1, 2])
    np.testing.assert_allclose(got.T_WC[1, :3, :3], np.eye(3), atol=1e-15)
    expected = Rotation.from_quat([0, 0, 0.6, 0.8]).as_matrix()
    np.testing.assert_allclose(got.T_WC[0, :3, :3], expected, atol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# only\n", r"t\.txt: no poses; expected lines"),
        ("1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0\n", r"t\.txt:2: expected 8 numbers"),
        ("1 0 0 0 0 0 0 2\n", r"t\.txt:1: quaternion has length 2, expected 1"),
    ],
)
def test_bad_files_name_the_line(tmp_path, text, message):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_trajectory(tmp_path / "t.txt")


def test_missing_file(tmp_path):
    with pytest.raises(SourceError, match=r"t\.txt: cannot be read"):
        read_trajectory(tmp_path / "t.txt")


def test_no_poses_write_a_file_that_says_so(tmp_path):
    write_trajectory(tmp_path / "t.txt", np.zeros(0), np.zeros((0, 4, 4)))
    with pytest.raises(SourceError, match="no poses"):
        read_trajectory(tmp_path / "t.txt")
