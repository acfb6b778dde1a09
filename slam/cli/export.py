"""``mast3r-slam export OUT``: results of a run in the forms that other programs read."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro
from rich.console import Console

from slam.cli.options import Flag
from slam.cli.session import say
from slam.exports import FORMATS, check_target, export
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction

Target = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: beside the results)"),
]
Frames = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(metavar="FIRST LAST", help_behavior_hint="(default: all)"),
]
Voxel = Annotated[
    float | None,
    tyro.conf.arg(metavar="X", help_behavior_hint="(default: what two pixels cover)"),
]


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the results of a run for COLMAP, nerfstudio, Blender, evo, ..."""

    results: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder that a run has written."""
    format: Literal["ply", "glb", "mesh", "tum", "kitti", "colmap", "nerfstudio", "rrd"]
    """ply, glb: points (and cameras); mesh: triangles, as PLY;
    tum, kitti: poses of every frame;
    colmap, nerfstudio: keyframe images with their cameras, and points;
    rrd: the map growing, for Rerun."""
    to: Target = None
    """File or folder to write."""
    overwrite: Flag = False
    """Replace an earlier export."""
    frames: Frames = None
    """Only these frames of the source, both included, and the keyframes that carry them."""
    min_confidence: float = 1.5
    """Points of clouds and meshes are more confident than this."""
    voxel: Voxel = None
    """Edge of the voxels of a mesh, in units of the map."""

    def execute(self) -> int:
        """Export; returns the exit status."""
        wanted, out = FORMATS[self.format], self.results
        path = self.to or out.resolve().with_name(f"{out.resolve().name}{wanted.ending}")
        if path.resolve().is_relative_to(out.resolve()):
            raise SourceError(f"{path}: is inside the results of the run; choose another place")
        check_target(wanted, path, self.overwrite)
        result = Reconstruction.load(out)
        if self.frames is not None:
            result = result.part(*self.frames)
        console = Console(highlight=False)
        said = export(
            result,
            self.format,
            path,
            min_confidence=self.min_confidence,
            voxel=self.voxel,
            overwrite=self.overwrite,
        )
        say(console, f"{path}{'/' if wanted.contents else ''}", style="bold")
        for sentence in said:
            say(console, f"  {sentence}")
        return 0
