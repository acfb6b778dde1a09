"""What a run leaves on disk: everything that is promised, whole, and readable again."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from slam import outputs, pictures, plots, runner
from slam.evaluation import align_sim3
from slam.io.frames import SourceError
from slam.io.ply import read_ply
from slam.io.trajectory_file import read_trajectory
from slam.reconstruction import Reconstruction
from tests.slam import rim

FILES = {
    "trajectory.txt",
    "keyframes.txt",
    "groundtruth.txt",
    "map.ply",
    "keyframes",
    "trajectory.png",
    "map.png",
    "panels",
    "run.json",
    "reconstruction.npz",
    "map",
}


ONE_ARRAY = b"\x93NUMPY\x01\x00v\x00" + (
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n" + bytes(8)
)
"""A .npy file."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The walk's results; tests only read them."""
    path = tmp_path_factory.mktemp("outputs") / "deep" / "run"
    files = rim.result().save(path, about={"prior": "exact"})
    assert files.folder == path
    return path


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def record(folder):
    return json.loads((folder / "run.json").read_text(), parse_constant=no_constants)


def test_every_promised_file_is_there_and_described(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    described = outputs.OutputFiles(folder).described()
    # The walk is in one piece; test_reconstruction.py has more of them.
    promised = [name for name in outputs.DESCRIPTIONS if name not in ("submaps", "checkpoint")]
    assert [name.rstrip("/") for name, _ in described] == promised
    assert [name for name, _ in described if name.endswith("/")] == [
        *("keyframes/", "panels/", "map/")
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_trajectories_have_a_row_for_every_pose(folder):
    result, frames = rim.result(), rim.walk()
    for name, rows, T_WC in (
        ("trajectory.txt", np.arange(14), result.trajectory().T_WC),
        (
            "keyframes.txt",
            np.flatnonzero(result.is_keyframe),
            result.keyframe_trajectory().T_WC,
        ),
        ("groundtruth.txt", np.arange(14), np.stack([f.T_WC for f in frames])),
    ):
        read = read_trajectory(folder / name)
        # Six decimals of a second, nine digits of a number.
        stamps = [frames[i].timestamp for i in rows]
        np.testing.assert_allclose(read.timestamps, stamps, atol=6e-7)
        np.testing.assert_allclose(read.T_WC, T_WC, atol=2e-6)


def test_map_is_the_cloud_above_the_confidence(folder):
    cloud = rim.result().point_cloud()
    points, colors = read_ply(folder / "map.ply")
    np.testing.assert_array_equal(points, cloud.points)
    np.testing.assert_array_equal(colors, cloud.colors)
    assert (cloud.confidence > 1.5).all() and len(points) == record(folder)["counts"]["points"]
    every = rim.result().point_cloud(0.0)
    assert len(every.points) == rim.result().num_keyframes * 96 * 128
    kept = every.confidence > 1.5
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(every.points[kept], points)


def test_map_lies_on_the_surfaces_of_the_room():
    """Points of the first keyframe, whose camera is the world: the rendered depth, in pixels."""
    result, frame = rim.result(), rim.walk()[0]
    points = np.asarray(result.keyframes.pointmap.points)[0].reshape(96, 128, 3)
    v, u = np.mgrid[0:96, 0:128]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(frame.K).T
    expected = frame.depth[..., None] * rays
    # Fusion averages in what later frames saw there, each matched to a pixel: at most a few pixels
    # of 1/100 radian off, except where a pixel falls beside an edge.
    error = np.linalg.norm(points - expected, axis=-1) / frame.depth
    assert np.quantile(error, 0.9) < 2 / frame.K[0, 0]


def test_pictures_and_keyframes_can_be_opened(folder):
    result, frames = rim.result(), rim.walk()
    numbers = np.flatnonzero(result.is_keyframe)
    assert sorted(p.name for p in (folder / "keyframes").iterdir()) == [
        f"{number:06d}.png" for number in numbers
    ]
    for number in numbers:
        with Image.open(folder / "keyframes" / f"{number:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), frames[number].rgb)
    assert sorted(p.name for p in (folder / "panels").iterdir()) == [
        "000003.png",
        "000006.png",
        "000010.png",
    ]
    for path in (*(folder / "panels").iterdir(), folder / "map.png", folder / "trajectory.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 400


def test_record_tells_the_run(folder):
    result, told = rim.result(), record(folder)
    assert told["name"] == "walk" and told["verdict"] == result.verdict()
    assert told["prior"] == "exact"
    counts = told["counts"]
    assert counts["frames"] == counts["frames_with_pose"] == 14
    assert counts["frames_without_pose"] == [] and counts["keyframes"] == result.num_keyframes
    assert counts["modes"] == {"starting": 0, "tracking": 14, "lost": 0}
    assert sum(counts["solver"].values()) == 13, "the first frame is not matched with anything"
    assert counts["links"] == len(result.links) and counts["frames_relocalized"] == []
    assert counts["loop_links"] == sum(abs(i - j) >= 5 for i, j in result.links.tolist())
    # Each keyframe after the first is linked at least with the one before it.
    graph = counts["global_optimization"]
    assert graph["runs"] == sum(graph["solver"].values()) == counts["keyframes"] - 1
    assert graph["failed"] == 0 and 1 <= graph["mean_iterations"] <= 10
    assert told["submaps"] == [{"frames": 14, "keyframes": counts["keyframes"], "first_frame": 0}]
    assert told["config"] == json.loads(json.dumps(dataclasses.asdict(result.config)))
    assert told["config"]["tracking"]["rays"]["sigma_ray"] == 0.003
    assert told["versions"]["jax"] == jax.__version__
    assert told["versions"]["numpy"] == np.__version__
    assert set(told["timing"]["stages"]) == set(result.timing["stages"])
    assert told["timing"]["stages"]["solve"]["median_s"] > 0
    assert told["timing"]["total_s"] == result.timing["total_s"]
    kinds = [(row["poses"], row["aligned_by"]) for row in told["ate"]]
    assert kinds == [
        ("every frame", "Sim(3)"),
        ("keyframes", "Sim(3)"),
        ("every frame", "SE(3)"),
        ("keyframes", "SE(3)"),
    ]
    error = result.evaluate()
    assert error is not None and told["ate"][0]["rmse"] == error.rmse > 0


def test_a_reconstruction_reads_back(folder):
    result, read = rim.result(), Reconstruction.load(folder)
    pairs = [(result.frames, read.frames)] + [
        (getattr(result.keyframes, name), getattr(read.keyframes, name))
        for name in ("size", "frame_index", "T_WC", "submap", "pointmap")
    ]
    assert read.keyframes.encoding is None
    np.testing.assert_array_equal(read.images, result.images)
    for ours, theirs in pairs:
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert len(result.links) >= result.num_keyframes - 1  # the successive ones at least
    np.testing.assert_array_equal(read.links, result.links)
    assert read.config == result.config and read.name == result.name
    assert read.verdict() == result.verdict() and read.accuracy() == result.accuracy()
    np.testing.assert_array_equal(read.trajectory().T_WC, result.trajectory().T_WC)
    np.testing.assert_array_equal(read.trajectory().timestamps, result.trajectory().timestamps)
    np.testing.assert_array_equal(read.point_cloud().points, result.point_cloud().points)
    assert read.timing == result.timing and read.notes == result.notes


def test_what_is_read_back_can_be_saved(folder, tmp_path):
    Reconstruction.load(folder).save(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES - {"panels", "map"}
    for name in ("trajectory.txt", "keyframes.txt", "groundtruth.txt", "map.ply", "map.png"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_an_empty_map_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_draw", lambda *args: None)
    files = rim.result().save(tmp_path / "run", min_confidence=99.0)
    note = "no point is more confident than 99; map.ply is empty"
    assert files.notes == (note,) and record(tmp_path / "run")["notes"] == [note]
    assert len(read_ply(tmp_path / "run" / "map.ply")[0]) == 0


def test_pictures_are_drawn_level(monkeypatch):
    """From above means along gravity: the true up of the room, +z, is -y of what is drawn."""
    drawn, plot_map, scene = {}, plots.plot_map, plots.trajectory_scene

    def map_drawn(points, *args, **options):
        drawn["map"] = points
        return plot_map(points, *args, **options)

    def trajectory_drawn(positions, *args, **options):
        drawn["xyz"] = positions
        return scene(positions, *args, **options)

    monkeypatch.setattr(plots, "plot_map", map_drawn)
    monkeypatch.setattr(plots, "trajectory_scene", trajectory_drawn)
    result = rim.result()
    result.plot_map()
    pictures.trajectory_scene(result)
    truth = np.stack([frame.T_WC[:3, 3] for frame in rim.walk()])
    for name, original in (
        ("map", result.point_cloud().points),
        ("xyz", result.trajectory().positions),
    ):
        distances = [
            np.linalg.norm(points[1:] - points[0], axis=1) for points in (drawn[name], original)
        ]
        np.testing.assert_allclose(*distances, rtol=1e-4, atol=1e-5)
    # The heights of the floor's points: metric, as exact geometry is, and flat.
    true_up = align_sim3(drawn["xyz"], truth).rotation.T @ [0.0, 0.0, 1.0]
    # Three degrees: hands roll, and the walk is short.
    assert true_up @ [0.0, -1.0, 0.0] > np.cos(np.radians(3))


@pytest.mark.parametrize(
    "writer",
    ["write_trajectory", "write_ply", "plots.plot_map", "plots.plot_panels", "save_archive"],
)
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, writer):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"slam.outputs.{writer}", fail)
    with pytest.raises(OSError, match="No space left"):
        rim.result().save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_earlier_results_as_they_were(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr(outputs, "save_archive", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rim.result().save(tmp_path / "run", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_only_results_are_ever_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_draw", lambda *args: None)
    result, path = rim.result(), tmp_path / "run"
    path.mkdir()
    result.save(path)  # an empty folder may be there
    before = (path / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"run: holds the results of a run; pass --overwrite"):
        result.save(path)
    assert (path / "run.json").read_bytes() == before
    (path / "map.ply").write_text("old")
    result.save(path, overwrite=True)
    assert (path / "map.ply").read_bytes().startswith(b"ply\n")
    (path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"holds other files \(thesis.tex\)"):
            result.save(path, overwrite=overwrite)
    assert (path / "thesis.tex").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="no folder"):
        result.save(tmp_path / "file", overwrite=True)
    with pytest.raises(PermissionError, match="not a folder that can be written to"):
        result.save(tmp_path / "file" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "run"]


def test_a_run_that_never_started_is_saved_too(tmp_path):
    """A covered lens from beginning to end: no pose, no keyframe, no point, and no crash."""
    source = rim.Frames([rim.covered(frame) for frame in rim.walk()[:3]])
    result = runner.run(source, rim.EXACT, stepper=rim.stepper(), num_panels=2)
    assert result.verdict().startswith("NOT STARTED: none of 3 frames")
    result.save(tmp_path / "run")
    told = record(tmp_path / "run")
    assert told["verdict"] == result.verdict() and told["ate"] == []
    assert told["counts"]["modes"] == {"starting": 3, "tracking": 0, "lost": 0}
    assert told["counts"]["keyframes"] == told["counts"]["points"] == 0
    assert len(read_ply(tmp_path / "run" / "map.ply")[0]) == 0
    assert Reconstruction.load(tmp_path / "run").verdict() == result.verdict()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "no such file; pass the folder"),
        (lambda path: path.write_bytes(b""), "damaged or not a reconstruction"),
        (lambda path: path.write_bytes(b"what is this"), "damaged or not a reconstruction"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "damaged"),
        (lambda path: path.write_bytes(ONE_ARRAY), "damaged or not a reconstruction"),
        (lambda path: np.savez(path, poses=np.zeros(3)), "damaged or not a reconstruction"),
        (lambda path: about(path, "[]"), "damaged or not a reconstruction"),
        (
            lambda path: about(path, '{"format": 99}'),
            "in format 99 instead of 5; update mast3r-slam-jax",
        ),
        (lambda path: flip(path, 0.3), "damaged"),
        (lambda path: flip(path, 0.6), "damaged"),
    ],
)
def test_damaged_archives_are_refused(folder, tmp_path, damage, words):
    path = tmp_path / "reconstruction.npz"
    shutil.copy(folder / path.name, path)
    damage(path)
    with pytest.raises(SourceError, match=re.escape(str(path))) as caught:
        Reconstruction.load(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def about(path, text):
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["about"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(path, **arrays)


def flip(path, where):
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    content[at : at + 64] = bytes(byte ^ 0xFF for byte in content[at : at + 64])
    path.write_bytes(content)
