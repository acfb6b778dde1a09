"""Learning what to trust: standard deviations and confidences, from the trajectories of clips.

    python -m experiments.learn_noise --out learn_noise

The setting is one that the defaults judge wrongly. The rendered-geometry prior has white noise
along each ray that differs eightfold over an image, and its confidences are turned upside down: the
worse a pixel, the surer it claims to be (``upside_down``). The default standard deviations are
those of MASt3R-SLAM, made for another network: a distance says next to nothing.

Learned, by Adam on the trajectory error of training clips through the whole differentiable SLAM,
are the standard deviations of tracking and of the global optimisation, and an exponent for each of
the two confidences, ``c <- c^e``: 1 believes them, 0 ignores them, below 0 turns them round. (A
factor has no place: of points it cancels in their average, of descriptors it is a standard
deviation.) Keyframes come at fixed frames, and matches do not depend on what is learned, so all
discrete choices are recorded once; with them the error is a smooth function.

Each repeat has training rooms and noise of its own; all are judged in the same unseen rooms.
Writes ``learn_noise.json`` and ``learn_noise.png``. Exit status 1 if the error of unseen clips has
not become smaller.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from experiments.clips import (
    COLORS,
    Clip,
    ClipOptions,
    Views,
    ask,
    clip_config,
    film,
    keyframe_at,
    run,
    slope,
    spread,
    stacked,
    write_json,
    write_png,
)
from ops.edge_system.factors import FactorNoise
from ops.records import Record, record
from slam.config import SlamConfig
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.state import NoiseModel


@record
class Trust(Record):
    """What is learned."""

    log_tracking: Float[Array, "2"]
    """Logarithms of the standard deviations of rays and distances, when a frame is placed."""
    log_graph: Float[Array, "2"]
    """The same, when all keyframes are."""
    exponents: Float[Array, "2"]
    """Of point and descriptor confidences."""


HUBER = 1.345
"""Threshold of both robust weights, as in the configuration; it is not learned."""


def defaults(config: SlamConfig) -> Trust:
    """The configuration's standard deviations; confidences as they are."""
    rays = config.tracking.rays.noise(), config.graph.rays.noise()
    return Trust(jnp.log(rays[0].sigmas), jnp.log(rays[1].sigmas), jnp.ones(2, jnp.float32))


@jax.jit
def tell(trust: Trust, views: Views) -> tuple[Views, NoiseModel]:
    """What the SLAM is told, given what the prior claims."""

    def raised(confidence: Array, exponent: Array) -> Array:
        known = confidence > 0
        return jnp.where(known, jnp.where(known, confidence, 1) ** exponent, 0)

    view_1, view_2 = (
        view.replace(
            confidence=raised(view.confidence, trust.exponents[0]),
            descriptor_confidence=raised(view.descriptor_confidence, trust.exponents[1]),
        )
        for view in views
    )
    tracking, graph = (
        FactorNoise(jnp.exp(sigmas), jnp.float32(HUBER))
        for sigmas in (trust.log_tracking, trust.log_graph)
    )
    return (view_1, view_2), NoiseModel(tracking, graph)


def upside_down(clip: Clip) -> Clip:
    """A clip with confidences that run the wrong way.

    The true ones are between 1 and 9 for points, 1 and 5 for descriptors; what is claimed is 9 and
    5 divided by them.
    """

    def claimed(confidence: Array, best: float) -> Array:
        known = confidence > 0
        return jnp.where(known, best / jnp.where(known, confidence, 1), 0)

    view_1, view_2 = (
        view.replace(
            confidence=claimed(view.confidence, 9.0),
            descriptor_confidence=claimed(view.descriptor_confidence, 5.0),
        )
        for view in clip.views
    )
    return clip.replace(views=(view_1, view_2))


