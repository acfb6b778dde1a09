"""PLY: the bytes of the format's own definition, a round trip, and refusals."""

import struct

import numpy as np
import pytest

from slam.io.ply import read_ply, write_ply


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1000, 3)).astype(np.float32)
    return points, rng.integers(0, 256, (1000, 3), np.uint8)


def test_bytes_follow_the_format(tmp_path):
    points = np.array([[1.5, -2.0, 3.25], [0.0, 1e-3, 7.0]], np.float32)
    colors = np.array([[255, 0, 7], [1, 2, 3]], np.uint8)
    assert write_ply(tmp_path / "a.ply", points, colors) == 2
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    assert header.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 2",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
    ]
    assert body == struct.pack("<3f3B", 1.5, -2.0, 3.25, 255, 0, 7) + struct.pack(
        "<3f3B", 0.0, 1e-3, 7.0, 1, 2, 3
    )


def test_round_trip_is_exact(tmp_path, cloud):
    write_ply(tmp_path / "new" / "a.ply", *cloud)
    points, colors = read_ply(tmp_path / "new" / "a.ply")
    np.testing.assert_array_equal(points, cloud[0])
    np.testing.assert_array_equal(colors, cloud[1])


def test_only_what_is_kept_is_written(tmp_path, cloud):
    keep = cloud[0][:, 0] > 0
    cloud[0][~keep] = np.nan  # what is not kept need not be finite
    assert write_ply(tmp_path / "a.ply", *cloud, keep) == keep.sum()
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply")[0], cloud[0][keep])


def test_no_points_make_a_valid_empty_cloud(tmp_path):
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    assert write_ply(tmp_path / "a.ply", *nothing) == 0
    assert read_ply(tmp_path / "a.ply")[0].shape == (0, 3)


def test_points_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, cloud):
    cloud[0][[17, 400], 1] = np.inf, np.nan
    with pytest.raises(ValueError, match=r"a\.ply: 2 of 1000 points are not finite, .* number 17"):
        write_ply(tmp_path / "a.ply", *cloud)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"hello", "not a binary little-endian PLY file"),
        (
            lambda b: b.replace(b"float z", b"float w"),
            "knows vertices of x y z red green blue only",
        ),
        (lambda b: b[:-1], "1000 points take 15000 bytes, found 14999"),
    ],
)
def test_reader_refuses_what_it_does_not_know(tmp_path, cloud, damage, message):
    path = tmp_path / "a.ply"
    write_ply(path, *cloud)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_ply(path)
