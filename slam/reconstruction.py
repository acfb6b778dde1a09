"""What a run leaves behind: poses of every frame, the dense map, and how it went."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ops import Sim3
from slam.checkpoint import Saved
from slam.composition import camera_points, compose, world_points
from slam.config import SlamConfig
from slam.display import Displayed
from slam.evaluation import AteResult, ate
from slam.io.trajectory_file import Trajectory
from slam.parts import part_of
from slam.pipeline import Views
from slam.snapshot import KeyframeView, Snapshot, compose_poses
from slam.state import Keyframes, Mode, StepOutput
from slam.tracking import Correspondence
from slam.verdict import verdict

if TYPE_CHECKING:
    from slam.outputs import OutputFiles


LOOP_GAP = 5
"""Links over less than so many keyframes join views of one stretch; beyond, the camera has come
back. (Neighbours that share a third of their pixels have nothing in common over five.)"""


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


@dataclasses.dataclass(frozen=True, repr=False)
class Reconstruction(Displayed):
    """Result of a run, on the host.

    Every tracked frame's pose is stored relative to its keyframe and composed on demand, so all
    poses follow whatever moves the keyframes. Each submap has a world frame of its own; poses and
    points are therefore given of one submap at a time, by default of the largest.
    """

    name: str
    config: SlamConfig
    timestamps: np.ndarray
    """float64 [F], seconds on the source's clock."""
    frames: StepOutput
    """Report of every frame, stacked [F]."""
    keyframes: Keyframes
    """The map, its buffers cut to the slots in use."""
    images: np.ndarray
    """uint8 [keyframes, H, W, 3], RGB of each keyframe."""
    reference_T_WC: np.ndarray | None = None
    """Ground truth [F, 4, 4] where the source has one; rows of NaN where it does not."""
    timing: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Seconds by stage; see ``slam.stepper.StageTimer.summary``."""
    notes: tuple[str, ...] = ()
    """What the user should know: limits reached, a source that broke off."""
    broken_off: str = ""
    """Why the source gave no more frames, if it did not just end."""
    K: np.ndarray | None = None
    """Intrinsics float32 [3, 3] at the working resolution, when the run was calibrated."""
    panels: tuple[Panel, ...] = ()
    """Per-pixel results of a few frames, for looking at."""
    links: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """int32 [L, 2], slots of the keyframes that each link of the graph joins."""
    observations: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.int32))
    """int32 [N, 3], sorted: number of a point that was followed through the graph's matches, slot
    of a keyframe that sees it, and linear index of the pixel there; see ``slam.observations``."""
    system: Saved | None = None
    """All of the system's state at the end, to be saved and gone on from; not kept by ``load``."""

    @property
    def num_frames(self) -> int:
        """Frames taken in."""
        return len(self.timestamps)

    @property
    def frame_numbers(self) -> np.ndarray:
        """int [F]: number of each frame in the source."""
        return np.asarray(self.frames.frame_index)

    @property
    def num_keyframes(self) -> int:
        """Keyframes in the map."""
        return int(self.keyframes.size)

    @property
    def tracked(self) -> np.ndarray:
        """bool [F]: frames that have a pose."""
        return np.asarray(self.frames.mode) == Mode.TRACKING

    @property
    def is_keyframe(self) -> np.ndarray:
        """bool [F]: frames that became keyframes."""
        return np.asarray(self.frames.is_keyframe)

    @property
    def relocalized(self) -> np.ndarray:
        """bool [F]: frames in which the lost camera was found again."""
        return np.asarray(self.frames.relocalized)

    @property
    def is_loop_link(self) -> np.ndarray:
        """bool [L]: links whose keyframes are at least ``LOOP_GAP`` keyframes apart."""
        return is_loop(self.links)

    @property
    def submaps(self) -> tuple[int, ...]:
        """Numbers of the submaps, the one with the most placed frames first.

        The number of a submap that was joined to another no longer exists.
        """
        numbers, counts = np.unique(self._submap_of_placed, return_counts=True)
        return tuple(numbers[np.argsort(-counts, kind="stable")].tolist())

    @property
    def succeeded(self) -> bool:
        """Whether any two frames were placed in one world, or the only frame is a keyframe."""
        return int(self.placed_in().sum()) > min(1, self.num_frames - 1)

    def placed_in(self, submap: int | None = None) -> np.ndarray:
        """bool [F]: frames that have a pose in one submap, by default the largest.

        Raises:
            ValueError: there is no submap of this number.
        """
        inside = self.tracked
        inside[inside] = self._submap_of_placed == self._chosen(submap)
        return inside

    def slots_of(self, submap: int | None = None) -> np.ndarray:
        """Slots of the keyframes of one submap, in order of time.

        Raises:
            ValueError: there is no submap of this number.
        """
        return np.flatnonzero(np.asarray(self.keyframes.submap) == self._chosen(submap))

    def trajectory(self, submap: int | None = None) -> Trajectory:
        """Pose of every frame placed in one submap, composed with its keyframe's pose."""
        return self._poses(self.placed_in(submap))

    def keyframe_trajectory(self, submap: int | None = None) -> Trajectory:
        """Poses of the frames of one submap that became keyframes, in order of time."""
        return self._poses(self.placed_in(submap) & self.is_keyframe)

    def keyframe_positions(self, submap: int | None = None) -> np.ndarray:
        """float32 [K, 3]: where the keyframes of one submap are, in the order of ``slots_of``.

        Those of the map that the run began with are among them.
        """
        return np.asarray(self.keyframes.T_WC.wxyz_xyz_scale)[self.slots_of(submap), 4:7]

    def reference_trajectory(self) -> Trajectory | None:
        """Ground truth of the frames that have one; None if none has."""
        if self.reference_T_WC is None:
            return None
        known = self._has_reference
        return Trajectory(self.timestamps[known], self.reference_T_WC[known])

    def evaluate(
        self, keyframes_only: bool = False, with_scale: bool = True, submap: int | None = None
    ) -> AteResult | None:
        """Absolute trajectory error of one submap, by default the largest, against ground truth.

        Args:
            keyframes_only: as the original reports it; otherwise all placed frames.
            with_scale: align by Sim(3), as is usual for monocular systems, or by SE(3).
            submap: number of the submap; the poses of the others are left out, and counted in
                ``AteResult.num_left_out``.

        Returns:
            The error, or None when fewer than three frames of the submap have ground truth.
        """
        if self.reference_T_WC is None:
            return None
        placed = (self.is_keyframe if keyframes_only else self.tracked) & self._has_reference
        chosen = placed & self.placed_in(submap)
        if chosen.sum() < 3:
            return None
        error = ate(
            self._poses(chosen).positions,
            self.reference_T_WC[chosen, :3, 3],
            with_scale=with_scale,
        )
        return dataclasses.replace(error, num_left_out=int(placed.sum() - chosen.sum()))

    def accuracy(self) -> list[tuple[str, str, AteResult]]:
        """All errors of the largest submap that exist, as (which poses, how aligned, error)."""
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
    def _has_reference(self) -> np.ndarray:
        assert self.reference_T_WC is not None
        return np.asarray(np.isfinite(self.reference_T_WC).all((1, 2)))

    @property
    def _submap_of_placed(self) -> np.ndarray:
        """int [P]: of each frame that has a pose, the number of its submap."""
        return np.asarray(self.keyframes.submap)[np.asarray(self.frames.keyframe)[self.tracked]]

    def _chosen(self, submap: int | None) -> int:
        """The number of an existing submap, the largest for None; any number when none exists."""
        there = self.submaps
        if submap is None:
            return there[0] if there else 0
        if submap not in there:
            has = f"those there are: {', '.join(map(str, there))}" if there else "there is none"
            raise ValueError(f"{self.name}: no submap has the number {submap}; {has}")
        return submap

    def _poses(self, chosen: np.ndarray) -> Trajectory:
        slots = np.asarray(self.frames.keyframe)[chosen]
        T_WK = Sim3(jnp.asarray(np.asarray(self.keyframes.T_WC.wxyz_xyz_scale)[slots]))
        T_kf = Sim3(jnp.asarray(np.asarray(self.frames.T_kf.wxyz_xyz_scale)[chosen]))
        matrices = np.asarray(compose(T_WK, T_kf), np.float64)
        return Trajectory(self.timestamps[chosen], matrices)

    def point_cloud(self, min_confidence: float = 1.5, submap: int | None = None) -> PointCloud:
        """Points of one submap, by default the largest, more confident than ``min_confidence``.

        The confidence is the average one in the point's keyframe. In a calibrated run the points
        are on their pixels' rays, as they were for tracking.
        """
        parts = []
        for slot in self.slots_of(submap):  # one at a time: the whole map may not fit a device
            T_WC, pointmap, image = jax.tree.map(
                lambda x, slot=slot: x[slot],
                (self.keyframes.T_WC, self.keyframes.pointmap, self.images),
            )
            points, confidence = world_points(T_WC, pointmap, self.K, image.shape[:2])
            points, confidence = np.asarray(points), np.asarray(confidence)
            keep = (confidence > min_confidence) & np.isfinite(points).all(-1)
            parts.append((points[keep], image.reshape(-1, 3)[keep], confidence[keep]))
        empty = (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
        return PointCloud(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))

    def snapshot(self, submap: int | None = None) -> Snapshot:
        """The whole map, of which one submap is to be shown, by default the largest."""
        chosen = self._chosen(submap)
        placed = self.placed_in(submap) if self.submaps else np.zeros(self.num_frames, bool)
        poses = np.asarray(self.keyframes.T_WC.wxyz_xyz_scale)
        relative = np.asarray(self.frames.T_kf.wxyz_xyz_scale)
        on, relative = poses[np.asarray(self.frames.keyframe)[placed]], relative[placed]
        changed = {}
        for slot in range(self.num_keyframes):
            pointmap = jax.tree.map(lambda x, slot=slot: x[slot], self.keyframes.pointmap)
            points, confidence = camera_points(pointmap, self.K, self.images.shape[1:3])
            changed[slot] = KeyframeView(
                frame_index=int(self.keyframes.frame_index[slot]),
                image=self.images[slot],
                points=np.asarray(points),
                confidence=np.asarray(confidence),
            )
        return Snapshot(
            name=self.name,
            num_frames=self.num_frames,
            total=self.num_frames,
            mode=Mode(int(self.frames.mode[-1])),
            match_fraction=float(self.frames.match_fraction[-1]),
            image=None,
            depth=None,
            pose=None,
            keyframe_poses=poses,
            submaps=np.asarray(self.keyframes.submap),
            submap=chosen,
            links=self.links,
            is_loop_link=self.is_loop_link,
            positions=compose_poses(on, relative)[:, 4:7],
            changed=changed,
        )

    def part(self, first: int, last: int) -> "Reconstruction":
        """The frames with numbers from ``first`` to ``last``, both included, and their map.

        It has the keyframes among them, and those older ones that carry the pose of one of them.
        Nothing moves: poses and points are where they are in the whole.

        Raises:
            slam.io.frames.SourceError: there is no such frame.
        """
        return part_of(self, first, last)

    def verdict(self) -> str:
        """One honest sentence about how the run went."""
        return verdict(self)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        min_confidence: float = 1.5,
        overwrite: bool = False,
        keep_map: bool = True,
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
            keep_map=keep_map,
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


def keyframe_name(frame_index: int, slot: int) -> str:
    """What files of a keyframe are called: ``000012``, its frame's number; or ``map-000003``, its
    place in the map that the run began with, where its frame's number is negative."""
    return f"{frame_index:06d}" if frame_index >= 0 else f"map-{slot:06d}"


def is_loop(links: np.ndarray) -> np.ndarray:
    """bool [L]: links [L, 2] whose keyframes are at least ``LOOP_GAP`` keyframes apart."""
    return np.abs(links[:, 0] - links[:, 1]) >= LOOP_GAP
