"""Does a network learn more from the trajectory than from the pointmap? A small trial.

    python -m experiments.finetune_end_to_end --out finetune

No trained network is at hand, so one of two thousand weights corrects another prior: the rendered
geometry, which it sees with white noise that is stronger in some parts of an image than in others,
and with an error that depends on how far a point is and on where in the image (``bent``): up to a
tenth of the distance. The confidences know of none of that, they are all equal. All of it can be
told from a pointmap: the error is a function of the point and of its pixel, and noise is rough. For
each pixel the network returns a factor of the point's distance and one of both its confidences.

From one start, for equal numbers of steps and with the same clips in the same order, it learns

- ``supervised``: from the true pointmaps, by MASt3R's confidence-weighted regression;
- ``end to end``: from the trajectory error, through the whole differentiable SLAM, alone;
- ``both``: from the sum of the two.

Each has the best of several learning rates on clips that serve for nothing else. All are judged in
the same unseen rooms. Each repeat has training rooms, noise and a first network of its own. Writes
``finetune.json`` and ``finetune.png``.
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
import optax
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float
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
    write_json,
    write_png,
)
from mast3r_jax import Pointmap
from mast3r_jax.losses import confident_regression
from ops.rays import norm
from ops.records import Record, record
from slam.config import SlamConfig
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.state import NoiseModel

METHODS = ("supervised", "end to end", "both")
TRAJECTORY_SHARE = 10.0
"""Of a metre of trajectory error in the sum of ``both``: about as much as the regression's."""


class Corrector(nnx.Module):
    """Two layers that see 7 x 7 pixels; what it says at first is that all is well."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(7, width, (3, 3), rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), kernel_dilation=2, rngs=rngs)
        self.last = nnx.Conv(width, 2, (1, 1), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, view: Pointmap, number: float) -> Pointmap:
        """Corrected pointmaps [B, H, W] of the first views of pairs (``number`` -1) or second."""
        _, height, width, _ = view.points.shape
        distance = norm(view.points)
        known = distance > 0
        safe = jnp.where(known, distance, 1)
        v, u = jnp.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(safe.dtype)
        told = [
            view.points[..., 0] / safe,
            view.points[..., 1] / safe,
            jnp.log(safe) - 1,  # the rooms are some e metres wide
            jnp.log(jnp.maximum(view.confidence, 1e-3)),
            *(jnp.broadcast_to(x, safe.shape) for x in (u, v, jnp.asarray(number, safe.dtype))),
        ]
        hidden = nnx.gelu(self.first(jnp.stack(told, axis=-1)))
        stretch, trust = jnp.moveaxis(self.last(nnx.gelu(self.second(hidden))), -1, 0)
        factor = jnp.exp(jnp.clip(trust, -3, 3))
        return view.replace(
            points=view.points * jnp.exp(jnp.clip(stretch, -0.5, 0.5))[..., None],
            confidence=view.confidence * factor,
            descriptor_confidence=view.descriptor_confidence * factor,
        )


@record
class Lesson(Record):
    """A clip to learn from or to judge by, with the truth."""

    clip: Clip
    """What the SLAM is told without a correction."""
    truth: tuple[Float[Array, "pairs h w 3"], Float[Array, "pairs h w 3"]]
    """True points of both views of every pair, in view 1's camera."""


def bent(views: Views, size: float) -> Views:
    """Pointmaps with an error that depends on distance and pixel, and equal confidences."""

    def one(view: Pointmap) -> Pointmap:
        _, height, width, _ = view.points.shape
        v, u = jnp.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(view.points.dtype)
        far = jnp.tanh(norm(view.points) - 2.5)
        factor = 1 + size * (0.6 * far + 0.4 * (u * u + v * v - 1))
        seen = view.confidence > 0
        return view.replace(
            points=view.points * factor[..., None],
            confidence=jnp.where(seen, 2.0, 0.0),
            descriptor_confidence=jnp.where(seen, 2.0, 0.0),
        )

    return one(views[0]), one(views[1])


