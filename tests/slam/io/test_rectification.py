"""From a real camera to a pinhole camera: the same scene, the same rays, the right intrinsics."""

import dataclasses
import functools

import cv2
import numpy as np
import pytest
from PIL import Image

from slam.io.frames import SourceError, SourceFrame
from slam.io.open_source import RectifiedSource, depth_scale_of, open_source
from slam.io.preparation import prepare_frame
from slam.io.procedural import parse_procedural
from slam.io.rectification import plan_rectification
from tests.slam.io.recordings import write_tum
from tests.slam.rim import Frames

K = np.array([[517.3, 0.0, 318.6], [0.0, 516.5, 255.3], [0.0, 0.0, 1.0]])
LENS = np.array([0.2624, -0.9531, -0.0054, 0.0026, 1.1633])
"""TUM's freiburg1 camera, k1 k2 p1 p2 k3."""
SIZE = (640, 480)


def bend(xy, lens):
    """The Brown-Conrady model, equation by equation."""
    k1, k2, p1, p2, k3 = lens
    x, y = xy[..., 0], xy[..., 1]
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        axis=-1,
    )


@pytest.mark.parametrize("center", [True, False])
def test_every_pixel_looks_along_its_ray(center):
    plan = plan_rectification(K, LENS, SIZE, center_principal_point=center)
    v, u = np.mgrid[: SIZE[1], : SIZE[0]]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(plan.K).T
    seen = bend(rays[..., :2], LENS) * (K[0, 0], K[1, 1]) + K[:2, 2]
    # The maps are float32, of numbers up to 640.
    np.testing.assert_allclose(plan.u, seen[..., 0], atol=1e-4)
    np.testing.assert_allclose(plan.v, seen[..., 1], atol=1e-4)
    # Nothing is asked of pixels that the real image does not have. OpenCV fits the frame at nine
    # places a side, so between them a fraction of a pixel may be missing.
    assert plan.u.min() > -1 and plan.u.max() < SIZE[0]
    assert plan.v.min() > -1 and plan.v.max() < SIZE[1]
    if center:
        np.testing.assert_array_equal(plan.K[:2, 2], [319.5, 239.5])
        assert plan.K[0, 0] / plan.K[1, 1] == pytest.approx(K[0, 0] / K[1, 1])
    else:
        assert plan.K[0, 2] != 319.5 and plan.u.min() < 1 and plan.u.max() > SIZE[0] - 2


def test_a_pinhole_camera_is_only_centred():
    plan = plan_rectification(K, None, SIZE)
    # Zoomed about the axis until the nearer side of the image is reached: here the bottom.
    zoom = 239.5 / (479 - K[1, 2])
    expected = np.diag([zoom * K[0, 0], zoom * K[1, 1], 1.0])
    expected[:2, 2] = 319.5, 239.5
    # OpenCV finds the frame in float32.
    np.testing.assert_allclose(plan.K, expected, rtol=1e-5)
    left = plan_rectification(K, np.zeros(5), SIZE, center_principal_point=False)
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert left.is_identity and left.image(rgb) is rgb and (left.K == K).all()


def test_a_lens_that_folds_the_image_is_refused():
    with pytest.raises(ValueError, match=r"-2 0 0 0 0 folds the image; the order is k1 k2 p1 p2"):
        plan_rectification(K, np.array([-2.0, 0, 0, 0, 0]), SIZE)
    frame = SourceFrame(
        0, 0.0, np.zeros((480, 640, 3), np.uint8), K=K, distortion=np.array([-2.0, 0, 0, 0])
    )
    with pytest.raises(SourceError, match=r"frame 0: the distortion -2 0 0 0 folds"):
        list(RectifiedSource(Frames([frame])))


WALK = "procedural:room?seed=3&frames=20&size=64x48"
BENT = "procedural:room?seed=3&frames=20&size=160x120&k1=-0.3&k2=0.05&p1=0.01&p2=-0.01"


@functools.cache
def bent():
    return parse_procedural(BENT)


def write_camera(path, size, K, lens):
    """A calibration file in the original's form."""
    numbers = [*K[[0, 1], [0, 1]].tolist(), *K[:2, 2].tolist(), *lens.tolist()]
    path.write_text(f"width: {size[0]}\nheight: {size[1]}\ncalibration: {numbers}\n")
    return path


def bent_camera(path, size):
    """The camera of ``BENT``, as a file for images of another size."""
    K = bent().K[0] * size[0] / 160
    K[:2, 2] = (size[0] - 1) / 2, (size[1] - 1) / 2
    return write_camera(path, size, K, bent().distortion)


def pinhole_walk(K):
    """The same walk with a pinhole camera; nothing new to compile."""
    source = parse_procedural(BENT)
    source.K, source.distortion = np.broadcast_to(K, source.K.shape), np.zeros(4)
    return source


def shifts(rgb, reference):
    """By how many pixels each of 3 x 4 tiles is displaced, in least squares of its colours."""
    reference = reference.astype(np.float64)
    slopes = np.gradient(reference, axis=(1, 0))
    found = []
    for rows in np.array_split(np.arange(120), 3):
        for columns in np.array_split(np.arange(160), 4):
            tile = np.ix_(rows, columns)
            A = np.stack([slope[tile].ravel() for slope in slopes], -1)
            difference = (rgb - reference)[tile].ravel()
            found.append(np.linalg.lstsq(A, difference)[0])
    return np.linalg.norm(found, axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 120), (640, 480)])
