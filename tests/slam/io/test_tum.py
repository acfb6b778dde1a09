"""The TUM RGB-D layout: association, units, poses, and every line that can be wrong."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from slam.io.frames import Source, SourceError
from slam.io.tum import TumSource
from tests.slam.io.recordings import edit_line, number_of, picture, write_tum


@pytest.fixture
def office(tmp_path):
    return write_tum(tmp_path / "office")


def test_images_depth_poses_and_intrinsics(office):
    source = TumSource(office, depth_scale=1000.0)
    assert isinstance(source, Source)
    assert (source.name, source.num_frames) == ("office", 6)
    for _ in range(2):  # iterable again
        frames = list(source)
        assert [number_of(f.rgb) for f in frames] == list(range(6))
    for i, frame in enumerate(frames):
        assert frame.timestamp == pytest.approx(1000 + 0.1 * i, abs=1e-9)
        assert frame.depth.dtype == np.float32 and frame.depth.shape == (48, 64)
        assert np.all(frame.depth[:8] == 0) and np.all(frame.depth[8:] == np.float32(i + 1))
        np.testing.assert_array_equal(frame.K, [[60, 0, 32.5], [0, 61, 24.5], [0, 0, 1]])
        # Of the stamps 1000.002 + 0.01 k the one at 0.1 i + 0.002 is nearest.
        t = 0.1 * i
        np.testing.assert_allclose(frame.T_WC[:3, 3], [t, 2 * t, 3 * t], atol=1e-9)
        # The file prints quaternions to six decimals.
        expected = Rotation.from_rotvec([0, 0, t]).as_matrix()
        np.testing.assert_allclose(frame.T_WC[:3, :3], expected, atol=2e-6)
        np.testing.assert_array_equal(frame.T_WC[3], [0, 0, 0, 1])
    assert len(source.ground_truth.timestamps) == 60


def test_depth_scale_is_the_benchmarks_unless_told(office):
    frame = next(iter(TumSource(office)))
    assert frame.depth.max() == np.float32(1000 / 5000)


def test_depth_poses_and_calibration_may_be_missing(office):
    for name in ("depth.txt", "groundtruth.txt", "calibration.txt"):
        (office / name).unlink()
    frame = next(iter(TumSource(office)))
    assert frame.depth is None and frame.T_WC is None and frame.K is None


def test_gaps_keep_the_structure_of_every_frame(office):
    # Depth of the second image and all poses near the third are missing.
    lines = (office / "depth.txt").read_text().splitlines()
    (office / "depth.txt").write_text("\n".join(lines[:2] + lines[3:]))
    kept = [
        line
        for line in (office / "groundtruth.txt").read_text().splitlines()
        if line.startswith("#") or abs(float(line.split()[0]) - 1000.2) > 0.05
    ]
    (office / "groundtruth.txt").write_text("\n".join(kept))
    frames = list(TumSource(office))
    assert np.all(frames[1].depth == 0) and frames[1].depth.shape == (48, 64)
    assert np.isnan(frames[2].T_WC).all()
    assert [np.isfinite(f.T_WC).all() for f in frames] == [True, True, False, True, True, True]


def test_comments_blank_lines_commas_and_names_with_blanks(office):
    (office / "rgb" / "my image.png").write_bytes((office / "rgb" / "0003.png").read_bytes())
    lines = ["", "# note", "1000.0,rgb/0001.png # tail", "", "1000.1 rgb/my image.png"]
    (office / "rgb.txt").write_text("\n".join(lines))
    assert [number_of(f.rgb) for f in TumSource(office)] == [1, 3]


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        ("rgb.txt", 4, "1000.2 rgb/0017.png", r"rgb\.txt:4: missing image rgb/0017\.png"),
        ("rgb.txt", 4, "1000.2", r"rgb\.txt:4: expected 'timestamp file', found '1000\.2'"),
        ("rgb.txt", 4, "rgb/0002.png 1000.2", r"rgb\.txt:4: expected 'timestamp file'"),
        ("rgb.txt", 4, "nan rgb/0002.png", r"rgb\.txt:4: expected 'timestamp file'"),
        ("rgb.txt", 4, "1000.1 rgb/0002.png", r"rgb\.txt:4: timestamp 1000\.1 does not follow"),
        ("depth.txt", 3, "1000.1 depth/x.png", r"depth\.txt:3: missing depth image depth/x\.png"),
        ("groundtruth.txt", 7, "1000.05 1 2 3 0 0 1", r"groundtruth\.txt:7: expected 8 numbers"),
        ("groundtruth.txt", 7, "1000.05 1 2 x 0 0 0 1", r"groundtruth\.txt:7: expected 8 numbers"),
        ("groundtruth.txt", 7, "1000.05 1 2 inf 0 0 0 1", r"groundtruth\.txt:7: expected 8"),
        ("groundtruth.txt", 7, "1000.05 1 2 3 0 0 0 0", r":7: quaternion has length 0, expected 1"),
        ("groundtruth.txt", 7, "1000.05 1 2 3 1 1 0 0", r":7: quaternion has length 1\.414"),
        ("calibration.txt", 2, "60 61 32", r"calibration\.txt:2: expected 4 numbers 'fx fy cx cy'"),
        ("calibration.txt", 2, "60 -61 32 24", r"calibration\.txt:2: focal lengths must be pos"),
        ("calibration.txt", 2, "60 61 32 24 .1", r":2: expected 4 numbers .* or with distortion"),
        (
            "calibration.txt",
            2,
            "60 61 64 24",
            r":2: principal point \(64, 24\) is outside the images",
        ),
        ("calibration.txt", 2, "", r"calibration\.txt: expected one line 'fx fy cx cy', found 0"),
    ],
)
def test_wrong_line_is_named(office, file, line, text, message):
    edit_line(office / file, line, text)
    with pytest.raises(SourceError, match=message):
        TumSource(office)


def test_empty_lists(office):
    (office / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(SourceError, match=r"rgb\.txt: no images"):
        TumSource(office)


def test_binary_list(office):
    (office / "rgb.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"rgb\.txt: not a text file"):
        TumSource(office)


def test_missing_list(tmp_path):
    with pytest.raises(SourceError, match=r"rgb\.txt: cannot be read \(No such file"):
        TumSource(tmp_path)


def test_ground_truth_of_another_clock_is_an_error_not_a_silence(office):
    text = (office / "groundtruth.txt").read_text().replace("\n10", "\n20")
    (office / "groundtruth.txt").write_text(text)
    with pytest.raises(SourceError, match=r"groundtruth\.txt: no timestamp is within 0\.02 s"):
        TumSource(office)


def test_mixed_sizes(office):
    Image.fromarray(picture(4, height=24, width=32)).save(office / "rgb" / "0004.png")
    with pytest.raises(SourceError, match=r"0004\.png: image is 32x24 but .*0000\.png is 64x48"):
        TumSource(office)


def test_unreadable_image_and_depth(office):
    depth = office / "depth" / "0001.png"
    depth.write_bytes(depth.read_bytes()[:60])
    with pytest.raises(SourceError, match=r"depth/0001\.png: unreadable image"):
        list(TumSource(office))
    Image.fromarray(np.ones((24, 32), np.uint16)).save(depth)
    with pytest.raises(SourceError, match=r"depth is 32x24 but its image .*0001\.png is 64x48"):
        list(TumSource(office))
    image = office / "rgb" / "0000.png"
    image.write_bytes(b"garbage")
    with pytest.raises(SourceError, match=r"rgb/0000\.png: not an image"):
        TumSource(office)
