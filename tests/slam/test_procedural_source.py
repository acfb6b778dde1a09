import functools

import cv2
import numpy as np
import pytest
from PIL import Image

from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.open_source import open_source
from slam.io.procedural import (
    ProceduralOptions,
    ProceduralSource,
    parse_procedural,
)
from slam.io.recording import write_tum, write_video
from slam.io.tum import TumSource

WALK = "procedural:room?seed=3&frames=20&size=64x48"


@functools.cache
def frames_of(uri):
    return list(parse_procedural(uri))


@functools.cache
def walk():
    return parse_procedural(WALK)


def test_frames_are_what_the_protocol_promises():
    source = walk()
    frames = frames_of(WALK)
    assert isinstance(source, Source)
    assert source.num_frames == 20 and source.name == "procedural-room-3" and len(frames) == 20
    for i, frame in enumerate(frames):
        assert frame.index == i and frame.timestamp == pytest.approx(i / 30)
        assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (48, 64, 3)
        assert frame.depth.dtype == np.float32 and frame.depth.shape == (48, 64)
        assert frame.T_WC.dtype == np.float64 and frame.K.dtype == np.float64
        assert np.isfinite(frame.depth).all() and frame.depth.min() > 0.2
        np.testing.assert_array_equal(frame.T_WC, source.T_WC[i])
    R = source.T_WC[:, :3, :3]
    np.testing.assert_allclose(
        R @ R.swapaxes(1, 2), np.broadcast_to(np.eye(3), R.shape), atol=1e-12
    )
    # 65 degrees across 64 pixels whose centres are integers.
    assert frames[0].K[0, 0] == pytest.approx(32 / np.tan(np.deg2rad(32.5)))
    np.testing.assert_array_equal(frames[0].K[:2, 2], [31.5, 23.5])


def test_same_seed_same_frames_other_seed_other_frames():
    for one, two in zip(frames_of(WALK), walk(), strict=True):
        np.testing.assert_array_equal(one.rgb, two.rgb)
        np.testing.assert_array_equal(one.depth, two.depth)
        np.testing.assert_array_equal(one.T_WC, two.T_WC)
    other = next(iter(parse_procedural("procedural:room?seed=4&frames=20&size=64x48")))
    difference = np.abs(other.rgb.astype(float) - frames_of(WALK)[0].rgb)
    assert difference.mean() > 10


def test_selected_frames_are_those_of_the_whole_walk():
    chosen = list(walk().select(slice(5, None, 7)))
    assert [frame.index for frame in chosen] == [5, 12, 19]
    for frame in chosen:
        np.testing.assert_array_equal(frame.rgb, frames_of(WALK)[frame.index].rgb)
    sliced = list(open_source(WALK, start=2, stride=3, max_frames=2))
    np.testing.assert_array_equal(sliced[1].depth, frames_of(WALK)[5].depth)
    assert [frame.index for frame in sliced] == [0, 1]


def reprojection_errors(first: SourceFrame, second: SourceFrame):
    """Relative differences of inverse depth where the first frame's points fall in the second.

    Inverse depth is affine in the pixel on planes, hence interpolated exactly there.
    """
    h, w = first.depth.shape
    v, u = np.mgrid[:h, :w]
    rays = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ np.linalg.inv(first.K).T
    X = first.depth.reshape(-1, 1).astype(np.float64) * rays
    T = np.linalg.inv(second.T_WC) @ first.T_WC
    p = (X @ T[:3, :3].T + T[:3, 3]) @ second.K.T
    uv = p[:, :2] / p[:, 2:]
    inside = (p[:, 2] > 0) & (uv >= 0).all(1) & (uv < [w - 1, h - 1]).all(1)
    uv, z = uv[inside], p[inside, 2]
    (x, y), (fx, fy) = np.floor(uv).astype(int).T, (uv - np.floor(uv)).T
    d = 1 / second.depth.astype(np.float64)
    top = d[y, x] * (1 - fx) + d[y, x + 1] * fx
    bottom = d[y + 1, x] * (1 - fx) + d[y + 1, x + 1] * fx
    return np.abs((top * (1 - fy) + bottom * fy) * z - 1)


