"""Meshes: what is given to Open3D for a room whose walls are known, and what comes back."""

import dataclasses
import sys

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from slam import exports
from slam.exports import mesh
from slam.exports.cameras import Cameras
from slam.io.frames import SourceError
from tests.slam import scenes
from tests.slam.pieces import made_up

HEIGHT, WIDTH = scenes.SHAPE
POSE = scenes.pose(0.7, (0.3, -0.2, 0.4), 0.2)


def cameras(poses=(POSE,), bent=0.0, scale=1.0) -> Cameras:
    """Cameras in a box, with exact points; ``bent``: seen through a lens that is no pinhole."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    x, y = (u - scenes.K[0, 2]) / scenes.K[0, 0], (v - scenes.K[1, 2]) / scenes.K[1, 1]
    straight = 1 - bent * (x**2 + y**2)
    rays = np.stack([x * straight, y * straight, np.ones_like(x)], axis=-1)
    points = []
    for T_WC in poses:
        rays_W = rays @ T_WC[:3, :3].T
        depth = ((np.sign(rays_W) * scenes.HALF - T_WC[:3, 3]) / rays_W).min(axis=-1)
        points.append((scale * rays * depth[..., None]).reshape(-1, 3))
    T_WC = np.stack(poses)
    T_WC[:, :3, 3] *= scale
    return Cameras(
        K=scenes.K,
        focal_source="that of the run",
        slots=np.arange(len(poses)),
        T_WC=T_WC,
        points=np.stack(points).astype(np.float32),
        confidence=np.full((len(poses), HEIGHT * WIDTH), 2.0, np.float32),
        images=np.stack([np.stack([u, v, v], axis=-1).astype(np.uint8)] * len(poses)),
        names=("",) * len(poses),
    )


def test_the_view_of_a_pinhole_is_as_it_was():
    depth, colors = mesh.pinhole_view(cameras(), 0, 1.5)
    np.testing.assert_allclose(depth, scenes.depth_of(POSE), rtol=1e-6)
    np.testing.assert_allclose(colors * 255, cameras().images[0], atol=1e-4)
    assert depth.dtype == colors.dtype == np.float32  # as Open3D takes them


def test_points_off_their_rays_are_seen_where_they_project():
    bent = cameras(bent=0.15)
    depth, colors = mesh.pinhole_view(bent, 0, 1.5)
    truth, seen = scenes.depth_of(POSE), depth > 0
    # The bent lens sees less of the corners; all else is there, to half a pixel.
    assert 0.75 < seen.mean() < 0.95 and seen[20:-20, 25:-25].all()
    naive = bent.points[0, :, 2].reshape(HEIGHT, WIDTH)
    wrong, right = (np.abs(x / truth - 1)[seen] for x in (naive, depth))
    assert np.median(wrong) > 4 * np.median(right) and np.percentile(right, 95) < 0.01
    u = colors[..., 0] * 255  # of which pixel it was
    assert (
        u[seen & (np.arange(WIDTH) > 110)] > np.nonzero(seen & (np.arange(WIDTH) > 110))[1]
    ).all()


def test_unsure_points_are_not_seen():
    sure = cameras()
    sure.confidence[0, 5], sure.points[0, 6, 0], sure.points[0, 7] = 1.5, np.nan, (0, 0, -1)
    depth, _ = mesh.pinhole_view(sure, 0, 1.5)
    assert np.flatnonzero(depth == 0).tolist() == [5, 6, 7]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_voxels_are_as_large_as_two_pixels(scale):
    """Whatever the unit of the map."""
    inside = cameras(scale=scale)
    voxel = mesh.voxel_for(inside, [mesh.pinhole_view(inside, 0, 1.5)[0], np.zeros((2, 2))])
    assert voxel == pytest.approx(scale * 2 * np.median(scenes.depth_of(POSE)) / 96)


def test_a_missing_open3d_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(SourceError, match=r"pip install 'mast3r-slam-jax\[mesh\]'"):
        exports.export(made_up(), "mesh", tmp_path / "mesh.ply")
    with pytest.raises(SourceError, match="--voxel is for meshes; ply has no voxels"):
        exports.export(made_up(), "ply", tmp_path / "map.ply", voxel=0.1)
    assert not list(tmp_path.iterdir())


def test_an_open3d_without_its_system_libraries_says_which(tmp_path, monkeypatch):
    (tmp_path / "open3d.py").write_text("raise ImportError('libusb.so: cannot open it')")
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"cannot be loaded \(libusb\.so: cannot open it"):
        exports.export(made_up(), "mesh", tmp_path / "mesh.ply")
    assert not list(tmp_path.glob("*.ply"))


@pytest.fixture
def fused(tmp_path, monkeypatch):
    """Exports a mesh of given cameras."""
    pytest.importorskip(
        "open3d",
        reason="open3d, 450 MB with what it needs, is an extra, or lacks a system library",
        exc_type=ImportError,
    )

    def export(seen: Cameras, **options):
        monkeypatch.setattr(mesh, "cameras_of", lambda result: seen)
        return exports.export(made_up(), "mesh", tmp_path / "box.ply", **options)

    return export, tmp_path / "box.ply"


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_vertices_are_on_the_walls(fused, scale):
    export, path = fused
    poses = [scenes.pose(0.5 * k, (0.4 * np.sin(k), 0, 0), 0.2 * np.sin(2 * k)) for k in range(13)]
    said = export(cameras(poses, scale=scale))
    surface = trimesh.load(path)
    apart = np.abs(np.abs(surface.vertices / scale) - scenes.HALF).min(axis=1)
    assert np.median(apart) < 2e-3 and np.percentile(apart, 95) < 0.01  # metres; a pixel is 2 cm
    assert f"{len(surface.vertices)} vertices, {len(surface.faces)} triangles" in said[0]
    # Seen from where the cameras are, and nearly everywhere but high up and low down.
    inwards = np.sum(surface.face_normals * surface.triangles_center, axis=1) < 0
    assert inwards.mean() > 0.99
    walls = 8 * 1.5 * (2.0 + 2.5)  # the four that the cameras turn to; once
    assert 0.6 * walls < surface.area / scale**2 < 1.2 * walls
    assert np.mean(surface.visual.vertex_colors[:, 0]) == pytest.approx(WIDTH / 2, rel=0.1)


def test_what_a_single_keyframe_has_seen_is_there(fused):
    export, path = fused
    export(cameras())
    apart, _ = cKDTree(trimesh.load(path).vertices).query(cameras().world_points(0))
    assert np.mean(apart < 0.05) > 0.97  # metres: a voxel


def test_an_empty_mesh_is_not_written(fused):
    export, path = fused
    with pytest.raises(SourceError, match="more confident than 3; lower --min-confidence"):
        export(cameras(), min_confidence=3.0)
    with pytest.raises(SourceError, match="voxels of 100 give no surface; change --voxel"):
        export(cameras(), voxel=100.0)
    with pytest.raises(SourceError, match="--voxel -1: must be a positive number"):
        export(cameras(), voxel=-1.0)
    nothing = dataclasses.replace(cameras(), confidence=np.zeros((1, HEIGHT * WIDTH), np.float32))
    with pytest.raises(SourceError, match="lower --min-confidence"):
        export(nothing)
    assert not list(path.parent.iterdir())