class Teacher:
    """The three ways to teach a network, compiled once for all networks of a structure."""

    def __init__(self, network: Corrector, config: SlamConfig) -> None:
        graph, _ = nnx.split(network)
        self.config = config
        rays = config.tracking.rays.noise(), config.graph.rays.noise()
        noise = NoiseModel(*rays)

        def corrected(weights: Any, views: Views) -> Views:
            network = nnx.merge(graph, weights)
            return network(views[0], -1.0), network(views[1], 1.0)

        @jax.jit
        def predict(weights: Any, views: Views) -> tuple[Views, NoiseModel]:
            return corrected(weights, views), noise

        def regression(weights: Any, lesson: Lesson) -> Float[Array, ""]:
            views, valid = _recorded(corrected(weights, lesson.clip.views)), _seen(lesson)
            metric = jnp.ones(valid[0].shape[0], bool)
            return confident_regression(*views, *lesson.truth, *valid, metric)[0]

        @jax.jit
        def wrong(weights: Any, lesson: Lesson) -> Float[Array, ""]:
            views, valid = _recorded(corrected(weights, lesson.clip.views)), _seen(lesson)
            errors = [
                jnp.sum(jnp.where(v, norm(view.points - X) / jnp.where(v, norm(X), 1), 0))
                for view, X, v in zip(views, lesson.truth, valid, strict=True)
            ]
            count = sum(jnp.sum(v, dtype=jnp.int32) for v in valid)
            return sum(errors) / jnp.asarray(count, errors[0].dtype)

        self.predict = predict
        """What the SLAM is told."""
        self.regress = jax.jit(jax.value_and_grad(regression))
        """Supervised loss and its derivative."""
        self.wrong = wrong
        """Mean error of the points of both views, over their distance."""

    def trajectory(self, weights: Any, lesson: Lesson) -> float:
        """Trajectory error in metres."""
        told, noise = self.predict(weights, lesson.clip.views)
        return float(run(told, noise, lesson.clip, self.config)[0])

    def slope(self, method: str, weights: Any, lesson: Lesson) -> tuple[Array, Any]:
        """Loss of a method for one clip, and its derivative."""
        if method == "supervised":
            return self.regress(weights, lesson)
        error, derivative = slope(self.predict, weights, lesson.clip, self.config)
        if method == "end to end":
            return error, derivative
        loss, more = self.regress(weights, lesson)
        both = jax.tree.map(lambda a, b: TRAJECTORY_SHARE * a + b, derivative, more)
        return TRAJECTORY_SHARE * error + loss, both

    def teach(
        self, method: str, weights: Any, lessons: Sequence[Lesson], steps: int, rate: float
    ) -> "Taught":
        """Adam, its rate falling to 0; each step sees the next two of the clips, in turn."""
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
        state, losses, left_out, begin = optimizer.init(weights), [], 0, time.perf_counter()
        update = jax.jit(optimizer.update)
        for number in range(steps):
            seen = [lessons[(2 * number + k) % len(lessons)] for k in range(2)]
            found = [self.slope(method, weights, lesson) for lesson in seen]
            loss, derivative = jax.tree.map(lambda *x: sum(x) / len(x), *found)
            losses.append(float(loss))
            if jnp.isfinite(loss) and jnp.isfinite(optax.tree.norm(derivative)):
                change, state = update(derivative, state)
                weights = optax.apply_updates(weights, change)
            else:
                left_out += 1
        return Taught(weights, losses, left_out, (time.perf_counter() - begin) / max(steps, 1))