@pytest.mark.parametrize("uri", [WALK, WALK + "&zoom=2"])
def test_depth_poses_and_intrinsics_agree_between_frames(uri):
    frames = frames_of(uri)
    for i, j in ((0, 5), (10, 14), (19, 13)):
        errors = reprojection_errors(frames[i], frames[j])
        assert errors.size > 600
        # Edges, occlusions and round things aside, everything is planes.
        assert np.median(errors) < 1e-5 and (errors < 1e-3).mean() > 0.75


def test_zoom_changes_the_focal_length_only():
    focal = np.array([frame.K[0, 0] for frame in frames_of(WALK + "&zoom=2")])
    base = frames_of(WALK)[0].K[0, 0]
    assert focal.min() == pytest.approx(base) and 1.9 * base < focal.max() <= 2 * base * (1 + 1e-6)
    np.testing.assert_array_equal(frames_of(WALK + "&zoom=2")[3].T_WC, frames_of(WALK)[3].T_WC)


def test_distortion_is_carried_and_true():
    source = parse_procedural(WALK + "&k1=-0.1&p1=0.002")
    np.testing.assert_array_equal(source.distortion, [-0.1, 0.0, 0.002, 0.0])
    assert walk().distortion is None
    # A pixel of the distorted image shows what the pinhole image shows at the ideal place.
    frame, plain = next(iter(source)), frames_of(WALK)[0]
    v, u = np.mgrid[8:40:4, 8:56:4]
    uv = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    ideal = cv2.undistortPoints(uv, frame.K, source.distortion, None, frame.K)[:, 0]
    sampled = cv2.remap(1 / plain.depth, ideal.astype(np.float32)[:, None], None, cv2.INTER_LINEAR)
    errors = np.abs(sampled.ravel() * frame.depth[v, u].ravel() - 1)
    # cv2.remap knows 32 fractions of a pixel; without the lens the median is several times larger.
    naive = np.abs(plain.depth[v, u] / frame.depth[v, u] - 1)
    assert np.median(errors) < 2e-3 and np.median(naive) > 3 * np.median(errors)


def test_sensor_effects_change_pixels_as_much_as_asked():
    plain = frames_of(WALK)[0].rgb.astype(float)
    noisy = next(iter(parse_procedural(WALK + "&noise=4"))).rgb.astype(float)
    # 48 x 64 x 3 samples give the deviation to 1 %; rounding and clipping at 0 and 255 a bit more.
    assert (noisy - plain).std() == pytest.approx(4.0, rel=0.06)
    again = next(iter(parse_procedural(WALK + "&noise=4"))).rgb
    np.testing.assert_array_equal(again, noisy)
    blurred = next(iter(parse_procedural(WALK + "&blur=1.5"))).rgb.astype(float)
    assert np.abs(np.diff(blurred, axis=1)).mean() < 0.6 * np.abs(np.diff(plain, axis=1)).mean()
    # 10 s hold a bright and a dark phase of the drift.
    drifting = list(parse_procedural(WALK + "&exposure=1&fps=2"))
    change = [f.rgb.mean() / p.rgb.mean() for f, p in zip(drifting, frames_of(WALK), strict=True)]
    assert max(change) > 1.1 and min(change) < 0.9
    np.testing.assert_array_equal(drifting[7].depth, frames_of(WALK)[7].depth)


def test_laps_need_frames():
    assert parse_procedural("procedural:room?frames=150&laps=1").laps == pytest.approx(1.0)
    assert parse_procedural("procedural:room?frames=40").laps == pytest.approx(39 * 2.45 / 360)


def test_four_hundred_frames_are_two_laps_of_the_same_places():
    source = parse_procedural("procedural:room?seed=3&frames=400&laps=2")
    assert source.laps == pytest.approx(2.0)
    # Half of the walk apart: as near as the hand's slow wandering allows, and nearer than the
    # opposite side of the loop, a quarter apart.
    position = source.T_WC[:, :3, 3]
    lap, half = (np.linalg.norm(position[n:] - position[:-n], axis=1) for n in (200, 100))
    assert np.median(lap) < 0.4 and np.median(half) > 2 * np.median(lap)


def assert_same_frames(found, expected):
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.rgb, two.rgb)
        np.testing.assert_array_equal(one.depth, two.depth)
        np.testing.assert_array_equal(one.T_WC, two.T_WC)


