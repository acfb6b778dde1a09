"""A result in several pieces: no pose, point or error ever mixes two of their worlds."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from slam import outputs, pictures, plots, reconstruction
from slam.cli import session
from slam.evaluation import ate
from slam.io.frames import SourceError
from slam.io.ply import read_ply
from slam.io.trajectory_file import read_trajectory
from slam.reconstruction import LOOP_GAP, Reconstruction
from tests.slam import pieces
from tests.slam.pieces import TWO_PIECES, in_world, made_up, points_C, truth

MAIN, OTHER = [0, 1, 2, 3, 4, 7, 8, 9], [12, 13, 14, 15]
"""Frames of the two pieces of ``made_up()``; their submaps have the numbers 0 and 3."""


@pytest.mark.parametrize(
    ("submap", "piece", "frames", "keyframes"),
    [(None, 0, MAIN, [0, 2, 7, 9]), (0, 0, MAIN, [0, 2, 7, 9]), (3, 1, OTHER, [12, 14])],
)
def test_poses_are_those_of_one_piece(submap, piece, frames, keyframes):
    result, T_WC = made_up(), truth(16)
    assert np.flatnonzero(result.placed_in(submap)).tolist() == frames
    for trajectory, numbers in (
        (result.trajectory(submap), frames),
        (result.keyframe_trajectory(submap), keyframes),
    ):
        np.testing.assert_allclose(trajectory.timestamps, 0.1 * np.array(numbers))
        # float32 of coordinates below 10, composed once.
        np.testing.assert_allclose(trajectory.T_WC, in_world(piece, T_WC[numbers]), atol=1e-5)


def test_the_largest_piece_is_the_one_with_most_frames():
    assert made_up().submaps == (0, 3)
    result = made_up("KK.StttK..S", links=((0, 1), (2, 3)))  # five frames against two keyframes
    assert result.submaps == (3, 0, 6)
    np.testing.assert_array_equal(result.slots_of(), [2, 3])
    np.testing.assert_array_equal(result.trajectory().timestamps, result.timestamps[3:8])
    assert made_up("Kt.St", links=()).submaps == (0, 3)  # the older one of equals


def test_frames_without_a_pose_are_in_no_piece():
    result = made_up()
    assert np.flatnonzero(~result.tracked).tolist() == [5, 6, 10, 11]
    together = sum(result.placed_in(submap).astype(int) for submap in result.submaps)
    np.testing.assert_array_equal(together, result.tracked)


def test_a_piece_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no submap has the number 1; those there are: 0, 3"):
        made_up().trajectory(1)
    with pytest.raises(ValueError, match="no submap has the number 0; there is none"):
        made_up("...", links=()).point_cloud(submap=0)


def test_a_part_is_the_same_map_of_fewer_frames():
    whole, seen = made_up(), np.array([[4, 1, 5], [4, 2, 6], [7, 0, 1], [7, 2, 3], [7, 3, 9]])
    whole = dataclasses.replace(whole, observations=seen.astype(np.int32))
    # Of KtKtt..RtK..StKt: the pose of frame 3 is carried by frame 2, which is older.
    part = whole.part(3, 8)
    assert part.frame_numbers.tolist() == [3, 4, 5, 6, 7, 8]
    assert part.keyframes.frame_index.tolist() == [2, 7] and part.num_keyframes == 2
    chosen = np.flatnonzero(whole.placed_in())[3:7]
    np.testing.assert_array_equal(part.trajectory().T_WC, whole.trajectory().T_WC[3:7])
    np.testing.assert_array_equal(part.timestamps[part.placed_in()], whole.timestamps[chosen])
    assert part.links.tolist() == [] and part.observations.tolist() == [
        [4, 0, 5],
        [4, 1, 6],
        [7, 1, 3],
    ]
    assert len(part.point_cloud().points) == len(whole.point_cloud().points) // 2
    assert part.verdict().startswith(
        "PARTLY LOST: 4 of 6 frames have a pose, the first without one is frame 5"
    )
    assert part.evaluate() is not None and part.images.max() == 20
    # Of two pieces, the one that has more frames within the part; and a part of a part.
    other = whole.part(8, 15)
    assert other.submaps == (3, 0) and other.links.tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(other.part(12, 15).trajectory().T_WC, whole.trajectory(3).T_WC)
    retrieved = whole.part(7, 8).frames
    assert retrieved.is_retrieved.tolist() == [[False, False]] * 2
    everything = whole.part(0, 15)
    for ours, theirs in (
        (everything.frames, whole.frames),
        (everything.keyframes, whole.keyframes),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert everything.links.tolist() == whole.links.tolist()
    with pytest.raises(SourceError, match="pieces: no frame has a number from 16 to 99; there are"):
        whole.part(16, 99)


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize(
    ("submap", "keyframes_only", "count", "left_out", "piece"),
    [(None, False, 8, 4, 0), (None, True, 4, 2, 0), (3, False, 4, 8, 1)],
)
def test_errors_compare_one_piece(with_scale, submap, keyframes_only, count, left_out, piece):
    error = made_up().evaluate(keyframes_only, with_scale, submap)
    assert error is not None and (error.num_poses, error.num_left_out) == (count, left_out)
    assert f"{count} poses ({left_out} in other worlds left out)" in str(error)
    if with_scale:  # each piece alone is exact: float32 of coordinates below 10
        assert error.rmse < 1e-5
        assert error.scale == pytest.approx(1 / pieces.WORLDS[piece][0], rel=1e-5)


def test_mixing_the_pieces_would_show():
    """So the test above can fail."""
    result = made_up()
    both = [result.trajectory(submap).positions for submap in result.submaps]
    assert ate(np.concatenate(both), truth(16)[[*MAIN, *OTHER], :3, 3]).rmse > 0.1


def test_a_piece_too_small_has_no_error():
    assert made_up().evaluate(keyframes_only=True, submap=3) is None
    assert made_up(with_truth=False).evaluate() is None
    whole = made_up("KtKt", links=((0, 1),)).evaluate()
    assert whole is not None and whole.num_left_out == 0 and "left out" not in str(whole)


@pytest.mark.parametrize(("submap", "piece", "slots"), [(None, 0, [0, 1, 2, 3]), (3, 1, [4, 5])])
def test_the_cloud_is_of_one_piece(submap, piece, slots):
    result = made_up()
    cloud = result.point_cloud(1.5, submap)
    keep = np.asarray(pieces.confidence()) > 1.5
    assert 0 < keep.sum() < keep.size
    scale, rotation, translation = pieces.WORLDS[piece]
    expected = []
    for slot in slots:
        T_WC = truth(16)[result.keyframes.frame_index[slot]]
        points_W = points_C(slot) @ T_WC[:3, :3].T + T_WC[:3, 3]
        expected.append((scale * rotation.apply(points_W) + translation)[keep])
    np.testing.assert_allclose(cloud.points, np.concatenate(expected), atol=1e-5)  # float32
    shades = np.repeat(10 * np.array(slots), keep.sum())
    np.testing.assert_array_equal(cloud.colors, np.tile(shades[:, None], 3))


@pytest.fixture(autouse=True, scope="module")
def small_loops():
    """Made-up maps are small: whatever skips a keyframe is a loop here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "LOOP_GAP", 2)
        yield


