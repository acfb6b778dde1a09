"""Reconstructions in the forms that other programs read."""

import dataclasses
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable

from slam.exports import files, folders
from slam.exports.focal import estimate_focal as estimate_focal
from slam.exports.mesh import export_mesh
from slam.exports.rerun_file import export_rrd
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction


@dataclasses.dataclass(frozen=True)
class Format:
    """One of them."""

    write: Callable[..., list[str]]
    """Of result, path and least confidence: writes the file, or into the empty folder; returns what
    to tell the user."""
    ending: str
    """Of the default name."""
    contents: str | None = None
    """Pattern of the files in the folder; None if it is one file."""
    takes_voxel: bool = False
    """Whether ``write`` has the option ``voxel``."""


FORMATS = {
    "ply": Format(files.export_ply, ".ply"),
    "glb": Format(files.export_glb, ".glb"),
    "mesh": Format(export_mesh, "-mesh.ply", takes_voxel=True),
    "tum": Format(files.export_tum, "-tum.txt"),
    "kitti": Format(files.export_kitti, "-kitti.txt"),
    "colmap": Format(folders.export_colmap, "-colmap", folders.COLMAP_FILES),
    "nerfstudio": Format(folders.export_nerfstudio, "-nerfstudio", folders.NERFSTUDIO_FILES),
    "rrd": Format(export_rrd, ".rrd"),
}
"""By name."""


def export(
    result: Reconstruction,
    form: str,
    path: str | os.PathLike[str],
    *,
    min_confidence: float = 1.5,
    voxel: float | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the largest submap of a reconstruction in another form; complete or not at all.

    Args:
        result: what to write.
        form: one of ``FORMATS``.
        path: the file or folder to make.
        min_confidence: points of clouds are more confident than this.
        voxel: edge of a mesh's voxels, in units of the map; chosen from the scene if omitted.
        overwrite: replace an earlier export.

    Returns:
        Sentences about what was written.

    Raises:
        SourceError: there is no such form, or the reconstruction has nothing to show in it.
        FileExistsError: something else is there, or an earlier export without ``overwrite``.
    """
    if form not in FORMATS:
        raise SourceError(f"{form}: no such format; there are {', '.join(FORMATS)}")
    if not result.placed_in().any():
        raise SourceError(f"{result.name}: no frame has a pose; there is nothing to export")
    wanted, path = FORMATS[form], pathlib.Path(path)
    check_target(wanted, path, overwrite)
    write = wanted.write
    if voxel is not None:
        if not wanted.takes_voxel:
            raise SourceError(f"--voxel is for meshes; {form} has no voxels")
        write = functools.partial(write, voxel=voxel)
    if wanted.contents is None:
        return write(result, path, min_confidence)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=path.absolute().parent) as workshop:
        fresh, old = pathlib.Path(workshop) / "new", pathlib.Path(workshop) / "old"
        fresh.mkdir()
        said = write(result, fresh, min_confidence)
        if path.exists():
            path.rename(old)  # vanishes with the workshop
        try:
            fresh.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    return said


def check_target(wanted: Format, path: pathlib.Path, overwrite: bool) -> None:
    """Refuse, before any work is done, what must not be replaced.

    Raises:
        FileExistsError: as ``export`` does.
        SourceError: the name of a file has another ending.
    """
    suffix = "." + wanted.ending.rpartition(".")[2]
    if wanted.contents is None and path.suffix != suffix:
        raise SourceError(f"{path}: the name must end in {suffix}")
    if not path.exists() and not path.is_symlink():
        return
    if wanted.contents is None:
        if not path.is_file():
            raise FileExistsError(f"{path}: exists and is no file; choose another name")
    else:
        if not path.is_dir() or path.is_symlink():
            raise FileExistsError(f"{path}: exists and is no folder; choose another name")
        inside = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        foreign = sorted(file for file in inside if not re.fullmatch(wanted.contents, file))
        if foreign:
            raise FileExistsError(f"{path}: holds other files ({foreign[0]}); choose another name")
        if not any(path.iterdir()):
            return
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; pass --overwrite, or choose another name")
