"""Exports, read back by the programs they are for, and held against the room they came from."""

import dataclasses
import functools
import json
import pathlib
import sys

import cv2
import jax
import numpy as np
import pycolmap
import pytest
import trimesh
from evo.tools import file_interface
from PIL import Image

from ops import pinhole
from slam import exports
from slam.cli import main
from slam.exports.cameras import cameras_of
from slam.exports.tracks import MOST_PIXELS, tracks_of
from slam.io.frames import SourceError
from slam.io.preparation import prepare_frames
from tests.slam import rim
from tests.slam.test_reconstruction import made_up


@functools.cache
def frames():
    """The walk at the working size, with the true intrinsics, depth and poses."""
    return [frame for _, frame in prepare_frames(rim.source(), 128)]


def true_focal():
    return float(frames()[0].K[0, 0])


@pytest.mark.parametrize(("noise", "outliers"), [(0.0, 0.0), (0.03, 0.0), (0.02, 0.2)])
def test_the_focal_length_of_a_noisy_pointmap(noise, outliers):
    random = np.random.default_rng(0)
    pixels = random.uniform(-64, 64, (4000, 2))
    depth = random.uniform(1, 5, 4000)
    points = np.column_stack([pixels / 83.0 * depth[:, None], depth])
    points *= 1 + noise * random.normal(size=(4000, 3))
    wrong = random.random(4000) < outliers
    points[wrong] = random.uniform(-3, 3, (wrong.sum(), 3))
    points[::50] = np.nan
    assert exports.estimate_focal(points, pixels) == pytest.approx(83.0, rel=0.01)


def test_no_points_no_focal_length():
    with pytest.raises(ValueError, match="no point lies before the camera"):
        exports.estimate_focal(np.full((4, 3), -1.0), np.ones((4, 2)))


def test_the_focal_length_of_an_uncalibrated_run():
    cameras = cameras_of(rim.result())
    assert "estimated" in cameras.focal_source
    assert cameras.K[0, 0] == pytest.approx(true_focal(), rel=0.01)
    # A run of a camera that was known keeps what was known.
    known = np.array([[90.0, 0, 60], [0, 91, 50], [0, 0, 1]])
    cameras = cameras_of(dataclasses.replace(made_up(), K=known))
    assert cameras.focal_source == "that of the run"
    np.testing.assert_array_equal(cameras.K, known)


def exported(form, folder, **options):
    path = folder / f"export{exports.FORMATS[form].ending}"
    return path, exports.export(rim.result(), form, path, **options)