def test_a_rectified_walk_is_the_walk_of_a_pinhole_camera(tmp_path, size):
    path = bent_camera(tmp_path / "camera.yaml", size)
    options = {"start": 3, "stride": 5, "max_frames": 2, "calibration": path}
    source = open_source(BENT, rectify=True, **options)
    frames, raw = list(source), list(open_source(BENT, **options))
    truth = list(pinhole_walk(frames[0].K).select(slice(3, 9, 5)))
    assert source.num_frames == len(frames) == 2
    for number, (frame, before, true) in enumerate(zip(frames, raw, truth, strict=True)):
        assert (frame.index, frame.distortion) == (number, None)
        np.testing.assert_array_equal(frame.T_WC, true.T_WC)
        np.testing.assert_allclose(before.distortion, bent().distortion)
        np.testing.assert_allclose(before.K, bent().K[0], rtol=1e-12)
        assert before.rgb.shape == frame.rgb.shape and frame.rgb.dtype == np.uint8
        after, without = (
            np.abs(x.rgb.astype(float) - true.rgb)[2:-2, 2:-2].mean() for x in (frame, before)
        )
        # Interpolation blurs the textures by some grey levels, but displaces nothing: a tenth of a
        # pixel is what a tile of textures can tell.
        assert after < 3 and after < without / 3
        moved, moved_without = (np.median(shifts(x.rgb, true.rgb)) for x in (frame, before))
        assert moved < 0.15 and moved_without > 0.4


def dots(uv, height, width):
    """An image of black with a soft white dot at each place."""
    v, u = np.mgrid[:height, :width]
    spots = [np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 4.0**2)) for x, y in uv]
    return np.repeat((255 * np.sum(spots, 0)).clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def centroid(grey, near, radius):
    u, v = np.rint(near).astype(int)
    window = grey[v - radius : v + radius + 1, u - radius : u + radius + 1]
    rows, columns = np.mgrid[v - radius : v + radius + 1, u - radius : u + radius + 1]
    return np.array([(columns * window).sum(), (rows * window).sum()]) / window.sum()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("size", [512, 224])
def test_known_points_appear_where_the_intrinsics_say(tmp_path, size, center):
    """From the lens through rectification, resize and crop, in the form `run` uses them."""
    directions = np.array([[x, y, 1] for x in (-0.22, 0.0, 0.22) for y in (-0.22, 0.05, 0.2)])
    points = directions * np.linspace(1, 5, len(directions))[:, None]
    uv = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, LENS)[0][:, 0]
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(dots(uv, 480, 640)).save(tmp_path / "images" / name)
    path = write_camera(tmp_path / "camera.yaml", SIZE, K, LENS)
    source = open_source(
        tmp_path / "images", calibration=path, rectify=True, center_principal_point=center
    )
    raw = next(iter(source))
    frame = prepare_frame(raw, size, 0.0)
    projected = points @ frame.K.T.astype(np.float64)
    expected = projected[:, :2] / projected[:, 2:]
    # The original's intrinsics do not count that a pixel's place is its centre; shrinking by
    # `scale` moves centres by this much.
    scale = 640 / 512 if size == 512 else 480 / 224
    expected = expected + (0.5 / scale - 0.5)
    if size == 224:  # 299 columns: the half crop of 37.5 starts at column 37
        expected[:, 0] += 0.5
    grey = frame.image[..., 0].astype(np.float64)
    for place in expected:
        # A quarter of a pixel would be the least mistake of a convention.
        np.testing.assert_allclose(centroid(grey, place, 8), place, atol=0.1)


def test_a_centred_pinhole_camera_is_left_alone():
    source = parse_procedural(WALK)
    for before, after in zip(source, RectifiedSource(source), strict=True):
        np.testing.assert_array_equal(after.rgb, before.rgb)
        np.testing.assert_array_equal(after.depth, before.depth)
        np.testing.assert_array_equal(after.K, before.K)


def test_images_without_intrinsics_stay_as_they_are():
    frame = SourceFrame(0, 0.0, np.zeros((48, 64, 3), np.uint8))
    assert list(RectifiedSource(Frames([frame]))) == [frame]


def test_each_camera_has_its_own_plan():
    first = SourceFrame(0, 0.0, np.zeros((480, 640, 3), np.uint8), K=K, distortion=LENS)
    second = dataclasses.replace(first, distortion=LENS * 0.5)
    third = dataclasses.replace(first, K=K + np.diag([9.0, 9.0, 0.0]))
    found = [frame.K[0, 0] for frame in RectifiedSource(Frames([first, second, third, first]))]
    assert found[0] == found[3] and len(set(found)) == 3


def test_depth_of_another_size_names_the_image():
    frame = SourceFrame(
        0,
        0.0,
        np.zeros((480, 640, 3), np.uint8),
        np.ones((48, 64), np.float32),
        K=K,
        origin="a.png",
    )
    with pytest.raises(SourceError, match=r"a\.png: depth: 64x48 values for a camera of 640x480"):
        list(RectifiedSource(Frames([frame])))


def test_a_folders_own_lens_comes_along(tmp_path):
    folder = write_tum(tmp_path / "office")
    (folder / "calibration.txt").write_text("60 61 32.5 24.5 -0.1 0 0 0\n")
    frame = next(iter(open_source(folder)))
    np.testing.assert_array_equal(frame.distortion, [-0.1, 0, 0, 0])
    source = open_source(folder, rectify=True, stride=2)
    assert depth_scale_of(source) == 5000.0
    frames = list(source)
    assert all(frame.distortion is None for frame in frames)
    np.testing.assert_array_equal(frames[0].K[:2, 2], [31.5, 23.5])
    # Unknown depth, the first rows, is not blended with what is known.
    assert set(np.unique(frames[0].depth)) == {0.0, np.float32(1000 / 5000)}
