"""Cameras and iterables: what has no end, or no files."""

import dataclasses
import gc
import http.server
import io
import itertools
import os
import signal
import sys
import threading
import time
import types
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

from slam import IterableSource, runner
from slam.cli import session
from slam.io import camera
from slam.io.camera import LiveSource
from slam.io.frames import Source, SourceError
from slam.io.open_source import SlicedSource, is_live, open_source
from slam.io.prefetch import Prefetch
from tests.slam import rim
from tests.slam.io.recordings import number_of, picture


class Capture:
    """In place of ``cv2.VideoCapture``: 40 pictures, one every 5 ms."""

    opened: ClassVar[list] = []
    length, declared, hangs, fails = 40, -1, False, False

    def __init__(self, place, *options):
        self.place, self.options, self.count, self.released = place, options, 0, False
        Capture.opened.append(self)

    def isOpened(self):
        return self.place != 9

    def read(self):
        time.sleep(0.005)
        assert not self.released, "closed while it was being read"
        if self.fails:
            raise cv2.error("OpenCV(5.0.0) decoder.cpp:7:\n  no such codec")
        if self.count >= self.length:
            if self.hangs:
                time.sleep(0.5)
            return False, None
        self.count += 1
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 0] = self.count  # OpenCV: blue first
        return True, image

    def get(self, what):
        assert what == cv2.CAP_PROP_FRAME_COUNT
        return self.declared

    def release(self):
        self.released = True


def until_it_breaks_off(source, why):
    """The frames of a camera, which has no other end."""
    frames = []
    with pytest.raises(SourceError, match=why):
        for frame in source:
            frames.append(frame)
    return frames


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(camera, "PAUSE", 0.01)
    Capture.opened.clear()
    yield Capture.opened
    gc.collect()  # generators that were left half-way
    assert all(capture.released for capture in Capture.opened)


def test_a_slow_consumer_gets_the_newest_picture():
    source = open_source("webcam:2")
    assert isinstance(source, Source) and is_live(source) and source.num_frames is None
    seen = []
    with pytest.raises(SourceError, match=r"^webcam:2: gives no more pictures$"):
        for frame in source:
            assert frame.index == len(seen)
            seen.append((int(frame.rgb[0, 0, 2]), frame.timestamp))
            time.sleep(0.05)
    assert len(Capture.opened) == 1
    numbers, times = map(list, zip(*seen, strict=True))
    assert Capture.opened[0].place == 2
    assert numbers == sorted(set(numbers)) and 2 <= len(numbers) < 20  # about every tenth
    assert numbers[-1] >= 35, "and not a backlog of old ones"
    assert times[0] == 0 and all(b > a for a, b in itertools.pairwise(times))


def test_streams_by_address(fake):
    (frame,) = open_source("rtsp://user:secret@10.0.0.3:554/left", max_frames=1)
    assert fake[0].place == "rtsp://user:secret@10.0.0.3:554/left"
    # Neither opening nor reading may hang for longer than a user is kept waiting.
    backend, limits = fake[0].options
    assert backend == cv2.CAP_FFMPEG
    assert dict(zip(limits[::2], limits[1::2], strict=True)) == {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 11000,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: 11000,
    }
    sliced = open_source("http://10.0.0.3/video", stride=2, max_frames=2)
    assert is_live(sliced) and len(list(sliced)) == 2
    assert frame.rgb.shape == (48, 64, 3)
    assert "secret" not in LiveSource("rtsp://user:secret@10.0.0.3:554/left").name


def test_a_stream_that_breaks_off_is_opened_again(fake, monkeypatch, caplog):
    monkeypatch.setattr(Capture, "length", 2)
    address = "rtsp://user:secret@10.0.0.3/left"
    frames = iter(LiveSource(address))
    taken = [next(frames) for _ in range(6)]
    assert [frame.index for frame in taken] == list(range(6)) and len(fake) >= 3
    assert all(b.timestamp > a.timestamp for a, b in itertools.pairwise(taken))
    told = "rtsp://10.0.0.3/left: gives no more pictures; opening it again, 1 of 3"
    assert set(caplog.messages) == {told}  # the tries are counted from the last picture on
    caplog.clear()
    monkeypatch.setattr(Capture, "isOpened", lambda self: False)
    why = r"^rtsp://10\.0\.0\.3/left: gives no more pictures; opened again 3 times in vain$"
    until_it_breaks_off(frames, why)
    assert [message[-6:] for message in caplog.messages] == ["1 of 3", "2 of 3", "3 of 3"]
    # There was no picture yet: the address may be wrong.
    caplog.clear()
    until_it_breaks_off(LiveSource(address), "cannot be opened")
    assert not caplog.messages


def test_a_recording_behind_an_address_ends(fake, monkeypatch):
    monkeypatch.setattr(Capture, "declared", 40)
    assert list(open_source("http://10.0.0.3/walk.mp4")) and len(fake) == 1


