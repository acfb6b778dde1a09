"""What a run writes: one folder, complete or absent."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from ops import SolverStatus
from slam import pictures, plots
from slam.archive import save_archive
from slam.checkpoint import CHECKPOINT, MAP
from slam.evaluation import AteResult
from slam.io.atomic import atomic_write
from slam.io.ply import write_ply
from slam.io.trajectory_file import write_trajectory
from slam.reconstruction import PointCloud, Reconstruction, keyframe_name
from slam.state import Mode

PACKAGES = ("mast3r-slam-jax", "jax", "jaxlib", "flax", "numpy", "opencv-python", "jaxlie")
"""Whose versions ``run.json`` records."""

DESCRIPTIONS = {
    "trajectory.txt": "pose of every frame, TUM format: t x y z qx qy qz qw",
    "keyframes.txt": "poses of the keyframes, TUM format",
    "groundtruth.txt": "ground truth of all frames that have it, TUM format",
    "map.ply": "coloured point cloud",
    "keyframes": "images of the keyframes, named by frame number",
    "trajectory.png": "picture of the trajectory",
    "map.png": "picture of the map from above",
    "panels": "pictures of depth, confidence and matches of a few frames",
    "submaps": "pieces not joined to the largest, each in its own world",
    "run.json": "record of the run: configuration, versions, times, errors",
    "reconstruction.npz": "everything, for slam.Reconstruction.load",
    MAP: "the map as the system keeps it, for run --map",
    CHECKPOINT: "where the unfinished run goes on, with run --resume",
}
"""Every file or folder of the output folder, in the order it is presented."""


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """Where the results of a run are."""

    folder: pathlib.Path
    notes: tuple[str, ...] = ()
    """What the user should know of them."""

    def described(self) -> list[tuple[str, str]]:
        """Name and meaning of everything that was written."""
        there = [name for name in DESCRIPTIONS if (self.folder / name).exists()]
        return [
            (name + "/" if (self.folder / name).is_dir() else name, DESCRIPTIONS[name])
            for name in there
        ]


def check_folder(folder: pathlib.Path, overwrite: bool, unfinished: bool = False) -> None:
    """Refuse, before any work is done, an output folder that ``write_outputs`` would refuse.

    With ``unfinished``, one that holds no more than the checkpoint of a run is taken.

    Raises:
        FileExistsError: it is a file, or has something in it that is not a run's, or is a run's and
            ``overwrite`` is not set.
        PermissionError: nothing can be written there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder}: exists and is no folder; choose another one")
    inside = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in inside if name not in DESCRIPTIONS]
    if foreign:
        raise FileExistsError(f"{folder}: holds other files ({foreign[0]}); choose another folder")
    if inside == [CHECKPOINT] and not (overwrite or unfinished):
        raise FileExistsError(
            f"{folder}: holds an unfinished run; go on with `mast3r-slam run --resume {folder}`, "
            "pass --overwrite, or choose another folder"
        )
    if inside not in ([], [CHECKPOINT]) and not overwrite:
        raise FileExistsError(
            f"{folder}: holds the results of a run; pass --overwrite (overwrite=True in "
            "Python), or choose another folder"
        )
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise PermissionError(f"{folder}: {parent} is not a folder that can be written to")


def write_outputs(
    result: Reconstruction,
    folder: pathlib.Path,
    *,
    min_confidence: float,
    overwrite: bool,
    keep_map: bool = True,
    about: Mapping[str, Any] | None = None,
) -> OutputFiles:
    """Write all results of a run into ``folder``.

    Everything is written beside it and renamed at the end, so the folder is complete or as before.

    Args:
        result: what to write.
        folder: created, with its parents; may exist if it is empty or ``overwrite`` is set.
        min_confidence: points of the cloud are more confident than this.
        overwrite: replace the results of an earlier run.
        keep_map: write the map too, if ``result`` has all of it, so that others can go on from it.
        about: further entries for ``run.json``, such as the prior used.

    Raises:
        FileExistsError: see ``check_folder``; a folder with files of other origin is never
            replaced.
    """
    check_folder(folder, overwrite, unfinished=True)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workshop:
        fresh, old = pathlib.Path(workshop) / "new", pathlib.Path(workshop) / "old"
        fresh.mkdir()
        notes = _write_all(result, fresh, min_confidence, about or {})
        if keep_map and result.system is not None and result.num_keyframes:
            result.system.write(fresh / MAP)
        if folder.exists():
            folder.rename(old)  # vanishes with the workshop
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    return OutputFiles(folder, notes)


