"""The loop around the step: it feeds, times, grows, reports and refuses."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from slam import runner
from slam.io.frames import SourceError
from slam.state import Mode
from slam.stepper import StageTimer, Stepper
from slam.types import Frame
from tests.slam import rim

STAGES = {"source", "look up", "encode", "decode", "match", "solve", "assess", "commit", "frame"}
"""What every frame goes through."""
KEYFRAME_STAGES = {"propose": 0, "verify": 0, "optimize": 1, "adopt": 1}
"""What keyframes go through, but for so many of the first ones."""


def relative(T_WC):
    """Poses seen from the first of them."""
    return np.linalg.inv(T_WC[0]) @ T_WC


def test_every_frame_is_posed_and_counted():
    result, frames = rim.result(), rim.walk()
    assert result.name == "walk" and result.num_frames == len(frames) == 14
    assert result.tracked.all()
    np.testing.assert_array_equal(result.timestamps, [f.timestamp for f in frames])
    np.testing.assert_array_equal(result.frames.frame_index, np.arange(14))
    assert result.num_keyframes == result.is_keyframe.sum() == len(result.images) >= 3
    np.testing.assert_array_equal(result.keyframes.frame_index, np.flatnonzero(result.is_keyframe))
    assert result.verdict() == f"all 14 frames have a pose, {result.num_keyframes} keyframes"
    assert result.notes == ()
    assert len(result.trajectory().timestamps) == 14
    assert len(result.keyframe_trajectory().timestamps) == result.num_keyframes


def test_the_poses_are_the_true_ones():
    result, frames = rim.result(), rim.walk()
    truth = relative(np.stack([f.T_WC for f in frames]))
    found = result.trajectory().T_WC
    np.testing.assert_array_equal(found[0], np.eye(4))
    # Matches are whole pixels: each hop from keyframe to keyframe, and the last one to the frame,
    # may be off by a pixel, and by that angle times the distance of what is seen.
    pixel = 1 / frames[0].K[0, 0]
    hops = 1 + np.asarray(result.frames.keyframe)
    distance = np.mean([np.median(f.depth) for f in frames])
    error = np.linalg.norm(found[:, :3, 3] - truth[:, :3, 3], axis=1)
    assert (error <= hops * pixel * distance).all(), error
    turn = np.einsum("nij,nij->n", found[:, :3, :3], truth[:, :3, :3])
    assert (np.arccos(np.clip((turn - 1) / 2, -1, 1)) <= hops * pixel).all()
    # Exact geometry is metric: there is no scale to be found.
    error = result.evaluate(with_scale=True)
    assert error is not None and abs(error.scale - 1) < 0.02
    assert error.num_poses == 14


def test_timing_tells_every_stage():
    timing = rim.result().timing
    assert set(timing["stages"]) == STAGES | set(KEYFRAME_STAGES)
    for name, row in timing["stages"].items():
        keyframes = rim.result().num_keyframes - KEYFRAME_STAGES.get(name, 0)
        assert row["calls"] == (14 if name in STAGES else keyframes)
        assert 0 <= row["median_s"] <= row["p99_s"] and row["later_sum_s"] >= 0
    frame = timing["stages"]["frame"]
    assert frame["first_s"] == pytest.approx(timing["first_frame_s"], abs=0.01)
    # Nothing between the frames is left out of the total, and no stage is counted twice.
    assert frame["first_s"] + frame["later_sum_s"] == pytest.approx(timing["total_s"], abs=0.2)
    parts = [row["later_sum_s"] for name, row in timing["stages"].items() if name != "frame"]
    assert sum(parts) <= frame["later_sum_s"]
    later = timing["total_s"] - timing["first_frame_s"]
    assert timing["fps_after_first_frame"] == pytest.approx(13 / later)


def test_timer_keeps_the_first_call_apart():
    timer = StageTimer()
    for seconds in (9.0, 1.0, 2.0, 3.0):
        timer.book("solve", seconds)
    assert timer.call("double", lambda x: 2 * x, 4) == 8
    summary = timer.summary()
    solve = summary["solve"]
    assert (solve["first_s"], solve["median_s"], solve["later_sum_s"]) == (9.0, 2.0, 6.0)
    assert solve["calls"] == 4 and 2.9 < solve["p99_s"] <= 3.0
    assert summary["double"]["calls"] == 1 and np.isnan(summary["double"]["median_s"])


@pytest.mark.slow
def test_overlapping_changes_nothing_but_the_times():
    """Frames whose stages are not waited for: same numbers, same order of what is told."""
    told = []
    result = runner.run(
        rim.source(),
        rim.EXACT,
        stepper=rim.stepper(),
        on_progress=told.append,
        num_panels=3,
        time_every=5,
    )
    assert told == rim.progress()
    jax.tree.map(np.testing.assert_array_equal, result.frames, rim.result().frames)
    jax.tree.map(np.testing.assert_array_equal, result.keyframes, rim.result().keyframes)
    assert [p.frame_index for p in result.panels] == [3, 6, 10]
    stages = result.timing["stages"]
    assert stages["frame"]["calls"] == stages["source"]["calls"] == 14
    assert stages["decode"]["calls"] == 3  # frames 0, 5, 10


class Recording(Stepper):
    """Notes what the device is given, and when the host reads."""

    def __init__(self, config):
        super().__init__(config)
        self.events = []
        for name in ("encode", "commit"):
            setattr(self, f"_{name}", self.noted(name, getattr(self, f"_{name}")))

    def noted(self, name, function):
        def call(*arguments):
            frame = next((int(a.index) for a in arguments if isinstance(a, Frame)), None)
            self.events.append((name, frame))
            return function(*arguments)

        return call


@pytest.mark.slow
def test_the_device_has_the_next_frame_before_the_host_reads_of_this_one(monkeypatch):
    stepper = Recording(rim.CONFIG)
    sources = []

    class Watched(runner.Prefetch):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            sources.append(self)

    def wait_for_the_source(progress):
        end = time.monotonic() + 10  # reached only when the test fails
        while progress.frame == 0 and sources[0]._ready.qsize() < 2 and time.monotonic() < end:
            time.sleep(0.001)

    monkeypatch.setattr(runner, "Prefetch", Watched)
    runner.run(
        rim.source(3), rim.EXACT, stepper=stepper, on_progress=wait_for_the_source, time_every=100
    )
    assert stepper.events == [
        ("encode", 0), ("commit", 0),  # timed
        ("encode", 1), ("encode", 2), ("commit", 1), ("commit", 2),
    ]  # fmt: skip


class Failing(rim.Frames):
    """The first frames of the walk, and what is raised then."""

    def __init__(self, count: int, failure: Exception) -> None:
        super().__init__(list(rim.walk()[:count]))
        self.failure = failure

    def __iter__(self):
        yield from self.frames
        raise self.failure


def smaller(frame):
    return dataclasses.replace(frame, rgb=frame.rgb[:48])


@pytest.mark.parametrize("time_every", [1, 100])  # 100: it fails ahead of its turn
@pytest.mark.parametrize(
    ("source", "why"),
    [
        (lambda: Failing(3, SourceError("3.png: torn")), "3.png: torn"),
        (lambda: rim.Frames([*rim.walk()[:3], smaller(rim.walk()[3])]), "image is 128x48 but"),
    ],
)
def test_what_was_mapped_before_a_source_broke_off_is_kept(source, why, time_every):
    result = runner.run(source(), rim.EXACT, stepper=rim.stepper(), time_every=time_every)
    assert result.num_frames == 3 and why in result.broken_off
    np.testing.assert_array_equal(result.trajectory().T_WC, rim.result().trajectory().T_WC[:3])
    assert result.notes == (f"the source broke off after frame 2: {result.broken_off}",)
    assert result.verdict() == "all 3 frames have a pose, 1 keyframe; the source broke off"
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_a_source_that_breaks_off_before_its_first_frame_is_refused():
    with pytest.raises(SourceError, match=r"^0\.png: torn$"):
        runner.run(Failing(0, SourceError("0.png: torn")), rim.EXACT, stepper=rim.stepper())


@pytest.mark.parametrize("time_every", [1, 100])
def test_a_mistake_in_a_source_is_raised_after_the_frames_before_it(time_every):
    told = []
    with pytest.raises(KeyError, match="slot"):
        runner.run(
            Failing(3, KeyError("slot")),
            rim.EXACT,
            stepper=rim.stepper(),
            on_progress=lambda p: told.append(p.frame),
            time_every=time_every,
        )
    assert told[:2] == [0, 1]
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_progress_is_told_after_every_frame():
    told, result = rim.progress(), rim.result()
    assert [p.frame for p in told] == list(range(14)) and {p.total for p in told} == {14}
    assert [p.num_keyframes for p in told] == result.frames.num_keyframes.tolist()
    assert all(p.mode is Mode.TRACKING for p in told)
    assert told[0].match_fraction == 0, "there was nothing yet to match the first frame with"
    assert all(0 < p.match_fraction <= 1 for p in told[1:])


def test_panels_show_a_frame_and_what_it_was_tracked_against():
    result, frames = rim.result(), rim.walk()
    assert [p.frame_index for p in result.panels] == [3, 6, 10]  # quarters of 0 .. 13
    for panel in result.panels:
        # The last keyframe before the frame, also when the frame became one itself.
        earlier = np.flatnonzero(result.is_keyframe[: panel.frame_index])
        assert panel.keyframe_index == earlier[-1]
        np.testing.assert_array_equal(panel.image_f, frames[panel.frame_index].rgb)
        np.testing.assert_array_equal(panel.image_k, frames[panel.keyframe_index].rgb)
        # Exact geometry: the predicted depth is the rendered one.
        np.testing.assert_allclose(
            panel.views.frame.points[..., 2], frames[panel.frame_index].depth, rtol=1e-5
        )
        assert isinstance(panel.views.frame.points, np.ndarray)


def test_panels_of_a_source_of_unknown_length():
    source = rim.source(10)
    source.num_frames = None
    result = runner.run(source, rim.EXACT, stepper=rim.stepper(), num_panels=3)
    assert [p.frame_index for p in result.panels] == [8]


@pytest.mark.slow
def test_growing_from_one_slot_changes_nothing():
    small = runner.run(
        rim.source(), rim.EXACT, dataclasses.replace(rim.CONFIG, keyframe_capacity=1)
    )
    large = rim.result()
    assert small.num_keyframes == large.num_keyframes >= 3  # grown at least twice
    for name in ("mode", "keyframe", "is_keyframe", "num_keyframes", "status"):
        np.testing.assert_array_equal(getattr(small.frames, name), getattr(large.frames, name))
    # Other shapes are other programs: the compiler may round differently.
    np.testing.assert_allclose(small.trajectory().T_WC, large.trajectory().T_WC, atol=1e-5)
    np.testing.assert_allclose(
        small.keyframes.pointmap.points, large.keyframes.pointmap.points, rtol=1e-5, atol=1e-5
    )
    assert small.notes == () and not small.frames.full.any()


@pytest.mark.slow
def test_the_limit_of_keyframes_is_kept_and_told():
    config = dataclasses.replace(rim.CONFIG, max_keyframes=1)
    result = runner.run(rim.source(8), rim.EXACT, config)
    assert result.num_keyframes == 1 and result.tracked[:3].all()
    first_full = int(np.flatnonzero(result.frames.full)[0])
    (note,) = result.notes
    assert "limit of 1 keyframes" in note and f"at frame {first_full}:" in note
    assert "max_keyframes" in note


@pytest.mark.slow
def test_calibrated():
    result = runner.run(rim.source(6), rim.EXACT, stepper=rim.stepper(), calibrated=True)
    assert result.tracked.all()
    frames = rim.walk()[:6]
    truth = relative(np.stack([f.T_WC for f in frames]))
    error = np.linalg.norm(result.trajectory().positions - truth[:, :3, 3], axis=1)
    hops = 1 + np.asarray(result.frames.keyframe)
    assert (error <= hops / frames[0].K[0, 0] * np.median(frames[0].depth)).all(), error


def test_lost_frames_have_no_pose_and_are_told():
    frames = list(rim.walk()[:5])
    frames[2] = rim.covered(frames[2])
    result = runner.run(rim.Frames(frames), rim.EXACT, stepper=rim.stepper())
    assert result.tracked.tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(
        result.trajectory().timestamps, [frames[i].timestamp for i in (0, 1, 3, 4)]
    )
    assert result.verdict().startswith("PARTLY LOST: 4 of 5 frames have a pose")
    assert "frame 2" in result.verdict()


def test_reference_poses_may_be_missing():
    frames = list(rim.walk()[:4])
    frames[1] = dataclasses.replace(frames[1], T_WC=np.full((4, 4), np.nan))
    result = runner.run(rim.Frames(frames), rim.EXACT, stepper=rim.stepper())
    reference = result.reference_trajectory()
    assert reference is not None
    np.testing.assert_array_equal(reference.T_WC, [frames[i].T_WC for i in (0, 2, 3)])
    # Without a pose the prior's points are not numbers, and the frame is lost.
    assert result.tracked.tolist() == [True, False, True, True]
    error = result.evaluate()
    assert error is not None and error.num_poses == 3


def zoomed(frame):
    return dataclasses.replace(frame, K=frame.K * np.array([[1.1], [1.1], [1.0]]))


@pytest.mark.parametrize(
    ("frames", "calibrated", "words"),
    [
        (lambda walk: [], False, ["empty", "no frames"]),
        (lambda walk: [walk[0], zoomed(walk[1])], True, ["frame 3", "intrinsics change"]),
        (
            lambda walk: [dataclasses.replace(walk[0], K=None)],
            True,
            ["frame 0", "no intrinsics", "calibration"],
        ),
    ],
)
def test_unusable_sources(frames, calibrated, words):
    source = rim.Frames(frames(rim.walk()), name="empty")
    with pytest.raises(SourceError) as caught:
        runner.run(source, rim.EXACT, stepper=rim.stepper(), calibrated=calibrated)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
