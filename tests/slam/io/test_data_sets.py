"""Readers of data sets, each against a miniature of it in its true layout."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from slam.io.frames import SourceError
from slam.io.open_source import open_source

SIZE = (64, 48)


def image(path, value, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def depth(path, values, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), values, np.uint16)).save(path)


def matrix(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(f"{x:e}" for x in row) for row in values) + "\n")


def placed(x):
    """A camera at (x, 0, 2) that looks along the world's x axis: its z is our x."""
    T = np.eye(4)
    T[:3, :3] = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    T[:3, 3] = x, 0, 2
    return T


def seven_scenes(folder):
    for i in (0, 1, 2):
        image(folder / f"frame-{i:06d}.color.png", 10 * i, (640, 480))
        depth(folder / f"frame-{i:06d}.depth.png", 65535 if i == 1 else 1500, (640, 480))
        matrix(folder / f"frame-{i:06d}.pose.txt", placed(i))


def replica(folder):
    for i in (0, 1, 2):
        image(folder / f"results/frame{i:06d}.jpg", 10 * i)
        depth(folder / f"results/depth{i:06d}.png", 0 if i == 1 else round(1.5 * 6553.5))
    rows = (" ".join(f"{x:.9f}" for x in placed(i).ravel()) for i in range(3))
    (folder / "traj.txt").write_text("\n".join(rows) + "\n")
    camera = {"w": 64, "h": 48, "fx": 50.0, "fy": 50.0, "cx": 31.5, "cy": 23.5, "scale": 6553.5}
    (folder.parent / "cam_params.json").write_text(json.dumps({"camera": camera}))


def scannet(folder):
    for i in (0, 1, 2):
        image(folder / f"color/{i}.jpg", 10 * i)
        depth(folder / f"depth/{i}.png", 0 if i == 1 else 1500)
        matrix(folder / f"pose/{i}.txt", placed(i) if i != 1 else np.full((4, 4), -np.inf))
    K = np.diag([50.0, 50.0, 1.0, 1.0])
    K[:2, 2] = 31.5, 23.5
    matrix(folder / "intrinsic/intrinsic_color.txt", K)


def eth3d(folder):
    """TUM's lists, and a calibration.txt."""
    for i in (0, 1, 2):
        image(folder / f"rgb/{i}.png", 10 * i)
        depth(folder / f"depth/{i}.png", 0 if i == 1 else 7500)
    for kind in ("rgb", "depth"):
        lines = (f"{i / 10:.6f} {kind}/{i}.png\n" for i in range(3))
        (folder / f"{kind}.txt").write_text("".join(lines))
    # The quaternion x y z w of ``placed``: a third of a turn about (1, 1, 1).
    lines = (f"{i / 10:.6f} {i} 0 2 0.5 0.5 0.5 0.5\n" for i in range(3))
    (folder / "groundtruth.txt").write_text("".join(lines))
    (folder / "calibration.txt").write_text("50 50 31.5 23.5\n")


SENSOR = """
sensor_type: camera
T_BS:
  cols: 4
  rows: 4
  data: [0.0, 0.0, 1.0, 0.1,
         1.0, 0.0, 0.0, 0.0,
         0.0, 1.0, 0.0, 0.0,
         0.0, 0.0, 0.0, 1.0]
rate_hz: 20
resolution: [64, 48]
camera_model: pinhole
intrinsics: [50.0, 50.0, 31.5, 23.5]
distortion_model: radial-tangential
distortion_coefficients: [-0.28, 0.07, 0.0002, 0.00002]
"""


