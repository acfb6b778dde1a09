"""Made-up maps: every keyframe is a wall of one colour, square to its camera."""

import dataclasses

import numpy as np

from slam.snapshot import KeyframeView, Snapshot
from slam.state import Mode

HEIGHT, WIDTH, FOCAL, DEPTH = 48, 64, 50.0, 2.0
COLORS = ((220, 20, 20), (20, 200, 20), (20, 20, 220))
"""Red, green, blue: of the keyframes in turn."""


def wall(slot: int, confidence: float = 3.0, depth: float = DEPTH) -> KeyframeView:
    v, u = np.mgrid[:HEIGHT, :WIDTH].reshape(2, -1)
    rays = np.stack([u - (WIDTH - 1) / 2, v - (HEIGHT - 1) / 2, np.full(u.shape, FOCAL)], axis=1)
    return KeyframeView(
        frame_index=4 * slot,
        image=np.full((HEIGHT, WIDTH, 3), COLORS[slot % 3], np.uint8),
        points=(rays * depth / FOCAL).astype(np.float32),
        confidence=np.full(HEIGHT * WIDTH, confidence, np.float32),
    )


def pose(turn: float = 0.0, position=(0.0, 0.0, 0.0), scale: float = 1.0) -> list[float]:
    """A camera turned to its right by ``turn`` radians."""
    return [np.cos(turn / 2), 0.0, np.sin(turn / 2), 0.0, *position, scale]


def snapshot(poses: list[list[float]], changed: dict[int, KeyframeView], **fields) -> Snapshot:
    """Of a run that tracks in the last keyframe's place; all keyframes are linked in turn."""
    keyframe_poses = np.array(poses, np.float32).reshape(-1, 8)
    count = len(keyframe_poses)
    base = Snapshot(
        name="walls",
        num_frames=4 * count,
        total=40,
        mode=Mode.TRACKING,
        match_fraction=0.5,
        image=np.full((HEIGHT, WIDTH, 3), 90, np.uint8),
        depth=np.full((HEIGHT, WIDTH), DEPTH, np.float32),
        pose=keyframe_poses[-1],
        keyframe_poses=keyframe_poses,
        submaps=np.zeros(count, np.int32),
        submap=0,
        links=np.array([(i, i + 1) for i in range(count - 1)], np.int32).reshape(-1, 2),
        is_loop_link=np.zeros(count - 1, bool),
        positions=keyframe_poses[:, 4:7],
        changed=changed,
    )
    return dataclasses.replace(base, **fields)
