"""Calibration files: two forms, one meaning; and what they mean for images of another size."""

import numpy as np
import pytest

from slam.io.calibration import find_calibration, read_calibration
from slam.io.frames import SourceError

# The original's config/intrinsics.yaml, whose keys and numbers (TUM's freiburg1) are facts.
NUMBERS = (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633)
YAML = f"""\
width: 640
height: 480
# With distortion (fx, fy, cx, cy, k1, k2, p1, p2)
calibration:  {list(NUMBERS)}
"""


def write(tmp_path, text, name="camera.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_originals_form(tmp_path):
    camera = read_calibration(write(tmp_path, YAML))
    np.testing.assert_array_equal(camera.K, [[517.3, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]])
    np.testing.assert_array_equal(camera.coefficients, NUMBERS[4:])
    assert camera.size == (640, 480)
    pinhole = YAML.replace(str(list(NUMBERS)), "[517.3, 516.5, 318.6, 255.3]")
    assert read_calibration(write(tmp_path, pinhole)).coefficients is None


def test_the_form_is_read_off_the_content(tmp_path):
    yaml = read_calibration(write(tmp_path, YAML, "camera.txt"))
    # What looks like a key in a comment is none.
    text = "# width: any\n" + " ".join(map(str, NUMBERS)) + "  # fx: pixels\n"
    line = read_calibration(write(tmp_path, text, "camera.yaml"))
    assert (line.K == yaml.K).all() and line.distortion == yaml.distortion
    assert line.size is None and line.where.endswith("camera.yaml:2")


def test_no_distortion_is_none_whatever_its_length(tmp_path):
    for zeros in ("", "0 0 0 0", "0 0 0 0 0", "0 " * 8):
        camera = read_calibration(write(tmp_path, f"60 61 32 24 {zeros}"))
        assert camera.coefficients is None


@pytest.mark.parametrize("size", [(320, 240), (1280, 960), (200, 150), (213, 160)])
def test_it_follows_the_size_of_the_images(tmp_path, size):
    camera = read_calibration(write(tmp_path, YAML))
    K = camera.at(size).K
    # The same ray, seen through the same place of the picture: pixel (u, v) covers the square
    # around it, so places are (u + 1/2, v + 1/2) in units of the picture's sides.
    ray = np.array([0.2, -0.1, 1.0])
    before, after = (camera.K @ ray)[:2], (K @ ray)[:2]
    np.testing.assert_allclose((after + 0.5) / size, (before + 0.5) / (640, 480), rtol=1e-12)
    assert camera.at(size).distortion == camera.distortion


def test_without_a_size_it_is_for_the_images_as_they_are(tmp_path):
    camera = read_calibration(write(tmp_path, "60 61 32 24"))
    np.testing.assert_array_equal(camera.at((64, 48)).K, camera.K)


@pytest.mark.parametrize("size", [(640, 360), (480, 640), (512, 512), (640, 478)])
def test_images_of_another_shape_are_refused(tmp_path, size):
    camera = read_calibration(write(tmp_path, YAML))
    words = rf"camera\.txt:4: is for images of 640x480, which {size[0]}x{size[1]} are no"
    with pytest.raises(SourceError, match=words):
        camera.at(size)


def test_rounding_a_side_to_whole_pixels_is_no_other_shape(tmp_path):
    camera = read_calibration(write(tmp_path, YAML))
    for width in (101, 500, 999, 1921):
        camera.at((width, round(width * 3 / 4)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("60 61 32", r":1: expected 4 numbers 'fx fy cx cy', found '60 61 32'"),
        ("60 61 32 x", r":1: expected 4 numbers 'fx fy cx cy', found '60 61 32 x'"),
        ("60 61 32 24 1 2", r":1: .* with distortion 'fx .* p2 \[k3 \.\.\.\]', found 6 numbers"),
        ("60 61 32 24 1 2 3 nan", r":1: expected 8 numbers 'fx fy cx cy k1"),
        ("60 -61 32 24", r":1: focal lengths must be positive"),
        ("", r": expected one line 'fx fy cx cy', found 0"),
        ("60 61 32 24\n60 61 32 24", r": expected one line 'fx fy cx cy', found 2"),
        ("width: 9\nhight: 9", r":2: unknown key 'hight'; expected width, height and calibration:"),
        ("width: 9\ncalibration: [1, 1, 1, 1]", r": has no 'height'; expected width"),
        ("width: 9\nheight: 9", r": has no 'calibration'; expected"),
        ("width: 9\nheight: 0\ncalibration: []", r":2: height: expected pixels, found 0"),
        ("width: wide\nheight: 9\ncalibration: []", r":1: width: expected pixels, found wide"),
        ("width: 9\nheight: 9\ncalibration: []", r":3: expected 4 numbers"),
        ("width: 9\nheight: 9\ncalibration: 7", r":3: expected 4 numbers .*, found '7'"),
        ("width: 9\nheight: 9\ncalibration:\n  fx: 7", r":4: unknown key 'calibration\.fx'"),
        ("width: 9\nheight: 9\ncalibration: [1, 1, 9, 1]", r":3: principal point \(9, 1\) is out"),
        ("width: [9\nheight", r":2: not YAML: expected ',' or '\]'"),
    ],
)
def test_wrong_files_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(SourceError, match=r"camera\.txt" + message):
        read_calibration(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SourceError, match=r"none\.yaml: cannot be read"):
        read_calibration(tmp_path / "none.yaml")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(SourceError, match=r"image\.png: not a text file"):
        read_calibration(tmp_path / "image.png")


def test_the_folders_own(tmp_path):
    assert find_calibration(tmp_path, (640, 480)) is None
    write(tmp_path, YAML, "calibration.txt")
    camera = find_calibration(tmp_path, (320, 240))
    assert camera is not None and camera.fx == 517.3 / 2
    with pytest.raises(SourceError, match=r"calibration\.txt:4: is for images of 640x480"):
        find_calibration(tmp_path, (320, 200))