@dataclasses.dataclass(frozen=True)
class LearnNoise:
    """Learn standard deviations and confidence exponents from the trajectory error of clips."""

    out: pathlib.Path = pathlib.Path("learn_noise")
    """Folder for the numbers and the plot."""
    repeats: int = 3
    """How often it is learned, each time from other rooms and noise."""
    rooms: int = 4
    """Clips to learn from, each in a room of its own."""
    unseen: int = 10
    """Clips to judge by, each in a room of its own."""
    clips: ClipOptions = dataclasses.field(default_factory=ClipOptions)
    """How they are filmed."""
    noise: GeometryNoise = dataclasses.field(default_factory=lambda: GeometryNoise(depth=0.03))
    """What the prior gets wrong, apart from its confidences."""
    steps: int = 30
    """Steps of Adam, each on all training clips."""
    rate: float = 0.2
    """Adam's rate at the first step, falling to 0, of logarithms and exponents."""
    seed: int = 0
    """Number of the first training room; the unseen ones are from 1000 on."""
    quick: bool = False
    """A toy that only shows that everything works."""

    def execute(self) -> int:
        """Learn and judge; returns the exit status."""
        if self.quick:
            clips = ClipOptions(frames=6, stride=4, size=(48, 32))
            changes = {"repeats": 1, "rooms": 1, "unseen": 1, "steps": 4}
            return dataclasses.replace(self, clips=clips, quick=False, **changes).execute()
        config = clip_config(self.clips)
        is_keyframe = keyframe_at(self.clips.frames, config.keyframe_capacity)
        start = defaults(config)

        def clip(seed: int) -> Clip:
            prior = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=seed))
            return upside_down(ask(prior, film(seed, self.clips), is_keyframe))

        def errors(trust: Trust) -> np.ndarray:
            runs = [run(*tell(trust, one.views), one, config) for one in unseen]
            return np.array([float(error) for error, *_ in runs])

        unseen = [clip(1000 + self.seed + n) for n in range(self.unseen)]
        before = errors(start)
        print(f"{self.unseen} unseen clips, error: {_centimetres(before)} with the defaults")
        runs: list[dict[str, Any]] = []
        for repeat in range(self.repeats):
            seeds = [self.seed + repeat * self.rooms + n for n in range(self.rooms)]
            lesson = learn(start, [clip(s) for s in seeds], config, self.steps, self.rate)
            found = lesson.trust[-1]
            variants = {
                "standard deviations only": found.replace(exponents=start.exponents),
                "exponents only": start.replace(exponents=found.exponents),
                "both": found,
            }
            after = {name: errors(trust) for name, trust in variants.items()}
            runs.append(_figures(seeds, lesson, found, after))
            unseen_cm = {name: _centimetres(values) for name, values in after.items()}
            print(f"learned from rooms {seeds[0]} to {seeds[-1]}: {_told(found)}")
            print(
                f"  training error {100 * lesson.loss[0]:.2f} -> {100 * lesson.loss[-1]:.2f} cm; "
                f"unseen: {', '.join(f'{name} {cm}' for name, cm in unseen_cm.items())}",
                flush=True,
            )
            if lesson.left_out:
                print(f"  {lesson.left_out} steps without a finite derivative")
        numbers = {
            "options": dataclasses.asdict(dataclasses.replace(self, out=str(self.out))),
            "unseen_cm": {
                "defaults": spread(100 * before),
                **{
                    name: spread(np.mean([lesson["unseen_cm"][name] for lesson in runs], axis=0))
                    for name in runs[0]["unseen_cm"]
                },
            },
            "runs": runs,
        }
        write_json(self.out / "learn_noise.json", numbers)
        write_png(self.out / "learn_noise.png", plot(runs, numbers["unseen_cm"]))
        means = [float(np.mean(lesson["unseen_cm"]["both"])) for lesson in runs]
        print(
            f"unseen clips: {100 * before.mean():.2f} cm before, {np.mean(means):.2f} after "
            f"({min(means):.2f} to {max(means):.2f} over {self.repeats} trainings)"
        )
        print(f"written to {self.out}")
        return int(not np.mean(means) < 100 * before.mean())


@dataclasses.dataclass
class Lesson:
    """How learning went."""

    trust: list[Trust]
    """Before each step, and at the end."""
    loss: list[float]
    """Mean error of the training clips before each step and at the end, metres."""
    left_out: int
    """Steps not made, because loss or derivative were not finite."""