@dataclasses.dataclass(frozen=True)
class Taught:
    """A network, and how it came about."""

    weights: Any
    """Its state."""
    losses: list[float]
    """Of its own kind, before each step."""
    left_out: int
    """Steps not made, because loss or derivative were not finite."""
    seconds: float
    """A step's, on average."""


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Teach a correction network by pointmaps, by trajectories, and by both."""

    out: pathlib.Path = pathlib.Path("finetune")
    """Folder for the numbers and the plot."""
    repeats: int = 3
    """How often it is learned, each time from other rooms, noise and weights."""
    rooms: int = 6
    """Clips to learn from, each in a room of its own."""
    validation: int = 2
    """Clips that the learning rate is chosen by."""
    unseen: int = 10
    """Clips to judge by, each in a room of its own."""
    clips: ClipOptions = dataclasses.field(default_factory=ClipOptions)
    """How they are filmed."""
    noise: GeometryNoise = dataclasses.field(default_factory=lambda: GeometryNoise(depth=0.03))
    """What the prior gets wrong at random."""
    bend: float = 0.1
    """Size of the error that can be learned, relative to distance."""
    width: int = 12
    """Channels of the network."""
    steps: int = 40
    """Steps of Adam."""
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01)
    """Adam's rates at the first step to choose from; chosen in the first repeat."""
    seed: int = 0
    """Number of the first training room; others are from 3000 on."""
    quick: bool = False
    """A toy that only shows that everything works."""

    def execute(self) -> int:
        """Teach and judge; returns the exit status."""
        if self.quick:
            clips = ClipOptions(frames=6, stride=4, size=(48, 32))
            changes = {"repeats": 1, "rooms": 2, "validation": 1, "unseen": 1, "steps": 3}
            changes |= {"clips": clips, "rates": (0.01,), "quick": False}
            return dataclasses.replace(self, **changes).execute()
        validation = [self._lesson(3000 + self.seed + n) for n in range(self.validation)]
        unseen = [self._lesson(4000 + self.seed + n) for n in range(self.unseen)]
        teacher = Teacher(self._network(0), clip_config(self.clips))
        untaught = nnx.split(self._network(0))[1]
        result = {"no correction": [_judged(teacher, untaught, unseen)]}
        print(f"{self.unseen} unseen clips without a correction: {_told(result['no correction'])}")
        rates: dict[str, float] = {}
        lessons_taught: list[dict[str, Any]] = []
        for repeat in range(self.repeats):
            seeds = [self.seed + repeat * self.rooms + n for n in range(self.rooms)]
            lessons = [self._lesson(seed) for seed in seeds]
            start = nnx.split(self._network(repeat))[1]
            for method in METHODS:
                tried = {}
                for rate in [rates[method]] if method in rates else self.rates:
                    taught = teacher.teach(method, start, lessons, self.steps, rate)
                    scores = [teacher.trajectory(taught.weights, one) for one in validation]
                    tried[rate] = float(np.mean(scores)), taught
                rates.setdefault(method, min(tried, key=lambda rate: tried[rate][0]))
                taught = tried[rates[method]][1]
                result.setdefault(method, []).append(_judged(teacher, taught.weights, unseen))
                lessons_taught.append(
                    {
                        "method": method,
                        "rooms": seeds,
                        "rate": rates[method],
                        "validation_cm": {str(r): 100 * score for r, (score, _) in tried.items()},
                        "losses": taught.losses,
                        "steps_left_out": taught.left_out,
                        "seconds_a_step": taught.seconds,
                    }
                )
                left_out = f"; {taught.left_out} steps left out" if taught.left_out else ""
                print(
                    f"rooms {seeds[0]} to {seeds[-1]}, {method}: {_told(result[method][-1:])}; "
                    f"rate {rates[method]:g}, {taught.seconds:.2f} s a step{left_out}",
                    flush=True,
                )
        numbers = {
            "options": dataclasses.asdict(dataclasses.replace(self, out=str(self.out))),
            "summary": {
                name: {
                    figure: spread(np.mean([one[figure] for one in judged], axis=1))
                    for figure in judged[0]
                }
                for name, judged in result.items()
            },
            "unseen": result,
            "lessons": lessons_taught,
        }
        write_json(self.out / "finetune.json", numbers)
        write_png(self.out / "finetune.png", plot(result, lessons_taught))
        for name, judged in result.items():
            print(f"{name}: {_told(judged)}")
        print(f"written to {self.out}")
        return 0

    def _network(self, seed: int) -> Corrector:
        return Corrector(self.width, rngs=nnx.Rngs(seed))

    def _lesson(self, seed: int) -> Lesson:
        """A clip in a room, with noise of its own."""
        config, frames = clip_config(self.clips), film(seed, self.clips)
        is_keyframe = keyframe_at(self.clips.frames, config.keyframe_capacity)
        wrong = RenderedGeometryPrior(dataclasses.replace(self.noise, seed=seed))
        clip = ask(wrong, frames, is_keyframe)
        right = ask(RenderedGeometryPrior(GeometryNoise.none()), frames, is_keyframe)
        truth = right.views[0].points[:-1], right.views[1].points[:-1]
        return Lesson(clip.replace(views=bent(clip.views, self.bend)), truth)


