"""What a network in bfloat16 costs: in points and in poses, not only in activations.

    python -m experiments.precision_cost --out precision

The same network in float32 and in bfloat16 is the prior of the same clip; its points and the
SLAM's trajectories are compared, with each other and with the truth. It has to be a network that
knows what it sees. No trained one is at hand, so the small one, 14 blocks deep, learns by heart the
pairs that the SLAM asks about in one clip: for each of several rooms anew.
``experiments.vitl_parity --dtype bfloat16`` has the activations of ViT-Large.

Writes ``precision.json`` and the networks.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Int

import mast3r_jax
from experiments.clips import (
    Clip,
    ClipOptions,
    Views,
    ask,
    clip_config,
    film,
    keyframe_at,
    run,
    write_json,
)
from experiments.training.augment import PhotoConfig
from experiments.training.config import (
    DispatchConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from experiments.training.ingredients import (
    make_recipe,
    one_for_each,
    procedural_ingredients,
)
from experiments.training.pairs import PairConfig
from experiments.training.rgbd import RgbdPairs, rgbd_pairs
from experiments.training.step import all_devices, new_state, train_many
from experiments.training.types import PairBatch
from mast3r_jax import MASt3R, MASt3RConfig, Pointmap
from ops.rays import norm
from slam.config import SlamConfig
from slam.losses import trajectory_loss
from slam.priors import GeometryNoise, MASt3RPrior, RenderedGeometryPrior
from slam.state import NoiseModel

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 products": {"dtype": jnp.bfloat16},
    "bfloat16 parameters too": {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
}
"""What is compared, and how ``mast3r_jax.load`` is told."""
REFERENCE = "float32"
"""What the others are held against."""
FIGURES = {
    "points_percent": "points, %",
    "points_apart_percent": "apart",
    "trajectory_cm": "poses, cm",
    "trajectory_apart_cm": "apart",
    "rounding_alone_cm": "rounding",
}
"""Errors against the truth, and ("apart") distances from what float32 says: of points the median,
over the point's distance; of trajectories the RMSE after alignment by Sim(3). The last is the
trajectory error with the true answers, their points moved by as much as rounding moved the
network's: for float32, by nothing."""


