"""What a run logs: a table, curves as a picture, and TensorBoard's files."""

import csv
import io
import math
import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from slam.io.atomic import atomic_write

TABLE, CURVES, TENSORBOARD = "metrics.csv", "curves.png", "tensorboard"
_DRAWN = "#1f5fbf"
_SMOOTH_FROM = 60
"""Rows from which a running mean is drawn over the raw values."""


class MetricLog:
    """The metrics of a run: rows by step, in ascending order, each step once.

    Args:
        folder: of the run.
        rows: rows so far, which replace what the table holds; see ``rows_until``.
    """

    def __init__(self, folder: pathlib.Path, rows: list[dict[str, float]]):
        self.folder = folder
        self.rows = rows
        self._columns = _columns(rows)
        last = int(rows[-1]["step"]) if rows else 0
        # TensorBoard hides what earlier files say of the steps from here on.
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=last + 1)
        with atomic_write(folder / TABLE) as file:
            file.write(table_of(rows).encode())

    def add(self, row: dict[str, float]) -> None:
        """Appends a row; the table is written anew only if it brings a new column."""
        self.rows.append(row)
        if not row.keys() <= set(self._columns):
            self._columns = _columns(self.rows)
            with atomic_write(self.folder / TABLE) as file:
                file.write(table_of(self.rows).encode())
        else:
            with open(self.folder / TABLE, "a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(_cells(row, self._columns))
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self._board.add_scalar(name, value, int(row["step"]))

    def draw(self) -> None:
        """Brings the curves and TensorBoard's files up to date."""
        self._board.flush()
        if self.rows:
            draw_curves(self.folder / CURVES, self.rows)

    def close(self) -> None:
        """Ends TensorBoard's thread."""
        self._board.close()


def table_of(rows: list[dict[str, float]]) -> str:
    """Rows as CSV; a value that a row does not have is left empty."""
    if not rows:
        return ""
    columns = _columns(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(_cells(row, columns) for row in rows)
    return text.getvalue()


def rows_until(table: str, step: int) -> list[dict[str, float]]:
    """The rows of a CSV up to a step, whose checkpoint a run goes on from.

    A last line that was cut short when the process was killed is left out.
    """
    rows = []
    whole = table[: table.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(whole, newline="")):
        if int(row["step"]) > step:
            break
        rows.append({name: float(cell) for name, cell in row.items() if cell})
    return rows


def draw_curves(path: pathlib.Path, rows: list[dict[str, float]]) -> None:
    """Draws each column against the step as a PNG; a running mean over one tenth of the rows."""
    names = [name for name in _columns(rows) if name not in ("step", "pairs")]
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * lines), layout="constrained")
    for place, name in enumerate(names, start=1):
        points = [(row["step"], row[name]) for row in rows if name in row]
        _draw(figure.add_subplot(lines, columns, place), name, np.array(points))
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw(axes: Axes, name: str, points: np.ndarray) -> None:
    steps, values = points[np.isfinite(points[:, 1])].T
    smooth = len(values) >= _SMOOTH_FROM
    few = len(values) < 2
    axes.plot(
        steps,
        values,
        color=_DRAWN,
        alpha=0.3 if smooth else 1.0,
        linewidth=0.8 if smooth else 1.2,
        marker="." if few else "",
    )
    if smooth:
        width = len(values) // 10
        mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
        middle = np.convolve(steps, np.full(width, 1 / width), mode="valid")
        axes.plot(middle, mean, color=_DRAWN, linewidth=1.4)
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.margins(x=0.02)


def _columns(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cells(row: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{row[name]:.9g}" if name in row else "" for name in columns]
