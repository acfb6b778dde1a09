"""What was measured, as it is kept: one JSON file, and the ratios that a baseline holds."""

import dataclasses
import datetime
import json
import math
import pathlib
from typing import Any

from experiments.bench.ceilings import Ceilings
from experiments.bench.plan import Plan
from experiments.bench.stage import OURS, Peer, Stage
from experiments.bench.system import SystemTimes
from experiments.bench.timing import Samples, ratio
from slam.io.atomic import atomic_write

FORMAT = 1
RESULTS = "bench.json"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A figure that does not depend much on the machine: ours over something of the same run."""

    name: str
    value: float | None
    """None if it could not be measured."""
    better: str
    """``lower`` or ``higher``."""
    why_not: str = ""
    """Why there is no value."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "name"}


@dataclasses.dataclass(frozen=True)
class StageResult:
    """A stage and its peers, measured."""

    stage: Stage
    samples: dict[str, Samples]
    """Of ours and of the peers that could be measured."""
    ceilings: Ceilings

    @property
    def share_of_ceiling(self) -> tuple[float, str]:
        """What the nearer ceiling would take, over our median; and which ceiling that is."""
        work = self.stage.work
        floors = self.ceilings.floor_ms(work.operations, work.moved, work.dtype)
        name = max(floors, key=lambda name: floors[name])
        return floors[name] / self.samples[OURS].median, name

    def over(self, peer: Peer) -> float | None:
        """How many times longer than a peer ours takes."""
        if peer.name not in self.samples:
            return None
        return ratio(self.samples[OURS], self.samples[peer.name])

    @property
    def ratios(self) -> list[Ratio]:
        """Those that a baseline holds."""
        label, found = self.stage.label, []
        for peer in self.stage.peers:
            if peer.same_method:
                why = peer.why_not
                if peer.status == "disagrees":
                    why = f"{peer.name} computes something else"
                found.append(Ratio(f"{label}: ours / {peer.name}", self.over(peer), "lower", why))
        if self.stage.gate_ceiling:
            share, _ = self.share_of_ceiling
            found.append(Ratio(f"{label}: share of the ceiling", share, "higher"))
        return found

    def to_json(self) -> dict[str, Any]:
        """All that is known of the stage."""
        share, ceiling = self.share_of_ceiling
        return {
            "stage": self.stage.name,
            "on": self.stage.on,
            "about": self.stage.about,
            "work": dataclasses.asdict(self.stage.work),
            "ours": {
                "compile_s": self.stage.compile_s,
                **self.samples[OURS].to_json(),
                "share_of_ceiling": share,
                "ceiling": ceiling,
            },
            "peers": [self._peer(peer) for peer in self.stage.peers],
        }

    def _peer(self, peer: Peer) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": peer.name,
            "status": peer.status,
            "same_method": peer.same_method,
        }
        if peer.why_not:
            told["why_not"] = peer.why_not
        if peer.agreement is not None:
            told["agreement"] = dataclasses.asdict(peer.agreement)
        if peer.name in self.samples:
            told |= self.samples[peer.name].to_json()
            told["ours_over_it"] = self.over(peer)
        return told


@dataclasses.dataclass
class Results:
    """Everything of one run so far."""

    plan: Plan
    machine: dict[str, Any]
    ceilings: Ceilings
    stages: list[StageResult] = dataclasses.field(default_factory=list)
    system: SystemTimes | None = None
    complete: bool = False
    date: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )

    @property
    def ratios(self) -> list[Ratio]:
        """All that a baseline holds."""
        found = [one for result in self.stages for one in result.ratios]
        if self.system is not None:
            rows = self.system.rows["frame"]
            main = sum(ms for row, ms in rows.items() if row != "rest")
            if main > 0:
                value = self.system.latency.median / main
                name = f"system {self.system.on}: a frame / its four main stages"
                found.append(Ratio(name, value, "lower"))
        return found

    @property
    def disagreements(self) -> list[str]:
        """A sentence for each peer that should compute the same and does not."""
        return [
            f"{result.stage.label}: {peer.name} disagrees: {peer.agreement.what} "
            f"{peer.agreement.error:.2g}, at most {peer.agreement.tolerance:g} allowed"
            for result in self.stages
            for peer in result.stage.peers
            if peer.same_method and peer.agreement is not None and not peer.agreement.holds
        ]

    def to_json(self) -> dict[str, Any]:
        """The whole file; whatever is not finite becomes null."""
        return _finite(
            {
                "format": FORMAT,
                "date": self.date,
                "complete": self.complete,
                "plan": dataclasses.asdict(self.plan),
                "machine": self.machine,
                "ceilings": self.ceilings.to_json(),
                "stages": [result.to_json() for result in self.stages],
                "system": None if self.system is None else self.system.to_json(),
                "ratios": {one.name: one.to_json() for one in self.ratios},
            }
        )

    def write(self, folder: pathlib.Path) -> None:
        """Write or replace the file."""
        with atomic_write(folder / RESULTS) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())


def _finite(value: Any) -> Any:
    """The same, with None in place of numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