def learn(
    trust: Trust, clips: Sequence[Clip], config: SlamConfig, steps: int, rate: float
) -> Lesson:
    """Adam on the mean error of clips. Choices are made once: nothing learned can change them."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    choices = [run(*tell(trust, clip.views), clip, config)[1] for clip in clips]
    state = optimizer.init(trust)  # type: ignore[arg-type]
    lesson = Lesson([trust], [], 0)
    for number in range(steps + 1):
        found = [
            slope(tell, trust, clip, config, given)
            for clip, given in zip(clips, choices, strict=True)
        ]
        loss, derivative = jax.tree.map(lambda *x: sum(x) / len(x), *found)
        lesson.loss.append(float(loss))
        if number == steps:
            break
        if jnp.isfinite(loss) and jnp.isfinite(optax.tree.norm(derivative)):
            update, state = optimizer.update(derivative, state)
            trust = optax.apply_updates(trust, update)  # type: ignore[arg-type, assignment]
        else:
            lesson.left_out += 1
        lesson.trust.append(trust)
    return lesson


def plot(runs: list[dict[str, Any]], unseen: dict[str, Any]) -> Figure:
    """Training error and what was learned over the steps, and the error of unseen clips."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    names = (("tracking", "-"), ("graph", "--"))
    for number, lesson in enumerate(runs):
        rooms = f"rooms {lesson['rooms'][0]} to {lesson['rooms'][-1]}"
        axes[0, 0].plot(lesson["training_cm"], color=COLORS[1 + number], lw=1.4, label=rooms)
        for component, (what, color) in enumerate((("rays", COLORS[1]), ("distances", COLORS[2]))):
            for name, style in names:
                label = f"{what}, {name}" if number == 0 else None
                values = np.asarray(lesson["sigmas"][name])[:, component]
                axes[1, 0].plot(values, style, color=color, lw=1.2, label=label)
        for component, (what, color) in enumerate((("points", COLORS[3]), ("matches", COLORS[4]))):
            values = np.asarray(lesson["exponents"])[:, component]
            label = what if number == 0 else None
            axes[1, 1].plot(values, color=color, lw=1.4, label=label)
    axes[0, 0].set(xlabel="step", ylabel="error of training clips, cm", ylim=(0, None))
    axes[1, 0].set(xlabel="step", ylabel="standard deviation, radians and metres", yscale="log")
    axes[1, 1].set(xlabel="step", ylabel="exponent of the confidences")
    axes[1, 1].axhline(-1, color="#bbbbbb", lw=0.8, zorder=0)
    axes[1, 1].annotate("the truth about the confidences", (0, -1), xytext=(2, 3),
                        textcoords="offset points", fontsize=8, color="#888888")  # fmt: skip
    for axis in (axes[0, 0], axes[1, 0], axes[1, 1]):
        axis.legend(fontsize=8)
    labels = {"defaults": "defaults", "standard deviations only": "standard\ndeviations",
              "exponents only": "exponents", "both": "both"}  # fmt: skip
    for place, name in enumerate(labels):
        values = np.asarray(unseen[name]["values"])
        axes[0, 1].bar(place, values.mean(), color=COLORS[place], alpha=0.75, width=0.7)
        shift = np.linspace(-0.25, 0.25, len(values))
        axes[0, 1].plot(place + shift, values, "o", ms=3, color="#333333")
    axes[0, 1].set_xticks(range(len(labels)), list(labels.values()))
    axes[0, 1].set_ylabel("error of unseen clips, cm (dots: clips)")
    figure.suptitle("Standard deviations and confidences learned from the trajectories of clips")
    return figure


def _figures(
    seeds: list[int], lesson: Lesson, found: Trust, after: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the JSON keeps of one training."""
    path = stacked(lesson.trust)
    return {
        "rooms": seeds,
        "training_cm": (100 * np.asarray(lesson.loss)).tolist(),
        "sigmas": {
            "tracking": np.exp(path.log_tracking).tolist(),
            "graph": np.exp(path.log_graph).tolist(),
        },
        "exponents": np.asarray(path.exponents).tolist(),
        "found": _told(found),
        "steps_left_out": lesson.left_out,
        "unseen_cm": {name: (100 * errors).tolist() for name, errors in after.items()},
    }


def _told(trust: Trust) -> str:
    tracking, graph = np.exp(trust.log_tracking), np.exp(trust.log_graph)
    return (
        f"tracking {tracking[0]:.4f} rad, {tracking[1]:.3f} m; graph {graph[0]:.4f} rad, "
        f"{graph[1]:.3f} m; exponents {trust.exponents[0]:.2f}, {trust.exponents[1]:.2f}"
    )


def _centimetres(metres: np.ndarray) -> str:
    return f"{100 * metres.mean():.2f} cm"


if __name__ == "__main__":
    sys.exit(tyro.cli(LearnNoise).execute())
