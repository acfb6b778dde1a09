"""A recording for the Rerun viewer, in which the map grows keyframe by keyframe."""

import pathlib

import numpy as np

from slam.exports.cameras import cameras_of
from slam.io.atomic import atomic_path
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction

_TIMELINE = "keyframe"
_POINT_SIZE = 1.5
"""On the screen, whatever the map's scale."""
_PIXEL = 0.5
"""Rerun counts pixels from the image's corner, we from the centre of the first."""


def export_rrd(result: Reconstruction, path: pathlib.Path, min_confidence: float) -> list[str]:
    """Each keyframe's camera, image and points, at its place on the timeline ``keyframe``.

    Raises:
        SourceError: Rerun is not installed.
    """
    try:
        import rerun as rr  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            "rrd needs the package rerun-sdk: pip install 'mast3r-slam-jax[rerun]'"
        ) from error
    cameras = cameras_of(result, only_to_look_at=True)
    (height, width), K = cameras.image_shape, cameras.K.copy()
    K[:2, 2] += _PIXEL
    count = 0
    with atomic_path(path) as temporary:
        with rr.RecordingStream("mast3r-slam", recording_id=result.name) as recording:
            recording.save(temporary)
            recording.log("map", rr.ViewCoordinates.RDF, static=True)
            walked = rr.LineStrips3D([np.asarray(result.trajectory().positions)])
            recording.log("map/path", walked, static=True)
            for k, image in enumerate(cameras.images):
                points, T_WC = cameras.world_points(k), cameras.T_WC[k]
                use = np.isfinite(points).all(axis=1) & (cameras.confidence[k] > min_confidence)
                count += int(use.sum())
                recording.set_time(_TIMELINE, sequence=k)
                name = f"map/keyframes/{k}"
                place = rr.Transform3D(mat3x3=T_WC[:3, :3], translation=T_WC[:3, 3])
                recording.log(name, place)
                lens = rr.Pinhole(
                    image_from_camera=K,
                    resolution=[width, height],
                    camera_xyz=rr.ViewCoordinates.RDF,
                )
                recording.log(name, lens)
                recording.log(name, rr.Image(image))
                cloud = rr.Points3D(
                    points[use],
                    colors=image.reshape(-1, 3)[use],
                    radii=rr.Radius.ui_points(_POINT_SIZE),
                )
                recording.log(f"map/points/{k}", cloud)
            recording.flush()
            recording.disconnect()
    return [
        f"{count} points, {len(cameras.slots)} keyframes; opens in Rerun: rerun FILE",
        cameras.lens,
    ]
