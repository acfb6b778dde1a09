"""How good a two-view prior is: on rooms that nobody has trained on, and on a real recording.

    python -m experiments.prior_quality weights/small --walk my_recording --depth-scale 1000

Looks at pairs of frames: errors of both pointmaps, of the relative pose, and of the matches, beside
what can be had without any prior; then runs the whole SLAM along every sequence. Prints a table,
writes ``quality.json`` and ``quality.png``, and every sequence by itself as it ends: a call that
was cut off goes on where it was. ``rendered`` in place of weights is the renderer with a little
noise: what the system makes of a prior that is nearly right.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from experiments.quality.evaluation import (
    Judge,
    QualityOptions,
    fingerprint_of,
    judge_all,
    summary,
)
from experiments.quality.report import draw, shown, table
from mast3r_jax import CheckpointError, ConfigError
from mast3r_jax.card import CardError, has_card, read_card
from mast3r_jax.checkpoint import find
from slam.config import SlamConfig
from slam.io.atomic import atomic_write
from slam.io.frames import Source, SourceError
from slam.io.open_source import open_source
from slam.priors import GeometryNoise, MASt3RPrior, RenderedGeometryPrior
from slam.types import TwoViewPrior

RENDERED = "rendered"
ROOMS, WALK = "held-out rooms", "recording"


@dataclasses.dataclass(frozen=True)
class PriorQuality:
    """Judge a two-view prior."""

    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS|rendered")]
    """Folder or preset of a network, or `rendered`: the true geometry with a little noise."""
    size: tuple[int, int] | None = None
    """Width and height of the rooms' images; the long side is the recording's too. By default that
    of the network's card, 128x96 without one."""
    walk: pathlib.Path | None = None
    """A recording with depth, poses and intrinsics, in the layout of TUM's."""
    depth_scale: float | None = None
    """Units per metre of its depth images; 5000 by default."""
    options: tyro.conf.OmitArgPrefixes[QualityOptions] = dataclasses.field(
        default_factory=QualityOptions
    )
    """What is looked at."""
    out: pathlib.Path | None = None
    """Folder for the files; outputs/prior_quality/NAME by default."""

    def execute(self) -> int:
        """Judge, print, write; returns the exit status."""
        try:
            folder = None if self.weights == RENDERED else find(self.weights)
            size = self.size or trained_size(folder)
            prior = RenderedGeometryPrior(GeometryNoise())
            if folder is not None:
                dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else None
                prior = MASt3RPrior.load(folder, dtype=dtype)
            name = self.weights if folder is None else folder.name
            out = self.out or pathlib.Path("outputs/prior_quality") / name
            judge_prior(
                prior,
                name,
                out,
                files=[] if folder is None else sorted(folder.glob("*.safetensors")),
                size=size,
                options=self.options,
                walk=self.walk,
                depth_scale=self.depth_scale,
            )
        except (SourceError, CheckpointError, ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"written: {out}/quality.json, {out}/quality.png")
        return 0


def trained_size(folder: pathlib.Path | None) -> tuple[int, int]:
    """Width and height of the images a network was trained on, or what is usual here.

    Raises:
        CheckpointError: its card cannot be understood.
    """
    if folder is None or not has_card(folder):
        return 128, 96
    try:
        return read_card(folder).image_size
    except CardError as error:
        raise CheckpointError(str(error)) from None


def judge_prior(
    prior: TwoViewPrior,
    name: str,
    out: pathlib.Path,
    *,
    files: list[pathlib.Path],
    size: tuple[int, int],
    options: QualityOptions,
    walk: pathlib.Path | None = None,
    depth_scale: float | None = None,
    before_each: Callable[[str], None] = lambda name: None,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> dict[str, Any]:
    """Judges a prior on rooms and perhaps a recording; goes on with what is in ``out`` already.

    Args:
        prior: to be judged.
        name: what to call it.
        out: folder for the files.
        files: that the prior was read from: other ones, other figures.
        size: width and height of the rooms' images.
        options: what is looked at.
        walk: a recording in the layout of TUM's, or anything else with depth, poses, intrinsics.
        depth_scale: units per metre of its depth images.
        before_each: called before a sequence is judged; what it raises ends everything.
        say: prints a line.

    Returns:
        Summaries by group, as in ``quality.json``.
    """
    config = SlamConfig(size=max(size))
    judge = Judge(prior, config, options).judge
    fingerprint = fingerprint_of(options, config.size, files, name)

    def opener(location: str, scale: float | None) -> Callable[[], Source]:
        return lambda: open_source(location, depth_scale=scale)

    groups = {ROOMS: [(f"room-{n}", opener(x, None)) for n, x in enumerate(options.rooms(size))]}
    if walk is not None:
        opener(str(walk), depth_scale)()  # what cannot be opened is refused at once
        groups[WALK] = [("recording", opener(str(walk), depth_scale))]
    records = {
        group: judge_all(
            judge,
            sources,
            out / "sequences",
            fingerprint,
            lambda name, record: say(_line(name, record)),
            before_each,
        )
        for group, sources in groups.items()
    }
    found = {group: summary(rows) for group, rows in records.items()}
    for group, figures in found.items():
        say("")
        for line in table(f"{name}, {group}", figures):
            say(line)
    with atomic_write(out / "quality.json") as file:
        content = _without_infinity({"of": fingerprint, **found})
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    draw(out / "quality.png", name, records)
    return found


def _line(name: str, record: Mapping[str, Any]) -> str:
    own = summary([record])["figures"]["prior"]
    text = f"{name:<10} points {shown(own['points_1'])} {shown(own['points_2'])}"
    text += f"  rotation {shown(own['rotation'])}  within 2 px {shown(own['matches'])}"
    system = record.get("system")
    if system:
        text += f"  lost {system['lost']}/{system['frames']}"
    return text


def _without_infinity(value: Any) -> Any:
    """JSON has no infinity: an error without bounds becomes the word for it."""
    if isinstance(value, dict):
        return {key: _without_infinity(inner) for key, inner in value.items()}
    return "lost" if isinstance(value, float) and value == float("inf") else value


if __name__ == "__main__":
    sys.exit(tyro.cli(PriorQuality).execute())
