"""How a lost camera finds itself again: covered, carried off, in another room, on new ground.

    python -m experiments.relocalization --seeds 0 1 2 --only kidnapped,joined

Every seed is a new room, a new walk and new noise; in each the same things happen to the camera
(``SCENARIOS``). Judged by the truth: whether it is found again, how many frames that takes, into
how many pieces the map falls, and the largest error of any placed frame of any piece, each piece
aligned by Sim(3) to the truth. One wrong relocalisation tears a piece apart; a piece with frames of
two rooms counts as wrong whatever its error. Exit status 1 when any run fails.
"""

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np
import tyro

from slam.config import RelocalizationConfig, SlamConfig
from slam.evaluation import align_sim3
from slam.io.procedural import ProceduralSource, parse_procedural
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.runner import run
from slam.stepper import Stepper

FRAMES = 200
"""Of every walk: one round, whose end sees again what its beginning saw."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens to the camera, and what has to come of it."""

    story: str
    """For the table's heading."""
    keys: str
    """Of the procedural source."""
    back: tuple[int, ...]
    """Frames from which on a lost camera looks at what is mapped."""
    pieces: int = 1
    """Submaps at the end."""
    starts: int | None = None
    """Frame in which a new submap has to be started."""
    strict: bool = True
    """``relocalization.strict``."""


_KIDNAPPED = Scenario("carried to a mapped place at frame 90", "jump=90:30", (90,))
_OTHER = Scenario(
    "in another room from frame 60, back at 130", "jump=60:other,130:20", (130,), 2, 90
)
SCENARIOS: Mapping[str, Scenario] = {
    "kidnapped": _KIDNAPPED,
    "kidnapped-any": dataclasses.replace(
        _KIDNAPPED, story=f"{_KIDNAPPED.story}; one match is enough", strict=False
    ),
    "covered": Scenario("lens covered in frames 60 to 64", "cover=60-64", (65,)),
    "covered-long": Scenario(
        "lens covered in frames 60 to 89, then new ground until the round closes",
        "cover=60-89",
        (),
        starts=119,
    ),
    "covered-kidnapped": Scenario(
        "carried off in frame 88 with the lens covered from 80 to 94",
        "cover=80-94&jump=88:20",
        (95,),
    ),
    "thrice": Scenario(
        "carried to mapped places three times", "jump=110:50,135:5,160:80", (110, 135, 160)
    ),
    "other-room": _OTHER,
    "other-room-any": dataclasses.replace(
        _OTHER, story=f"{_OTHER.story}; one match is enough", strict=False
    ),
    "joined": Scenario(
        "on new ground from frame 60, walks into the mapped part", "jump=60:110", (), 1, 90
    ),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run went."""

    placed: int
    """Frames that have a pose."""
    delays: tuple[int | None, ...]
    """For each time of ``Scenario.back``: frames until one is placed in the first piece."""
    relocalized: int
    """Times that a lost camera was recognised."""
    pieces: int
    """Submaps at the end."""
    error: float
    """Largest of any frame of any piece, metres."""
    rms: float
    """Of the frames of the largest piece, metres."""
    faults: tuple[str, ...]
    """What should not be; empty if all is well."""


@dataclasses.dataclass(frozen=True)
class Relocalization:
    """Lose the camera in procedural rooms and see whether it finds itself again."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Rooms to try."""
    only: str = ",".join(SCENARIOS)
    """Names of the scenarios, with commas."""
    size: tuple[int, int] = (96, 64)
    """Width and height of the images in pixels."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What the prior gets wrong."""
    limit: float = 0.15
    """Largest error allowed of any placed frame, metres."""
    patience: int = 20
    """Frames allowed until the camera is found again."""

    def execute(self) -> int:
        """Run everything; returns the exit status."""
        width, height = self.size
        noise = ", ".join(f"{k} {v:g}" for k, v in dataclasses.asdict(self.noise).items())
        print(f"{FRAMES} frames of {width}x{height}; noise: {noise}")
        steppers: dict[bool, Stepper] = {}
        failures = total = 0
        for name in self.only.split(","):
            scenario = SCENARIOS[name]
            if scenario.strict not in steppers:
                relocalization = RelocalizationConfig(strict=scenario.strict)
                config = SlamConfig(size=width, relocalization=relocalization)
                steppers[scenario.strict] = Stepper(config)
            print(f"\n{name}: {scenario.story}")
            print("                   recog-  frames until           largest      rms  ")
            print("seed       placed  nised   found again   pieces  error cm       cm  verdict")
            outcomes = [self.try_one(scenario, seed, steppers) for seed in self.seeds]
            bad = sum(bool(outcome.faults) for outcome in outcomes)
            print(f"{len(outcomes) - bad} of {len(outcomes)} right; {_delays(outcomes)}")
            failures, total = failures + bad, total + len(outcomes)
        print(f"\n{total - failures} of {total} runs right")
        return int(failures > 0)

    def try_one(self, scenario: Scenario, seed: int, steppers: dict[bool, Stepper]) -> Outcome:
        """One run, printed as a line of the table."""
        width, height = self.size
        source = parse_procedural(
            f"procedural:room?seed={seed}&frames={FRAMES}&size={width}x{height}&{scenario.keys}"
        )
        prior = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=seed))
        result = run(source, prior, stepper=steppers[scenario.strict])
        outcome = judge(scenario, source, result, self.limit, self.patience)
        found = ", ".join("never" if d is None else str(d) for d in outcome.delays) or "-"
        print(
            f"{seed:4d}      {outcome.placed:3d}/{FRAMES}  {outcome.relocalized:5d}   {found:>11}"
            f"   {outcome.pieces:6d} {100 * outcome.error:9.1f} {100 * outcome.rms:8.1f}  "
            f"{'; '.join(outcome.faults) or 'right'}",
            flush=True,
        )
        return outcome