def _recorded(views: Views) -> Views:
    """The pairs that are there."""
    view_1, view_2 = jax.tree.map(lambda x: x[:-1], views)
    return view_1, view_2


def _seen(lesson: Lesson) -> tuple[Bool[Array, "pairs h w"], Bool[Array, "pairs h w"]]:
    view_1, view_2 = _recorded(lesson.clip.views)
    return view_1.confidence > 0, view_2.confidence > 0


def _judged(teacher: Teacher, weights: Any, lessons: Sequence[Lesson]) -> dict[str, list[float]]:
    """Trajectory error in centimetres and pointmap error in percent, by clip."""
    return {
        "trajectory_cm": [100 * teacher.trajectory(weights, one) for one in lessons],
        "pointmap_percent": [100 * float(teacher.wrong(weights, one)) for one in lessons],
    }


def _told(judged: Sequence[dict[str, list[float]]]) -> str:
    trajectory, pointmap = (
        np.mean([one[figure] for one in judged], axis=1)
        for figure in ("trajectory_cm", "pointmap_percent")
    )
    return f"trajectory {_range(trajectory)} cm, pointmaps {_range(pointmap)} %"


def _range(values: np.ndarray) -> str:
    several = f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
    return f"{values.mean():.2f}{several}"


def plot(result: dict[str, Any], lessons: list[dict[str, Any]]) -> Figure:
    """Losses over the steps, and errors in unseen rooms: bars over all, a dot for each training."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    colors: dict[str, str] = dict(zip(("no correction", *METHODS), COLORS, strict=False))
    for axis, method in zip(axes[0], METHODS, strict=True):
        for lesson in (lesson for lesson in lessons if lesson["method"] == method):
            axis.plot(lesson["losses"], color=colors[method], lw=1.2)
        axis.set(xlabel="step", ylabel="its own training loss", title=method)
    for axis, name, label in (
        (axes[1, 0], "trajectory_cm", "trajectory error of unseen clips, cm"),
        (axes[1, 1], "pointmap_percent", "pointmap error of unseen clips, %"),
    ):
        for place, (method, judged) in enumerate(result.items()):
            means = np.mean([one[name] for one in judged], axis=1)
            axis.bar(place, means.mean(), color=colors[method], alpha=0.75, width=0.7)
            axis.plot(np.full(len(means), place), means, "o", ms=4, color="#333333")
        axis.set_xticks(range(len(result)), [name.replace(" ", "\n") for name in result])
        axis.set_ylabel(label)
    before = np.asarray(result["no correction"][0]["trajectory_cm"])
    for method in METHODS:
        after = np.mean([one["trajectory_cm"] for one in result[method]], axis=0)
        axes[1, 2].plot(before, after, "o", ms=4, color=colors[method], label=method)
    most = 1.05 * max(axes[1, 2].get_xlim()[1], axes[1, 2].get_ylim()[1])
    axes[1, 2].plot([0, most], [0, most], color="#bbbbbb", lw=0.8, zorder=0)
    axes[1, 2].set(xlabel="without a correction, cm", ylabel="with, cm", title="clip by clip")
    axes[1, 2].legend(fontsize=8)
    figure.suptitle("A correction network learned from pointmaps and from trajectories")
    return figure


if __name__ == "__main__":
    sys.exit(tyro.cli(Finetune).execute())