def euroc(folder):
    """The camera 0.1 m ahead of the body's centre, its axes turned; the body turned about z."""
    start = 1403636579763555584
    names = []
    for i in (0, 1, 2):
        stamp = start + i * 50_000_000
        names.append(f"{stamp},{stamp}.png")
        path = folder / f"mav0/cam0/data/{stamp}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64), 10 * i, np.uint8)).save(path)
    listing = folder / "mav0/cam0/data.csv"
    listing.write_text("#timestamp [ns],filename\r\n" + "\r\n".join(names) + "\r\n")
    (folder / "mav0/cam0/sensor.yaml").write_text(SENSOR)
    half = np.sqrt(0.5)  # a quarter of a turn to the left
    rows = [
        f"{start + i * 50_000_000 + 1_000_000},{i},0,1.9,{half},0,0,{half},0,0,0" for i in (0, 2)
    ]
    truth = folder / "mav0/state_groundtruth_estimate0/data.csv"
    truth.parent.mkdir(parents=True)
    truth.write_text("#timestamp, p_RS_R_x [m], ...\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("write", "focal", "lost"),
    [
        (seven_scenes, 585.0, None),
        (replica, 50.0, None),
        (scannet, 50.0, 1),
        (eth3d, 50.0, None),
    ],
)
def test_images_depth_poses_and_camera(tmp_path, write, focal, lost):
    folder = tmp_path / "anything"
    folder.mkdir()
    write(folder)
    source = open_source(folder)
    frames = list(source)
    assert source.num_frames == len(frames) == 3 and source.name == "anything"
    for i, frame in enumerate(frames):
        assert frame.index == i and abs(int(frame.rgb[0, 0, 0]) - 10 * i) <= 1  # JPEG
        np.testing.assert_allclose(frame.depth, 0 if i == 1 else 1.5, atol=1e-4)
        if i == lost:
            assert np.isnan(frame.T_WC).all()
        else:
            np.testing.assert_allclose(frame.T_WC, placed(i), atol=1e-6)
        height, width = frame.rgb.shape[:2]
        center = (width / 2, height / 2) if write is seven_scenes else (31.5, 23.5)
        expected = [[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]]
        np.testing.assert_allclose(frame.K, expected)
    assert all(b.timestamp > a.timestamp for a, b in itertools.pairwise(frames))
    (middle,) = open_source(folder, start=1, stride=5)
    assert middle.origin == frames[1].origin and middle.index == 0


def test_euroc(tmp_path):
    euroc(tmp_path / "MH_00")
    for place in (tmp_path / "MH_00", tmp_path / "MH_00/mav0"):
        source = open_source(place)
        frames = list(source)
        assert source.name == "MH_00" and len(frames) == 3
        # 0.1 m ahead of a body that looks along y: the camera's z axis is y, its x axis -x.
        expected = np.eye(4)
        expected[:3, :3] = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])
        for i in (0, 2):
            expected[:3, 3] = i, 0.1, 1.9
            np.testing.assert_allclose(frames[i].T_WC, expected, atol=1e-7)
        assert np.isnan(frames[1].T_WC).all()  # no pose within 5 ms
        assert frames[2].timestamp - frames[0].timestamp == pytest.approx(0.1, abs=1e-6)
        assert (frames[1].rgb == 10).all() and frames[1].depth is None
        np.testing.assert_allclose(frames[0].distortion, [-0.28, 0.07, 0.0002, 0.00002])
        assert frames[0].K[0, 0] == 50
    # Its lens can be straightened, as calibrated runs need.
    assert next(iter(open_source(tmp_path / "MH_00", rectify=True))).distortion is None


def test_a_camera_file_as_opencv_writes_it(tmp_path):
    """Which it is where somebody has made OpenCV read it."""
    euroc(tmp_path)
    plain = list(open_source(tmp_path))
    edit(sensor_of(tmp_path), "\nsensor", "%YAML:1.0\n---\nsensor")
    edit(sensor_of(tmp_path), "T_BS:", "T_BS: !!opencv-matrix")
    for frame, other in zip(open_source(tmp_path), plain, strict=True):
        np.testing.assert_array_equal(frame.T_WC, other.T_WC)
        np.testing.assert_array_equal(frame.K, other.K)
    # Lines are counted as they are in the file.
    edit(sensor_of(tmp_path), "pinhole", "ocam")
    with pytest.raises(SourceError, match=r"sensor\.yaml:13: camera_model 'ocam' is not known"):
        open_source(tmp_path)


