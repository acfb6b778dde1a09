"""Pictures of the world: the trajectory, and the map from above.

World axes are x right, y down, z ahead, as ``slam.orientation`` levels them, unless a reference
trajectory brings its own.
"""

import dataclasses
import textwrap

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from slam.evaluation import align_sim3, ate
from slam.plots.style import (
    END,
    ESTIMATE,
    KEYFRAME,
    LINK,
    LOOP_LINK,
    REFERENCE,
    START,
    TEXT,
    Picture,
    frame,
)

_AXES = "xyz"
_CAMERA_UP = "-y"
"""The upward direction of a levelled world, or one that starts at a camera held upright."""


@dataclasses.dataclass(frozen=True)
class TrajectoryScene:
    """A trajectory with all that is drawn of it, in one world; made by ``trajectory_scene``."""

    estimate: Float[np.ndarray, "n 3"]
    """Camera centres, aligned to the reference if there is one."""
    track: Int[np.ndarray, " n"]
    """Which unbroken piece of the line each belongs to."""
    reference: Float[np.ndarray, "m 3"] | None
    """True centres where they are known; None if there is nothing to compare with."""
    track_of_reference: Int[np.ndarray, " m"]
    """As ``track``."""
    keyframes: Float[np.ndarray, "k 3"] | None
    """Centres of the keyframes."""
    links: Float[np.ndarray, "l 2 3"]
    """Both ends of each link."""
    is_loop_link: Bool[np.ndarray, " l"]
    """Which of them are loop links."""
    unit: str
    """Unit of the coordinates."""
    up: str
    """Upward direction, such as "-y"."""
    title: str
    """Name of the sequence, and the error if there is one."""


def trajectory_scene(
    estimate: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"] | None = None,
    keyframes: Float[np.ndarray, "k 3"] | None = None,
    *,
    numbers: Int[np.ndarray, " n"] | None = None,
    links: Int[np.ndarray, "l 2"] | None = None,
    is_loop_link: Bool[np.ndarray, " l"] | None = None,
    title: str = "",
    with_scale: bool = True,
    up: str | None = None,
) -> TrajectoryScene:
    """Align a trajectory and what belongs to it, ready to be drawn.

    Args:
        estimate: camera centres in the world.
        reference: true centre for each estimated one, NaN where unknown. The estimate is then drawn
            aligned to it, and its error is in the title.
        keyframes: centres of the keyframes, in the estimate's world.
        numbers: frame number of each centre; the line is broken where frames are missing.
        links: pairs of rows of ``keyframes`` that are joined by a link.
        is_loop_link: which of the links are loop links, told apart by their colour.
        title: name of the sequence.
        with_scale: align by Sim(3), otherwise by SE(3).
        up: upward direction, such as "-y" or "+z". By default -y without a reference; with one,
            whose axes are anyone's choice, the positive axis along which it extends least.

    Raises:
        ValueError: ``up`` is no signed axis.
    """
    heading, unit = [title] if title else [], "map units"
    track = track_of_reference = _tracks(numbers, len(estimate))
    if reference is not None:
        known = np.isfinite(reference).all(axis=1)
        result = ate(estimate, reference, with_scale)
        heading += textwrap.wrap(str(result), 95)
        reference, track_of_reference = reference[known], track[known]
        if np.isfinite(result.rmse):
            unit = "m"
            alignment = align_sim3(estimate[known], reference, with_scale)
            estimate = alignment.apply(estimate)
            keyframes = None if keyframes is None else alignment.apply(keyframes)
        else:
            reference = None  # two unrelated frames: drawn together they would only mislead
    if up is None:
        up = _CAMERA_UP if reference is None else f"+{_AXES[_flattest_axis(reference)]}"
    _view_axes(up)  # refuses what is no direction
    ends = np.zeros((0, 2, 3)) if keyframes is None or links is None else keyframes[links]
    return TrajectoryScene(
        estimate=estimate,
        track=track,
        reference=reference,
        track_of_reference=track_of_reference,
        keyframes=keyframes,
        links=ends,
        is_loop_link=np.zeros(len(ends), bool) if is_loop_link is None else is_loop_link,
        unit=unit,
        up=up,
        title="\n".join(heading),
    )