def test_cameras_that_do_not_work(monkeypatch):
    with pytest.raises(SourceError, match="webcam:9: cannot be opened"):
        next(iter(open_source("webcam:9")))
    monkeypatch.setattr(Capture, "length", 1)
    monkeypatch.setattr(Capture, "hangs", True)
    frames = iter(LiveSource("webcam:0", patience=0.1))
    next(frames)
    with pytest.raises(SourceError, match=r"webcam:0: no picture for 0\.1 s"):
        next(frames)
    monkeypatch.setattr(Capture, "fails", True)
    with pytest.raises(SourceError, match=r"webcam:0: the camera failed \(.*no such codec\)"):
        next(iter(LiveSource("webcam:0")))
    with pytest.raises(SourceError, match="webcam:front: no such kind of address"):
        open_source("webcam:front")
    assert camera.ADDRESS.fullmatch("C:/video.mp4") is None


@pytest.mark.parametrize("stalled", ["reading", "before it is opened again"])
def test_ctrl_c_waits_for_no_picture(monkeypatch, stalled):
    """Long before patience ends, or the pause before the next try: a stalled stream is no error."""
    woken = threading.Event()

    def interrupt_later():
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()

    class Stalling(Capture):
        def read(self):
            if self.count < 3:
                return super().read()
            interrupt_later()
            if stalled == "reading":
                woken.wait()
            return False, None

    monkeypatch.setattr(cv2, "VideoCapture", Stalling)
    monkeypatch.setattr(camera, "PAUSE", 20.0)
    source = SlicedSource(LiveSource("rtsp://10.0.0.3/left", patience=20.0), stride=1)
    with session._first_interrupt(True, source, None) as interrupted:
        frames = list(Prefetch(source, 1))  # as runs do
    woken.set()
    assert 1 <= len(frames) <= 3 and interrupted.is_set()
    assert list(source) == []  # for good


def test_what_a_driver_raises_is_told_in_one_sentence(monkeypatch):
    def lost(self):
        raise ValueError("device\nlost")

    monkeypatch.setattr(Capture, "read", lost)
    with pytest.raises(SourceError, match=r"webcam:0: the camera failed \(device lost\)"):
        next(iter(LiveSource("webcam:0")))


def test_a_stream_ends_though_its_camera_cannot_be_closed(monkeypatch):
    def release(self):
        self.released = True
        raise RuntimeError("device lost")

    monkeypatch.setattr(Capture, "length", 3)
    monkeypatch.setattr(Capture, "release", release)
    begin = time.monotonic()
    assert until_it_breaks_off(LiveSource("webcam:0", patience=5.0), "no more pictures")
    assert time.monotonic() - begin < 4


def test_no_message_holds_a_password(monkeypatch):
    address = "rtsp://user:se@cret@10.0.0.3:554/left"
    frames = iter(LiveSource(address))
    assert next(frames).origin == "rtsp://10.0.0.3:554/left frame 0"
    del frames
    monkeypatch.setattr(Capture, "isOpened", lambda self: False)
    with pytest.raises(SourceError, match=r"rtsp://10\.0\.0\.3:554/left: cannot be opened"):
        next(iter(LiveSource(address)))


def test_pipelines_of_gstreamer(fake, monkeypatch):
    pipeline = "v4l2src ! videoconvert ! appsink"
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:   NO\n")
    with pytest.raises(SourceError, match="appsink: this OpenCV was built without GStreamer"):
        open_source(f"gstreamer:{pipeline}")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:   YES (1.22.0)\n")
    assert len(list(open_source(f"gstreamer:{pipeline}", max_frames=1))) == 1
    assert (fake[0].place, fake[0].options) == (pipeline, (cv2.CAP_GSTREAMER,))


class Pictures(http.server.BaseHTTPRequestHandler):
    """An IP camera: motion JPEG, picture after picture, until it reboots for the last time."""

    count, boots = 25, 2

    def do_GET(self):
        Pictures.boots -= 1
        if self.boots < 0:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for number in range(self.count):
            jpeg = io.BytesIO()
            Image.fromarray(picture(number)).save(jpeg, "JPEG", quality=95)
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")
            time.sleep(0.01)

    def log_message(self, *_):
        """Says nothing."""


def test_a_camera_of_the_network(monkeypatch):
    """OpenCV itself, and a server of this machine."""
    monkeypatch.undo()
    monkeypatch.setattr(camera, "PAUSE", 0.01)
    monkeypatch.setattr(Pictures, "boots", 2)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/video"
    try:
        frames = until_it_breaks_off(open_source(address), "opened again 3 times in vain")
        numbers = [number_of(frame.rgb) for frame in frames]
        again = numbers.index(Pictures.count - 1) + 1
        for part in (numbers[:again], numbers[again:]):
            assert part == sorted(set(part)) and part[-1] == Pictures.count - 1
        assert frames[0].rgb.shape == (48, 64, 3)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(SourceError, match="/video: cannot be opened"):
        next(iter(open_source(address)))


