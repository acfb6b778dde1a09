"""The controls beside the picture, and what is written there."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from slam.snapshot import Snapshot
from slam.state import Mode
from slam.viewer.scene import (
    CURRENT,
    KEYFRAME,
    LOOP_LINK,
    PATH,
    TRACKING_LINK,
    Settings,
    Stroke,
    resized,
)

if TYPE_CHECKING:
    import viser

_PICTURE = 200
"""Width in pixels of the pictures of the last frame."""

_LOW_SHEET = (
    '<style>[style*="max-height: 60%"]:not(:hover, :focus-within)'
    "{max-height: 14em !important}</style>"
)
"""In a window as narrow as a phone's, viser lays the controls over the lower 60 % of it and has no
setting for less. So they cover that much only while they are touched."""

_DARK = "dark"
"""What a browser keeps if its page is to be dark."""


@dataclasses.dataclass(frozen=True)
class Actions:
    """What the controls do."""

    changed: Callable[[], None]
    """A setting was changed."""
    overview: Callable[["viser.ClientHandle"], None]
    pause: Callable[[], None]
    step: Callable[[], None]
    resume: Callable[[], None]


class Panel:
    """The controls of one server. What is drawn is the same in all browsers; how it is looked at,
    each browser says for itself.

    Args:
        server: where they are to be.
        live: whether there is a run that can be paused.
        initial: settings to begin with.
        actions: what the controls do; called in a thread of the server's.
    """

    def __init__(
        self, server: "viser.ViserServer", live: bool, initial: Settings, actions: Actions
    ) -> None:
        from viser import Icon

        self._gui = gui = server.gui
        self._live, self._actions = live, actions
        self._max_points = initial.max_points
        self._follow: dict[int, Any] = {}
        """By the browser's number."""
        self._filling = threading.Lock()
        self._status = gui.add_markdown("waiting for the first frame" if live else "")
        self._buttons: list[Any] = []
        if live:
            self._pause = gui.add_button("Pause", icon=Icon.PLAYER_PAUSE)
            self._step = gui.add_button("Step", icon=Icon.PLAYER_SKIP_FORWARD, visible=False)
            self._resume = gui.add_button("Resume", icon=Icon.PLAYER_PLAY, visible=False)
            self._pause.on_click(lambda _: actions.pause())
            self._step.on_click(lambda _: actions.step())
            self._resume.on_click(lambda _: actions.resume())
        blank = np.zeros((1, 1, 3), np.uint8)
        self._picture = gui.add_image(blank, label="Last frame, depth", visible=False)
        with gui.add_folder("Map"):
            self._confidence = gui.add_slider(
                "Confidence",
                0.0,
                max(5.0, initial.min_confidence),
                0.1,
                initial.min_confidence,
                hint="Least confidence of the points shown",
            )
            self._size = gui.add_slider("Point size", 0.2, 4.0, 0.1, initial.point_size)
            self._cameras = gui.add_checkbox("Keyframes", initial.cameras)
            self._links = gui.add_checkbox("Links", initial.links)
            self._path = gui.add_checkbox("Path", initial.path)
            self._legend = gui.add_html(_legend(live))
        self._view = gui.add_folder("View")
        gui.add_html(_LOW_SHEET)
        for control in (self._confidence, self._size, self._cameras, self._links, self._path):
            control.on_update(lambda _: actions.changed())
        _set_theme(gui, dark=False)

    def welcome(self, client: "viser.ClientHandle") -> None:
        """Give a browser what is its own: where it looks from, and light or dark, which it
        remembers."""
        from viser import Icon

        remembered = None
        with contextlib.suppress(RuntimeError, TimeoutError):  # it may keep nothing, or have left
            remembered = client.local_storage.get_item(_DARK, timeout=5.0)
        with self._filling, self._view:  # a folder is filled by one thread at a time
            overview = client.gui.add_button("Overview", icon=Icon.FOCUS_CENTERED)
            follow = client.gui.add_checkbox(
                "Follow", False, visible=self._live, hint="Move with the camera"
            )
            dark = client.gui.add_checkbox("Dark", remembered is not None)
        self._follow[client.client_id] = follow
        overview.on_click(lambda _: self._actions.overview(client))
        follow.on_update(lambda _: self._actions.changed())

        @dark.on_update
        def _(_: Any) -> None:
            _set_theme(client.gui, dark.value)
            if dark.value:
                client.local_storage.set_item(_DARK, "yes")
            else:
                client.local_storage.remove_item(_DARK)

        if dark.value:
            _set_theme(client.gui, dark=True)

    @property
    def settings(self) -> Settings:
        """What is asked for now."""
        return Settings(
            min_confidence=self._confidence.value,
            point_size=self._size.value,
            cameras=self._cameras.value,
            links=self._links.value,
            path=self._path.value,
            max_points=self._max_points,
        )

    def forget(self, client: "viser.ClientHandle") -> None:
        """A browser has left."""
        self._follow.pop(client.client_id, None)

    def follows(self, client: "viser.ClientHandle") -> bool:
        """Whether a browser's view is to move with the camera."""
        follow = self._follow.get(client.client_id)
        return follow is not None and follow.value

    def show_paused(self, paused: bool) -> None:
        """Offer what can be done now."""
        self._pause.visible = not paused
        self._step.visible = self._resume.visible = paused

    def show(
        self, snapshot: Snapshot, num_points: int, highest_confidence: float, fps: float | None
    ) -> None:
        """Write about a snapshot, and let the confidence be chosen as far up as it goes."""
        while self._confidence.max < highest_confidence:
            self._confidence.max *= 2
        self._gui.set_panel_label(snapshot.name)
        total = f" of {snapshot.total}" if snapshot.total is not None else ""
        lines = [f"frame **{snapshot.num_frames}**{total}"]
        if snapshot.image is not None:
            tracking = snapshot.mode == Mode.TRACKING
            matched = f", {snapshot.match_fraction:.0%} matched" if tracking else ""
            lines.insert(0, f"**{snapshot.mode.name.lower()}**{matched}")
        if fps is not None:
            lines[-1] += f", {fps:.1f} frames/s"
        here = int((snapshot.submaps == snapshot.submap).sum())
        others = len(np.unique(snapshot.submaps)) - 1
        lines.append(f"{here} keyframe{'s' if here != 1 else ''}, {num_points:,} points")
        if others > 0:
            lines.append(f"map {snapshot.submap}; {others} more that it was not joined to")
        self._status.content = "  \n".join(lines)
        self._show_picture(snapshot)

    def show_problem(self, problem: str) -> None:
        """Write that something could not be drawn."""
        self._status.content = f"**not drawn:** {problem}"

    def _show_picture(self, snapshot: Snapshot) -> None:
        self._picture.visible = snapshot.image is not None
        if snapshot.image is not None and snapshot.depth is not None:
            both = [snapshot.image, depth_picture(snapshot.depth)]
            self._picture.image = np.hstack([resized(image, _PICTURE) for image in both])


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: depth [H, W] in colours, near ones red; unknown (NaN) ones grey."""
    known = np.isfinite(depth)
    picture = np.full((*depth.shape, 3), 128, np.uint8)
    if known.any():
        near, far = np.percentile(depth[known], [2, 98])
        scaled = np.clip((depth[known] - near) / max(far - near, 1e-6), 0, 1)
        picture[known] = matplotlib.colormaps["turbo_r"](scaled, bytes=True)[:, :3]
    return picture


def _set_theme(gui: "viser.GuiApi", dark: bool) -> None:
    gui.configure_theme(
        dark_mode=dark,
        show_logo=False,
        show_share_button=False,  # it would ask a server on the internet for a tunnel
    )


def _legend(live: bool) -> str:
    """What colours and widths mean."""
    frames = {"keyframe": KEYFRAME} | ({"last frame": CURRENT} if live else {})
    strokes = {what: Stroke(color, 10.0) for what, color in frames.items()}
    strokes |= {"path": PATH, "tracking link": TRACKING_LINK, "loop link": LOOP_LINK}
    entries = "".join(
        '<span style="white-space:nowrap;margin-right:0.8em"><span style="display:inline-block;'
        f"vertical-align:middle;width:1.2em;height:{stroke.width:g}px;background:rgb{stroke.color};"
        f'margin-right:0.3em"></span>{what}</span> '
        for what, stroke in strokes.items()
    )
    return f'<div style="font-size:0.8em;padding:0.2em 1em 0.6em">{entries}</div>'