@dataclasses.dataclass(frozen=True)
class PrecisionCost:
    """Run the SLAM with one network in float32 and in bfloat16, and compare points and poses."""

    out: pathlib.Path = pathlib.Path("precision")
    """Folder for the numbers and the networks."""
    rooms: int = 3
    """Clips, each in a room of its own and with a network of its own."""
    clips: ClipOptions = dataclasses.field(default_factory=ClipOptions)
    """How they are filmed."""
    steps: int = 1500
    """Steps of training."""
    pairs: int = 8
    """Pairs of a step."""
    rate: float = 2e-3
    """Largest learning rate of AdamW."""
    seed: int = 0
    """Number of the first room, and of the first network."""
    network: MASt3RConfig = dataclasses.field(default_factory=MASt3RConfig.small)
    """Sizes of the network."""

    def execute(self) -> int:
        """Teach and compare; returns the exit status."""
        config, rooms = clip_config(self.clips), []
        for seed in range(self.seed, self.seed + self.rooms):
            clip, begin = true_clip(seed, self.clips), time.perf_counter()
            folder = self.out / f"room-{seed}"
            mast3r_jax.save(folder, learn_by_heart(clip, self.training(seed)))
            seconds = time.perf_counter() - begin
            print(f"room {seed}: {len(pairs_of(clip))} pairs learned by heart in {seconds:.0f} s")
            figures = compare(answers(folder, clip), clip, config)
            rooms.append({"room": seed, "seconds": seconds, "figures": figures})
            print(table([figures]), flush=True)
        options = dataclasses.asdict(dataclasses.replace(self, out=str(self.out)))
        write_json(self.out / "precision.json", {"options": options, "rooms": rooms})
        print(f"mean\n{table([room['figures'] for room in rooms])}\nwritten to {self.out}")
        return 0

    def training(self, seed: int) -> TrainConfig:
        """How a network learns pairs by heart: images as they are, and no weight decay."""
        as_they_are = PhotoConfig(0.0, 0.0, 0.0, 0.0, (1.0, 1.0), (1.0, 1.0), 0.0, 0.0)
        width, height = self.clips.size
        return TrainConfig(
            seed=seed,
            network=NetworkConfig(sizes=self.network, precision="float32"),
            pairs=PairConfig(
                size=self.clips.size,
                pairs=self.pairs,
                correspondences=min(512, width * height),
                photo=as_they_are,
            ),
            optimizer=OptimizerConfig(learning_rate=self.rate, weight_decay=0.0, ema_decay=0.98),
            schedule=ScheduleConfig(steps=self.steps, warmup=self.steps // 20),
            dispatch=DispatchConfig(loop="no"),
        )


def true_clip(seed: int, options: ClipOptions) -> Clip:
    """A clip of the room with the true answers."""
    is_keyframe = keyframe_at(options.frames, clip_config(options).keyframe_capacity)
    return ask(RenderedGeometryPrior(GeometryNoise.none()), film(seed, options), is_keyframe)


def pairs_of(clip: Clip) -> Int[np.ndarray, "pairs 2"]:
    """The pairs of frames that ``clip.views`` answers, in its order."""
    row = np.asarray(clip.row)
    pairs = np.argwhere(row < row.max())  # the largest is that of what was not asked
    return pairs[np.argsort(row[tuple(pairs.T)])].astype(np.int32)


def recording_of(clip: Clip) -> RgbdPairs:
    """The images, depths and cameras of a clip, and the pairs that were asked about."""
    frames, pairs = clip.frames, pairs_of(clip)
    T_WC = np.asarray(frames.T_WC, np.float64)
    return RgbdPairs(
        images=np.asarray(frames.image),
        depth=np.asarray(frames.depth),
        K=np.asarray(frames.K),
        frames=pairs,
        T_12=(np.linalg.inv(T_WC[pairs[:, 0]]) @ T_WC[pairs[:, 1]]).astype(np.float32),
        overlap=np.ones(len(pairs), np.float32),
    )


def learn_by_heart(clip: Clip, config: TrainConfig) -> MASt3R:
    """A new network, trained on the pairs of a clip and on nothing else."""
    recording = recording_of(clip)
    one = dataclasses.replace(config.pairs, pairs=1)

    def draw(keys: Array, step: Int[Array, ""]) -> PairBatch:
        del step
        return one_for_each(keys, lambda key: rgbd_pairs(key, recording, one))

    used = dataclasses.replace(procedural_ingredients(config), draw=draw)
    recipe = make_recipe(config, all_devices(), used)
    state = new_state(recipe, used.network, jnp.uint32(config.seed))
    proposals, last = jnp.ones(jax.device_count(), jnp.int32), jnp.int32(config.schedule.steps)
    for _ in range(config.schedule.steps):
        state, _ = train_many(recipe, 1, state, proposals, last)
    return nnx.merge(recipe.graph, state.ema)


def answers(folder: pathlib.Path, clip: Clip) -> dict[str, Views]:
    """What a saved network says to the pairs of a clip, in each of ``KINDS``."""
    is_keyframe = np.asarray(clip.is_keyframe)
    priors = {kind: MASt3RPrior(mast3r_jax.load(folder, **how)) for kind, how in KINDS.items()}
    return {kind: ask(prior, clip.frames, is_keyframe).views for kind, prior in priors.items()}


def compare(said: dict[str, Views], clip: Clip, config: SlamConfig) -> dict[str, dict[str, float]]:
    """``FIGURES`` of every kind of answers; an error is infinite if a frame was lost."""
    noise = NoiseModel(config.tracking.rays.noise(), config.graph.rays.noise())
    runs = {kind: run(views, noise, clip, config) for kind, views in said.items()}
    alone = {
        kind: run(moved_alike(clip.views, said[REFERENCE], views), noise, clip, config)[0]
        for kind, views in said.items()
    }
    reference = runs[REFERENCE][2].as_matrix()
    every = jnp.ones(len(reference), bool)
    return {
        kind: {
            "points_percent": 100 * points_apart(views, clip.views),
            "points_apart_percent": 100 * points_apart(views, said[REFERENCE]),
            "trajectory_cm": 100 * float(runs[kind][0]),
            "trajectory_apart_cm": 100 * float(trajectory_loss(runs[kind][2], reference, every)),
            "rounding_alone_cm": 100 * float(alone[kind]),
        }
        for kind, views in said.items()
    }


def moved_alike(views: Views, start: Views, end: Views) -> Views:
    """Answers whose points are moved by as much, over their distance, as from ``start`` to ``end``.

    Along all three axes of view 1's camera; where nothing is known, nowhere.
    """

    def moved(view: Pointmap, before: Pointmap, after: Pointmap) -> Pointmap:
        distance = norm(before.points)[..., None]
        known = distance > 0
        part = jnp.where(known, after.points - before.points, 0) / jnp.where(known, distance, 1)
        return view.replace(points=view.points + norm(view.points)[..., None] * part)

    first, second = (moved(*three) for three in zip(views, start, end, strict=True))
    return first, second


def points_apart(views: Views, others: Views) -> float:
    """Median distance between the points of both views of all pairs, over that of the others."""
    apart = [
        np.linalg.norm(np.asarray(view.points[:-1]) - np.asarray(other.points[:-1]), axis=-1)
        / np.linalg.norm(np.asarray(other.points[:-1]), axis=-1)
        for view, other in zip(views, others, strict=True)
    ]
    return float(np.median(apart))


def table(rooms: Sequence[dict[str, dict[str, float]]]) -> str:
    """Figures by kind, each the mean over rooms."""
    lines = [" " * 23 + "".join(f"{name:>11}" for name in FIGURES.values())]
    for kind in rooms[0]:
        means = [np.mean([room[kind][figure] for room in rooms]) for figure in FIGURES]
        lines.append(f"{kind:<23}" + "".join(f"{mean:>11.2f}" for mean in means))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(tyro.cli(PrecisionCost).execute())
