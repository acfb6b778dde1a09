"""The gate: ratios of a run against those of a baseline.

A baseline holds ratios only, each measured within one run: ours over a peer, over a ceiling, or
over another part of ours. So it can be held against another machine of the same kind; seconds
could not. It has a section for each backend of JAX, since what is fast on a GPU need not be so on a
CPU.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.bench.results import Ratio, Results
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError

BASELINE = pathlib.Path(__file__).parent / "baseline.json"
FORMAT = 1
TOLERANCE = 1.5
"""Of a new baseline: how much worse a ratio may get, as a factor. Two runs on a shared machine
differ by tens of percent; to be edited in the file where a ratio is steadier, or less so."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """A ratio of the baseline, and how much worse it may get."""

    value: float
    better: str
    tolerance: float

    @property
    def worst(self) -> float:
        """What is still allowed."""
        worse = self.tolerance if self.better == "lower" else 1 / self.tolerance
        return self.value * worse

    def allows(self, value: float) -> bool:
        """Whether a new value is good enough."""
        return value <= self.worst if self.better == "lower" else value >= self.worst


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A run against a baseline."""

    violated: tuple[str, ...]
    """A line for each ratio that got too much worse."""
    not_compared: tuple[str, ...]
    """A line for each ratio of the baseline that could not be measured, though its stage was."""
    not_run: int
    """Ratios of stages that were not run."""
    compared: int
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What to print."""
        lines = [*self.violated, *self.not_compared, *self.notes]
        if self.not_run:
            lines.append(f"not compared: {self.not_run} ratios of stages that were not run")
        kept = self.compared - len(self.violated)
        return [*lines, f"{kept} of {self.compared} ratios kept what the baseline asks"]


def read_baseline(path: pathlib.Path, backend: str) -> tuple[dict[str, Limit], dict[str, Any]]:
    """Limits of one backend by name, and the machine they were measured on.

    Raises:
        SourceError: the file cannot be used.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such baseline; make one with --write-baseline {path}")
    section = check_baseline(path)["backends"].get(backend)
    if section is None:
        raise SourceError(
            f"{path}: has no ratios measured on a {backend}; add them with --write-baseline {path}"
        )
    try:
        limits = {name: Limit(**entry) for name, entry in section["ratios"].items()}
        for name, limit in limits.items():
            if limit.better not in ("lower", "higher"):
                raise SourceError(
                    f"{path}: {name}: better is {limit.better!r}; expected 'lower' or 'higher'"
                )
            if not (0 < limit.value < math.inf and 1 <= limit.tolerance < math.inf):
                raise SourceError(f"{path}: {name}: value must be above 0 and tolerance at least 1")
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: is no baseline: {error}") from None
    return limits, section.get("machine", {})


def compare(
    ratios: Sequence[Ratio],
    limits: dict[str, Limit],
    here: dict[str, Any],
    there: dict[str, Any],
) -> Comparison:
    """Hold the ratios of a run, on the machine ``here``, against limits measured ``there``."""
    found = {one.name: one for one in ratios}
    violated, not_compared, compared = [], [], 0
    for name, limit in limits.items():
        one = found.get(name)
        if one is None:
            continue
        if one.value is None:
            not_compared.append(f"not compared: {name}: {one.why_not or 'was not measured'}")
            continue
        compared += 1
        if not limit.allows(one.value):
            allows = "at most" if limit.better == "lower" else "at least"
            violated.append(
                f"WORSE: {name}: {one.value:.3g}; {limit.value:.3g} in the baseline, "
                f"{allows} {limit.worst:.3g} allowed"
            )
    notes = []
    if there.get("cores") not in (None, here["cores"]):
        notes.append(
            f"note: the baseline was measured with {there['cores']} cores, this run has "
            f"{here['cores']}; ratios to peers depend on that"
        )
    not_run = sum(name not in found for name in limits)
    return Comparison(tuple(violated), tuple(not_compared), not_run, compared, tuple(notes))


def check_baseline(path: pathlib.Path) -> dict[str, Any]:
    """The content of a baseline that may be added to, or of an empty one where there is no file.

    Raises:
        SourceError: there is a file that is no baseline.
    """
    if not path.exists():
        return {"format": FORMAT, "backends": {}}
    try:
        sections = json.loads(path.read_text())
    except (ValueError, OSError):
        sections = None
    if not (
        isinstance(sections, dict)
        and sections.get("format") == FORMAT
        and isinstance(sections.get("backends"), dict)
    ):
        raise SourceError(f"{path}: holds something else than a baseline; choose another file")
    return sections


def write_baseline(path: pathlib.Path, results: Results) -> int:
    """Write the run's ratios as its backend's section, beside those of others; how many there are.

    Tolerances that the file has for a ratio stay.

    Raises:
        SourceError: there is a file that is no baseline.
    """
    backend = results.machine["backend"]
    sections = check_baseline(path)
    known = read_baseline(path, backend)[0] if backend in sections["backends"] else {}
    entries = {}
    for one in results.ratios:
        if one.value is not None:
            tolerance = known[one.name].tolerance if one.name in known else TOLERANCE
            value = float(f"{one.value:.4g}")
            entries[one.name] = dataclasses.asdict(Limit(value, one.better, tolerance))
    machine = {key: results.machine[key] for key in ("cpu", "cores", "device", "versions")}
    sections["backends"][backend] = {
        "machine": machine, "date": results.date, "ratios": entries,
    }  # fmt: skip
    with atomic_write(path) as file:
        file.write((json.dumps(sections, indent=1) + "\n").encode())
    return len(entries)
