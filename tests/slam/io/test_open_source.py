"""The one door: what is recognised, how it is cut, and what is turned away."""

import pytest

from slam.io.folder import FolderSource
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.open_source import SlicedSource, open_source
from slam.io.tum import TumSource
from slam.io.video import VideoSource
from tests.slam.io.recordings import number_of, picture, write_images, write_tum, write_video


class Counting:
    """A source without random access, of unknown length, that notes how far it was read."""

    name = "counting"
    num_frames = None

    def __init__(self, count):
        self.count, self.read = count, 0

    def __iter__(self):
        for i in range(self.count):
            self.read = i + 1
            yield SourceFrame(index=i, timestamp=0.5 * i, rgb=picture(i))


def test_recognises_by_content(tmp_path):
    assert isinstance(open_source(write_video(tmp_path / "v.avi", 2)), VideoSource)
    assert isinstance(open_source(write_images(tmp_path / "f", ["0.png"])), FolderSource)
    assert isinstance(open_source(str(write_tum(tmp_path / "t"))), TumSource)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"start": 3}, [3, 4, 5, 6, 7, 8, 9]),
        ({"stride": 4}, [0, 4, 8]),
        ({"max_frames": 2}, [0, 1]),
        ({"start": 1, "stride": 3, "max_frames": 2}, [1, 4]),
        ({"start": 9, "stride": 5, "max_frames": 5}, [9]),
    ],
)
@pytest.mark.parametrize("kind", ["video", "folder", "plain"])
def test_start_stride_and_max_frames(tmp_path, kind, options, expected):
    if kind == "video":
        source = open_source(write_video(tmp_path / "v.avi", 10), **options)
        times = [i / 20 for i in expected]
    elif kind == "folder":
        folder = write_images(tmp_path / "f", [f"{i}.png" for i in range(10)])
        source = open_source(folder, fps=4.0, **options)
        times = [i / 4 for i in expected]
    else:
        source = SlicedSource(Counting(10), **options)
        times = [i / 2 for i in expected]
    assert isinstance(source, Source)
    for _ in range(2):
        frames = list(source)
        assert [number_of(f.rgb) for f in frames] == expected
        assert [f.index for f in frames] == list(range(len(expected)))
        assert [f.timestamp for f in frames] == pytest.approx(times)
    if kind != "plain":
        assert source.num_frames == len(expected)


def test_nothing_is_read_past_the_last_wanted_frame():
    source = Counting(10)
    assert len(list(SlicedSource(source, start=1, stride=3, max_frames=2))) == 2
    assert source.read == 5


def test_depth_scale_and_rate_reach_their_sources(tmp_path):
    frame = next(iter(open_source(write_tum(tmp_path / "t"), depth_scale=1000.0)))
    assert frame.depth.max() == 1.0
    folder = write_images(tmp_path / "f", ["0.png", "1.png"])
    assert list(open_source(folder, fps=5.0))[1].timestamp == 0.2


@pytest.mark.parametrize("options", [{}, {"start": 1, "stride": 2}])
def test_calibration_replaces_what_the_source_has(tmp_path, options):
    video, office = write_video(tmp_path / "v.avi", 4), write_tum(tmp_path / "t")
    (tmp_path / "K.txt").write_text("70 71 30 20")
    for path in (video, office):
        source = open_source(path, calibration=tmp_path / "K.txt", **options)
        frames = list(source)
        assert isinstance(source, Source) and len(frames) == source.num_frames
        for frame in frames:
            assert frame.K.tolist() == [[70, 0, 30], [0, 71, 20], [0, 0, 1]]
    assert [number_of(f.rgb) for f in frames] == list(range(6))[
        slice(1, None, 2) if options else slice(6)
    ]


def test_calibration_of_another_resolution_is_refused(tmp_path):
    video = write_video(tmp_path / "v.avi", 4)
    (tmp_path / "K.txt").write_text("700 710 300 200")
    with pytest.raises(SourceError, match=r"K\.txt:1: principal point \(300, 200\) is outside"):
        list(open_source(video, calibration=tmp_path / "K.txt"))
    with pytest.raises(SourceError, match=r"none\.txt: cannot be read"):
        open_source(video, calibration=tmp_path / "none.txt")


def test_procedural_scenes_come_through_the_same_door(monkeypatch):
    uris = []

    def parse(uri):
        uris.append(uri)
        return Counting(7)

    monkeypatch.setattr("slam.io.procedural.parse_procedural", parse)
    source = open_source("procedural:room?seed=3", start=1, stride=3)
    assert uris == ["procedural:room?seed=3"]
    assert [number_of(f.rgb) for f in source] == [1, 4]
    with pytest.raises(SourceError, match="fps is for videos and image folders only"):
        open_source("procedural:room", fps=30.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start=-1 must be at least 0"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"max_frames": 0}, "max_frames=0 must be at least 1"),
        ({"fps": 0.0}, r"fps=0\.0 must be a positive number"),
        ({"fps": float("nan")}, "fps=nan must be a positive number"),
        ({"depth_scale": -5000.0}, r"depth_scale=-5000\.0 must be a positive number"),
        ({"start": 3}, "f: start=3 is past its end, it has 3 frames"),
        ({"depth_scale": 1000.0}, "depth_scale is for TUM RGB-D folders only"),
    ],
)
def test_bad_options(tmp_path, options, message):
    folder = write_images(tmp_path / "f", ["0.png", "1.png", "2.png"])
    with pytest.raises(SourceError, match=message):
        open_source(folder, **options)


def test_rate_of_a_tum_folder_is_its_own(tmp_path):
    with pytest.raises(SourceError, match="fps is for videos and image folders only"):
        open_source(write_tum(tmp_path / "t"), fps=30.0)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(SourceError, match=r"nope\.mp4: no such file or folder; pass a video"):
        open_source(tmp_path / "nope.mp4")
    with pytest.raises(SourceError, match="no such kind of address is known; pass a video"):
        open_source("gopher://camera/stream")
    office = write_tum(tmp_path / "office")
    with pytest.raises(SourceError, match=r"is the list of a TUM RGB-D folder; pass .*office"):
        open_source(office / "rgb.txt")
    with pytest.raises(SourceError, match=r"groundtruth\.txt: not a video but a text file"):
        open_source(office / "groundtruth.txt")
