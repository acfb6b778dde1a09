"""Pairs of a recording whose scene is known, against the ray caster and numpy."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.training.augment import PhotoConfig
from experiments.training.pairs import PairConfig
from experiments.training.rgbd import read_rgbd_pairs, rgbd_pairs
from slam.io.frames import SourceError
from slam.io.trajectory_file import write_trajectory
from tests.experiments.training import scene
from tests.quick import quick_jit

# A third of the recorded size: the centre of each pixel is that of a recorded one. And narrower.
SIZE = (30, 27)
CONFIG = PairConfig(
    size=SIZE, pairs=12, correspondences=100, overlap=(0.3, 1.0), photo=PhotoConfig(noise=0.0)
)
FULL_K = np.array([[84.0, 0.0, 52.6], [0.0, 84.0, 41.2], [0.0, 0.0, 1.0]])
SMALL_K = np.array([[28.0, 0.0, 53.1 / 3 - 3.5], [0.0, 28.0, 41.7 / 3 - 0.5], [0.0, 0.0, 1.0]])
FAR = np.array([400.0, -300.0, 50.0])
"""Where the recording's world has its origin: far away, as with outdoor coordinates."""
NO_POSE, NO_DEPTH = 3, 5
POSES = np.stack(
    [scene.camera([-1.2 + 0.1 * i, -0.5 + 0.15 * i, 1.4], 0.1 - 0.06 * i, -0.1) for i in range(8)]
)
USED = [i for i in range(8) if i not in (NO_POSE, NO_DEPTH)]
HOLE = (slice(30, 45), slice(60, 75))
"""Of every depth image, rows and columns: 5 of either in the small ones."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("walk")
    (path / "rgb").mkdir()
    (path / "depth").mkdir()
    for i, T_WC in enumerate(POSES):
        points, _, ids = scene.look(T_WC, FULL_K, (81, 108))
        colour = 127 + 100 * np.sin(3.0 * points + ids[:, None])
        image = Image.fromarray(colour.reshape(81, 108, 3).astype(np.uint8))
        image.save(path / f"rgb/{i}.png")
        depth = scene.project(T_WC, points)[1].reshape(81, 108)
        depth[HOLE] = 0.0
        Image.fromarray(np.rint(1000 * depth).astype(np.uint16)).save(path / f"depth/{i}.png")
    listing = [f"{i / 10:.1f} {{}}/{i}.png\n" for i in range(len(POSES))]
    (path / "rgb.txt").write_text("".join(listing).format(*["rgb"] * len(POSES)))
    del listing[NO_DEPTH]
    (path / "depth.txt").write_text("".join(listing).format(*["depth"] * len(listing)))
    posed = [i for i in range(len(POSES)) if i != NO_POSE]
    far = POSES.copy()
    far[:, :3, 3] += FAR
    write_trajectory(path / "groundtruth.txt", np.array(posed) / 10, far[posed])
    (path / "calibration.txt").write_text("84 84 52.6 41.2\n")
    return path


@pytest.fixture(scope="module")
def recording(folder):
    return read_rgbd_pairs(folder, CONFIG, depth_scale=1000.0, gap=(1, 4))


@pytest.fixture(scope="module")
def batch(recording):
    pairs = quick_jit(lambda key, r: rgbd_pairs(key, r, CONFIG))(jax.random.key(0), recording)
    return jax.tree.map(np.asarray, pairs)


def frames_of(recording, batch):
    """For each pair of a batch the numbers of its frames in the folder, told by its pose."""
    for b in range(CONFIG.pairs):
        (m,) = np.flatnonzero((recording.T_12 == batch.T_12[b]).all(axis=(1, 2)))
        yield b, *(USED[f] for f in recording.frames[m])


def small(frame):
    """Points in the room and object ids that a frame shows at the small size."""
    points, _, ids = scene.look(POSES[frame], SMALL_K, SIZE[::-1])
    return points, ids


def test_all_pairs_of_the_gap_are_there_in_both_orders(recording):
    assert len(recording.images) == len(USED)
    found = {(USED[i], USED[j]) for i, j in recording.frames}
    expected = {(i, j) for i in USED for j in USED if 1 <= abs(i - j) <= 4}
    assert found == expected
    for m, (i, j) in enumerate(recording.frames):
        T_1, T_2 = POSES[USED[i]], POSES[USED[j]]
        # Positions were written to a tenth of a micrometre at best, nine digits of 400 m.
        np.testing.assert_allclose(recording.T_12[m], np.linalg.inv(T_1) @ T_2, atol=3e-6)


def test_overlap_is_the_share_of_common_surface(recording):
    for m, pair in enumerate(recording.frames):
        i, j = (USED[f] for f in pair)
        points, _ = small(j)
        uv, z = scene.project(POSES[i], points, SMALL_K)
        seen = (z > 0) & (uv > -0.5).all(1) & (uv < np.array(SIZE) - 0.5).all(1)
        seen &= scene.hidden_by(POSES[i], points) < 0.05
        # Estimated on every fourth pixel of both sides, and holes have no surface.
        assert abs(recording.overlap[m] - seen.mean()) < 0.15


def test_points_are_those_of_the_scene_where_depth_is_known(recording, batch):
    for b, i, j in frames_of(recording, batch):
        for frame, points, valid in (
            (i, batch.points_1[b], batch.valid_1[b]),
            (j, batch.points_2[b], batch.valid_2[b]),
        ):
            assert np.isfinite(points).all()
            hole = np.zeros(SIZE[::-1], bool)
            hole[10:15, 17:22] = True
            np.testing.assert_array_equal(valid, ~hole)
            room = small(frame)[0] - POSES[i][:3, 3]
            expected = (room @ POSES[i][:3, :3]).reshape(*SIZE[::-1], 3)
            # Millimetres, and rays of up to 1.2 times the depth.
            np.testing.assert_allclose(points[valid], expected[valid], atol=1.2e-3)


def test_matched_pixels_show_one_surface_within_a_pixel(recording, batch):
    apart = []
    for b, i, j in frames_of(recording, batch):
        matched = batch.matched[b]
        pixels_1, pixels_2 = batch.pixels_1[b][matched], batch.pixels_2[b][matched]
        assert matched.sum() > 20
        assert batch.valid_1[b][pixels_1[:, 1], pixels_1[:, 0]].all()
        assert batch.valid_2[b][pixels_2[:, 1], pixels_2[:, 0]].all()
        points_1 = small(i)[0].reshape(*SIZE[::-1], 3)[pixels_1[:, 1], pixels_1[:, 0]]
        points_2 = small(j)[0].reshape(*SIZE[::-1], 3)[pixels_2[:, 1], pixels_2[:, 0]]
        for T_WC, points, pixels in (
            (POSES[i], points_2, pixels_1),
            (POSES[j], points_1, pixels_2),
        ):
            uv, _ = scene.project(T_WC, points, SMALL_K)
            # Millimetres of depth move a point by less than a twentieth of a pixel.
            assert np.abs(uv - pixels).max() < 0.55
        width = scene.project(POSES[i], points_1)[1] / SMALL_K[0, 0]
        apart.append(np.linalg.norm(points_1 - points_2, axis=1) / width)
        for pixels in (batch.pixels_1[b], batch.pixels_2[b]):
            assert len(np.unique(pixels, axis=0)) == CONFIG.correspondences
    apart = np.concatenate(apart)
    assert np.median(apart) < 0.6 and np.quantile(apart, 0.95) < 1.5
    assert len(apart) > 500


def test_images_are_those_of_the_frames(recording, folder):
    """Smooth colours survive resizing: the small image is the large one at its pixels' centres."""
    for image, frame in zip(recording.images, USED, strict=True):
        large = np.asarray(Image.open(folder / f"rgb/{frame}.png")).astype(float)
        difference = np.abs(image - large[1::3, 10:-8:3])
        assert np.median(difference) < 3


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("depth.txt", "has no depth;"),
        ("groundtruth.txt", "has no poses;"),
        ("calibration.txt", "has no intrinsics;"),
    ],
)
def test_what_a_recording_lacks_is_named(folder, tmp_path, missing, message):
    for entry in folder.iterdir():
        if entry.name != missing:
            (tmp_path / entry.name).symlink_to(entry)
    with pytest.raises(SourceError, match=message):
        read_rgbd_pairs(tmp_path, CONFIG, depth_scale=1000.0)


def test_no_pair_is_an_error_with_a_way_out(folder):
    with pytest.raises(SourceError, match=r"of 6 frames .* 20 to 30 frames apart; widen the gap"):
        read_rgbd_pairs(folder, CONFIG, depth_scale=1000.0, gap=(20, 30))
    narrow = PairConfig(size=SIZE, overlap=(0.0, 0.01), correspondences=100)
    with pytest.raises(SourceError, match=r"overlap by 0.* none by 0 to 0\.01; change the gap or"):
        read_rgbd_pairs(folder, narrow, depth_scale=1000.0, gap=(1, 4))
    with pytest.raises(SourceError, match=r"gap=\(0, 4\) must be a range"):
        read_rgbd_pairs(folder, CONFIG, gap=(0, 4))
