"""Pictures of single views: what the matcher saw of a frame, and images beside their depth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, hsv_to_rgb

from slam.plots.style import UNKNOWN, Picture, color_bar, image_frame


def plot_panels(
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
) -> Picture:
    """One frame beside its keyframe: image, depth, confidence and matches.

    Args:
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
    figure = Picture(11.0, 1.3 + 2 * 3.3 * height / width, title)
    grid = figure.add_gridspec(2, 3)
    axes_f, axes_d, axes_c = (figure.add_subplot(grid[0, i]) for i in range(3))
    axes_m, axes_w = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2])

    axes_f.imshow(image_f)
    image_frame(axes_f, names[0])

    shown = _show_depth(axes_d, depth_f, Normalize(*_range(depth_f[_known(depth_f)])))
    image_frame(axes_d, "depth")
    color_bar(figure, shown, axes_d, unit)

    sure = np.isfinite(confidence_f) & (confidence_f > 0)
    shown = axes_c.imshow(
        np.ma.array(confidence_f, mask=~sure), cmap="magma", norm=_log_norm(confidence_f[sure])
    )
    axes_c.set_facecolor(UNKNOWN)
    image_frame(axes_c, "confidence")
    color_bar(figure, shown, axes_c, "")

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
    image_frame(axes_m, f"{names[1]}  \N{RIGHTWARDS ARROW}  {names[0]}: {share}")

    picture, reach = _flow_colors(uv, valid)
    axes_w.imshow(picture)
    image_frame(axes_w, "motion of the matched pixels")
    axes_w.set_xlabel(f"hue: direction; full colour: {reach:.0f} px; grey: no match", fontsize=9)
    return figure


def plot_views(
    images: UInt8[np.ndarray, "k h w 3"],
    names: Sequence[str],
    depths: Float[np.ndarray, "k h w"] | None = None,
    *,
    title: str = "",
    columns: int = 6,
    unit: str = "map units",
) -> Picture:
    """Images in rows, each above its depth.

    Args:
        images: RGB.
        names: a heading for each.
        depths: z of their points, all in the same colours; grey where not positive.
        title: heading of the figure.
        columns: how many to put side by side.
        unit: unit of the depth.
    """
    count, (height, width) = len(images), images.shape[1:3]
    columns = max(1, min(columns, count))
    rows, layers = -(-count // columns), 1 if depths is None else 2
    cell = 2.1  # inches
    size = cell * columns + 0.8, rows * (layers * cell * height / width + 0.35) + 0.5
    figure = Picture(*size, title)
    if not count:
        return figure
    grid = figure.subplots(rows * layers, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    norm = None if depths is None else Normalize(*_range(depths[_known(depths)]))
    for k in range(count):
        row, column = divmod(k, columns)
        axes = grid[row * layers, column]
        axes.imshow(images[k])
        image_frame(axes, names[k])
        if depths is not None and norm is not None:
            _show_depth(grid[row * layers + 1, column], depths[k], norm)
    if norm is not None:
        below = [axes for row in grid[1::2] for axes in row]
        bar = figure.colorbar(ScalarMappable(norm, "turbo_r"), ax=below, shrink=0.8, pad=0.01)
        bar.set_label(f"depth [{unit}]", fontsize=10)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _known(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _show_depth(axes: Axes, depth: np.ndarray, norm: Normalize) -> ScalarMappable:
    """A depth image, grey where nothing is known."""
    masked = np.ma.array(depth, mask=~_known(depth))
    axes.set_facecolor(UNKNOWN)
    return axes.imshow(masked, cmap="turbo_r", norm=norm)


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
