"""Pictures of a run: the trajectory, the map from above, and what the matcher saw.

Drawn with matplotlib's object interface onto a figure of its own: no global state, no display, and
safe beside other threads. World axes are x right, y down, z ahead, as ``slam.orientation`` levels
them, unless a reference trajectory brings its own.
"""

import os
import textwrap

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from slam.evaluation import align_sim3, ate
from slam.io.atomic import atomic_write

_ESTIMATE, _REFERENCE, _KEYFRAME = "#1f5fbf", "#a89a88", "#e07b00"
_START, _END, _TEXT, _UNKNOWN = "#1a9850", "#c51b3a", "#333333", "#d9d9d9"
_LINK, _LOOP_LINK = "#f2b366", "#8e44ad"
_DPI = 140
_AXES = "xyz"
_CAMERA_UP = "-y"
"""The upward direction of a levelled world, or one that starts at a camera held upright."""


def plot_trajectory(
    path: str | os.PathLike[str],
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
) -> None:
    """Draw a trajectory from above and from the side as a PNG.

    Args:
        path: file to write.
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
    """
    heading, unit = [title] if title else [], "map units"
    track = track_r = _tracks(numbers, len(estimate))
    if reference is not None:
        known = np.isfinite(reference).all(axis=1)
        result = ate(estimate, reference, with_scale)
        heading += textwrap.wrap(str(result), 95)
        reference, track_r = reference[known], track[known]
        if np.isfinite(result.rmse):
            unit = "m"
            alignment = align_sim3(estimate[known], reference, with_scale)
            estimate = alignment.apply(estimate)
            keyframes = None if keyframes is None else alignment.apply(keyframes)
        else:
            reference = None  # two unrelated frames: drawn together they would only mislead
    drawn = estimate if reference is None else reference
    ends = np.zeros((0, 2, 3)) if keyframes is None or links is None else keyframes[links]
    loops = np.zeros(len(ends), bool) if is_loop_link is None else is_loop_link
    kinds = ((ends[~loops], _LINK, "links"), (ends[loops], _LOOP_LINK, "loop links"))
    if up is None:
        up = _CAMERA_UP if reference is None else f"+{_AXES[_flattest_axis(drawn)]}"
    right, ahead, vertical, upward = _view_axes(up)

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    top, side = figure.subplots(1, 2)
    views = ((top, right, ahead, "from above"), (side, right, vertical, "from the side"))
    for axes, u, v, name in views:
        if reference is not None:
            line = _broken(reference[:, [u, v]], track_r).T
            axes.plot(*line, color=_REFERENCE, lw=3, zorder=1, label="ground truth")
        line = _broken(estimate[:, [u, v]], track).T
        axes.plot(*line, color=_ESTIMATE, lw=1.5, label="estimate")
        for segments, color, kind in kinds:
            if len(segments):
                lines = LineCollection(list(segments[:, :, [u, v]]), colors=color, linewidths=0.9)
                lines.set(label=f"{kind} ({len(segments)})", zorder=1.5)
                axes.add_collection(lines)
        if keyframes is not None and len(keyframes):
            label = f"keyframes ({len(keyframes)})"
            axes.plot(keyframes[:, u], keyframes[:, v], "o", ms=4, color=_KEYFRAME, label=label)
        if len(estimate):
            axes.plot(
                *estimate[0, [u, v]], "o", ms=8, mfc="none", mew=2, color=_START, label="start"
            )
            axes.plot(*estimate[-1, [u, v]], "s", ms=8, mfc="none", mew=2, color=_END, label="end")
        _frame(axes, f"{_AXES[u]} [{unit}]", f"{_AXES[v]} [{unit}]")
        axes.set_title(name, fontsize=11, color=_TEXT)
        _equal_aspect(axes, drawn[:, [u, v]])
    if not upward:
        side.invert_yaxis()
    handles, labels = top.get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 10, "columnspacing": 1.3, "handlelength": 1.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), **style)
    _save(figure, path, "\n".join(heading))