def test_a_loop_joins_keyframes_far_apart(monkeypatch):
    assert made_up().is_loop_link.tolist() == [False, True, False, True, False]
    assert made_up(links=((2, 1),)).is_loop_link.tolist() == [False]
    assert made_up("...", links=()).is_loop_link.tolist() == []
    monkeypatch.setattr(reconstruction, "LOOP_GAP", LOOP_GAP)
    far = made_up("KKKKKKK", links=((0, 1), (1, 5), (6, 1), (0, 6)))
    assert far.is_loop_link.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("frames", "links", "succeeded", "words"),
    [
        ("...", (), False, "NOT STARTED: none of 3 frames was usable as a first keyframe"),
        ("K", (), True, "the only frame is the first keyframe; nothing was tracked"),
        ("K...", (), False, "LOST: the first keyframe was made, but none of 3 later frames fits"),
        ("K..S..S", (), False, "LOST: 3 of 7 frames became keyframes, but none fits another"),
        ("Kt", (), True, "all 2 frames have a pose, 1 keyframe"),
        ("KtK", ((0, 1),), True, "all 3 frames have a pose, 2 keyframes"),
        (
            "KtKtK",
            ((0, 1), (1, 2), (0, 2)),
            True,
            "all 5 frames have a pose, 3 keyframes with 1 loop link",
        ),
        (
            "Kt.t.R.R",
            ((0, 1), (0, 2)),
            True,
            "PARTLY LOST: 5 of 8 frames have a pose, the first without one is frame 2; "
            "3 keyframes with 1 loop link; relocalised 2 times",
        ),
        (
            TWO_PIECES,
            pieces.LINKS,
            True,
            "PARTLY LOST: 12 of 16 frames have a pose, the first without one is frame 5; "
            "6 keyframes with 2 loop links; relocalised once; "
            "2 pieces that were never joined, the largest has 8 frames",
        ),
    ],
)
def test_verdict(frames, links, succeeded, words):
    result = made_up(frames, links)
    assert (result.verdict(), result.succeeded) == (words, succeeded)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is written of two pieces; one optimisation failed."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    files = made_up(failed=(9,)).save(folder)
    assert files.notes == (
        "poses, map, pictures and errors are those of the largest piece; the other pieces are in "
        "submaps/",
    )
    return folder


