"""Finding the lens by descent through the pose solver: focal length and radial distortion.

    python -m experiments.self_calibration --out self_calibration

The calibrated mode slides every point onto its pixel's ray, so its poses depend on the intrinsics,
and through the implicit derivative of the solver so does everything computed from the poses. From
several wrong focal lengths and no distortion, two losses are descended:

- ``trajectory``: error of the trajectory after Sim(3) alignment, where the true one is known;
- ``reprojection``: the solver's own robust cost at its solution, for which nothing need be known.
  It counts image pixels: what undistortion stretches is weighed down by as much.

The pointmaps come from the rendered geometry behind the true lens, with noise, and bent as those of
a network that believes in a focal length ``prior_focal`` times the true one: their depths are all
the calibrated mode takes from them. Matches are ``ops.match``'s, whole pixels, found once. The
principal point is known. Each repeat has rooms and noise of its own; what was found is then judged
by the trajectory error in rooms that took no part. Writes ``self_calibration.json`` and ``.png``.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Bool, Float, Int
from matplotlib.figure import Figure

from experiments.clips import COLORS, ClipOptions, film, spread, stacked, write_json, write_png
from mast3r_jax import Pointmap
from ops import (
    PixelFactorConfig,
    Sim3,
    SolverStatus,
    constrain_to_rays,
    pinhole,
    solve_relative_pose,
)
from ops.records import Record, record
from ops.relative_pose import linearize_relative_pose
from slam.config import SlamConfig
from slam.frontend import decode_pair
from slam.losses import trajectory_loss
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.state import identity_match
from slam.tracking import correspond, first_pointmap
from slam.types import Frame
from slam.world.camera import undistort

SOLVER = PixelFactorConfig(pixel_border=-1e4, max_iterations=20, rel_error=0.0, delta_norm=1e-5)
"""Converged well, for the derivative is that of the minimum. A prediction counts wherever it
falls: what counts must not change with the lens."""
LOSSES = ("trajectory", "reprojection")


@record
class Lens(Record):
    """What is sought; the image's shape and its centre, the principal point, are known."""

    log_focal: Float[Array, "*steps"]
    """Of the focal length in pixels."""
    stretch: Float[Array, "*steps 2"]
    """How much further out than the lens a pinhole camera sees the image's corner, as a logarithm;
    and how much it is halfway to the corner, beyond the quarter that goes with r^2. Unlike k1 and
    k2 these do not depend on the focal length, equal numbers mean about equal pixels, and small
    steps do not come to lenses that see no corner."""

    def coefficients(self, shape: tuple[int, int]) -> Float[Array, "4"]:
        """Brown-Conrady's ``k1, k2, p1, p2``."""
        # In units of the corner's radius, u (1 + b1 u^2 + b2 u^4) is 1 and 1/2 at two known u.
        corner = self.stretch[0]
        log_stretch = jnp.stack([corner, corner / 4 + self.stretch[1]])
        square = jnp.exp(2 * log_stretch) * jnp.array([1.0, 0.25])
        value = jnp.expm1(-log_stretch) / square
        b2 = (value[0] - value[1]) / (square[0] - square[1])
        b1 = value[0] - b2 * square[0]
        unit = _corner_square(shape) / jnp.exp(2 * self.log_focal)
        return jnp.stack([b1 / unit, b2 / unit**2, jnp.zeros_like(b1), jnp.zeros_like(b1)])

    def intrinsics(self, shape: tuple[int, int]) -> Float[Array, "3 3"]:
        """Of the pinhole behind the lens."""
        focal, (cx, cy) = jnp.exp(self.log_focal), _centre(shape)
        return jnp.diag(jnp.stack([focal, focal, jnp.ones_like(focal)])) + jnp.array(
            [[0.0, 0.0, cx], [0.0, 0.0, cy], [0.0, 0.0, 0.0]]
        )

    def ideal(self, shape: tuple[int, int]) -> Float[Array, "hw 2"]:
        """Where a pinhole camera would see every pixel."""
        return jnp.exp(self.log_focal) * self._normalized(shape) + jnp.array(_centre(shape))

    def area(self, shape: tuple[int, int]) -> Float[Array, "hw"]:
        """Image pixels squared for one of the pinhole camera's: determinant of the distortion."""
        square = jnp.sum(self._normalized(shape) ** 2, axis=-1)
        k1, k2, _, _ = self.coefficients(shape)
        radial = 1 + square * (k1 + square * k2)
        return radial * (radial + 2 * square * (k1 + 2 * square * k2))

    def _normalized(self, shape: tuple[int, int]) -> Float[Array, "hw 2"]:
        pixels = pinhole.pixel_grid(shape) - jnp.array(_centre(shape))
        return undistort(pixels / jnp.exp(self.log_focal), self.coefficients(shape))