def plot_trajectory(scene: TrajectoryScene) -> Picture:
    """The trajectory from above and from the side."""
    figure = Picture(9.0, 4.8, scene.title)
    top, side = figure.subplots(1, 2)
    draw_from_above(top, scene)
    right, _, vertical, upward = _view_axes(scene.up)
    _draw_view(side, scene, right, vertical)
    if not upward:
        side.invert_yaxis()
    for axes, name in ((top, "from above"), (side, "from the side")):
        axes.set_title(name, fontsize=11, color=TEXT)
    handles, labels = top.get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 10, "columnspacing": 1.3, "handlelength": 1.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), **style)
    return figure


def draw_from_above(axes: Axes, scene: TrajectoryScene) -> None:
    """Draw the trajectory from above onto axes that are there already."""
    right, ahead, _, _ = _view_axes(scene.up)
    _draw_view(axes, scene, right, ahead)


def _draw_view(axes: Axes, scene: TrajectoryScene, u: int, v: int) -> None:
    """Coordinate ``u`` to the right, ``v`` up the page."""
    estimate, reference, keyframes = scene.estimate, scene.reference, scene.keyframes
    if reference is not None:
        line = _broken(reference[:, [u, v]], scene.track_of_reference).T
        axes.plot(*line, color=REFERENCE, lw=3, zorder=1, label="ground truth")
    axes.plot(
        *_broken(estimate[:, [u, v]], scene.track).T, color=ESTIMATE, lw=1.5, label="estimate"
    )
    loops = scene.is_loop_link
    kinds = ((~loops, LINK, "links"), (loops, LOOP_LINK, "loop links"))
    for chosen, color, kind in kinds:
        segments = scene.links[chosen][:, :, [u, v]]
        if len(segments):
            lines = LineCollection(list(segments), colors=color, linewidths=0.9)
            lines.set(label=f"{kind} ({len(segments)})", zorder=1.5)
            axes.add_collection(lines)
    if keyframes is not None and len(keyframes):
        label = f"keyframes ({len(keyframes)})"
        axes.plot(keyframes[:, u], keyframes[:, v], "o", ms=4, color=KEYFRAME, label=label)
    if len(estimate):
        axes.plot(*estimate[0, [u, v]], "o", ms=8, mfc="none", mew=2, color=START, label="start")
        axes.plot(*estimate[-1, [u, v]], "s", ms=8, mfc="none", mew=2, color=END, label="end")
    frame(axes, f"{_AXES[u]} [{scene.unit}]", f"{_AXES[v]} [{scene.unit}]")
    drawn = estimate if reference is None else reference
    _equal_aspect(axes, drawn[:, [u, v]])


def plot_map(
    points: Float[np.ndarray, "n 3"],
    colors: UInt8[np.ndarray, "n 3"],
    trajectory: Float[np.ndarray, "m 3"] | None = None,
    *,
    numbers: Int[np.ndarray, " m"] | None = None,
    title: str = "",
    unit: str = "map units",
    up: str = _CAMERA_UP,
) -> Picture:
    """A coloured point cloud from above, like a floor plan.

    Points higher than the highest camera are left out: they are mostly ceiling, and would hide the
    rest. A cell shows the mean colour of its points, paler where there are few.

    Args:
        points: in the world, finite.
        colors: RGB of each.
        trajectory: camera centres, drawn on top.
        numbers: frame number of each centre; the line is broken where frames are missing.
        title: heading of the figure.
        unit: unit of the coordinates.
        up: upward direction, such as "-y" or "+z".
    """
    note = ""
    right, ahead, vertical, upward = _view_axes(up)
    if trajectory is not None and len(trajectory) and len(points):
        sign = 1 if upward else -1
        below = sign * points[:, vertical] <= np.max(sign * trajectory[:, vertical])
        if below.any() and not below.all():
            points, colors = points[below], colors[below]
            note = "points above the cameras left out"
    count = f"{len(points):,} points from above" + (f"; {note}" if note else "")
    figure = Picture(8.0, 7.0, "\n".join([title, count] if title else [count]))
    axes = figure.subplots()
    axes.set_facecolor("white")
    plan = points[:, [right, ahead]]
    path_2d = np.empty((0, 2)) if trajectory is None else trajectory[:, [right, ahead]]
    low, high = _bounds(plan, path_2d)
    if len(plan):
        picture = _plan_picture(plan, colors, low, high)
        extent = (low[0], high[0], low[1], high[1])
        axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", zorder=1)
    if len(path_2d):
        line = _broken(path_2d, _tracks(numbers, len(path_2d))).T
        axes.plot(*line, color="white", lw=3.5)
        axes.plot(*line, color=ESTIMATE, lw=1.8, label="camera")
        axes.plot(*path_2d[0], "o", ms=9, mfc="white", mew=2.5, color=START, label="start")
        axes.plot(*path_2d[-1], "s", ms=8, mfc="white", mew=2.5, color=END, label="end")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    frame(axes, f"{_AXES[right]} [{unit}]", f"{_AXES[ahead]} [{unit}]")
    return figure