@pytest.mark.parametrize("extra", ["", "&noise=4"])
def test_a_covered_lens_is_black_and_nothing_else_changes(extra):
    uri = WALK + extra
    source = parse_procedural(uri + "&cover=3-5,9-9")
    dark = [3, 4, 5, 9]
    assert np.flatnonzero(source.covered).tolist() == dark
    for i, (one, two) in enumerate(zip(source, frames_of(uri), strict=True)):
        np.testing.assert_array_equal(one.rgb, 0 * two.rgb if i in dark else two.rgb)
        np.testing.assert_array_equal(one.depth, two.depth)
        np.testing.assert_array_equal(one.T_WC, two.T_WC)


def test_a_camera_carried_along_its_walk_goes_on_from_there():
    frames, walk = list(parse_procedural(WALK + "&jump=5:12")), frames_of(WALK)
    assert_same_frames(frames[:5], walk[:5])
    assert_same_frames(frames[5:13], walk[12:])
    # Beyond the end it walks on as before: no step is larger than those of a hand (test_steps_...).
    steps = np.linalg.norm(np.diff([frame.T_WC[:3, 3] for frame in frames], axis=0), axis=1)
    assert steps[4] > 0.1 and np.delete(steps, 4).max() < 0.07
    np.testing.assert_allclose([frame.timestamp for frame in frames], np.arange(20) / 30)


def test_a_camera_carried_to_another_room_and_back():
    source = parse_procedural(WALK + "&jump=5:other,12:2")
    frames, walk = list(source), frames_of(WALK)
    assert np.flatnonzero(source.elsewhere).tolist() == list(range(5, 12))
    assert_same_frames(frames[:5], walk[:5])
    assert_same_frames(frames[12:], walk[2:10])
    # One world: the other room is where the first one is not, and its truth is as true.
    position = np.stack([frame.T_WC[:3, 3] for frame in frames])
    assert (np.abs(position[5:12, 0]) > 20).all() and (np.abs(position[12:, 0]) < 4).all()
    errors = reprojection_errors(frames[5], frames[10])
    assert np.median(errors) < 1e-5 and (errors < 1e-3).mean() > 0.75
    # It looks different, and so does a third one: the other room of another seed.
    assert np.abs(frames[5].rgb.astype(float) - walk[0].rgb).mean() > 10
    other = parse_procedural(WALK.replace("seed=3", "seed=4") + "&jump=0:other")
    assert np.abs(next(iter(other)).rgb.astype(float) - frames[5].rgb).mean() > 10
    # A part of the walk across both borders, and another visit: from its start again.
    assert_same_frames(source.select(slice(3, 14, 2)), frames[3:14:2])
    again = parse_procedural(WALK + "&jump=5:other,8:0,10:other")
    assert_same_frames(again.select(slice(10, 12)), frames[5:7])


def test_every_key_of_the_uri_is_read():
    uri = (
        "procedural:room?seed=7&frames=30&size=96x64&laps=0.5&zoom=1.5&fov=70&fps=15&k1=-0.05"
        "&k2=0.01&p1=0.001&p2=-0.001&spp=2&noise=1&blur=0.5&exposure=0.3&cover=3-5,9-9"
        "&jump=10:2,20:other"
    )
    options = parse_procedural(uri).options
    expected = (7, 30, (96, 64), 0.5, 1.5, 70.0, 15.0, -0.05, 0.01, 0.001, -0.001, 2, 1.0, 0.5, 0.3)
    events = ((3, 5), (9, 9)), ((10, 2), (20, None))
    assert options == ProceduralOptions(*expected, *events)
    assert parse_procedural(ProceduralSource(options).uri).options == options
    assert parse_procedural("procedural:room").options == ProceduralOptions()


