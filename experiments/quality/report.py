"""Figures of a prior as a table for the terminal, and as pictures."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.clips import COLORS, write_png
from experiments.quality.evaluation import CONSTANT, CONTENDERS, IDENTITY, PATCHES, PRIOR
from experiments.quality.measures import FIGURES

_HEADERS = {
    PRIOR: ("this", "prior"),
    CONSTANT: ("mean", "pointmap"),
    IDENTITY: ("true depth,", "no motion"),
    PATCHES: ("7x7", "patches"),
}
SYSTEM = {
    "ate_m": "whole system: error, m",
    "ate_percent_of_path": "whole system: error, % of path",
    "frames_lost": "whole system: frames lost, share",
}
_PANELS = (
    (
        (PRIOR, "points_1", "view 1"),
        (PRIOR, "points_2", "view 2"),
        (CONSTANT, "points_2", "view 2, mean pointmap"),
        (IDENTITY, "points_2", "view 2, no motion"),
    ),
    (
        (PRIOR, "rotation", "rotation"),
        (PRIOR, "direction", "direction"),
        (IDENTITY, "rotation", "rotation, no motion"),
    ),
    (
        (PRIOR, "matches", "system"),
        (PRIOR, "descriptors", "descriptors alone"),
        (PATCHES, "descriptors", "7x7 patches"),
        (IDENTITY, "matches", "same pixel"),
    ),
)
"""What each picture shows against the overlap: of whom, which figure, and what to call it."""


def table(title: str, found: Mapping[str, Any]) -> list[str]:
    """Lines of a table, at most 80 columns."""
    width, height = found["size"]
    low, high = found["overlap"]
    lines = [
        f"{title}: {_count(found['sequences'], 'sequence')}, {_count(found['pairs'], 'pair')} of "
        f"{width}x{height}, overlap {low:.2f} to {high:.2f}",
    ]
    lines += [
        " " * 32 + "".join(f"{_HEADERS[who][line]:>12}" for who in CONTENDERS) for line in (0, 1)
    ]
    for name, label in FIGURES.items():
        cells = [shown(found["figures"][who][name]) for who in CONTENDERS]
        lines.append(f"{label:<32}" + "".join(f"{cell:>12}" for cell in cells))
    if "system" in found:
        whole = found["system"]["sequences_whole"]
        for name, label in SYSTEM.items():
            lines.append(f"{label:<32}{shown(found['system'][name]):>12}")
        lines.append(f"{whole} of {_count(found['sequences'], 'sequence')} in one piece, none lost")
    return lines


def card_figures(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of the prior alone, by what they are called."""
    figures = {label: found["figures"][PRIOR][name] for name, label in FIGURES.items()}
    if "system" in found:
        figures |= {label: found["system"][name] for name, label in SYSTEM.items()}
    return figures


def shown(value: float | None) -> str:
    """A figure; a dash where there is none, and "lost" for an error without bounds."""
    if value is None:
        return "-"
    return f"{value:.3f}" if math.isfinite(value) else "lost"


def draw(path: pathlib.Path, title: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Errors against overlap, and the whole system's by sequence, as a PNG; a row for each group.

    Args:
        path: of the picture.
        title: name of the prior.
        groups: what the sequences have in common; their records.
    """
    figure = Figure(figsize=(13, 3.4 * len(groups)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = figure.subplots(len(groups), 4, squeeze=False)
    for axes, (name, records) in zip(rows, groups.items(), strict=True):
        pairs = [row for record in records for row in record["pairs"]]
        for place, lines in enumerate(_PANELS):
            _against_overlap(axes[place], pairs, lines)
        axes[0].set(ylabel=f"{name}\n\nmedian relative error of points", ylim=(0, None))
        axes[1].set(ylabel="degrees", yscale="log")
        axes[2].set(ylabel="matches within 2 px", ylim=(0, 1))
        _systems(axes[3], records)
    write_png(path, figure)


def _against_overlap(
    axes: Axes, pairs: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, str, str]]
) -> None:
    overlap = np.array([row["overlap"] for row in pairs])
    for (who, figure, label), color in zip(lines, COLORS[1:], strict=False):
        values = [row[who][figure] for row in pairs]
        there = np.array([value is not None for value in values])
        axes.plot(
            overlap[there],
            [value for value in values if value is not None],
            "o" if who == PRIOR else "x",
            ms=3.5,
            color=color,
            label=f"{label} ({there.sum()})",
        )
    axes.set_xlabel("overlap of the two views")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)


def _systems(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    systems = [record["system"] for record in records if "system" in record]
    place = np.arange(len(systems))
    errors = [np.nan if s["ate_m"] is None else s["ate_m"] for s in systems]
    axes.bar(place - 0.2, errors, 0.4, color=COLORS[1])
    axes.set(xlabel="sequence", ylabel="error of the trajectory, m")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.label.set_color(COLORS[1])
    lost = axes.twinx()
    lost.bar(place + 0.2, [s["lost"] / s["frames"] for s in systems], 0.4, color=COLORS[2])
    lost.set(ylabel="frames lost, share", ylim=(0, 1))
    lost.yaxis.label.set_color(COLORS[2])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"