def lens(focal: float, k1: float, k2: float, shape: tuple[int, int]) -> Lens:
    """The lens with these parameters."""
    radii = jnp.sqrt(_corner_square(shape)) / focal * jnp.array([1.0, 0.5])
    seen = jnp.stack([radii, jnp.zeros_like(radii)], axis=-1)
    ideal = undistort(seen, jnp.array([k1, k2, 0.0, 0.0]))[:, 0]
    corner, halfway = jnp.log(ideal / radii)
    return Lens(jnp.log(jnp.float32(focal)), jnp.stack([corner, halfway - corner / 4]))


def _centre(shape: tuple[int, int]) -> tuple[float, float]:
    height, width = shape
    return (width - 1) / 2, (height - 1) / 2


def _corner_square(shape: tuple[int, int]) -> float:
    return sum(c * c for c in _centre(shape))


@record
class LensPrior(Record):
    """The rendered geometry as seen through a lens, by somebody who is wrong about its focal."""

    base: RenderedGeometryPrior
    """Depth and noise."""
    lens: Lens
    """The true lens."""
    believed: Float[Array, ""]
    """The focal length that the pointmaps are bent to, over the true one."""

    def encode(self, frame: Frame) -> Any:
        """True geometry of one frame."""
        encoding = self.base.encode(frame)
        height, width = encoding.seen.shape
        pixels = self.lens.ideal((height, width)).reshape(height, width, 2)
        K = self.lens.intrinsics((height, width))
        return encoding.replace(points_C=pinhole.unproject(pixels, jnp.asarray(frame.depth), K))

    def decode(self, encoding_1: Any, encoding_2: Any) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs, both in view 1's camera, squeezed towards its axis."""
        squeeze = jnp.stack([1 / self.believed, 1 / self.believed, jnp.ones_like(self.believed)])

        def bent(view: Pointmap) -> Pointmap:
            return view.replace(points=view.points * squeeze)

        view_1, view_2 = self.base.decode(encoding_1, encoding_2)
        return bent(view_1), bent(view_2)


@record
class Observation(Record):
    """A frame beside its keyframe: all that does not depend on the lens; stacked over both axes."""

    points_f: Float[Array, "*pairs hw 3"]
    """Pointmap of the frame, in its camera."""
    points_k: Float[Array, "*pairs hw 3"]
    """Pointmap of the keyframe, in its camera."""
    index: Int[Array, "*pairs hw"]
    """The frame's pixel that matches each of the keyframe's."""
    usable: Bool[Array, "*pairs hw"]
    """Which of the matches count."""
    quality: Float[Array, "*pairs hw"]
    """How much."""


@record
class Problem(Record):
    """Several clips; every ``EVERY``-th frame is a keyframe, which the next frames are tied to."""

    observations: Observation
    """Of all frames but the first [clips, frames - 1]."""
    truth: Float[Array, "clips frames 4 4"]
    """True poses."""


EVERY = 3
"""Frames from keyframe to keyframe."""


