"""Pictures of a reconstruction, for its output folder and for notebooks alike.

Those from above are levelled by the whole trajectory: their axes are not the world's.
"""

import jax
import numpy as np

from slam import plots
from slam.composition import camera_points
from slam.orientation import levelling_rotation
from slam.reconstruction import Panel, PointCloud, Reconstruction


def trajectory_scene(result: Reconstruction, submap: int | None = None) -> plots.TrajectoryScene:
    """The trajectory of one submap, by default the largest, with its keyframes and links.

    Raises:
        ValueError: there is no submap of this number.
    """
    trajectory, keyframes = result.trajectory(submap), result.keyframe_positions(submap)
    placed, slots = result.placed_in(submap), result.slots_of(submap)
    here = np.isin(result.links, slots).all(axis=1)
    to_level, reference = levelling_rotation(trajectory.T_WC).T, result.reference_T_WC
    return plots.trajectory_scene(
        trajectory.positions @ to_level,
        None if reference is None else reference[placed, :3, 3],
        keyframes @ to_level,
        numbers=result.frame_numbers[placed],
        links=np.searchsorted(slots, result.links[here]),
        is_loop_link=result.is_loop_link[here],
        title=_title(result, submap),
    )


def map_from_above(
    result: Reconstruction, cloud: PointCloud, submap: int | None = None
) -> plots.Picture:
    """The points of one submap, by default the largest, and its trajectory.

    Raises:
        ValueError: there is no submap of this number.
    """
    trajectory = result.trajectory(submap)
    to_level = levelling_rotation(trajectory.T_WC).T
    return plots.plot_map(
        cloud.points @ to_level.astype(np.float32),
        cloud.colors,
        trajectory.positions @ to_level,
        numbers=result.frame_numbers[result.placed_in(submap)],
        title=_title(result, submap),
    )


def keyframe_sheet(
    result: Reconstruction, limit: int, depth: bool, submap: int | None = None
) -> plots.Picture:
    """Keyframes of one submap in order of time, at most ``limit`` of them, evenly spread.

    Raises:
        ValueError: there is no submap of this number, or nothing is to be shown.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: at least one keyframe must be shown")
    slots = result.slots_of(submap)
    if len(slots) > limit:
        slots = slots[np.linspace(0, len(slots) - 1, limit).round().astype(int)]
    shape = result.images.shape[1:3]
    depths = np.zeros((len(slots), *shape), np.float32)
    for k, slot in enumerate(slots):
        pointmap = jax.tree.map(lambda x, slot=slot: x[slot], result.keyframes.pointmap)
        points, _ = camera_points(pointmap, result.K, shape)
        depths[k] = np.asarray(points)[:, 2].reshape(shape)
    # Points are in units of the keyframe; its scale makes them the map's.
    scales = np.asarray(result.keyframes.T_WC.wxyz_xyz_scale)[slots, 7]
    count = len(result.slots_of(submap))
    title = f"{_title(result, submap)}: {len(slots)} of {count} keyframes"
    return plots.plot_views(
        result.images[slots],
        [_called(int(result.keyframes.frame_index[slot]), int(slot)) for slot in slots],
        depths * scales[:, None, None] if depth else None,
        title=title,
    )


def panel_picture(name: str, panel: Panel) -> plots.Picture:
    """One tracked frame of the sequence ``name`` beside its keyframe."""
    view, found = panel.views.frame, panel.correspondence
    height, width = view.confidence.shape
    index = np.asarray(found.matches.index).reshape(height, width)
    usable = np.asarray(view.usable)
    return plots.plot_panels(
        panel.image_f,
        panel.image_k,
        np.where(usable, view.points[..., 2], np.nan),
        np.where(usable, view.confidence, np.nan),
        np.stack([index % width, index // width], axis=-1).astype(np.float32),
        np.asarray(found.usable).reshape(height, width),
        title=f"{name}: frame {panel.frame_index} against keyframe {panel.keyframe_index}",
    )


def _called(frame_index: int, slot: int) -> str:
    """``slam.reconstruction.keyframe_name``, for people."""
    return f"frame {frame_index}" if frame_index >= 0 else f"map keyframe {slot}"


def _title(result: Reconstruction, submap: int | None) -> str:
    """Name of the sequence, and which piece of it is shown if there are several."""
    pieces = len(result.submaps)
    if pieces <= 1:
        return result.name
    rank = 1 if submap is None else 1 + result.submaps.index(submap)
    which = "largest" if rank == 1 else f"number {rank} by size"
    return f"{result.name}: {which} of {pieces} pieces"