def _write_all(
    result: Reconstruction, folder: pathlib.Path, min_confidence: float, about: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write everything; returns notes about it."""
    cloud = _write_submap(result, None, folder, min_confidence)
    for rank, submap in enumerate(result.submaps[1:], start=2):
        _write_submap(result, submap, folder / "submaps" / str(rank), min_confidence)
    reference = result.reference_trajectory()
    if reference is not None:
        write_trajectory(folder / "groundtruth.txt", reference.timestamps, reference.T_WC)
    notes: list[str] = []
    if result.num_keyframes and not len(cloud.points):
        notes.append(f"no point is more confident than {min_confidence:g}; map.ply is empty")
    if len(result.submaps) > 1:
        notes.append(
            "poses, map, pictures and errors are those of the largest piece; the other pieces are "
            "in submaps/"
        )
    for slot in range(result.num_keyframes):
        number = int(result.keyframes.frame_index[slot])
        with atomic_write(folder / "keyframes" / f"{keyframe_name(number, slot)}.png") as file:
            Image.fromarray(result.images[slot]).save(file, format="png")
    _draw(result, folder, cloud)
    with atomic_write(folder / "run.json") as file:
        record = _without_nan({**about, **summary(result, len(cloud.points), tuple(notes))})
        file.write(json.dumps(record, indent=2, allow_nan=False).encode())
    save_archive(result, folder / "reconstruction.npz")
    return tuple(notes)


def _write_submap(
    result: Reconstruction, submap: int | None, folder: pathlib.Path, min_confidence: float
) -> PointCloud:
    """Write the poses and the points of one submap, None for the largest; returns the points."""
    trajectory, keyframes = result.trajectory(submap), result.keyframe_trajectory(submap)
    write_trajectory(folder / "trajectory.txt", trajectory.timestamps, trajectory.T_WC)
    write_trajectory(folder / "keyframes.txt", keyframes.timestamps, keyframes.T_WC)
    cloud = result.point_cloud(min_confidence, submap)
    write_ply(folder / "map.ply", cloud.points, cloud.colors)
    return cloud


def _draw(result: Reconstruction, folder: pathlib.Path, cloud: PointCloud) -> None:
    """All pictures; those from above of the largest submap."""
    trajectory = plots.plot_trajectory(pictures.trajectory_scene(result))
    plots.save_picture(folder / "trajectory.png", trajectory)
    plots.save_picture(folder / "map.png", pictures.map_from_above(result, cloud))
    for panel in result.panels:
        path = folder / "panels" / f"{panel.frame_index:06d}.png"
        plots.save_picture(path, pictures.panel_picture(result.name, panel))


def summary(result: Reconstruction, num_points: int, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Contents of ``run.json``."""
    return {
        "name": result.name,
        "verdict": result.verdict(),
        "notes": [*result.notes, *notes],
        "counts": _counts(result) | {"points": num_points},
        "submaps": [
            {
                "frames": int(result.placed_in(submap).sum()),
                "keyframes": len(result.slots_of(submap)),
                "first_frame": int(result.frame_numbers[result.placed_in(submap)][0]),
            }
            for submap in result.submaps
        ],
        "ate": [
            {"poses": poses, "aligned_by": alignment, **_error_record(error)}
            for poses, alignment, error in result.accuracy()
        ],
        "timing": result.timing,
        "config": dataclasses.asdict(result.config),
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }


def _counts(result: Reconstruction) -> dict[str, Any]:
    """How often what happened, of all frames and keyframes."""
    frames, placed = result.frames, result.tracked
    optimized = np.asarray(frames.new_links) > 0
    outcomes = np.asarray(frames.graph_status)[optimized]
    iterations = np.asarray(frames.graph_iterations)[optimized]
    solved = np.asarray(frames.iterations) > 0
    looked_up = np.asarray(frames.is_retrieved).sum(axis=1)
    return {
        "frames": result.num_frames,
        "frames_with_pose": int(placed.sum()),
        "frames_without_pose": result.frame_numbers[~placed].tolist(),
        "frames_relocalized": result.frame_numbers[result.relocalized].tolist(),
        "keyframes": result.num_keyframes,
        "links": len(result.links),
        "loop_links": int(result.is_loop_link.sum()),
        "modes": {mode.name.lower(): int((np.asarray(frames.mode) == mode).sum()) for mode in Mode},
        "solver": _statuses(np.asarray(frames.status)[solved]),
        "mean_iterations": float(np.mean(frames.iterations[solved])) if solved.any() else None,
        "global_optimization": {
            "runs": int(optimized.sum()),
            "failed": sum(SolverStatus(int(outcome)).failed for outcome in outcomes),
            "solver": _statuses(outcomes),
            "mean_iterations": float(iterations.mean()) if optimized.any() else None,
        },
        "retrieval": {
            "frames_with_candidates": int((looked_up > 0).sum()),
            "candidates": int(looked_up.sum()),
        },
    }


def _statuses(values: np.ndarray) -> dict[str, int]:
    """How often a solver ended in which ``SolverStatus``."""
    statuses, counts = np.unique(values, return_counts=True)
    return {
        SolverStatus(int(s)).name.lower(): int(n) for s, n in zip(statuses, counts, strict=True)
    }


def _error_record(error: AteResult) -> dict[str, Any]:
    record = dataclasses.asdict(error)
    del record["with_scale"]  # told in words, beside it
    return record


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def package_version(package: str) -> str | None:
    """Version of an installed package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