def test_only_what_is_wanted_is_decoded(tmp_path):
    """What is skipped may be damaged meanwhile: nobody looks."""
    for write, names in ((seven_scenes, "frame-{:06d}.color.png"), (scannet, "color/{}.jpg")):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        source = open_source(folder, start=1, max_frames=1)
        for i in (0, 2):
            (folder / names.format(i)).write_bytes(b"damaged")
        (frame,) = source
        assert abs(int(frame.rgb[0, 0, 0]) - 10) <= 1


def test_a_sequence_is_known_by_its_content_not_by_the_name_of_its_folder(tmp_path):
    euroc(tmp_path / "MH_00")
    renamed = (tmp_path / "MH_00/mav0").rename(tmp_path / "flight")
    source = open_source(renamed)
    assert source.name == "flight" and source.num_frames == 3
    assert next(iter(source)).T_WC is not None
    shutil.rmtree(renamed / "state_groundtruth_estimate0")
    assert next(iter(open_source(renamed))).T_WC is None


def test_replica_without_its_camera_or_depth(tmp_path):
    scene = tmp_path / "room0"
    scene.mkdir()
    replica(scene)
    (tmp_path / "cam_params.json").unlink()
    frame = next(iter(open_source(scene)))
    assert frame.K is None
    np.testing.assert_allclose(frame.depth, 1.5, atol=1e-4)  # 6553.5 a metre
    for i in range(3):
        (scene / f"results/depth{i:06d}.png").unlink()
    frame = next(iter(open_source(scene)))
    assert frame.depth is None and frame.T_WC is not None


def sensor_of(folder):
    return folder / "mav0/cam0/sensor.yaml"


