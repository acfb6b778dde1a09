"""A procedural world with exact ground truth: furnished rooms, a ray caster, hand-held paths.

World axes: z up, the floor at ``z = 0``, the room centred on ``x = y = 0``; metres throughout.
"""

from slam.world.path import PathConfig, camera_path, focal_path, random_pose
from slam.world.render import RenderConfig, View, render, sees
from slam.world.room import Room, RoomConfig, random_room

__all__ = [
    "PathConfig",
    "RenderConfig",
    "Room",
    "RoomConfig",
    "View",
    "camera_path",
    "focal_path",
    "random_pose",
    "random_room",
    "render",
    "sees",
]