def test_colmap_reads_its_model(tmp_path):
    result = rim.result()
    folder, said = exported("colmap", tmp_path)
    model = pycolmap.Reconstruction(folder / "sparse" / "0")
    assert model.num_images() == result.num_keyframes and model.num_points3D() > 200
    cameras = cameras_of(result)
    tracks = tracks_of(result, cameras, 1.5)
    assert model.num_points3D() == len(tracks.points)
    # Its own projections, from its own reading of poses, pixels and intrinsics.
    errors = []
    for image in model.images.values():
        for seen in image.points2D:
            if seen.has_point3D():
                point = model.points3D[seen.point3D_id].xyz
                errors.append(np.linalg.norm(image.project_point(point) - seen.xy))
    assert len(errors) == len(tracks.errors) and max(errors) <= MOST_PIXELS
    np.testing.assert_allclose(np.sort(errors), np.sort(tracks.errors), atol=1e-3)
    assert f"mean reprojection error {np.mean(errors):.2f} px" in said[0]
    assert np.mean(errors) < 1.0  # matches are whole pixels
    # Poses and points are those of the room, up to where the world begins.
    for image in model.images.values():
        number = int(image.name.removesuffix(".png"))
        expected = np.linalg.inv(rim.walk()[0].T_WC) @ rim.walk()[number].T_WC
        found = np.linalg.inv(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
        np.testing.assert_allclose(found, expected, atol=1e-2)
        saved = np.asarray(Image.open(folder / "images" / image.name))
        np.testing.assert_array_equal(saved, frames()[number].image)


def test_points_of_tracks_are_on_the_surfaces_of_the_room():
    result = rim.result()
    cameras = cameras_of(result)
    tracks = tracks_of(result, cameras)
    assert np.bincount(tracks.point).min() == 2
    # Seen from the first camera, whose depth is known.
    T = cameras.T_WC[0]
    mine = tracks.camera == 0
    points_C = (tracks.points[tracks.point[mine]] - T[:3, 3]) @ T[:3, :3]
    u, v = tracks.pixels[mine].astype(int).T
    np.testing.assert_allclose(np.median(points_C[:, 2] / frames()[0].depth[v, u]), 1, atol=5e-3)


def test_pixels_far_from_where_a_point_should_be_are_left_out():
    result = rim.result()
    cameras = cameras_of(result)
    first = result.observations[:2]
    assert first[0, 0] == first[1, 0]
    right = tracks_of(dataclasses.replace(result, observations=first), cameras)
    assert right.camera.tolist() == first[:, 1].tolist() and right.point.tolist() == [0, 0]
    wrong = first.copy()
    wrong[1, 2] = (wrong[1, 2] + 48 * 128) % (96 * 128)  # half an image away
    far = tracks_of(dataclasses.replace(result, observations=wrong), cameras)
    assert not len(far.points) and np.isnan(far.mean_error)


def test_nerfstudio_cameras_see_what_the_images_show(tmp_path):
    """By the conventions of nerfstudio: OpenGL cameras, pixel centres at a half."""
    folder, said = exported("nerfstudio", tmp_path)
    record = json.loads((folder / "transforms.json").read_text())
    assert record["fl_x"] == pytest.approx(true_focal(), rel=0.01) and "estimated" in said[1]
    assert (record["w"], record["h"]) == (128, 96)
    cloud = trimesh.load(folder / record["ply_file_path"])
    assert len(cloud.vertices) == len(rim.result().point_cloud().points)
    world_of_run = np.linalg.inv(rim.walk()[0].T_WC)
    pixels = np.asarray(pinhole.pixel_grid((96, 128)))
    for entry in record["frames"]:
        number = int(entry["file_path"][-10:-4])
        # Known points of the room: what the true depth of this frame's pixels is.
        truth = frames()[number]
        K, T_WC = np.asarray(truth.K), np.asarray(world_of_run @ rim.walk()[number].T_WC)
        rays = np.column_stack([(pixels - K[:2, 2]) / K[0, 0], np.ones(len(pixels))])
        points_W = rays * truth.depth.reshape(-1, 1) @ T_WC[:3, :3].T + T_WC[:3, 3]
        c2w = np.asarray(entry["transform_matrix"])
        local = (points_W - c2w[:3, 3]) @ c2w[:3, :3]
        assert (local[:, 2] < 0).all(), "an OpenGL camera looks along -z"
        u = record["fl_x"] * local[:, 0] / -local[:, 2] + record["cx"]
        v = record["fl_y"] * -local[:, 1] / -local[:, 2] + record["cy"]
        apart = np.linalg.norm(np.column_stack([u, v]) - (pixels + 0.5), axis=1)
        assert np.median(apart) < 1.0 and np.percentile(apart, 99) < 2.0
        image = np.asarray(Image.open(folder / entry["file_path"]))
        # The room drawn through these cameras, in the colours of the image it should be.
        drawn = cv2.remap(
            np.asarray(truth.image),
            (u - 0.5).reshape(96, 128).astype(np.float32),
            (v - 0.5).reshape(96, 128).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        assert np.median(np.abs(drawn.astype(float) - image)) < 5


def test_trimesh_reads_glb_and_ply(tmp_path):
    cloud = rim.result().point_cloud()
    path, _ = exported("ply", tmp_path)
    np.testing.assert_allclose(trimesh.load(path).vertices, cloud.points, atol=1e-6)
    path, said = exported("glb", tmp_path)
    scene = trimesh.load(path)
    points = scene.geometry["points"]
    assert set(scene.geometry) == {"points", "camera path", "keyframes"}
    np.testing.assert_allclose(points.vertices, cloud.points * [1, -1, -1], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(points.colors)[:, :3], cloud.colors)
    assert f"{len(cloud.points)} points" in said[0]


def test_cameras_without_a_focal_length_can_still_be_looked_at(tmp_path):
    result = made_up()
    behind = jax.tree.map(
        lambda x: -np.abs(x) if x.shape[-1:] == (3,) else x, result.keyframes
    )  # all points, that is
    result = dataclasses.replace(result, keyframes=behind)
    with pytest.raises(SourceError, match="pieces: no point lies before the camera"):
        exports.export(result, "nerfstudio", tmp_path / "no")
    assert not list(tmp_path.iterdir())
    said = exports.export(result, "glb", tmp_path / "map.glb")
    assert said[1] == "focal length 6.0 px, assumed, for the pointmaps tell none"
    frustums = trimesh.load(tmp_path / "map.glb").geometry["keyframes"]
    assert np.isfinite(frustums.vertices).all()


def test_evo_reads_the_trajectories(tmp_path):
    expected = rim.result().trajectory()
    path, _ = exported("tum", tmp_path)
    read = file_interface.read_tum_trajectory_file(path)
    np.testing.assert_allclose(read.timestamps, expected.timestamps, atol=1e-6)
    np.testing.assert_allclose(read.poses_se3, expected.T_WC, atol=1e-5)
    path, said = exported("kitti", tmp_path)
    np.testing.assert_allclose(
        file_interface.read_kitti_poses_file(path).poses_se3, expected.T_WC, atol=1e-6
    )
    assert said[0] == "14 poses"


def test_frames_without_a_pose_are_told(tmp_path):
    said = exports.export(made_up("Ktt..t"), "kitti", tmp_path / "poses.txt")
    assert said[0] == "4 poses; 2 frames have none and are left out"
    assert len((tmp_path / "poses.txt").read_text().splitlines()) == 4
    with pytest.raises(SourceError, match="no frame has a pose"):
        exports.export(made_up("...", links=()), "ply", tmp_path / "map.ply")
    with pytest.raises(SourceError, match="las: no such format; there are ply, glb"):
        exports.export(made_up(), "las", tmp_path / "map.las")


def test_only_exports_are_replaced(tmp_path):
    path, _ = exported("colmap", tmp_path)
    with pytest.raises(FileExistsError, match="exists already; pass --overwrite"):
        exported("colmap", tmp_path)
    (path / "images" / "000000.png").write_bytes(b"old")
    exported("colmap", tmp_path, overwrite=True)
    assert (path / "images" / "000000.png").read_bytes().startswith(b"\x89PNG")
    (path / "images" / "holiday.jpg").write_text("years ago")
    with pytest.raises(FileExistsError, match=r"holds other files \(images/holiday.jpg\)"):
        exported("colmap", tmp_path, overwrite=True)
    assert (path / "images" / "holiday.jpg").exists()
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(SourceError, match=r"thesis.tex: the name must end in \.ply"):
        exports.export(rim.result(), "ply", tmp_path / "thesis.tex", overwrite=True)
    (tmp_path / "export.ply").mkdir()
    with pytest.raises(FileExistsError, match="is no file"):
        exported("ply", tmp_path)
    there = ["export-colmap", "export.ply", "thesis.tex"]
    assert sorted(p.name for p in tmp_path.iterdir()) == there


@pytest.mark.parametrize("form", ["ply", "glb", "colmap", "nerfstudio"])
def test_nothing_confident_is_nothing_written(tmp_path, form):
    with pytest.raises(SourceError, match=r"confident than 1000.*; lower --min-confidence"):
        exported(form, tmp_path, min_confidence=1000.0)
    assert not list(tmp_path.iterdir())


def test_a_failed_rename_leaves_the_earlier_export(tmp_path, monkeypatch):
    path, _ = exported("nerfstudio", tmp_path)
    before = (path / "transforms.json").read_bytes()
    rename = pathlib.Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("disk is gone")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises(OSError, match="disk is gone"):
        exported("nerfstudio", tmp_path, overwrite=True)
    assert (path / "transforms.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rim.result().save("walk", keep_map=False)
    assert main(["export", "walk", "--format", "colmap"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/walk-colmap/" in said.replace("\n", "") and "focal length" in said
    assert pycolmap.Reconstruction("walk-colmap/sparse/0").num_images() > 2
    assert main(["export", "walk", "--format", "colmap"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "walk", "--format", "ply", "--to", "walk/x.ply"]) == 2
    assert "is inside the results" in capsys.readouterr().err
    assert main(["export", "walk", "--format", "tum", "--frames", "3", "6"]) == 0
    assert len(pathlib.Path("walk-tum.txt").read_text().splitlines()) == 1 + 4  # of the head
    assert main(["export", "walk", "--format", "ply", "--frames", "300", "600"]) == 2
    assert "no frame has a number from 300 to 600" in " ".join(capsys.readouterr().err.split())
    assert main(["export", "nowhere", "--format", "ply"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_rerun_reads_back_every_keyframe(tmp_path):
    reader = pytest.importorskip("rerun.chunk", reason="rerun-sdk, 500 MB, is an extra of its own")
    result, cameras = rim.result(), cameras_of(rim.result())
    path, said = exported("rrd", tmp_path)
    assert f"{len(result.point_cloud().points)} points, 3 keyframes" in said[0]
    chunks = reader.RrdReader(path).stream().to_chunks()
    for k in range(result.num_keyframes):
        here = [c.to_record_batch() for c in chunks if c.entity_path == f"/map/points/{k}"]
        (rows,) = [batch for batch in here if "Points3D:positions" in batch.schema.names]
        assert rows.column("keyframe").cast("int64").to_pylist() == [k]
        points = np.array(rows.column("Points3D:positions")[0].as_py())
        sure = cameras.confidence[k] > 1.5
        np.testing.assert_allclose(points, cameras.world_points(k)[sure], atol=1e-5)


def test_a_missing_rerun_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SourceError, match=r"pip install 'mast3r-slam-jax\[rerun\]'"):
        exported("rrd", tmp_path)
    assert not list(tmp_path.iterdir())
