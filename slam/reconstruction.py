"""What a run leaves behind: poses of every frame, the dense map, and how it went."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ops import Sim3
from slam.config import SlamConfig
from slam.evaluation import AteResult, ate
from slam.io.trajectory_file import Trajectory
from slam.pipeline import Views
from slam.state import Keyframes, Mode, StepOutput
from slam.tracking import Correspondence

if TYPE_CHECKING:
    from slam.outputs import OutputFiles


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """Coloured points in the world frame."""

    points: np.ndarray
    """float32 [N, 3]."""
    colors: np.ndarray
    """uint8 [N, 3], RGB."""
    confidence: np.ndarray
    """float32 [N], average confidence of the point in its keyframe."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One tracked frame beside its keyframe, on the host, ready to be drawn."""

    frame_index: int
    """Number of the frame."""
    keyframe_index: int
    """Number of the frame its keyframe was."""
    image_f: np.ndarray
    """uint8 [H, W, 3] of the frame."""
    image_k: np.ndarray
    """uint8 [H, W, 3] of the keyframe."""
    views: Views
    """What the prior predicted."""
    correspondence: Correspondence
    """What the matcher found."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Result of a run, on the host.

    Every tracked frame's pose is stored relative to its keyframe and composed on demand, so all
    poses follow whatever moves the keyframes.
    """

    name: str
    config: SlamConfig
    timestamps: np.ndarray
    """float64 [F], seconds on the source's clock."""
    frames: StepOutput
    """Report of every frame, stacked [F]."""
    keyframes: Keyframes
    """The map, its buffers cut to the slots in use."""
    reference_T_WC: np.ndarray | None = None
    """Ground truth [F, 4, 4] where the source has one; rows of NaN where it does not."""
    timing: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Seconds by stage; see ``slam.runner.StageTimer.summary``."""
    notes: tuple[str, ...] = ()
    """What the user should know: limits reached, a source that ended early."""
    panels: tuple[Panel, ...] = ()
    """Per-pixel results of a few frames, for looking at."""

    @property
    def num_frames(self) -> int:
        """Frames taken in."""
        return len(self.timestamps)

    @property
    def num_keyframes(self) -> int:
        """Keyframes in the map."""
        return int(self.keyframes.size)

    @property
    def tracked(self) -> np.ndarray:
        """bool [F]: frames that have a pose."""
        return np.asarray(self.frames.mode) == Mode.TRACKING

    def trajectory(self) -> Trajectory:
        """Pose of every frame that was placed, composed with its keyframe's pose."""
        return self._poses(self.tracked)

    def keyframe_trajectory(self) -> Trajectory:
        """Poses of the keyframes."""
        return self._poses(self.is_keyframe)

    def reference_trajectory(self) -> Trajectory | None:
        """Ground truth of the frames that have one; None if none has."""
        if self.reference_T_WC is None:
            return None
        known = self._has_reference
        return Trajectory(self.timestamps[known], self.reference_T_WC[known])

    def evaluate(self, keyframes_only: bool = False, with_scale: bool = True) -> AteResult | None:
        """Absolute trajectory error against ground truth.

        Args:
            keyframes_only: as the original reports it; otherwise all placed frames.
            with_scale: align by Sim(3), as is usual for monocular systems, or by SE(3).

        Returns:
            The error, or None when fewer than three placed frames have ground truth.
        """
        if self.reference_T_WC is None:
            return None
        chosen = self.is_keyframe if keyframes_only else self.tracked
        chosen = chosen & self._has_reference
        if chosen.sum() < 3:
            return None
        return ate(
            self._poses(chosen).positions,
            self.reference_T_WC[chosen, :3, 3],
            with_scale=with_scale,
        )

    def accuracy(self) -> list[tuple[str, str, AteResult]]:
        """All errors that can be computed, as (which poses, how aligned, error)."""
        kinds = [
            ("every frame", "Sim(3)", False, True),
            ("keyframes", "Sim(3)", True, True),
            ("every frame", "SE(3)", False, False),
            ("keyframes", "SE(3)", True, False),
        ]
        errors = [
            (poses, alignment, self.evaluate(keyframes_only, with_scale))
            for poses, alignment, keyframes_only, with_scale in kinds
        ]
        return [(poses, alignment, error) for poses, alignment, error in errors if error]

    @property
    def is_keyframe(self) -> np.ndarray:
        """bool [F]: frames that became keyframes."""
        return np.asarray(self.frames.is_keyframe)

    @property
    def _has_reference(self) -> np.ndarray:
        assert self.reference_T_WC is not None
        return np.asarray(np.isfinite(self.reference_T_WC).all((1, 2)))

    def _poses(self, chosen: np.ndarray) -> Trajectory:
        slots = np.asarray(self.frames.keyframe)[chosen]
        T_WK = Sim3(jnp.asarray(np.asarray(self.keyframes.T_WC.wxyz_xyz_scale)[slots]))
        T_kf = Sim3(jnp.asarray(np.asarray(self.frames.T_kf.wxyz_xyz_scale)[chosen]))
        matrices = np.tile(np.eye(4), (len(slots), 1, 1))
        matrices[:, :3] = np.asarray(_compose(T_WK, T_kf))
        return Trajectory(self.timestamps[chosen], matrices)

    def point_cloud(self, min_confidence: float = 1.5) -> PointCloud:
        """Points of all keyframes whose average confidence exceeds ``min_confidence``."""
        count = np.maximum(np.asarray(self.keyframes.pointmap.count), 1)
        confidence = np.asarray(self.keyframes.pointmap.confidence) / count[:, None]
        points_K = jnp.asarray(self.keyframes.pointmap.points)
        T_WC = Sim3(jnp.asarray(self.keyframes.T_WC.wxyz_xyz_scale)[:, None])
        points_W = np.asarray(_apply(T_WC, points_K))
        colors = np.asarray(self.keyframes.image).reshape(*confidence.shape, 3)
        keep = (confidence > min_confidence) & np.isfinite(points_W).all(-1)
        return PointCloud(points_W[keep], colors[keep], confidence[keep].astype(np.float32))

    def verdict(self) -> str:
        """One honest sentence about how the run went."""
        frames, placed = self.num_frames, int(self.tracked.sum())
        if placed == 0:
            return f"NOT STARTED: none of {frames} frames was usable as a first keyframe"
        if placed == 1 and frames > 1:
            return f"LOST: the first keyframe was made, but none of {frames - 1} later frames fits"
        if placed < frames:
            first = int(np.flatnonzero(~self.tracked)[0])
            return (
                f"PARTLY LOST: {placed} of {frames} frames have a pose, the first without one is "
                f"frame {first}; {self.num_keyframes} keyframes"
            )
        return f"all {frames} frames have a pose, {self.num_keyframes} keyframes"

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        min_confidence: float = 1.5,
        overwrite: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> "OutputFiles":
        """Write trajectories, point cloud, pictures and a record of the run into ``folder``.

        See ``slam.outputs.write_outputs`` for the arguments and for what is written.
        """
        from slam.outputs import write_outputs

        return write_outputs(
            self,
            pathlib.Path(folder),
            min_confidence=min_confidence,
            overwrite=overwrite,
            about=about,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Reconstruction":
        """Read back what ``save`` wrote (without panels and the prior's encodings).

        Raises:
            slam.io.frames.SourceError: the folder holds no reconstruction that can be read.
        """
        from slam.archive import load_archive

        return load_archive(pathlib.Path(folder) / "reconstruction.npz")


@jax.jit
def _compose(T_WK: Sim3, T_kf: Sim3) -> Float[Array, "n 3 4"]:
    """Rotations and translations of ``T_WK @ T_kf``; the scale belongs to the points."""
    T_WC = T_WK @ T_kf
    return jnp.concatenate([T_WC.rotation().as_matrix(), T_WC.translation()[..., None]], axis=-1)


@jax.jit
def _apply(T: Sim3, points: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    return T.apply(points)
