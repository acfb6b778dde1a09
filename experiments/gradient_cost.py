"""What derivatives cost: of the two solvers against solving, and of clips against their length.

    python -m experiments.gradient_cost --out outputs/gradient_cost

Solvers: milliseconds of solving alone, and of solving and taking the gradient in everything it
depends on; the difference over the first is what going back costs, in units of the forward solve.
Clips: seconds of the trajectory loss with its gradient in the noise model, and the temporary memory
that the compiled program reserves, with states kept between segments and, for comparison, in one
segment that keeps all. Writes ``gradient_cost.json`` and a plot.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro

from ops import Edges, RayFactorConfig, Sim3, optimize_graph, solve_relative_pose
from slam import Frame, NoiseModel, SlamConfig, init_state, run_clip, trajectory_loss
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.priors import RenderedGeometryPrior

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclasses.dataclass(frozen=True)
class GradientCost:
    """Time the derivatives of solvers and clips, and measure the memory of the latter."""

    size: tuple[int, int] = (128, 96)
    """Width and height of the images."""
    views: int = 8
    """Views of the pose graph, each linked with its neighbours both ways."""
    lengths: tuple[int, ...] = (4, 9, 16, 25)
    """Frames of the clips."""
    repeats: int = 7
    """Timed runs; the median counts."""
    out: pathlib.Path = pathlib.Path("outputs/gradient_cost")
    """Folder of the results."""

    def execute(self) -> int:
        """Measure, print, write."""
        solvers = {"pose": self._pose(), "graph": self._graph()}
        print(f"solvers at {self.size[0]}x{self.size[1]}, {jax.devices()[0].device_kind}")
        for name, row in solvers.items():
            print(
                f"  {name:6} {row['iterations']:3d} iterations {row['forward_ms']:8.2f} ms, with "
                f"gradient {row['gradient_ms']:8.2f} ms: back costs {row['back']:.2f} of it"
            )
        clips = []
        print("frames      segments   every state   loss and gradient, s")
        for length in self.lengths:
            clips.append(self._clip(length))
            row = clips[-1]
            print(
                f"{length:6d} {row['segments_mib']:9.1f} MiB {row['whole_mib']:9.1f} MiB "
                f"{row['gradient_s']:10.2f}",
                flush=True,
            )
        self.out.mkdir(parents=True, exist_ok=True)
        report = {"jax": jax.__version__, "size": self.size, "solvers": solvers, "clips": clips}
        (self.out / "gradient_cost.json").write_text(json.dumps(report, indent=2) + "\n")
        _plot(clips, self.out / "gradient_cost.png")
        print(f"wrote {self.out}")
        return 0

    def _time(self, function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
        """Seconds of a call, median, and its result."""
        result = jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(self.repeats):
            begin = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - begin)
        return float(np.median(times)), result

    def _solver(self, solve: Callable[..., Any], *parameters: Any) -> dict[str, Any]:
        def number(*parameters: Any) -> Any:
            solution = solve(*parameters)
            return jnp.sum(jax.tree.leaves(solution)[0] ** 2), solution.iterations

        every = tuple(range(len(parameters)))
        forward, (_, iterations) = self._time(jax.jit(number), *parameters)
        both, _ = self._time(jax.jit(jax.grad(number, every, has_aux=True)), *parameters)
        return {
            "iterations": int(iterations),
            "forward_ms": 1e3 * forward,
            "gradient_ms": 1e3 * both,
            "back": (both - forward) / forward,
        }

    def _pose(self) -> dict[str, Any]:
        rng, n = np.random.default_rng(0), self.size[0] * self.size[1]
        points = _random_points(rng, n)
        T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=7), jnp.float32))
        target = T.apply(points) * jnp.asarray(1 + 0.01 * rng.normal(size=(n, 1)), jnp.float32)
        target = target + jnp.asarray(0.005 * rng.normal(size=(n, 3)), jnp.float32)
        config = RayFactorConfig()
        q, valid = jnp.full(n, 2.0), jnp.ones(n, bool)

        def solve(points: Any, target: Any, q: Any, noise: Any) -> Any:
            return solve_relative_pose(
                points, target, q, valid, Sim3.identity(), config, noise=noise
            )

        return self._solver(solve, points, target, q, config.noise())

    def _graph(self) -> dict[str, Any]:
        rng, n, views = np.random.default_rng(0), self.size[0] * self.size[1], self.views
        T = Sim3.exp(jnp.asarray(0.1 * rng.normal(size=(views, 7)), jnp.float32))
        world = _random_points(rng, n)
        points = T.inverse()[:, None].apply(world)
        points = points * jnp.asarray(1 + 0.01 * rng.normal(size=(views, n, 1)), jnp.float32)
        i, j = np.arange(views - 1, dtype=np.int32), np.arange(1, views, dtype=np.int32)
        i, j = np.concatenate([i, j]), np.concatenate([j, i])
        count = len(i)
        edges = Edges(
            jnp.asarray(i),
            jnp.asarray(j),
            jnp.tile(jnp.arange(n, dtype=jnp.int32), (count, 1)),
            jnp.ones((count, n), bool),
            jnp.full((count, n), 2.0),
            jnp.ones(count, bool),
        )
        start = T.retract(jnp.asarray(0.02 * rng.normal(size=(views, 7)), jnp.float32))
        config = RayFactorConfig(max_iterations=10, rel_error=0.0, delta_norm=1e-8)
        confidence = jnp.ones((views, n))

        def solve(points: Any, q: Any, noise: Any) -> Any:
            return optimize_graph(
                start, points, confidence, edges.replace(q=q), config, noise=noise
            )

        return self._solver(solve, points, edges.q, config.noise())

    def _clip(self, length: int) -> dict[str, Any]:
        width, height = self.size
        source = parse_procedural(f"procedural:room?seed=3&frames={length}&size={width}x{height}")
        frames = jax.tree.map(
            lambda *x: jnp.stack(x), *(f for _, f in prepare_frames(source, width))
        )
        prior = RenderedGeometryPrior()
        config = SlamConfig(size=width, keyframe_capacity=4, edge_capacity=8)
        noise = NoiseModel(config.tracking.rays.noise(), config.graph.rays.noise())

        def loss(noise: NoiseModel, frames: Frame, segment: int | None) -> Any:
            state = init_state(prior, config, jax.tree.map(lambda x: x[0], frames), noise=noise)
            clip = run_clip(prior, config, state, frames, segment=segment)
            return trajectory_loss(clip.trajectory(), jnp.asarray(frames.T_WC), clip.placed)

        def compiled(function: Any, segment: int | None) -> Any:
            program = jax.jit(lambda noise, frames: function(noise, frames, segment))
            return program.lower(noise, frames).compile()

        gradient = compiled(jax.value_and_grad(loss), None)
        whole = compiled(jax.value_and_grad(loss), length)
        mib = [c.memory_analysis().temp_size_in_bytes / 2**20 for c in (gradient, whole)]
        repeats = dataclasses.replace(self, repeats=min(self.repeats, 3))
        both, (value, pulled) = repeats._time(gradient, noise, frames)
        finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(pulled))
        return {
            "frames": length,
            "segments_mib": mib[0],
            "whole_mib": mib[1],
            "gradient_s": both,
            "loss_m": float(value),
            "gradient_is_finite": finite,
        }


def _random_points(rng: np.random.Generator, count: int) -> Any:
    xy = rng.uniform(-0.6, 0.6, (count, 2))
    points = np.concatenate([xy, np.ones((count, 1))], axis=1) * rng.uniform(1, 4, (count, 1))
    return jnp.asarray(points, jnp.float32)


def _plot(clips: list[dict[str, Any]], path: pathlib.Path) -> None:
    frames = [row["frames"] for row in clips]
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    memory.plot(frames, [row["segments_mib"] for row in clips], "o-", label="segments")
    memory.plot(frames, [row["whole_mib"] for row in clips], "s--", label="every state kept")
    memory.set(xlabel="frames of the clip", ylabel="temporary memory, MiB", ylim=(0, None))
    memory.legend()
    seconds.plot(frames, [row["gradient_s"] for row in clips], "o-")
    seconds.set(xlabel="frames of the clip", ylabel="loss and gradient, seconds", ylim=(0, None))
    for axes in (memory, seconds):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(tyro.cli(GradientCost).execute())