def truth_of(folder):
    return folder / "mav0/state_groundtruth_estimate0/data.csv"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("write", "damage", "words"),
    [
        (
            seven_scenes,
            lambda d: (d / "frame-000001.pose.txt").unlink(),
            "01.pose.txt: m",
        ),
        (
            seven_scenes,
            lambda d: (d / "frame-000001.color.png").unlink(),
            "01.pose.txt: its image is missing; move it away",
        ),
        (
            seven_scenes,
            lambda d: (d / "frame-000001.color.png").write_bytes(b"no picture"),
            "01.color.png: not an image",
        ),
        (
            seven_scenes,
            lambda d: (d / "frame-000002.depth.png").unlink(),
            "02.depth.png: m",
        ),
        (
            seven_scenes,
            lambda d: (d / "frame-000001.pose.txt").write_text("1 0 0 0\n0 1 0 0\n"),
            "frame-000001.pose.txt: expected 4 lines of 4 numbers, found 2",
        ),
        (
            seven_scenes,
            lambda d: (d / "frame-000001.pose.txt").write_text(
                "1 0 0 0\n0 x 0 0\n0 0 1 0\n0 0 0 1"
            ),
            "frame-000001.pose.txt:2: expected 4 numbers",
        ),
        (
            seven_scenes,
            lambda d: matrix(d / "frame-000001.pose.txt", 2 * np.eye(4)),
            "frame-000001.pose.txt: is no rigid transformation",
        ),
        (
            replica,
            lambda d: (d / "traj.txt").write_text((d / "traj.txt").read_text() + "1 2\n"),
            "traj.txt: 4 poses for 3 images",
        ),
        (replica, lambda d: edit(d / "traj.txt", "1.000000000", "one"), "traj.txt:1: expected 16"),
        (
            replica,
            lambda d: edit(d.parent / "cam_params.json", '"fy"', '"gy"'),
            "cam_params.json: expected camera: w h fx fy cx cy scale",
        ),
        (
            replica,
            lambda d: (d / "results/depth000002.png").unlink(),
            "results/depth000002.png: missing, though there is",
        ),
        (
            replica,
            lambda d: (d / "results/frame000002.jpg").unlink(),
            "traj.txt: 3 poses for 2 images",
        ),
        (
            scannet,
            lambda d: (d / "color/1.jpg").unlink(),
            "depth/1.png: its image is missing",
        ),
        (scannet, lambda d: (d / "pose/2.txt").unlink(), "pose/2.txt: missing, though there is"),
        (
            scannet,
            lambda d: (d / "intrinsic/intrinsic_color.txt").write_text("50 0 31\n"),
            "intrinsic_color.txt: expected 4 lines",
        ),
        (
            euroc,
            lambda d: shutil.rmtree(d / "mav0/cam0/data"),
            "data.csv:2: missing image",
        ),
        (
            euroc,
            lambda d: edit(d / "mav0/cam0/data.csv", ".png", ".png,7"),
            "data.csv:2: expected 'nanoseconds,file'",
        ),
        (
            euroc,
            lambda d: (d / "mav0/cam0/data.csv").write_text("#nothing\n"),
            "data.csv: no images",
        ),
        (
            euroc,
            lambda d: edit(
                d / "mav0/cam0/data.csv", "1403636579813555584,", "1403636579763555584,"
            ),
            "data.csv:3: timestamp 1403636579763555584 does not follow",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "radial-tangential", "equidistant"),
            "sensor.yaml:14: distortion_model 'equidistant' is not known, only 'radial-tangential'",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "camera_model: pinhole", "camera_model: omni"),
            "sensor.yaml:12: camera_model 'omni' is not known, only 'pinhole'",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "[50.0, 50.0, ", "["),
            "sensor.yaml:13: expected 4 numbers 'intrinsics: fu fv cu cv'",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "[64, 48]", "[64, 0]"),
            "sensor.yaml:11: width and height must be positive",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "0.0, 0.0, 0.0, 1.0]", "0.0]"),
            "sensor.yaml:6: expected 16 numbers 'T_BS.data: 4x4 matrix, camera to body'",
        ),
        (
            euroc,
            lambda d: edit(sensor_of(d), "[0.0, 0.0, 1.0,", "[0.0, 0.0, -1.0,"),  # a mirror
            "sensor.yaml:6: is no rigid transformation, camera to body",
        ),
        (euroc, lambda d: sensor_of(d).unlink(), "sensor.yaml: cannot be read"),
        (
            euroc,
            lambda d: edit(truth_of(d), ",0,0,0.7", ",0,9,0.7"),
            "data.csv:2: quaternion has length",
        ),
        (euroc, lambda d: edit(truth_of(d), ",1.9,", ",up,"), "data.csv:2: expected 11 numbers"),
        (
            euroc,
            lambda d: truth_of(d).write_text("7,0,0,0,1,0,0,0\n"),
            "data.csv: no timestamp is within 0.005 s of one in",
        ),
    ],
)
def test_what_is_malformed_is_told_in_one_sentence(tmp_path, write, damage, words):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    damage(folder)
    with pytest.raises(SourceError) as caught:
        list(open_source(folder))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_depth_that_is_not_registered_is_refused_or_left_out(tmp_path):
    scannet(tmp_path / "scene")
    for i in (0, 1, 2):
        depth(tmp_path / f"scene/depth/{i}.png", 1500, (32, 24))
    assert all(frame.depth is None for frame in open_source(tmp_path / "scene"))
    (tmp_path / "chess").mkdir()
    seven_scenes(tmp_path / "chess")
    depth(tmp_path / "chess/frame-000000.depth.png", 1500, (320, 240))
    with pytest.raises(SourceError, match=r"depth is 320x240 but its image .* is 640x480"):
        list(open_source(tmp_path / "chess"))
