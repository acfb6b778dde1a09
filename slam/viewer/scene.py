"""What is drawn of a map, kept up to date with as little as possible sent again."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from slam.orientation import estimate_up
from slam.snapshot import KeyframeView, Snapshot
from slam.viewer.cloud import Cloud, Lens, halvings_for

if TYPE_CHECKING:
    import viser


class Stroke(NamedTuple):
    """How a line is drawn."""

    color: tuple[int, int, int]
    """RGB."""
    width: float
    """In pixels."""


TRACKING_LINK = Stroke((60, 130, 235), 5.0)
"""Wide, for the path runs along it and must not hide it."""
LOOP_LINK, PATH = Stroke((235, 75, 50), 3.0), Stroke((40, 170, 100), 2.0)
KEYFRAME, CURRENT = (130, 130, 140), (245, 160, 20)
"""RGB; all colours can be told apart on white and on black."""

PATH_POINTS = 2000
"""A longer path is drawn through every second, third, ... position: it is sent at every update."""

_THUMBNAIL = 96
"""Width in pixels of the pictures in the frustums."""

_FRUSTUM = 0.1
"""Size of the frustums over the median depth of the first keyframe."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user has asked to see."""

    min_confidence: float = 1.5
    point_size: float = 1.0
    """1 fills the gaps between pixels."""
    cameras: bool = True
    links: bool = True
    path: bool = True
    max_points: int = 400_000


@dataclasses.dataclass(frozen=True)
class Viewpoint:
    """Where to look from, in the world."""

    position: np.ndarray
    look_at: np.ndarray
    up: np.ndarray

    @property
    def distance(self) -> float:
        """From what is looked at."""
        return float(np.linalg.norm(self.position - self.look_at))

    def differs(self, other: "Viewpoint") -> bool:
        """Whether to go from one to the other is worth a jump."""
        moved = np.linalg.norm(self.position - other.position)
        return bool(moved > 0.3 * self.distance or self.up @ other.up < 0.99)  # 8 degrees


@dataclasses.dataclass
class _Keyframe:
    """A keyframe that is drawn: its points lie in its camera's frame, which has a pose, so when
    only the pose changes only the pose is sent."""

    cloud: Cloud
    frame: Any
    camera: Any
    points: Any = None