def plot_panels(
    path: str | os.PathLike[str],
    image_f: UInt8[np.ndarray, "h w 3"],
    image_k: UInt8[np.ndarray, "h w 3"],
    depth_f: Float[np.ndarray, "h w"],
    confidence_f: Float[np.ndarray, "h w"],
    uv: Float[np.ndarray, "h w 2"],
    valid: Bool[np.ndarray, "h w"],
    *,
    title: str = "",
    names: tuple[str, str] = ("frame", "keyframe"),
    unit: str = "m",
    num_lines: int = 40,
) -> None:
    """Draw one frame beside its keyframe: image, depth, confidence and matches, as a PNG.

    Args:
        path: file to write.
        image_f: the frame.
        image_k: the keyframe.
        depth_f: z of the frame's pointmap; grey where not positive.
        confidence_f: confidence of that pointmap.
        uv: for each pixel of the KEYFRAME the matched pixel ``(u, v)`` of the frame.
        valid: which of these matches hold.
        title: heading of the figure.
        names: what to call frame and keyframe.
        unit: unit of the depth.
        num_lines: how many matches to draw as lines.
    """
    height, width = depth_f.shape
    # Six cells of the image's shape, two of them side by side in the matches.
    figure = Figure(figsize=(11, 1.3 + 2 * 3.3 * height / width), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    axes_f, axes_d, axes_c = (figure.add_subplot(grid[0, i]) for i in range(3))
    axes_m, axes_w = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2])

    axes_f.imshow(image_f)
    _picture(axes_f, names[0])

    known = np.isfinite(depth_f) & (depth_f > 0)
    shown = axes_d.imshow(
        np.ma.array(depth_f, mask=~known), cmap="turbo_r", norm=Normalize(*_range(depth_f[known]))
    )
    axes_d.set_facecolor(_UNKNOWN)
    _picture(axes_d, "depth")
    _color_bar(figure, shown, axes_d, unit)

    sure = np.isfinite(confidence_f) & (confidence_f > 0)
    shown = axes_c.imshow(
        np.ma.array(confidence_f, mask=~sure), cmap="magma", norm=_log_norm(confidence_f[sure])
    )
    axes_c.set_facecolor(_UNKNOWN)
    _picture(axes_c, "confidence")
    _color_bar(figure, shown, axes_c, "")

    gap = max(4, width // 40)
    both = np.full((height, 2 * width + gap, 3), 255, np.uint8)
    both[:, :width], both[:, width + gap :] = image_k, image_f
    axes_m.imshow(both)
    rows, columns = _spread(valid, num_lines)
    ends = uv[rows, columns] + np.array([width + gap, 0])
    lines = np.stack([np.stack([columns, rows], axis=-1).astype(float), ends], axis=1)
    # Neighbouring lines get unlike hues, or a bundle of them reads as one.
    hues = np.arange(len(lines)) * 0.618034 % 1.0
    colors = hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.85), np.ones_like(hues)], axis=-1))
    axes_m.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.9, alpha=0.9))
    for points in (lines[:, 0], lines[:, 1]) if len(lines) else ():
        axes_m.scatter(*points.T, s=9, c=colors, edgecolors="black", linewidths=0.3, zorder=3)
    share = f"{100 * valid.mean():.0f} % of the pixels matched"
    _picture(axes_m, f"{names[1]}  \N{RIGHTWARDS ARROW}  {names[0]}: {share}")

    picture, reach = _flow_colors(uv, valid)
    axes_w.imshow(picture)
    _picture(axes_w, "motion of the matched pixels")
    axes_w.set_xlabel(f"hue: direction; full colour: {reach:.0f} px; grey: no match", fontsize=9)
    _save(figure, path, title)


def plot_map(
    path: str | os.PathLike[str],
    points: Float[np.ndarray, "n 3"],
    colors: UInt8[np.ndarray, "n 3"],
    trajectory: Float[np.ndarray, "m 3"] | None = None,
    *,
    numbers: Int[np.ndarray, " m"] | None = None,
    title: str = "",
    unit: str = "map units",
    up: str = _CAMERA_UP,
) -> None:
    """Draw a coloured point cloud from above as a PNG, like a floor plan.

    Points higher than the highest camera are left out: they are mostly ceiling, and would hide the
    rest. A cell shows the mean colour of its points, paler where there are few.

    Args:
        path: file to write.
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
    figure = Figure(figsize=(8, 7), layout="constrained")
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
        axes.plot(*line, color=_ESTIMATE, lw=1.8, label="camera")
        axes.plot(*path_2d[0], "o", ms=9, mfc="white", mew=2.5, color=_START, label="start")
        axes.plot(*path_2d[-1], "s", ms=8, mfc="white", mew=2.5, color=_END, label="end")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    _frame(axes, f"{_AXES[right]} [{unit}]", f"{_AXES[ahead]} [{unit}]")
    count = f"{len(points):,} points from above" + (f"; {note}" if note else "")
    _save(figure, path, "\n".join([title, count] if title else [count]))


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


def _flow_colors(uv: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Hue by direction, saturation by length up to ``reach`` pixels; grey where not valid."""
    rows, columns = np.indices(valid.shape)
    flow = uv - np.stack([columns, rows], axis=-1)
    length = np.linalg.norm(flow, axis=-1)
    reach = max(1.0, float(np.percentile(length[valid], 95))) if valid.any() else 1.0
    hue = (np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi)) % 1.0
    saturation = np.clip(length / reach, 0, 1)
    colors = hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1))
    colors[~valid] = 0.6
    return colors, reach


def _spread(valid: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """About ``count`` valid pixels, evenly spread: the centres of a grid of cells."""
    height, width = valid.shape
    step = max(1, round(np.sqrt(valid.sum() / max(count, 1))))
    rows, columns = np.meshgrid(
        np.arange(step // 2, height, step), np.arange(step // 2, width, step), indexing="ij"
    )
    chosen = valid[rows, columns]
    return rows[chosen], columns[chosen]


def _range(values: np.ndarray) -> tuple[float, float]:
    """Most of the values, without outliers, and never empty."""
    if not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    return (low, high) if high > low else (low, low + max(1e-3, 0.1 * abs(low)))


def _log_norm(values: np.ndarray) -> LogNorm | Normalize:
    """Logarithmic where the values span more than a factor of three."""
    low, high = _range(values)
    return LogNorm(low, high) if low > 0 and high > 3 * low else Normalize(low, high)


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


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=11, color=_TEXT)
    axes.set_ylabel(y_label, fontsize=11, color=_TEXT)
    axes.tick_params(labelsize=10, colors=_TEXT)
    axes.grid(True, color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def _picture(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=12, color=_TEXT)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _color_bar(figure: Figure, shown: object, axes: Axes, unit: str) -> None:
    beside = axes.inset_axes((1.03, 0.0, 0.05, 1.0))  # exactly as tall as the image
    bar = figure.colorbar(shown, cax=beside)  # type: ignore[arg-type]
    bar.ax.tick_params(which="both", labelsize=10, colors=_TEXT)
    if isinstance(bar.norm, LogNorm):  # 2, 3, 5 instead of powers of ten
        bar.ax.yaxis.set_major_formatter(LogFormatter())
        bar.ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if unit:
        bar.set_label(unit, fontsize=11, color=_TEXT)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _save(figure: Figure, path: str | os.PathLike[str], title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=12, color=_TEXT)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
