"""A prior on whole sequences: pairs of their frames, and the SLAM along all of them."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.quality.measures import (
    FIGURES,
    PairMeasures,
    measure_constant,
    measure_identity,
    measure_patches,
    measure_prior,
    summarize,
)
from experiments.quality.truth import (
    FramePair,
    PairChoice,
    choose_pairs,
    mean_pointmaps,
    pairs_of,
    true_geometries,
)
from slam.config import SlamConfig
from slam.io.atomic import atomic_write
from slam.io.frames import Source
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.reconstruction import Reconstruction
from slam.runner import run
from slam.stepper import Stepper
from slam.types import TwoViewPrior

FIRST_SEED = 1_000_000
"""Rooms from here on are for judging. A sequence's room follows from ``jax.random.key(seed)``,
whose two words are 0 and the seed; the rooms of training from keys that Threefry has hashed many
times over. A run of 10^8 pairs meets one of 20 such keys with a probability of 20 * 10^8 / 2^64,
10^-10: whatever its seed, it has not seen these rooms."""
_CONSTANT_SEED, _CONSTANT_ROOMS = FIRST_SEED - 100, 8
"""Rooms whose mean pointmaps are the constant that priors are compared with."""
PRIOR, CONSTANT, IDENTITY, PATCHES = "prior", "constant", "identity", "patches"
CONTENDERS = {
    PRIOR: "this prior",
    CONSTANT: "mean pointmaps",
    IDENTITY: "true depth, still camera",
    PATCHES: "7x7 patches",
}
"""What is compared: the prior, and what can be had without one."""
_POSE = ("rotation", "direction")


@dataclasses.dataclass(frozen=True)
class QualityOptions:
    """What a prior is tried on."""

    sequences: int = 20
    """Procedural rooms."""
    frames: int = 150
    """Of each walk through a room; 150 is once around."""
    pairs: PairChoice = dataclasses.field(default_factory=PairChoice)
    """Pairs of frames of each sequence."""
    system: bool = True
    """Run the whole SLAM along the sequences as well."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.frames <= self.pairs.reach:
            raise ValueError(
                f"sequences={self.sequences} must be at least 1, frames={self.frames} above "
                f"pairs.reach={self.pairs.reach}"
            )

    def rooms(self, size: tuple[int, int]) -> list[str]:
        """The held-out sequences."""
        return [_room(FIRST_SEED + n, self.frames, size) for n in range(self.sequences)]


