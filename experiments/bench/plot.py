"""All stages and their peers as bars, on a logarithmic axis."""

import pathlib

from matplotlib.figure import Figure

from experiments.bench.report import digits
from experiments.bench.results import Results
from experiments.bench.stage import OURS
from experiments.bench.timing import quartiles
from slam.io.atomic import atomic_write

PLOT = "bench.png"
_OURS, _TEXT = "#1f5fbf", "#333333"
_PEERS = ("#e07b00", "#1a9850", "#8e44ad", "#a89a88", "#c51b3a", "#17a2b8", "#c9b400")
_BAR, _GAP, _MARGIN = 0.22, 0.13, 1.2
"""Height of a bar, of the space between stages, and of everything around them, in inches."""


def plot(results: Results, path: pathlib.Path) -> None:
    """Draw medians as bars with their quartiles, ours first in each stage, as a PNG."""
    bars: list[tuple[str, str, tuple[float, ...]]] = []
    places: list[float] = []
    labels: list[tuple[float, str]] = []
    at = 0.0
    for result in results.stages:
        first = at
        for name, samples in result.samples.items():
            bars.append((result.stage.label, name, samples.ms))
            places.append(at)
            at += _BAR
        labels.append(((first + at - _BAR) / 2, result.stage.label))
        at += _GAP
    figure = Figure(figsize=(9, _MARGIN + max(at, 1.0)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for _, name, _ in bars))
    peers = [name for name in names if name != OURS]
    colors = {OURS: _OURS, **{n: _PEERS[k % len(_PEERS)] for k, n in enumerate(peers)}}
    for name in names:
        own = [n for n, bar in enumerate(bars) if bar[1] == name]
        low, middle, high = zip(*(quartiles(bars[n][2]) for n in own), strict=True)
        spread = [
            [m - a for m, a in zip(middle, low, strict=True)],
            [b - m for m, b in zip(middle, high, strict=True)],
        ]
        axes.barh(
            [places[n] for n in own], middle, 0.9 * _BAR, xerr=spread, color=colors[name],
            label=name, error_kw={"elinewidth": 1, "ecolor": _TEXT},
        )  # fmt: skip
        for n, value in zip(own, high, strict=True):
            axes.annotate(
                digits(middle[own.index(n)]), (value, places[n]), (4, 0), fontsize=8,
                textcoords="offset points", va="center", color=_TEXT,
            )  # fmt: skip
    if bars:
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.margins(y=0.01)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a call: median and quartiles", color=_TEXT)
    axes.grid(True, axis="x", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    machine = results.machine
    title = f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}"
    figure.suptitle(f"{title}, {results.date[:10]}", fontsize=11, color=_TEXT)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)
