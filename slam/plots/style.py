"""How all pictures look, and how one becomes a file or is shown in a notebook."""

import io
import os

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from slam.io.atomic import atomic_write

ESTIMATE, REFERENCE, KEYFRAME = "#1f5fbf", "#a89a88", "#e07b00"
START, END, TEXT, UNKNOWN = "#1a9850", "#c51b3a", "#333333", "#d9d9d9"
LINK, LOOP_LINK = "#f2b366", "#8e44ad"
_FILE_DPI, _SCREEN_DPI = 140, 90


class Picture(Figure):
    """A figure of its own, unknown to pyplot, that a notebook shows all the same."""

    def __init__(self, width: float, height: float, title: str = "") -> None:
        """An empty figure, in inches."""
        super().__init__(figsize=(width, height), layout="constrained")
        if title:
            self.suptitle(title, fontsize=12, color=TEXT)

    def png(self, dpi: int = _SCREEN_DPI) -> bytes:
        """The figure as the contents of a PNG file."""
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=dpi)
        return data.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def save_picture(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture as a PNG file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(picture.png(_FILE_DPI))


def frame(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, a grid and a thin border."""
    axes.set_xlabel(x_label, fontsize=11, color=TEXT)
    axes.set_ylabel(y_label, fontsize=11, color=TEXT)
    axes.tick_params(labelsize=10, colors=TEXT)
    axes.grid(True, color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def image_frame(axes: Axes, title: str) -> None:
    """A heading, and neither border nor ticks."""
    axes.set_title(title, fontsize=12, color=TEXT)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def color_bar(figure: Figure, shown: object, axes: Axes, unit: str) -> None:
    """What the colours of an image mean, beside it."""
    beside = axes.inset_axes((1.03, 0.0, 0.05, 1.0))  # exactly as tall as the image
    bar = figure.colorbar(shown, cax=beside)  # type: ignore[arg-type]
    bar.ax.tick_params(which="both", labelsize=10, colors=TEXT)
    if isinstance(bar.norm, LogNorm):  # 2, 3, 5 instead of powers of ten
        bar.ax.yaxis.set_major_formatter(LogFormatter())
        bar.ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if unit:
        bar.set_label(unit, fontsize=11, color=TEXT)
    bar.outline.set_visible(False)  # type: ignore[operator]