def test_every_piece_has_files_of_its_own(folder):
    result = made_up()
    assert [path.name for path in (folder / "submaps").iterdir()] == ["2"]
    other = folder / "submaps" / "2"
    assert {path.name for path in other.iterdir()} == {"trajectory.txt", "keyframes.txt", "map.ply"}
    for place, submap in ((folder, None), (other, 3)):
        for name, expected in (
            ("trajectory.txt", result.trajectory(submap)),
            ("keyframes.txt", result.keyframe_trajectory(submap)),
        ):
            read = read_trajectory(place / name)
            # Six decimals of a second, nine digits of a number.
            np.testing.assert_allclose(read.timestamps, expected.timestamps, atol=6e-7)
            np.testing.assert_allclose(read.T_WC, expected.T_WC, atol=2e-6)
        points, _ = read_ply(place / "map.ply")
        np.testing.assert_array_equal(points, result.point_cloud(submap=submap).points)
    assert len(read_trajectory(folder / "groundtruth.txt").timestamps) == 16
    assert ("submaps/", outputs.DESCRIPTIONS["submaps"]) in outputs.OutputFiles(folder).described()
    for slot, number in enumerate([0, 2, 7, 9, 12, 14]):  # of all pieces
        with Image.open(folder / "keyframes" / f"{number:06d}.png") as image:
            assert np.asarray(image).max() == 10 * slot


def test_record_tells_graph_and_pieces(folder):
    told = json.loads((folder / "run.json").read_text())
    counts = told["counts"]
    assert counts["frames_with_pose"] == 12 and counts["frames_without_pose"] == [5, 6, 10, 11]
    assert counts["frames_relocalized"] == [7]
    assert counts["keyframes"] == 6 and (counts["links"], counts["loop_links"]) == (5, 2)
    # Every keyframe of ``LINKS`` counts both of its ends there; all six have links.
    assert counts["global_optimization"] == {
        "runs": 6,
        "failed": 1,
        "solver": {"converged_step": 5, "not_positive_definite": 1},
        "mean_iterations": 4.0,
    }
    assert counts["retrieval"] == {"frames_with_candidates": 1, "candidates": 1}
    assert counts["points"] == len(made_up().point_cloud().points)
    assert told["submaps"] == [
        {"frames": 8, "keyframes": 4, "first_frame": 0},
        {"frames": 4, "keyframes": 2, "first_frame": 12},
    ]
    assert [row["num_left_out"] for row in told["ate"]] == [4, 2, 4, 2]
    assert told["ate"][0]["aligned_by"] == "Sim(3)" and "with_scale" not in told["ate"][0]


def test_a_run_in_one_piece_has_no_other_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_draw", lambda *args: None)
    assert made_up("KtK", ((0, 1),)).save(tmp_path / "one").notes == ()
    assert not (tmp_path / "one" / "submaps").exists()
    result = made_up("...", ())
    assert result.save(tmp_path / "none").notes == ()
    told = json.loads((tmp_path / "none" / "run.json").read_text())
    assert told["submaps"] == [] and told["counts"]["global_optimization"]["runs"] == 0
    assert told["counts"]["global_optimization"]["mean_iterations"] is None


