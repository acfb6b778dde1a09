"""A surface, fused from the keyframes' depths by Open3D (TSDF, Curless and Levoy 1996)."""

import pathlib
from typing import Any

import numpy as np

from slam.exports.cameras import Cameras, cameras_of
from slam.io.atomic import atomic_path
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction

_VOXEL = 2.0
"""Edge of a voxel, in pixels at the middle distance: finer ones have no measurement each."""
_TRUNCATION = 4.0
"""Voxels on either side of a surface that a measurement is fused into."""
_BLOCK, _BLOCKS = 8, 1024
"""Voxels along the side of a block, and how many blocks there is room for at first."""
_SEEN = 0.5
"""A surface has been measured more often than this: keyframes overlap too little to ask for two."""
_PIXEL = 0.5
"""Open3D looks up the pixel that contains a point: its first one has its centre at (0.5, 0.5)."""
_OFF_RAY = 1.0
"""Pixels: a point that projects further from where it is used is left out."""


def export_mesh(
    result: Reconstruction,
    path: pathlib.Path,
    min_confidence: float,
    voxel: float | None = None,
) -> list[str]:
    """Triangles with coloured corners, as PLY.

    Args:
        result: its largest submap is written.
        path: the file.
        min_confidence: points that are fused are more confident than this.
        voxel: edge of the voxels, in units of the map; chosen from what a pixel covers if omitted.

    Raises:
        SourceError: Open3D is not installed or cannot be loaded, or there is nothing to fuse.
    """
    try:
        import open3d as o3d  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise SourceError(
            "mesh needs the package open3d: pip install 'mast3r-slam-jax[mesh]'"
        ) from error
    except (ImportError, OSError) as error:
        raise SourceError(
            f"mesh needs the package open3d, which is installed and cannot be loaded ({error}); "
            "install the system library that it asks for"
        ) from error
    if voxel is not None and not 0 < voxel < np.inf:
        raise SourceError(f"--voxel {voxel:g}: must be a positive number, in units of the map")
    cameras = cameras_of(result)
    views = [pinhole_view(cameras, k, min_confidence) for k in range(len(cameras.slots))]
    if not any(depth.any() for depth, _ in views):
        raise SourceError(
            f"{result.name}: no point is more confident than {min_confidence:g}; lower "
            "--min-confidence"
        )
    if voxel is None:
        voxel = voxel_for(cameras, [depth for depth, _ in views])
    mesh = _fuse(o3d, cameras, views, voxel)
    if not len(mesh.triangles):
        raise SourceError(f"{result.name}: voxels of {voxel:.3g} give no surface; change --voxel")
    colors = np.asarray(mesh.vertex_colors)  # the mesh's own
    np.clip(colors, 0, 1, out=colors)  # which interpolation has overshot by rounding
    with atomic_path(path) as temporary:
        if not o3d.io.write_triangle_mesh(temporary, mesh):
            raise OSError(f"{path}: Open3D could not write it")
    return [
        f"{len(mesh.vertices)} vertices, {len(mesh.triangles)} triangles from voxels of "
        f"{voxel:.3g}; opens in MeshLab, CloudCompare, Blender",
        cameras.lens,
    ]


def _fuse(
    o3d: Any, cameras: Cameras, views: list[tuple[np.ndarray, np.ndarray]], voxel: float
) -> Any:
    """Open3D's mesh of what all cameras see, each a ``pinhole_view``."""
    kinds, K = {"tsdf": 1, "weight": 1, "color": 3}, cameras.K.copy()
    K[:2, 2] += _PIXEL
    grid = o3d.t.geometry.VoxelBlockGrid(
        attr_names=tuple(kinds),
        attr_dtypes=(o3d.core.float32,) * len(kinds),
        attr_channels=tuple(kinds.values()),
        voxel_size=voxel,
        block_resolution=_BLOCK,
        block_count=_BLOCKS,
    )
    for view, T_WC in zip(views, cameras.T_WC, strict=True):
        far = float(view[0].max())
        if not far:
            continue
        depth, colors = (o3d.t.geometry.Image(o3d.core.Tensor(x)) for x in view)
        lens, place = o3d.core.Tensor(K), o3d.core.Tensor(np.linalg.inv(T_WC))
        limits = 1.0, far + voxel, _TRUNCATION  # the unit of depth comes first
        blocks = grid.compute_unique_block_coordinates(depth, lens, place, *limits)
        grid.integrate(blocks, depth, colors, lens, lens, place, *limits)
    return grid.extract_triangle_mesh(weight_threshold=_SEEN).to_legacy()


def pinhole_view(
    cameras: Cameras, camera: int, min_confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """What an ideal pinhole camera in the place of a keyframe would see.

    The pixels of a pointmap need not lie on the rays of the pinhole camera that fits it best, so
    each pixel of the view takes the point that projects there.

    Returns:
        depth float32 [H, W] along z in units of the world, 0 where nothing is sure, and colours
        float32 [H, W, 3] up to 1.
    """
    height, width = cameras.image_shape
    points = cameras.points[camera].astype(np.float64)
    good = np.isfinite(points).all(axis=1) & (cameras.confidence[camera] > min_confidence)
    good &= points[:, 2] > 0
    safe = np.where(good[:, None], points, 1.0)
    lands = safe[:, :2] / safe[:, 2:] * np.diag(cameras.K)[:2] + cameras.K[:2, 2]
    v, u = np.divmod(np.arange(height * width), width)
    here = np.stack([u, v], axis=1)
    shift = np.where(good[:, None], lands - here, 0.0)
    source = np.arange(height * width)
    for _ in range(2):  # where the pixel is whose point lands here, if neighbours move alike
        wanted = np.rint(here - shift[source]).astype(int)
        source = np.ravel_multi_index((wanted[:, 1], wanted[:, 0]), (height, width), mode="clip")
    good = good[source] & (np.abs(lands[source] - here).max(axis=1) <= _OFF_RAY)
    depth = np.where(good, points[source, 2], 0.0).astype(np.float32)
    colors = cameras.images[camera].reshape(-1, 3)[source] / np.float32(255)
    return depth.reshape(height, width), colors.reshape(height, width, 3)


def voxel_for(cameras: Cameras, depths: list[np.ndarray]) -> float:
    """Edge of the voxels for views with these depths, 0 where there is none."""
    seen = np.concatenate([depth[depth > 0] for depth in depths])
    return float(_VOXEL * np.median(seen) / cameras.K[0, 0])
