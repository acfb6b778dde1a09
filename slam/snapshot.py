"""What a running system, or a finished one, shows of itself: the map at one moment, on the host."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from slam.state import Mode


@dataclasses.dataclass(frozen=True)
class KeyframeView:
    """What is to be drawn of one keyframe."""

    frame_index: int
    """Number of the frame it was."""
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    points: np.ndarray
    """float32 [H*W, 3] in its own camera, in pixel order; not finite where nothing is known."""
    confidence: np.ndarray
    """float32 [H*W], average confidence."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The map at one moment. Poses are rows ``qw qx qy qz x y z scale``, camera to world."""

    name: str
    """Of the source."""
    num_frames: int
    """Frames taken in so far."""
    total: int | None
    """Frames there will be, None if unknown."""
    mode: Mode
    """The mode the last frame ended in."""
    match_fraction: float
    """Share of the keyframe's pixels that matched the last frame."""
    image: np.ndarray | None
    """uint8 [H, W, 3], RGB, the last frame; None when a finished run no longer has it."""
    depth: np.ndarray | None
    """float32 [H, W], the last frame's predicted depth, NaN where unusable; None as above."""
    pose: np.ndarray | None
    """float32 [8], of the last frame; None if it was not placed."""
    keyframe_poses: np.ndarray
    """float32 [K, 8]."""
    submaps: np.ndarray
    """int32 [K], number of the submap of each keyframe. Each submap has its own world."""
    submap: int
    """Which of them to show: that of the last placed frame, or the largest of a finished run."""
    links: np.ndarray
    """int32 [L, 2], slots of the keyframes that each link joins."""
    is_loop_link: np.ndarray
    """bool [L], whether the camera had come back."""
    positions: np.ndarray
    """float32 [P, 3], camera positions of all frames placed in ``submap``, in order of time."""
    changed: Mapping[int, KeyframeView]
    """By slot, the keyframes that are new or have changed since the snapshot before."""


class Observer(Protocol):
    """Something that looks on while the system runs, such as a viewer."""

    def ready(self) -> bool:
        """Whether to take a snapshot now. Asked after every frame; the run waits for the answer,
        so an observer that has been paused may take its time, and any other may not."""
        ...

    def take(self, snapshot: Callable[[], Snapshot]) -> None:
        """Called after ``ready`` said yes; ``snapshot`` may be called later, in any thread, once.

        The contents are of this moment. Fetching them from the device is left to that call.
        """
        ...


def positions_of(keyframe_poses: np.ndarray, relative_poses: np.ndarray) -> np.ndarray:
    """Camera positions of frames, from their keyframes' poses and their own relative to these.

    Args:
        keyframe_poses: [P, 8], of each frame's keyframe in the world.
        relative_poses: [P, 8], of each frame in its keyframe's camera.

    Returns:
        Positions float32 [P, 3] in the world.
    """
    w, u = keyframe_poses[:, :1], keyframe_poses[:, 1:4]
    x = relative_poses[:, 4:7]
    across = np.cross(u, x)
    turned = x + 2 * (w * across + np.cross(u, across))
    return (keyframe_poses[:, 4:7] + keyframe_poses[:, 7:] * turned).astype(np.float32)
