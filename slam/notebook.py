"""What a notebook shows of a reconstruction that is the value of a cell."""

import base64
import html
import math
from collections.abc import Iterator

from slam import pictures, plots
from slam.reconstruction import Reconstruction


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
