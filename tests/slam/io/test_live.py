"""Cameras and iterables: what has no end, or no files."""

import gc
import itertools
import time
from typing import ClassVar

import cv2
import numpy as np
import pytest

from slam import IterableSource, runner
from slam.io import camera
from slam.io.camera import LiveSource
from slam.io.frames import Source, SourceError
from slam.io.open_source import is_live, open_source
from tests.slam import rim


class Capture:
    """In place of ``cv2.VideoCapture``: 40 pictures, one every 5 ms."""

    opened: ClassVar[list] = []
    length, hangs = 40, False

    def __init__(self, place):
        self.place, self.count, self.released = place, 0, False
        Capture.opened.append(self)

    def isOpened(self):
        return self.place != 9

    def read(self):
        time.sleep(0.005)
        if self.count >= self.length:
            if self.hangs:
                time.sleep(0.5)
            return False, None
        self.count += 1
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 0] = self.count  # OpenCV: blue first
        return True, image

    def release(self):
        self.released = True


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    Capture.opened.clear()
    yield Capture.opened
    gc.collect()  # generators that were left half-way
    assert all(capture.released for capture in Capture.opened)


def test_a_slow_consumer_gets_the_newest_picture():
    source = open_source("webcam:2")
    assert isinstance(source, Source) and is_live(source) and source.num_frames is None
    seen = []
    for frame in source:
        assert frame.index == len(seen)
        seen.append((int(frame.rgb[0, 0, 2]), frame.timestamp))
        time.sleep(0.05)
    numbers, times = map(list, zip(*seen, strict=True))
    assert Capture.opened[0].place == 2
    assert numbers == sorted(set(numbers)) and 2 <= len(numbers) < 20  # about every tenth
    assert numbers[-1] >= 35, "and not a backlog of old ones"
    assert times[0] == 0 and all(b > a for a, b in itertools.pairwise(times))


def test_streams_by_address(fake):
    (frame,) = open_source("rtsp://user:secret@10.0.0.3:554/left", max_frames=1)
    assert fake[0].place == "rtsp://user:secret@10.0.0.3:554/left"
    sliced = open_source("http://10.0.0.3/video", stride=2, max_frames=2)
    assert is_live(sliced) and len(list(sliced)) == 2
    assert frame.rgb.shape == (48, 64, 3)
    assert "secret" not in LiveSource("rtsp://user:secret@10.0.0.3:554/left").name


def test_cameras_that_do_not_work(monkeypatch):
    with pytest.raises(SourceError, match="webcam:9: cannot be opened"):
        next(iter(open_source("webcam:9")))
    monkeypatch.setattr(Capture, "length", 1)
    monkeypatch.setattr(Capture, "hangs", True)
    frames = iter(LiveSource("webcam:0", patience=0.1))
    next(frames)
    with pytest.raises(SourceError, match=r"webcam:0: no picture for 0\.1 s"):
        next(frames)
    with pytest.raises(SourceError, match="webcam:front: no such kind of address"):
        open_source("webcam:front")
    assert camera.ADDRESS.fullmatch("C:/video.mp4") is None


def test_any_iterable_is_a_source():
    images = [np.full((48, 64, 3), i, np.uint8) for i in range(3)]
    K = np.diag([50.0, 50.0, 1.0])
    source = IterableSource((image for image in images), fps=10.0, K=K, name="mine")
    frames = list(source)
    assert [frame.timestamp for frame in frames] == [0, 0.1, 0.2] and source.num_frames is None
    assert IterableSource(images).num_frames == 3
    np.testing.assert_array_equal(frames[2].rgb, images[2])
    np.testing.assert_array_equal(frames[0].K, K)
    with pytest.raises(SourceError, match=r"frames: frame 1 is float64 \[48, 64, 3\]; expected"):
        list(IterableSource([images[0], images[1] / 255]))


def test_a_run_takes_any_iterable():
    """Frames of the walk from a generator, in place of a source."""
    walk = rim.walk()[:3]
    result = runner.run((frame for frame in walk), rim.EXACT, stepper=rim.stepper())
    np.testing.assert_array_equal(result.trajectory().T_WC, rim.result().trajectory().T_WC[:3])