def test_pictures_show_one_piece_and_its_links(monkeypatch):
    drawn = {}

    def remember(name, draw):
        def remembered(*args, **options):
            drawn[name] = args, options
            return draw(*args, **options)

        return remembered

    monkeypatch.setattr(plots, "trajectory_scene", remember("trajectory", plots.trajectory_scene))
    monkeypatch.setattr(plots, "plot_map", remember("map", plots.plot_map))
    # The larger piece is the second: its slots 1, 2, 3 are rows 0, 1, 2 of what is drawn.
    result = made_up("Kt.StKt..RKt", links=((0, 1), (1, 2), (1, 3), (3, 4), (2, 4)))
    pictures.trajectory_scene(result)
    result.plot_map()
    (estimate, reference, keyframes), options = drawn["trajectory"]
    numbers = [3, 4, 5, 6, 9, 10, 11]
    np.testing.assert_array_equal(options["numbers"], numbers)
    np.testing.assert_array_equal(drawn["map"][1]["numbers"], numbers)
    np.testing.assert_array_equal(reference, truth(12)[numbers, :3, 3])
    # Level or not, distances between camera centres are kept; the centres are turned alike.
    np.testing.assert_allclose(keyframes, estimate[[0, 2, 4, 5]], atol=1e-5)
    np.testing.assert_array_equal(options["links"], [[0, 1], [0, 2], [2, 3], [1, 3]])
    assert options["is_loop_link"].tolist() == [False, True, False, True]
    assert options["title"] == "pieces: largest of 2 pieces"
    for (args, _), at in ((drawn["trajectory"], 0), (drawn["map"], 2)):
        assert len(args[at]) == len(numbers)
    pictures.trajectory_scene(result, 0)  # a piece that is asked for by its number
    np.testing.assert_array_equal(drawn["trajectory"][1]["numbers"], [0, 1])
    assert drawn["trajectory"][1]["title"] == "pieces: number 2 by size of 2 pieces"


def test_graph_and_pieces_read_back(folder):
    result, read = made_up(failed=(9,)), Reconstruction.load(folder)
    for ours, theirs in ((result.frames, read.frames), (result.keyframes, read.keyframes)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(read.links, result.links)
    assert read.links.dtype == np.int32 and read.submaps == (0, 3)
    assert read.verdict() == result.verdict()


def test_an_archive_of_the_first_format_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "reconstruction.npz"
    np.savez(path, about=np.frombuffer(b'{"format": 1}', np.uint8))
    with pytest.raises(SourceError) as caught:
        Reconstruction.load(tmp_path)
    assert str(caught.value) == (
        f"{path}: was written by an older version, in format 1 instead of 5; run the source again"
    )


def test_report_fits_80_columns_and_tells_every_stage(folder, capsys):
    console = Console(width=80, highlight=False)
    result = made_up()
    session.print_report(console, result)
    session.print_files(console, outputs.OutputFiles(folder), 1.0)
    said = capsys.readouterr().out
    lines = [line.rstrip() for line in said.splitlines()]
    assert max(map(len, lines)) <= 80
    assert result.verdict() in " ".join(said.split())
    assert "note: poses in other pieces of the map: 4; they are not compared" in lines
    rows = [line.strip() for line in lines if line.endswith(" %") and " ms " in line]
    names = [" ".join(row.split("  ")[0].split()) for row in rows]
    assert names == [
        *("waiting for images", "look up", "encode", "decode", "match", "solve", "assess"),
        *("propose links", "verify links", "commit", "optimise all poses", "whole frame"),
    ]
    (once,) = [line.split() for line in lines if "adopt poses" in line]
    assert once == ["adopt", "poses", "1", "-", "-", "1.25", "s", "0", "%"]
    # No cell of the table was cut or wrapped.
    assert "…" not in said and " 1234.0 ms" in said
    assert any(line.startswith("  submaps/ ") for line in lines)


def test_shares_of_stages_that_were_timed_in_some_frames(capsys):
    """Of a frame timed every fourth time, a stage's share is four times what was seen of it."""

    def share_of_decode(timing):
        result = dataclasses.replace(made_up(), timing=timing)
        session.print_report(Console(width=80, highlight=False), result)
        said = capsys.readouterr().out
        (row,) = [line.split() for line in said.splitlines() if line.strip().startswith("decode")]
        return int(row[-2]), said

    timing = made_up().timing
    timing["stages"]["frame"]["later_sum_s"] = 100 * timing["stages"]["decode"]["later_sum_s"]
    seen, said = share_of_decode(timing)
    assert seen == 1 and "overlap" not in said
    seen, said = share_of_decode(timing | {"time_every": 4})
    assert seen == 4 and "Stages were timed in one of 4 frames; the others overlap." in said