class Judge:
    """Tries one prior on sequences; what is compiled for the first serves all of the same size.

    Args:
        prior: to be judged.
        config: of the SLAM; ``config.size`` is the working size of all images.
        options: what to look at.
    """

    def __init__(self, prior: TwoViewPrior, config: SlamConfig, options: QualityOptions):
        self.prior, self.options = prior, options
        self._stepper = Stepper(config)
        self._constants: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

        def measure(prior: TwoViewPrior, mean_1: Any, mean_2: Any, pairs: FramePair, keys: Any):
            def one(item: tuple[FramePair, Any]) -> dict[str, PairMeasures]:
                pair, key = item
                return {
                    PRIOR: measure_prior(prior, config, pair, key),
                    CONSTANT: measure_constant(mean_1, mean_2, pair),
                    IDENTITY: measure_identity(pair),
                    PATCHES: measure_patches(pair, key),
                }

            return jax.lax.map(one, (pairs, keys))

        self._measure = jax.jit(measure)

    def judge(self, source: Source) -> dict[str, Any]:
        """Everything of one sequence, as it goes into JSON.

        Raises:
            SourceError: it has no depth, poses or intrinsics, or too few frames.
        """
        size = self._stepper.config.size
        frames = [frame for _, frame in prepare_frames(source, size)]
        height, width = frames[0].image.shape[:2]
        pairs = choose_pairs(frames, self.options.pairs, source.name)
        numbers = pairs_of(pairs)
        keys = jax.random.split(jax.random.key(0), len(numbers))
        constants = self._constant((width, height))
        found = jax.device_get(self._measure(self.prior, *constants, pairs, keys))
        overlaps = true_geometries(pairs).overlap
        rows = [
            {"frames": numbers[n].tolist(), "overlap": float(overlaps[n])}
            | {who: _row(measures, n) for who, measures in found.items()}
            for n in range(len(numbers))
        ]
        record = {"name": source.name, "size": [width, height], "pairs": rows}
        if self.options.system:
            record["system"] = system_row(run(source, self.prior, stepper=self._stepper))
        return record

    def _constant(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The best guess without looking: mean pointmaps of rooms that are tried on nothing."""
        if size not in self._constants:
            parts = []
            for n in range(_CONSTANT_ROOMS):
                source = parse_procedural(_room(_CONSTANT_SEED + n, self.options.frames, size))
                frames = [frame for _, frame in prepare_frames(source, max(size))]
                parts.append(choose_pairs(frames, self.options.pairs, source.name))
            pairs = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            self._constants[size] = mean_pointmaps(pairs)
        return self._constants[size]


def system_row(result: Reconstruction) -> dict[str, Any]:
    """How the whole system did along a sequence; errors are of the largest piece of the map."""
    error = result.evaluate()
    known = error is not None and np.isfinite(error.rmse)
    return {
        "frames": result.num_frames,
        "lost": int(result.num_frames - result.tracked.sum()),
        "pieces": len(result.submaps),
        "keyframes": result.num_keyframes,
        "loop_links": int(result.is_loop_link.sum()),
        "ate_m": error.rmse if known and error else None,
        "ate_percent_of_path": error.percent_of_path if known and error else None,
        "ate_frames": error.num_poses if known and error else 0,
        "verdict": result.verdict(),
    }


def judge_all(
    judge: Callable[[Source], dict[str, Any]],
    sources: Iterable[tuple[str, Callable[[], Source]]],
    folder: pathlib.Path,
    fingerprint: Mapping[str, Any],
    report: Callable[[str, dict[str, Any]], None],
    before_each: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Records of all sequences, each written as it ends; what is there already is not done again.

    Args:
        judge: ``Judge.judge``.
        sources: name and how to open it, of every sequence; names are those of files.
        folder: for the records.
        fingerprint: of prior and options: a record of others is replaced.
        report: called with every record.
        before_each: called before a sequence is judged; what it raises ends everything.
    """
    records = []
    for name, opened in sources:
        path = folder / f"{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("of") != fingerprint:
            before_each(name)
            kept = {"of": dict(fingerprint), **judge(opened())}
            with atomic_write(path) as file:
                file.write((json.dumps(kept, indent=1, allow_nan=False) + "\n").encode())
        report(name, kept)
        records.append(kept)
    return records


def fingerprint_of(options: QualityOptions, size: int, files: Iterable[pathlib.Path], name: str):
    """What the figures depend on, beside this code: prior, working size and options."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    kept = {k: v for k, v in dataclasses.asdict(options).items() if k != "sequences"}
    about = {"prior": name, "sha256": digest.hexdigest(), "working_size": size, "options": kept}
    return json.loads(json.dumps(about))


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over sequences: by contender, by overlap, and of the whole system."""
    rows = [row for record in records for row in record["pairs"]]
    result = {
        "sequences": len(records),
        "pairs": len(rows),
        "size": records[0]["size"],
        "overlap": [min(r["overlap"] for r in rows), max(r["overlap"] for r in rows)],
        "figures": {who: _figures([row[who] for row in rows]) for who in CONTENDERS},
    }
    systems = [record["system"] for record in records if "system" in record]
    if systems:
        result["system"] = _system_figures(systems)
    return result


def _figures(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    def value(row: Mapping[str, float | None], name: str) -> float:
        number = row[name]
        if number is None:
            return np.inf if name in _POSE and row["placed"] == 0 else np.nan
        return number

    return summarize({name: np.array([value(row, name) for row in rows]) for name in FIGURES})


def _system_figures(systems: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    frames = sum(s["frames"] for s in systems)
    # A sequence without an error, because it was lost at once, is worse than any that has one.
    errors = [np.inf if s["ate_m"] is None else s["ate_m"] for s in systems]
    percents = [
        np.inf if s["ate_percent_of_path"] is None else s["ate_percent_of_path"] for s in systems
    ]
    return {
        "frames": frames,
        "frames_lost": sum(s["lost"] for s in systems) / frames,
        "sequences_whole": sum(s["lost"] == 0 and s["pieces"] == 1 for s in systems),
        "ate_m": float(np.median(errors)),
        "ate_percent_of_path": float(np.median(percents)),
    }


def _row(measures: PairMeasures, n: int) -> dict[str, float | None]:
    values = {name: float(getattr(measures, name)[n]) for name in FIGURES}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _room(seed: int, frames: int, size: tuple[int, int]) -> str:
    return f"procedural:room?seed={seed}&frames={frames}&size={size[0]}x{size[1]}"