def judge(
    scenario: Scenario,
    source: ProceduralSource,
    result: Reconstruction,
    limit: float,
    patience: int,
) -> Outcome:
    """Compare a run with the truth and with what the scenario asks for."""
    faults = list(result.notes)
    errors: list[float] = []
    for submap in result.submaps:
        inside = result.placed_in(submap)
        if np.unique(source.elsewhere[inside]).size > 1:
            faults.append(f"piece {submap} holds frames of both rooms")
        errors.append(float(frame_errors(source, result, submap).max()))
    first = result.placed_in(0) if 0 in result.submaps else np.zeros(result.num_frames, bool)
    delays = tuple(_first(first[frame:]) for frame in scenario.back)
    if any(delay is None or delay > patience for delay in delays):
        faults.append("not found again in time")
    if len(result.submaps) != scenario.pieces:
        faults.append(f"{len(result.submaps)} pieces")
    if not max(errors, default=np.inf) < limit:
        faults.append("wrong poses")
    faults += _started_otherwise(scenario, result)
    times = int(np.sum(result.tracked[:-1] & ~result.tracked[1:]))
    if times > len(scenario.back) + (scenario.starts is not None):
        faults.append(f"lost {times} times")
    largest = result.evaluate()
    return Outcome(
        placed=int(result.tracked.sum()),
        delays=delays,
        relocalized=int(result.relocalized.sum()),
        pieces=len(result.submaps),
        error=max(errors, default=np.inf),
        rms=np.inf if largest is None else largest.rmse,
        faults=tuple(faults),
    )


def _started_otherwise(scenario: Scenario, result: Reconstruction) -> list[str]:
    """Submaps must be started when the scenario says so, and at no other time."""
    numbers = np.asarray(result.frames.submap)
    own = result.is_keyframe & (np.asarray(result.frames.new_links) == 0) & (numbers > 0)
    starts = np.flatnonzero(own).tolist()
    expected = [] if scenario.starts is None else [scenario.starts]
    return [] if starts == expected else [f"submaps started at {starts}, not {expected}"]


def frame_errors(source: ProceduralSource, result: Reconstruction, submap: int) -> np.ndarray:
    """Distance of each placed frame of a piece from the truth, aligned by Sim(3), metres [P]."""
    estimate = result.trajectory(submap).positions
    truth = source.T_WC[result.placed_in(submap), :3, 3]
    return np.linalg.norm(align_sim3(estimate, truth).apply(estimate) - truth, axis=1)


def _first(condition: np.ndarray) -> int | None:
    return int(np.argmax(condition)) if condition.any() else None


def _delays(outcomes: list[Outcome]) -> str:
    found = [d for outcome in outcomes for d in outcome.delays if d is not None]
    if not found:
        return "nothing to find again"
    return f"found again after {np.median(found):g} frames (median), at most {max(found)}"


if __name__ == "__main__":
    sys.exit(tyro.cli(Relocalization).execute())