def observe(prior: LensPrior, clips: Frame, seeds: Int[Array, " clips"]) -> Problem:
    """Look at clips through the prior and match, as tracking does."""

    def clip(item: tuple[Frame, Array]) -> Observation:
        frames, seed = item
        eyes = prior.replace(base=prior.base.replace(seed=seed))
        count, height, width = frames.image.shape[:3]
        config = SlamConfig(size=width)
        encodings = jax.lax.map(eyes.encode, frames)

        def pair(ends: tuple[Array, Array]) -> Observation:
            k, f = (jax.tree.map(lambda x, n=n: x[n], encodings) for n in ends)
            keyframe = first_pointmap(config.tracking, decode_pair(eyes, k, k)[0])
            view_f, view_k = decode_pair(eyes, f, k)
            start = identity_match((height, width))
            found = correspond(config, view_f, view_k, keyframe, start)
            points_f = view_f.points.reshape(-1, 3)
            return Observation(
                points_f, keyframe.points, found.matches.index, found.usable, found.quality
            )

        numbers = jnp.arange(1, count)
        return jax.lax.map(pair, ((numbers - 1) // EVERY * EVERY, numbers))

    return Problem(jax.lax.map(clip, (clips, seeds)), jnp.asarray(clips.T_WC))


def place(
    lens: Lens, observations: Observation, shape: tuple[int, int]
) -> tuple[Sim3, Float[Array, " pairs"], Int[Array, " pairs"]]:
    """Poses of frames in their keyframes, cost of a match, and the solver's status."""
    K, pixels, area = lens.intrinsics(shape), lens.ideal(shape), lens.area(shape)

    def one(o: Observation) -> tuple[Sim3, Array, Array]:
        points_f = constrain_to_rays(o.points_f, K, shape, pixels)[o.index]
        points_k = constrain_to_rays(o.points_k, K, shape, pixels)
        problem = (points_f, points_k, o.quality * area, o.usable)
        calibration = (SOLVER, K, shape)
        solution = solve_relative_pose(*problem, Sim3.identity(), *calibration, pixels=pixels)
        # At the solution, which moves with the lens: the cost is not quite what it minimises.
        equations = linearize_relative_pose(*problem, solution.T_kf, *calibration, pixels=pixels)
        count = jnp.maximum(jnp.sum(o.usable, dtype=jnp.int32), 1).astype(jnp.float32)
        return solution.T_kf, equations.cost / count, solution.status

    return jax.lax.map(one, observations)


def trajectory(T_kf: Sim3) -> Sim3:
    """Poses of all frames in the first one's camera, from those in their keyframes."""
    poses = [Sim3.identity()]
    for number in range(1, T_kf.batch_axes[0] + 1):
        poses.append(poses[(number - 1) // EVERY * EVERY] @ T_kf[number - 1])
    return Sim3(jnp.stack([T.wxyz_xyz_scale for T in poses]))


@record
class Judgement(Record):
    """What both losses say of a lens."""

    trajectory: Float[Array, ""]
    """Mean over clips of the trajectory error in metres."""
    reprojection: Float[Array, ""]
    """Mean robust cost of a match."""
    failed: Int[Array, ""]
    """Pairs whose pose could not be solved."""


def judge(lens: Lens, problem: Problem, shape: tuple[int, int]) -> Judgement:
    """Solve all poses with a lens and hold them against the truth and against the matches."""

    def clip(item: tuple[Observation, Array]) -> tuple[Array, Array, Array]:
        observations, truth = item
        T_kf, cost, status = place(lens, observations, shape)
        error = trajectory_loss(trajectory(T_kf), truth, jnp.ones(truth.shape[0], bool))
        failed = jnp.sum(status >= SolverStatus.NOT_FINITE, dtype=jnp.int32)
        return error, jnp.mean(cost), failed

    errors, costs, failed = jax.lax.map(clip, (problem.observations, problem.truth))
    return Judgement(jnp.mean(errors), jnp.mean(costs), jnp.sum(failed, dtype=jnp.int32))


@record
class Descent(Record):
    """A descent, step by step."""

    lens: Lens
    """Before each step, and at the end [steps + 1]."""
    loss: Float[Array, " steps"]
    """Before each step."""
    failed: Int[Array, " steps"]
    """Poses that could not be solved."""
    not_finite: Int[Array, ""]
    """Steps left out because a derivative was not finite."""


def descender(
    shape: tuple[int, int], steps: int, rate: float
) -> Callable[[Lens, Problem, str], Descent]:
    """A compiled descent of one of the ``LOSSES`` from a lens: Adam, its rate falling to 0."""
    optimizer = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(rate, steps)), max_consecutive_errors=steps
    )

    def measured(lens: Lens, problem: Problem, share: Array) -> tuple[Array, Judgement]:
        judgement = judge(lens, problem, shape)
        losses = jnp.stack([judgement.trajectory, judgement.reprojection])
        return jnp.sum(share * losses), judgement

    @jax.jit
    def descend(start: Lens, problem: Problem, share: Array) -> Descent:
        def step(carry: Any, _: None) -> tuple[Any, tuple]:
            lens, state = carry
            differentiated = jax.value_and_grad(measured, has_aux=True)
            (value, judgement), slope = differentiated(lens, problem, share)
            update, state = optimizer.update(slope, state, lens)
            following = optax.apply_updates(lens, update)
            return (following, state), (lens, value, judgement.failed)

        carry: Any = start, optimizer.init(start)  # type: ignore[arg-type]
        (end, state), (path, values, failed) = jax.lax.scan(step, carry, None, length=steps)
        path = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), path, end)
        return Descent(path, values, failed, state.total_notfinite)

    # One program for both losses: which of them is an argument.
    return lambda start, problem, loss: descend(
        start, problem, jnp.array([float(loss == name) for name in LOSSES])
    )


