"""Videos, written here with the same library, and the ways a file can fail to be one."""

import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from slam.io.frames import Source, SourceError
from slam.io.open_source import open_source
from slam.io.video import VideoSource, looks_like_text
from tests.slam.io.recordings import FPS, number_of, write_video


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "MJPG")]
)
def test_frames_colours_and_times(tmp_path, name, codec):
    source = VideoSource(write_video(tmp_path / name, 12, codec))
    assert isinstance(source, Source)
    assert (source.name, source.num_frames) == ("a", 12)
    for _ in range(2):  # iterable again
        frames = list(source)
        assert [number_of(f.rgb) for f in frames] == list(range(12))
        assert [f.index for f in frames] == list(range(12))
        # Containers round stamps to a millisecond (Matroska) or finer.
        np.testing.assert_allclose(
            [f.timestamp for f in frames], np.arange(12) / FPS, atol=1e-3, rtol=0
        )
    assert frames[5].origin == f"{tmp_path / name} frame 5"
    assert frames[0].rgb.shape == (48, 64, 3) and frames[0].rgb.dtype == np.uint8


def test_given_rate_replaces_the_containers_times(tmp_path):
    frames = list(VideoSource(write_video(tmp_path / "a.avi", 4), fps=8.0))
    assert [f.timestamp for f in frames] == [0.0, 0.125, 0.25, 0.375]


def test_video_is_recognised_by_content(tmp_path):
    shutil.move(write_video(tmp_path / "a.avi", 3), tmp_path / "film.data")
    assert [number_of(f.rgb) for f in open_source(tmp_path / "film.data")] == [0, 1, 2]


def test_abandoned_iteration_leaves_the_source_usable(tmp_path):
    source = VideoSource(write_video(tmp_path / "a.avi", 5))
    first = next(iter(source))
    assert first.index == 0
    assert len(list(source)) == 5


def cut_after(path: pathlib.Path, whole_frames: int) -> pathlib.Path:
    """Cut a video of JPEGs within the frame after the first ``whole_frames``."""
    content = path.read_bytes()
    starts = [m.start() for m in re.finditer(b"\xff\xd8\xff", content)]
    path.write_bytes(content[: starts[whole_frames] + 100])
    return path


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_video_cut_short_gives_its_frames_and_then_an_error(tmp_path, name):
    path = cut_after(write_video(tmp_path / name, 24), 9)
    numbers = []
    with pytest.raises(SourceError, match=r"ends after \d+ of 24 frames") as caught:
        for frame in VideoSource(path):
            # Not number_of: of the frame that was cut the decoder may make anything.
            numbers.append(round(frame.rgb[..., 2].mean() / 10))
    assert numbers[:9] == list(range(9)) and len(numbers) <= 10
    # The message's way out works.
    usable = int(str(caught.value).rpartition("=")[2])
    assert usable == len(numbers)
    assert len(list(open_source(path, max_frames=usable))) == usable


def test_way_out_of_a_cut_video_counts_the_chosen_frames(tmp_path):
    path = cut_after(write_video(tmp_path / "a.avi", 24), 10)
    with pytest.raises(SourceError) as caught:
        list(open_source(path, start=3, stride=2))
    usable = int(str(caught.value).rpartition("=")[2])
    frames = list(open_source(path, start=3, stride=2, max_frames=usable))
    assert [number_of(f.rgb) for f in frames][:4] == [3, 5, 7, 9]


def test_a_few_missing_frames_are_the_containers_estimate(tmp_path):
    # Two of 24: the count was rounded from duration and rate, nothing is wrong with the file.
    path = cut_after(write_video(tmp_path / "a.mkv", 24), 22)
    assert 22 <= len(list(VideoSource(path))) <= 23


def test_mp4_without_its_index_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", 12, "mp4v")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"a\.mp4: not a video that can be opened"):
        VideoSource(path)


@pytest.mark.parametrize("content", [b"", bytes(np.random.default_rng(0).bytes(5000))])
def test_garbage_and_empty_files_are_refused_without_noise(tmp_path, capfd, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.mp4: not a video that can be opened"):
        VideoSource(tmp_path / "a.mp4")
    assert capfd.readouterr().err == ""


def test_text_is_not_played_as_terminal_art(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("once upon a time\n" * 100)
    with pytest.raises(SourceError, match=r"a\.mp4: not a video but a text file"):
        VideoSource(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain\ttext\r\n", True),
        ("grüße ".encode() * 1000, True),  # a two-byte letter lies across the probe's end
        (b"\x00\x01binary", False),
        (b"\xff\xd8\xff\xe0", False),
        (b"", False),
    ],
)
def test_text_probe(tmp_path, content, text):
    (tmp_path / "f").write_bytes(content)
    assert looks_like_text(tmp_path / "f") is text


def test_missing_video(tmp_path):
    with pytest.raises(SourceError, match=r"b\.mp4: no such file"):
        VideoSource(tmp_path / "b.mp4")


def test_one_image_is_no_video(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=rf"is one image; pass the folder .*{tmp_path.name}"):
        open_source(tmp_path / "a.png")
