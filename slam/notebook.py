"""What a notebook shows of a reconstruction that is the value of a cell."""

import base64
import html
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slam import pictures, plots
from slam.reconstruction import Reconstruction

if TYPE_CHECKING:
    from slam.viewer import Viewer


def table_and_picture(result: Reconstruction) -> str:
    """An HTML fragment: how the run went as a small table, beside the trajectory from above."""
    cells = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in _rows(result)
    )
    caption = f"<caption>{html.escape(result.name)}</caption>"
    table = f'<table style="max-width: 28em">{caption}{cells}</table>'
    return (
        '<div style="display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1em">'
        f"{table}{_thumbnail(result)}</div>"
    )


def _rows(result: Reconstruction) -> Iterator[tuple[str, str]]:
    placed, frames = int(result.tracked.sum()), result.num_frames
    yield "verdict", result.verdict()
    yield "frames with a pose", f"{placed} of {frames}"
    yield "keyframes", str(result.num_keyframes)
    yield "links", f"{len(result.links)}, {int(result.is_loop_link.sum())} of them loop links"
    if len(result.submaps) > 1:
        yield "pieces of the map", str(len(result.submaps))
    error = result.evaluate()
    if error is not None:
        yield "error, every frame", str(error)
    rate = result.timing.get("fps_after_first_frame", math.nan)
    if math.isfinite(rate):
        yield "speed", f"{rate:.1f} frames per second after the first"
    for note in result.notes:
        yield "note", note


def _thumbnail(result: Reconstruction) -> str:
    """The trajectory from above as an inline image; nothing without any pose."""
    if not result.tracked.any():
        return ""
    picture = plots.Picture(3.2, 3.2)
    axes = picture.subplots()
    plots.draw_from_above(axes, pictures.trajectory_scene(result))
    data = base64.b64encode(picture.png()).decode()
    return f'<img alt="trajectory from above" src="data:image/png;base64,{data}">'


class MapView:
    """A map in an inner window of a notebook: a live viewer, or a page that needs none."""

    def __init__(self, window: str, viewer: "Viewer | None") -> None:
        """An HTML fragment, and the viewer that it looks at."""
        self._window, self._viewer = window, viewer

    @property
    def url(self) -> str | None:
        """Where a browser of this machine finds the live viewer; None if there is none."""
        return None if self._viewer is None else self._viewer.url

    def close(self) -> None:
        """Stop the live viewer."""
        if self._viewer is not None:
            self._viewer.close()

    def _repr_html_(self) -> str:
        return self._window


def show_map(
    result: Reconstruction, height: int, standalone: bool, submap: int | None = None
) -> MapView:
    """The map in an inner window of a notebook.

    Args:
        result: what to show.
        height: of the window, in pixels.
        standalone: put the whole map into the notebook, some megabytes, in place of an address of
            this machine: for notebooks that are read elsewhere.
        submap: number of the submap, by default the largest.

    Raises:
        ValueError: there is no submap of this number.
        slam.io.frames.SourceError: viser is not installed.
    """
    from slam.viewer import Viewer

    snapshot = result.snapshot(submap)
    viewer = Viewer("127.0.0.1", 0, live=False)
    viewer.show(snapshot)
    if standalone:
        page = html.escape(viewer.html())
        viewer.close()
        return MapView(_window(f'srcdoc="{page}"', height), None)
    return MapView(_window(f'src="{html.escape(viewer.url)}"', height), viewer)


def _window(source: str, height: int) -> str:
    return f'<iframe {source} width="100%" height="{height}" style="border: 0"></iframe>'