@pytest.mark.parametrize(
    ("query", "fragments"),
    [
        ("sed=3", ["unknown key 'sed'", "accepted keys: seed, frames, size"]),
        ("frames=ten", ["frames=ten", "whole number"]),
        ("frames=2.5", ["frames=2.5", "whole number"]),
        ("frames=0", ["frames=0", "between 1 and"]),
        ("frames=", ["'frames' has no value"]),
        ("frames", ["'frames' has no value"]),
        ("seed=1&seed=2", ["'seed' is given twice"]),
        ("size=128", ["size=128", "WIDTHxHEIGHT"]),
        ("size=8x8", ["size=8x8", "between 16 and 4096"]),
        ("size=-8x8", ["size=-8x8", "WIDTHxHEIGHT"]),
        ("zoom=0.5", ["zoom=0.5", "between 1 and 4"]),
        ("fov=nan", ["fov=nan", "between 20 and 120"]),
        ("laps=inf", ["laps=inf", "between"]),
        ("cover=30", ["cover=30 is not START-END", "cover=30-39"]),
        ("cover=3-5,x", ["cover=x is not START-END"]),
        ("cover=5-3", ["cover=5-3 is not a range", "between 0 and 149"]),
        ("cover=140-150", ["cover=140-150 is not a range", "between 0 and 149"]),
        ("jump=60", ["jump=60 is not AT:TO", "jump=60:20", "jump=60:other"]),
        ("jump=60:away", ["jump=60:away is not AT:TO"]),
        ("jump=150:3", ["jump=150:3 names a frame", "between 0 and 149"]),
        ("jump=3:150", ["jump=3:150 names a frame", "between 0 and 149"]),
        ("jump=60:other,60:20", ["jump=60:other,60:20 is out of order", "later frame"]),
        ("k1=-0.6", ["k1=-0.6", "folds the image", "fov=65"]),
    ],
)
def test_bad_uris_name_key_value_and_way_out(query, fragments):
    with pytest.raises(SourceError) as caught:
        parse_procedural(f"procedural:room?{query}")
    for fragment in [f"procedural:room?{query}", *fragments]:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_scene_is_named():
    with pytest.raises(SourceError, match=r"unknown scene 'street'.*procedural:room"):
        parse_procedural("procedural:street?seed=1")


def test_tum_folder_reads_back(tmp_path):
    folder = tmp_path / "made" / "walk"
    write_tum(walk(), folder)
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["walk"]
    # Raw files, by other libraries.
    first = frames_of(WALK)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "rgb" / "000000.png")), first.rgb)
    depth = cv2.imread(str(folder / "depth" / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16
    # Half a unit of 1/5000 m.
    np.testing.assert_allclose(depth / 5000.0, first.depth, atol=0.5001 / 5000)
    # And all of it by the reader of such folders.
    source = open_source(folder)
    assert isinstance(source, TumSource)
    for one, two in zip(frames_of(WALK), source, strict=True):
        np.testing.assert_array_equal(one.rgb, two.rgb)
        np.testing.assert_allclose(one.depth, two.depth, atol=0.501 / 5000)
        np.testing.assert_allclose(one.T_WC, two.T_WC, atol=1e-6)
        np.testing.assert_array_equal(one.K, two.K)
        assert two.timestamp == pytest.approx(one.timestamp, abs=1e-6)


def test_calibration_is_left_out_where_one_pinhole_would_lie(tmp_path):
    for name, query in (("zoom", "&zoom=2"), ("lens", "&k1=-0.1")):
        write_tum(parse_procedural(WALK + query), tmp_path / name)
        assert not (tmp_path / name / "calibration.txt").exists()
        assert (tmp_path / name / "groundtruth.txt").exists()


class Breaking:
    """A source that fails half-way."""

    name, num_frames = "breaking", 3

    def __iter__(self):
        yield frames_of(WALK)[0]
        yield frames_of(WALK)[1]
        raise RuntimeError("cable")


def test_nothing_half_written(tmp_path):
    with pytest.raises(RuntimeError, match="cable"):
        write_tum(Breaking(), tmp_path / "walk")
    for suffix in (".mp4", ".avi"):
        with pytest.raises(RuntimeError, match="cable"):
            write_video(Breaking(), tmp_path / f"walk{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_writers_refuse_in_a_sentence(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear reader")
    with pytest.raises(SourceError, match="full: exists already; choose another"):
        write_tum(walk(), tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(SourceError, match=r"walk.gif: cannot write '.gif'; use one of .mp4, .avi"):
        write_video(walk(), tmp_path / "walk.gif")


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_reads_back(tmp_path, suffix):
    path = tmp_path / f"walk{suffix}"
    write_video(walk(), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    frames = list(open_source(path))
    assert len(frames) == 20
    assert frames[3].timestamp == pytest.approx(0.1, abs=1e-3)
    # Lossy, but this image and not another: red is red, left is left.
    for one, two in zip(frames_of(WALK), frames, strict=True):
        difference = np.abs(one.rgb.astype(float) - two.rgb)
        assert difference.mean() < 0.3 * np.abs(one.rgb.astype(float) - two.rgb[:, ::-1]).mean()
