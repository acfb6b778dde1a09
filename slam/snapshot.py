"""What a running system, or a finished one, shows of itself: the map at one moment, on the host."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Observer(Protocol):
    """Something that looks on while the system runs, such as a viewer."""

    def ready(self) -> bool:
        """Whether to take a snapshot now. Asked after every frame; the run waits for the answer,
        so an observer that has been paused may take its time, and any other may not."""
        ...

    def take(self, snapshot: Callable[[], Snapshot]) -> None:
        """Called after ``ready`` said yes, and at the end; ``snapshot`` is to be called once, later
        if need be and in any thread, but in order.

        The contents are of this moment. Fetching them from the device is left to that call.
        """
        ...

    def resume(self) -> None:
        """Wait no longer: a paused run is to end."""
        ...


def compose_poses(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``first @ second`` on the host, of poses float32 [..., 8] as rows of a snapshot."""
    w1, u1, w2, u2 = first[..., :1], first[..., 1:4], second[..., :1], second[..., 1:4]
    w = w1 * w2 - np.sum(u1 * u2, axis=-1, keepdims=True)
    u = w1 * u2 + w2 * u1 + np.cross(u1, u2)
    x = second[..., 4:7]
    across = np.cross(u1, x)
    turned = x + 2 * (w1 * across + np.cross(u1, across))
    scale = first[..., 7:]
    moved = first[..., 4:7] + scale * turned
    return np.concatenate([w, u, moved, scale * second[..., 7:]], axis=-1, dtype=np.float32)
