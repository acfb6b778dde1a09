"""How true exports of a procedural room are: points, meshes, and tracks for bundle adjustment.

    python -m experiments.export_accuracy [--frames 150]

The room is reconstructed from exact geometry, and from geometry with the noise of the demo. Printed
are the distances of the point cloud's points and the mesh's vertices from the true surfaces, once
the walk is aligned with the true one (a mesh needs the extra ``mesh``); and of the COLMAP model how
many keyframes see a point, the reprojection error that pycolmap finds, and the error of the
keyframes' positions before and after its bundle adjustment.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import pycolmap
import trimesh
import tyro
from jaxtyping import Float

import slam
from slam.evaluation import align_sim3, ate_rmse
from slam.exports import export
from slam.io.frames import SourceError
from slam.io.procedural import parse_procedural
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.world.room import Room


@dataclasses.dataclass(frozen=True)
class ExportAccuracy:
    """Export a room whose surfaces are known."""

    frames: int = 150
    """Length of the walk."""
    size: tuple[int, int] = (128, 96)
    """Width and height of the images."""

    def execute(self) -> int:
        """Returns 0."""
        width, height = self.size
        source = parse_procedural(
            f"procedural:room?seed=3&frames={self.frames}&size={width}x{height}"
        )
        for name, noise in (("exact", GeometryNoise.none()), ("with noise", GeometryNoise())):
            config = slam.SlamConfig(size=max(self.size))
            result = slam.run(source, RenderedGeometryPrior(noise), config)
            print(f"{name}: {result.verdict()}")
            with tempfile.TemporaryDirectory() as folder:
                for line in report(result, source.room, pathlib.Path(folder)):
                    print(f"  {line}")
        return 0


def report(result: Reconstruction, room: Room, folder: pathlib.Path) -> Iterator[str]:
    """Lines about one reconstruction; exports go into an empty folder."""
    assert result.reference_T_WC is not None
    truth = result.reference_T_WC[result.placed_in()][:, :3, 3]
    world = align_sim3(result.trajectory().positions, truth)

    def distances(points: np.ndarray) -> str:
        cm = 100 * distance_to_surfaces(room, world.apply(points.astype(np.float64)))
        return f"{np.median(cm):.2f} cm from the surfaces (95 %: {np.percentile(cm, 95):.2f} cm)"

    points = result.point_cloud().points
    yield f"{len(points)} points, {distances(points)}"
    try:
        export(result, "mesh", folder / "mesh.ply")
        vertices = np.asarray(trimesh.load_mesh(folder / "mesh.ply").vertices)
        yield f"{len(vertices)} vertices of the mesh, {distances(vertices)}"
    except SourceError as error:
        yield str(error)
    export(result, "colmap", folder / "colmap")
    model = pycolmap.Reconstruction(folder / "colmap" / "sparse" / "0")
    lengths = np.array([point.track.length() for point in model.points3D.values()])
    seen = ", ".join(f"{np.sum(lengths == n)} by {n}" for n in np.unique(lengths))
    yield f"{len(lengths)} points of COLMAP's model, seen {seen} keyframes"
    yield f"before bundle adjustment: {quality(model, result)}"
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    yield f"after it: {quality(model, result)}"


def quality(model: pycolmap.Reconstruction, result: Reconstruction) -> str:
    """Reprojection error, and error of the cameras' positions, of a model of the keyframes."""
    model.update_point_3d_errors()
    images = sorted(model.images.values(), key=lambda image: image.name)
    centres = np.array([image.projection_center() for image in images])
    made_of = np.array([int(pathlib.Path(image.name).stem) for image in images])
    assert result.reference_T_WC is not None
    error = ate_rmse(centres, result.reference_T_WC[made_of][:, :3, 3])
    return (
        f"{model.compute_mean_reprojection_error():.3f} px, keyframes {100 * error:.2f} cm from "
        "where they were"
    )


def distance_to_surfaces(room: Room, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Metres from points in the room's frame to its walls or solids, whichever is nearer."""
    half = np.asarray(room.size) / 2
    nearest = np.abs(_to_box(points - [0, 0, half[2]], half))
    for k in np.flatnonzero(room.active):
        c, s = np.cos(room.yaw[k]), np.sin(room.yaw[k])
        x, y, z = (points - np.asarray(room.centre[k])).T
        local = np.stack([c * x + s * y, c * y - s * x, z], axis=1)
        size = np.asarray(room.half[k])
        if k < room.num_boxes:
            signed = _to_box(local, size)
        elif k < room.num_boxes + room.num_spheres:
            signed = np.linalg.norm(local, axis=1) - size[0]
        else:
            flat = np.stack([np.hypot(local[:, 0], local[:, 1]), local[:, 2]], axis=1)
            signed = _to_box(flat, size[[0, 2]])
        nearest = np.minimum(nearest, np.abs(signed))
    return nearest


def _to_box(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Signed distance [n] to a box around the origin, negative inside, in any dimension."""
    beyond = np.abs(points) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(ExportAccuracy, description=__doc__).execute())
