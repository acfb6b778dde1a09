"""What this project wants of one H100, and whether it was met."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A limit, and where the figures have what it is held against."""

    what: str
    limit: float
    unit: str
    value: Callable[[Mapping[str, Figures]], float]
    """Of the figures by part of ``experiments.gpu_checks``; ``KeyError`` where one is missing."""


def _ms(stage: str) -> Callable[[Mapping[str, Figures]], float]:
    return lambda parts: _stage(parts, stage)["median_ms"]


def _stage(parts: Mapping[str, Figures], stage: str) -> Figures:
    return _first(parts["stages"], lambda name: name.startswith(stage))


def _walk(parts: Mapping[str, Figures]) -> Figures:
    return _first(parts["system"], lambda name: name.startswith("system ") and "spread" not in name)


def _first(rows: Figures, wanted: Callable[[str], bool]) -> Figures:
    for name, row in rows.items():
        if wanted(name):
            return row
    raise KeyError


def _ten_iterations(parts: Mapping[str, Figures]) -> float:
    stage = _stage(parts, "optimize ")
    return 10 * stage["median_ms"] / stage["iterations"]


def _compiled(parts: Mapping[str, Figures]) -> float:
    stages = ("encoder ", "decoder ", "match ", "pose-rays ", "fusion ")
    return sum(_stage(parts, stage)["compile_s"] for stage in stages)


def _map(parts: Mapping[str, Figures], count: str) -> Figures:
    return parts["memory"]["maps"][count]


def _frame(parts: Mapping[str, Figures]) -> float:
    return _walk(parts)["frame_ms"]


GOALS = (
    Goal("a tracking frame", 10, "ms", _frame),
    Goal("a tracking frame, the moonshot", 5, "ms", _frame),
    Goal("matching", 0.5, "ms", _ms("match ")),
    Goal("100 keyframes optimised in 10 iterations", 30, "ms", _ten_iterations),
    Goal("ViT-Large's tracking step compiled", 60, "s", _compiled),
    Goal(
        "1,000 keyframes, optimised", 24, "GB",
        lambda parts: sum(_map(parts, "1000")[name] for name in ("gb", "gb_to_optimize")),
    ),
    Goal("memory of a keyframe", 4.72, "MB", lambda parts: _map(parts, "1000")["mb_a_keyframe"]),
    Goal("memory of a directed edge", 2, "MB", lambda parts: _map(parts, "1000")["mb_an_edge"]),
)  # fmt: skip


def figures(results: Figures) -> Figures:
    """Of a ``bench.json`` what goals and readers ask about first, by stage."""
    found = {}
    for stage in results["stages"]:
        ours = stage["ours"]
        found[f"{stage['stage']} {stage['on']}"] = {
            "compile_s": ours["compile_s"],
            "median_ms": ours["median_ms"],
            "quartiles_ms": ours["quartiles_ms"],
            "share_of_ceiling": ours["share_of_ceiling"],
            **stage["about"],
        }
    system = results["system"]
    if system is not None:
        found[f"system {system['on']}"] = {
            "frames_per_second": system["frames_per_second"],
            "frame_ms": system["latency"]["median_ms"],
            "frame_p99_ms": system["latency"]["p99_ms"],
            "tracked": f"{system['tracked']} of {system['frames']}",
            "keyframes": system["keyframes"],
            "rows_ms": system["rows_ms"],
        }
    return found


def verdicts(parts: Mapping[str, Figures]) -> list[str]:
    """A line for every goal, of the figures by part."""
    lines = []
    for goal in GOALS:
        asked = f"{goal.what}: at most {goal.limit:g} {goal.unit}"
        try:
            value = goal.value(parts)
        except (KeyError, TypeError):  # a figure that was not finite is None
            lines.append(f"{asked}: not measured")
            continue
        met = "met" if value <= goal.limit else "NOT met"
        lines.append(f"{asked}: {value:.3g}, {met}")
    return lines