def errors(found: Lens, truth: Lens, shape: tuple[int, int]) -> tuple[float, float]:
    """Error of the focal length in percent, and of the corner's undistorted place in pixels."""
    focal = 100 * (float(jnp.exp(found.log_focal - truth.log_focal)) - 1)
    corner = found.ideal(shape)[0] - truth.ideal(shape)[0]
    return focal, float(jnp.linalg.norm(corner))


@dataclasses.dataclass(frozen=True)
class SelfCalibration:
    """Recover focal length and distortion by descent, with ground truth and without."""

    out: pathlib.Path = pathlib.Path("self_calibration")
    """Folder for the numbers and the plot."""
    repeats: int = 3
    """Sets of rooms."""
    rooms: int = 2
    """Rooms in a set, and rooms that it is tested in."""
    clips: ClipOptions = dataclasses.field(default_factory=lambda: ClipOptions(frames=13, stride=4))
    """How they are filmed."""
    starts: tuple[float, ...] = (0.7, 0.85, 1.2, 1.4)
    """Where the focal length starts, over the true one."""
    k1: float = -0.2
    """Distortion of the true lens."""
    k2: float = 0.05
    """The same, of fourth order."""
    prior_focal: float = 1.1
    """The focal length that the prior believes in, over the true one."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """What else the prior gets wrong."""
    steps: int = 50
    """Steps of a descent."""
    rate: float = 0.04
    """Adam's rate at the first step, of the logarithm of the focal length and of the stretches."""
    seed: int = 0
    """Number of the first room."""
    quick: bool = False
    """A toy that only shows that everything works."""

    def execute(self) -> int:
        """Descend from everywhere; returns the exit status."""
        if self.quick:
            clips = ClipOptions(frames=7, stride=4, size=(48, 32))
            changes = {"repeats": 1, "rooms": 1, "starts": (1.2,), "steps": 12}
            return dataclasses.replace(self, clips=clips, quick=False, **changes).execute()
        width, height = self.clips.size
        shape = (height, width)
        descend = descender(shape, self.steps, self.rate)
        look = jax.jit(observe)
        test = jax.jit(lambda lens, problem: judge(lens, problem, shape).trajectory)
        rows: list[dict[str, Any]] = []
        print("                        focal error, %     corner, px    unseen rooms: error, cm")
        print("loss          rooms  start     end       start    end    start    end   true lens")
        for repeat in range(self.repeats):
            first = self.seed + 2 * repeat * self.rooms
            seeds, others = np.arange(first, first + 2 * self.rooms).reshape(2, -1)
            clips, other_clips = (
                stacked([film(int(seed), self.clips, self.k1, self.k2) for seed in some])
                for some in (seeds, others)
            )
            focal = float(jnp.asarray(clips.K)[0, 0, 0, 0])
            truth = lens(focal, self.k1, self.k2, shape)
            believed = jnp.float32(self.prior_focal)
            prior = LensPrior(RenderedGeometryPrior(self.noise), truth, believed)
            problem = look(prior, clips, jnp.asarray(seeds, jnp.int32))
            unseen = look(prior, other_clips, jnp.asarray(others, jnp.int32))
            for start in self.starts:
                begin = lens(start * focal, 0.0, 0.0, shape)
                for name in LOSSES:
                    descent = descend(begin, problem, name)
                    row = {"loss": name, "rooms": seeds.tolist(), "start": start}
                    row |= self._row(descent, truth, lambda x, on=unseen: 100 * float(test(x, on)))
                    rows.append(row)
                    print(_line(row), flush=True)
        numbers = {"options": _plain(self), "summary": summary(rows), "descents": rows}
        write_json(self.out / "self_calibration.json", numbers)
        write_png(self.out / "self_calibration.png", plot(rows, self.starts))
        for name, figures in numbers["summary"].items():
            print(
                f"{name}: focal off by {figures['focal_percent']['mean']:.2f} % on average, "
                f"{figures['focal_percent']['max']:.2f} % at most; corner by "
                f"{figures['corner_px']['mean']:.2f} px, {figures['corner_px']['max']:.2f} at most"
            )
        print(f"written to {self.out}")
        return int(not all(np.isfinite(row["loss_by_step"]).all() for row in rows))

    def _row(
        self, descent: Descent, truth: Lens, centimetres: Callable[[Lens], float]
    ) -> dict[str, Any]:
        """Figures of one descent."""
        width, height = self.clips.size
        path = [jax.tree.map(lambda x, n=n: x[n], descent.lens) for n in range(self.steps + 1)]
        focal, corner = zip(*(errors(at, truth, (height, width)) for at in path), strict=True)
        k1, k2 = np.asarray(path[-1].coefficients((height, width)))[:2].tolist()
        return {
            "focal_percent": focal,
            "corner_px": corner,
            "k1": k1,
            "k2": k2,
            "loss_by_step": np.asarray(descent.loss).tolist(),
            "poses_failed": int(descent.failed.sum()),
            "steps_not_finite": int(descent.not_finite),
            "unseen_cm": {
                "start": centimetres(path[0]),
                "end": centimetres(path[-1]),
                "true lens": centimetres(truth),
            },
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Final errors by loss, over all rooms and starts."""
    result = {}
    for name in LOSSES:
        chosen = [row for row in rows if row["loss"] == name]
        result[name] = {
            "focal_percent": spread([abs(row["focal_percent"][-1]) for row in chosen]),
            "corner_px": spread([row["corner_px"][-1] for row in chosen]),
            "steps_to_2_percent": spread([_settled(row["focal_percent"]) for row in chosen]),
            "unseen_cm": {
                when: spread([row["unseen_cm"][when] for row in chosen])
                for when in chosen[0]["unseen_cm"]
            },
        }
    return result


def plot(rows: list[dict[str, Any]], starts: tuple[float, ...]) -> Figure:
    """Focal length and corner over the steps, a column for each loss, a colour for each start."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    colors = dict(zip(starts, COLORS[1:], strict=False))
    for column, name in enumerate(LOSSES):
        for row in (row for row in rows if row["loss"] == name):
            color = colors.get(row["start"], COLORS[0])
            first = row["rooms"] == rows[0]["rooms"]
            label = f"focal starts at {row['start']:g} x" if first else None
            axes[0, column].plot(row["focal_percent"], color=color, lw=1.2, label=label)
            axes[1, column].plot(row["corner_px"], color=color, lw=1.2)
        known = "the true trajectory is known" if name == "trajectory" else "nothing is known"
        axes[0, column].set_title(f"{name}: {known}")
        axes[0, column].axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
        axes[1, column].set(yscale="log", xlabel="step")
    axes[0, 0].set_ylabel("error of the focal length, %")
    axes[1, 0].set_ylabel("error at the image's corner, px")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle("Focal length and distortion by descent; one line for each set of rooms")
    return figure


def _settled(percent: tuple[float, ...], within: float = 2.0) -> int:
    """The first step from which on the focal length is always within 2 % of the truth."""
    outside = np.flatnonzero(~(np.abs(percent) <= within))
    return int(outside[-1] + 1) if len(outside) else 0


def _line(row: dict[str, Any]) -> str:
    unseen = row["unseen_cm"]
    note = "".join(
        f"; {row[key]} {text}"
        for key, text in (
            ("poses_failed", "poses failed"),
            ("steps_not_finite", "steps without a finite derivative"),
        )
        if row[key]
    )
    rooms, focal, corner = row["rooms"], row["focal_percent"], row["corner_px"]
    return (
        f"{row['loss']:13s} {rooms[0]:2d}-{rooms[-1]:<2d} {focal[0]:6.1f} {focal[-1]:7.2f}     "
        f"{corner[0]:7.2f} {corner[-1]:6.2f}"
        f"  {unseen['start']:7.2f}{unseen['end']:7.2f}{unseen['true lens']:9.2f}{note}"
    )


def _plain(options: Any) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, pathlib.Path) else value
        for key, value in dataclasses.asdict(options).items()
    }


if __name__ == "__main__":
    sys.exit(tyro.cli(SelfCalibration).execute())