class Scene:
    """The nodes of one server's scene. Not for more than one thread."""

    def __init__(self, server: "viser.ViserServer") -> None:
        self._server, self._api = server, server.scene
        self._keyframes: dict[int, _Keyframe] = {}
        self._stale: set[int] = set()
        """Keyframes whose points are to be sent."""
        self._settings = Settings()
        self._halvings = 0
        self._lens: Lens | None = None
        self._current: Any = None
        self._snapshot: Snapshot | None = None

    @property
    def num_points(self) -> int:
        """Points drawn."""
        return sum(
            len(shown.points.points)
            for slot, shown in self._keyframes.items()
            if shown.points is not None and self._is_here(slot)
        )

    @property
    def highest_confidence(self) -> float:
        """Which one in twenty points of the surest keyframe exceeds."""
        return max((kept.cloud.high for kept in self._keyframes.values()), default=0.0)

    def draw(self, snapshot: Snapshot | None, settings: Settings) -> None:
        """Show a snapshot, or the last one if there is no new one, as ``settings`` say."""
        if snapshot is not None:
            self._snapshot = snapshot
            for slot, view in snapshot.changed.items():
                self._take(slot, view)
        before, self._settings = self._settings, settings
        if self._snapshot is None:
            return
        if settings.min_confidence != before.min_confidence:
            self._stale.update(self._keyframes)
        self._thin()
        with self._server.atomic():
            self._place(self._snapshot)
            for slot in sorted(self._stale & {s for s in self._keyframes if self._is_here(s)}):
                self._send(slot)
                self._stale.discard(slot)
            if settings.point_size != before.point_size:
                for shown in self._keyframes.values():
                    if shown.points is not None:
                        shown.points.point_size = self._point_size(shown.cloud)
            self._draw_lines(self._snapshot)
            self._draw_current(self._snapshot)

    def overview(self) -> Viewpoint | None:
        """From behind and above the first camera over everything there is; None if that is not
        anything yet."""
        snapshot = self._snapshot
        slots = [slot for slot in self._keyframes if self._is_here(slot)]
        if snapshot is None or not slots:
            return None
        poses = snapshot.keyframe_poses[slots].astype(np.float64)
        T_WC = _matrices(poses)
        up = estimate_up(T_WC)
        ahead = T_WC[0, :3, 2] - (T_WC[0, :3, 2] @ up) * up
        if np.linalg.norm(ahead) < 0.1:  # it looks straight up or down
            ahead = np.sign(T_WC[0, :3, 2] @ up) * T_WC[0, :3, 1]
        ahead /= np.linalg.norm(ahead)
        cameras = T_WC[:, :3, 3]
        points = np.concatenate(
            [
                _apply(pose, self._keyframes[slot].cloud.outline)
                for pose, slot in zip(poses, slots, strict=True)
            ]
        )
        # All cameras, and what they see but for what is far away.
        ends = np.concatenate([cameras, np.quantile(points, [0.05, 0.95], axis=0)])
        center = (ends.min(axis=0) + ends.max(axis=0)) / 2
        radius = float(np.linalg.norm(ends - center, axis=1).max()) or 1.0
        # A ball is in view, 75 degrees wide, from 1.64 times its radius.
        return Viewpoint(center - 1.3 * radius * ahead + radius * up, center, up)

    def behind(self) -> Viewpoint | None:
        """From behind and above the current camera, the way it looks; None if it is lost."""
        if self._snapshot is None or self._snapshot.pose is None or self._lens is None:
            return None
        pose = self._snapshot.pose.astype(np.float64)
        away = self._lens.distance * np.array([[0.0, -0.4, -0.8], [0.0, 0.0, 1.0]])
        position, look_at = _apply(pose, away)
        return Viewpoint(position, look_at, self.up)

    @property
    def up(self) -> np.ndarray:
        """The upward direction of the world as the keyframes shown tell it."""
        if self._snapshot is None:
            return np.array([0.0, -1.0, 0.0])
        here = self._snapshot.submaps == self._snapshot.submap
        return estimate_up(_matrices(self._snapshot.keyframe_poses[here].astype(np.float64)))

    def _is_here(self, slot: int) -> bool:
        """Whether a keyframe is in the submap that is shown."""
        snapshot = self._snapshot
        if snapshot is None or slot >= len(snapshot.submaps):
            return False
        return int(snapshot.submaps[slot]) == snapshot.submap

    def _take(self, slot: int, view: KeyframeView) -> None:
        """Keep a keyframe that is new or has changed."""
        if self._lens is None:
            self._lens = Lens.of(view)
        cloud = Cloud.of(view)
        if slot in self._keyframes:
            self._keyframes[slot].cloud = cloud
        else:
            self._keyframes[slot] = _Keyframe(
                cloud=cloud,
                frame=self._api.add_frame(_name(slot), show_axes=False, visible=False),
                camera=self._frustum(
                    f"{_name(slot)}/camera", KEYFRAME, resized(view.image, _THUMBNAIL)
                ),
            )
        self._stale.add(slot)

    def _thin(self) -> None:
        """Find how much has to be left out; if that has changed, everything is to be sent."""
        least = self._settings.min_confidence
        counts = [
            kept.cloud.count(least) for s, kept in self._keyframes.items() if self._is_here(s)
        ]
        halvings = halvings_for(counts, self._settings.max_points)
        if halvings != self._halvings:
            self._halvings = halvings
            self._stale.update(self._keyframes)

    def _place(self, snapshot: Snapshot) -> None:
        """Give every keyframe its pose."""
        for slot, shown in self._keyframes.items():
            _set(shown.frame, "visible", self._is_here(slot))
            _set(shown.camera, "visible", self._settings.cameras)
            if self._is_here(slot):
                pose = snapshot.keyframe_poses[slot].astype(np.float64)
                shown.frame.wxyz, shown.frame.position = pose[:4], pose[4:7]
                if shown.points is not None:
                    # The frame's own scale is not its children's.
                    _set(shown.points, "scale", float(pose[7]))

    def _send(self, slot: int) -> None:
        """Send the points of a keyframe."""
        assert self._snapshot is not None
        shown = self._keyframes[slot]
        points, colors = shown.cloud.thinned(self._settings.min_confidence, self._halvings)
        if not len(points):  # browsers take none for an error
            if shown.points is not None:
                shown.points.remove()
                shown.points = None
            return
        shown.points = self._api.add_point_cloud(
            f"{_name(slot)}/points",
            points,
            colors,
            point_size=self._point_size(shown.cloud),
            point_shape="circle",
            point_shading="flat",
            scale=float(self._snapshot.keyframe_poses[slot, 7]),
        )

    def _point_size(self, cloud: Cloud) -> float:
        """Diameter of a point in the world: larger, the fewer there are."""
        assert self._lens is not None
        sparse = np.sqrt(cloud.share * 2**self._halvings)
        return float(self._settings.point_size * self._lens.spacing * sparse)

    def _frustum(self, name: str, color: tuple[int, int, int], image: np.ndarray | None) -> Any:
        assert self._lens is not None
        return self._api.add_camera_frustum(
            name,
            fov=self._lens.fov,
            aspect=self._lens.aspect,
            scale=_FRUSTUM * self._lens.distance,
            thickness=1.5,
            thickness_units="screen",
            color=color,
            image=image,
            cast_shadow=False,
            receive_shadow=False,
        )

    def _draw_lines(self, snapshot: Snapshot) -> None:
        """The graph's links and the path."""
        here = snapshot.submaps[snapshot.links].reshape(-1, 2) == snapshot.submap
        centres = snapshot.keyframe_poses[:, 4:7]
        for name, chosen, stroke in (
            ("/links/tracking", ~snapshot.is_loop_link, TRACKING_LINK),
            ("/links/loop", snapshot.is_loop_link, LOOP_LINK),
        ):
            ends = centres[snapshot.links[chosen & here.all(axis=1)]]
            self._lines(name, ends, stroke, self._settings.links)
        stride = max(1, -(-len(snapshot.positions) // PATH_POINTS))
        # From the last one backwards, so that the path always ends at the camera.
        path = snapshot.positions[::-1][::stride]
        self._lines("/path", np.stack([path[:-1], path[1:]], axis=1), PATH, self._settings.path)

    def _lines(self, name: str, ends: np.ndarray, stroke: Stroke, visible: bool) -> None:
        handle = self._api.get_handle_by_name(name)
        if handle is not None and np.array_equal(handle.points, ends):  # type: ignore[attr-defined]
            _set(handle, "visible", visible)
        elif len(ends):
            self._api.add_line_segments(
                name,
                ends,
                stroke.color,
                thickness=stroke.width,
                thickness_units="screen",
                visible=visible,
            )
        elif handle is not None:
            handle.remove()

    def _draw_current(self, snapshot: Snapshot) -> None:
        """The camera of the last frame, which is not drawn when it is lost."""
        if self._lens is None:
            return
        if self._current is None:
            self._current = self._frustum("/camera", CURRENT, None)
            self._current.thickness = 3.0
        _set(self._current, "visible", snapshot.pose is not None)
        if snapshot.pose is not None:
            pose = snapshot.pose.astype(np.float64)
            self._current.wxyz, self._current.position = pose[:4], pose[4:7]


def resized(image: np.ndarray, width: int) -> np.ndarray:
    """uint8 [h, w, 3]: a picture ``width`` pixels wide."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    smaller = width < image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return cv2.resize(image, (width, height), interpolation=how)


def _name(slot: int) -> str:
    return f"/keyframes/{slot}"


def _set(handle: Any, prop: str, value: Any) -> None:
    """Set a property, and send it, only if it changes."""
    if getattr(handle, prop) != value:
        setattr(handle, prop, value)


def _matrices(poses: np.ndarray) -> np.ndarray:
    """[n, 4, 4]: rotations and positions of poses as rows of a snapshot."""
    w, x, y, z = (poses[:, :4] / np.linalg.norm(poses[:, :4], axis=1, keepdims=True)).T
    T_WC = np.tile(np.eye(4), (len(poses), 1, 1))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    T_WC[:, :3, :3] = np.moveaxis(np.array(rows), -1, 0)
    T_WC[:, :3, 3] = poses[:, 4:7]
    return T_WC


def _apply(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [n, 3] of a camera in the world."""
    rotation = _matrices(pose[None])[0, :3, :3]
    return pose[7] * points @ rotation.T + pose[4:7]