class RealSense(types.ModuleType):
    """In place of pyrealsense2: the calls of its 2.59, of one device with the number 42."""

    model, coeffs = "inverse_brown_conrady", [-0.06, 0.07, 0.0004, 0.0007, -0.02]

    def __init__(self):
        super().__init__("pyrealsense2")
        self.stream = types.SimpleNamespace(color="color")
        self.format = types.SimpleNamespace(rgb8="rgb8")
        self.running, self.count, self.wanted = 0, 0, None
        self.memory = np.zeros((480, 640, 3), np.uint8)  # the device's, for all pictures

    def config(self):
        return RealSenseConfig()

    def pipeline(self):
        return RealSensePipeline(self)


class RealSenseConfig:
    serial = None

    def enable_device(self, serial):
        self.serial = serial

    def enable_stream(self, stream_type, width, height, format, framerate):
        self.stream = (stream_type, width, height, format, framerate)


class RealSensePipeline:
    def __init__(self, module):
        self.module = module

    def start(self, config):
        if config.serial not in (None, "42"):
            raise RuntimeError("No device connected")
        assert config.stream == ("color", 640, 480, "rgb8", 30)
        self.module.running += 1
        return self

    def get_stream(self, stream_type):
        assert stream_type == "color"
        return self

    def as_video_stream_profile(self):
        return self

    def get_intrinsics(self):
        model = types.SimpleNamespace(name=self.module.model)
        sides = {"width": 640, "height": 480, "fx": 600.0, "fy": 601.0, "ppx": 319.0, "ppy": 241.0}
        return types.SimpleNamespace(model=model, coeffs=self.module.coeffs, **sides)

    def try_wait_for_frames(self, timeout_ms=5000):
        assert self.module.running == 1, "stopped while it was being read"
        time.sleep(0.005)
        if self.module.count == 30:
            return False, None
        self.module.count += 1
        self.module.memory[..., 0] = self.module.count
        return True, self

    def get_color_frame(self):
        return self

    def get_data(self):
        return memoryview(self.module.memory)

    def stop(self):
        self.module.running -= 1


@pytest.fixture
def device(monkeypatch):
    module = RealSense()
    monkeypatch.setitem(sys.modules, "pyrealsense2", module)
    yield module
    assert module.running == 0


@pytest.mark.parametrize("address", ["realsense:", "realsense:42"])
def test_a_realsense_brings_its_lens(device, address):
    source = open_source(address)
    assert is_live(source) and source.num_frames is None and device.running == 0
    first, *others = until_it_breaks_off(source, f"{address}: gives no more pictures")
    # The first picture stays what it was when the device writes the next ones.
    assert (first.rgb == first.rgb[0, 0]).all() and first.rgb[0, 0].tolist()[1:] == [0, 0]
    assert first.rgb[0, 0, 0] < others[-1].rgb[0, 0, 0] == 30
    np.testing.assert_array_equal(first.K, [[600, 0, 319], [0, 601, 241], [0, 0, 1]])
    np.testing.assert_array_equal(first.distortion, RealSense.coeffs)
    device.count = 0
    (straight,) = open_source(address, rectify=True, max_frames=1)
    assert straight.distortion is None and straight.rgb.shape == (480, 640, 3)


def test_a_realsense_that_does_not_work(device, monkeypatch):
    with pytest.raises(SourceError, match=r"realsense:7: cannot be opened \(No device connected\)"):
        next(iter(open_source("realsense:7")))
    device.model = "kannala_brandt4"
    with pytest.raises(SourceError, match=r"realsense:: the lens is a fisheye \(kannala_brandt4\)"):
        next(iter(open_source("realsense:")))
    assert device.running == 0
    device.coeffs = [0.0] * 5
    assert next(iter(open_source("realsense:"))).distortion is None
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(SourceError, match=r"pip install 'mast3r-slam-jax\[realsense\]'"):
        open_source("realsense:")


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
    with pytest.raises(SourceError, match=r"frames: frame 2 is uint8 \[48, 64\]; expected"):
        list(IterableSource([*images[:2], images[2][..., 0]]))
    frames[1] = dataclasses.replace(frames[1], rgb=images[1] / 255)
    with pytest.raises(SourceError, match=r"frames: frame 1 is float64 \[48, 64, 3\]; expected"):
        list(IterableSource(frames))
    with pytest.raises(SourceError, match=r"frames: frame 0 is uint8 \[0, 64, 3\]; expected"):
        list(IterableSource([images[0][:0]]))
    with pytest.raises(SourceError, match="frames: frame 0 is no array"):
        list(IterableSource(rows for rows in [[[1, 2], [3]]]))
    with pytest.raises(SourceError, match=r"mine: fps=0\.0 must be a positive number"):
        IterableSource(images, fps=0.0, name="mine")


def test_an_iterable_may_use_one_array_for_all_images():
    def images():
        image = np.empty((48, 64, 3), np.uint8)
        for number in range(3):
            image[:] = number
            yield image

    assert [int(frame.rgb[0, 0, 0]) for frame in list(IterableSource(images()))] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_takes_any_iterable():
    """Frames of the walk from a generator, in place of a source."""
    walk = rim.walk()[:3]
    result = runner.run((frame for frame in walk), rim.EXACT, stepper=rim.stepper())
    np.testing.assert_array_equal(result.trajectory().T_WC, rim.result().trajectory().T_WC[:3])