def _tracks(numbers: np.ndarray | None, count: int) -> np.ndarray:
    """Which unbroken track each of ``count`` positions belongs to; one track without numbers."""
    if numbers is None:
        return np.zeros(count, int)
    return np.cumsum(np.diff(numbers, prepend=numbers[:1]) > 1)


def _broken(line: np.ndarray, track: np.ndarray) -> np.ndarray:
    """The same line with a row of NaN, which is not drawn, wherever a track ends."""
    return np.insert(line, np.flatnonzero(np.diff(track)) + 1, np.nan, axis=0)


def _view_axes(up: str) -> tuple[int, int, int, bool]:
    """Axes to the right, up the page and vertical, and whether the latter points up.

    Seen from above without mirroring: right x up-the-page points at the viewer.
    """
    if len(up) != 2 or up[0] not in "+-" or up[1] not in _AXES:
        raise ValueError(f"up={up!r} is not a signed axis such as '-y' or '+z'")
    vertical, upward = _AXES.index(up[1]), up[0] == "+"
    right, ahead = (vertical + 1) % 3, (vertical + 2) % 3
    return (right, ahead, vertical, True) if upward else (ahead, right, vertical, False)


def _plan_picture(
    plan: np.ndarray, colors: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Mean colour per cell, float [rows, columns, 4], opaque from the usual count on."""
    # About one point a cell if they lay evenly, so that a sparse cloud gets coarser cells.
    long_side = int(np.clip(1.5 * np.sqrt(len(plan)), 120, 900))
    span = high - low
    columns, rows = np.maximum(1, np.round(long_side * span / span.max())).astype(int)
    cell = np.floor((plan - low) / span * (columns, rows)).astype(int)
    inside = ((cell >= 0) & (cell < (columns, rows))).all(axis=1)
    flat = cell[inside, 1] * columns + cell[inside, 0]
    counts = np.bincount(flat, minlength=rows * columns)
    picture = np.zeros((rows * columns, 4))
    for c in range(3):
        sums = np.bincount(flat, weights=colors[inside, c], minlength=rows * columns)
        picture[:, c] = sums / np.maximum(counts, 1) / 255
    usual = np.median(counts[counts > 0]) if counts.any() else 1
    picture[:, 3] = np.where(counts > 0, np.clip(0.35 + 0.65 * counts / usual, 0, 1), 0)
    return picture.reshape(rows, columns, 4)


def _bounds(plan: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the view: all of the path, and the points without the farthest half percent."""
    low, high = np.zeros(2), np.zeros(2)
    corners = [path.min(axis=0), path.max(axis=0)] if len(path) else []
    if len(plan):
        corners += list(np.percentile(plan, [0.5, 99.5], axis=0))
    if corners:
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    margin = 0.04 * max(float((high - low).max()), 1e-6)
    return low - margin, high + margin


def _flattest_axis(positions: np.ndarray) -> int:
    return int(np.argmin(np.ptp(positions, axis=0))) if len(positions) else 0


def _equal_aspect(axes: Axes, positions: np.ndarray) -> None:
    """One unit as long to the right as up; a motionless path does not fill the axes with noise."""
    if len(positions) and np.ptp(positions, axis=0).max() > 1e-6:
        axes.set_aspect("equal", adjustable="datalim")
        return
    centre = positions[0] if len(positions) else np.zeros(2)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(centre[0] - 0.5, centre[0] + 0.5)
    axes.set_ylim(centre[1] - 0.5, centre[1] + 0.5)
