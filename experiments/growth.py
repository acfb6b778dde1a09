"""How cost grows: frames and keyframes with the map, the network with the resolution.

    python -m experiments.growth --out outputs/growth

Maps of 16 to 1,024 keyframes are made by repeating one room's keyframes, with six directed factors
a keyframe, chained to their nearest; frames are then tracked against the last of them. So each
stage sees buffers of the size it would have, filled, and nothing else changes. Prints milliseconds
(medians; the stages take turns over map sizes, so that a disturbance hits all alike) and the
exponents of the fits ``time ~ size^p``, and writes ``growth.json`` and ``growth.png``.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import slam
from mast3r_jax import MASt3R, MASt3RConfig
from ops import Sim3
from slam import linking, pipeline
from slam.graph import empty_graph
from slam.io.atomic import atomic_write
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.keyframes import grow
from slam.priors import RenderedGeometryPrior
from slam.stepper import Stepper
from slam.types import Frame, retrieval_of

FACTORS = 6
"""Directed factors of a keyframe: with the two before it and one more."""


@dataclasses.dataclass(frozen=True)
class Growth:
    """Measure how time and memory grow."""

    keyframes: tuple[int, ...] = (16, 64, 256, 1024)
    """Sizes of the map."""
    size: tuple[int, int] = (64, 48)
    """Width and height of images; time per frame scales with their pixels."""
    resolutions: tuple[tuple[int, int], ...] = ((128, 96), (224, 160), (320, 240), (512, 384))
    """Width and height of images for the network."""
    repeats: int = 7
    """Calls whose median is given."""
    out: pathlib.Path = pathlib.Path("outputs/growth")
    """Folder for the files."""

    def execute(self) -> int:
        """Measure, print, plot; returns the exit status."""
        maps = self._maps()
        network = self._network()
        figures = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "size": self.size,
            "maps": maps,
            "network": network,
            "exponents": {
                name: exponent(maps["keyframes"], maps[name])
                for name in maps
                if name != "keyframes"
            }
            | {
                name: exponent(network["pixels"], network[name])
                for name in ("encode_ms", "decode_ms")
            },
        }
        print(table(figures))
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.out / "growth.json") as file:
            file.write((json.dumps(figures, indent=1) + "\n").encode())
        with atomic_write(self.out / "growth.png") as file:
            plot(figures).savefig(file, format="png", dpi=150)
        print(f"written to {self.out}")
        return 0

    def _maps(self) -> dict[str, Any]:
        """Milliseconds and mebibytes by the number of keyframes."""
        width, height = self.size
        source = parse_procedural(f"procedural:room?seed=3&frames=24&size={width}x{height}")
        frames = [jax.device_put(frame) for _, frame in prepare_frames(source, width)]
        prior = RenderedGeometryPrior()
        subjects = [Map(prior, frames, count) for count in self.keyframes]
        # In turns, and each subject once before it counts: that compiles.
        for _ in range(1 + self.repeats):
            for subject in subjects:
                subject.frame()
        for _ in range(1 + min(self.repeats, 3)):
            for subject in subjects:
                subject.keyframe()
        rows = [subject.summary() for subject in subjects]
        return {"keyframes": list(self.keyframes)} | {k: [r[k] for r in rows] for k in rows[0]}

    def _network(self) -> dict[str, list[float]]:
        """Milliseconds of the small network by the number of pixels."""
        model = MASt3R(MASt3RConfig.small(), rngs=nnx.Rngs(0))
        figures: dict[str, list[float]] = {"pixels": [], "encode_ms": [], "decode_ms": []}
        for width, height in self.resolutions:
            images, shape = jnp.zeros((1, height, width, 3)), (height, width)
            encode = jax.jit(lambda m, x: m.encode(x))
            decode = jax.jit(lambda m, t, s=shape: m.decode(t, t, s, s))
            tokens = encode(model, images)
            figures["pixels"].append(width * height)
            figures["encode_ms"].append(self._median(encode, model, images))
            figures["decode_ms"].append(self._median(decode, model, tokens))
        return figures

    def _median(self, function: Callable[..., Any], *arguments: Any) -> float:
        times = [timed(function, *arguments) for _ in range(1 + self.repeats)]
        return statistics.median(times[1:])


class Map:
    """A map of so many keyframes, and what it costs to use it."""

    def __init__(self, prior: Any, frames: list[Frame], count: int) -> None:
        config = slam.SlamConfig(
            size=int(frames[0].image.shape[1]),
            keyframe_capacity=1,
            max_keyframes=count + 1,
            edge_capacity=8,
        )
        self.prior, self.frames, self.config = prior, frames, config
        self.stepper = Stepper(config)
        state, _, _ = self.stepper(prior, slam.init_state(prior, config, frames[0]), frames[0])
        self.state = filled(grow(state, count + 1), count)
        self.stepper = Stepper(config)
        self.query = jax.jit(
            lambda prior, state, encoding: linking.propose(
                config, retrieval_of(prior), state, encoding, jnp.asarray(True)
            )
        )
        self.optimize = jax.jit(lambda state: pipeline.optimize(config, state))
        self.times: dict[str, list[float]] = {"frame_ms": [], "query_ms": [], "optimize_ms": []}

    def frame(self) -> None:
        """Track a frame near the last keyframe."""
        begin = time.perf_counter()
        self.state, output, _ = self.stepper(self.prior, self.state, self.frames[1])
        jax.block_until_ready(self.state)
        if output.is_keyframe or int(output.mode) != int(slam.Mode.TRACKING):
            raise RuntimeError("the frame was not tracked as one between keyframes")
        self.times["frame_ms"].append(1e3 * (time.perf_counter() - begin))

    def keyframe(self) -> None:
        """What a keyframe adds that depends on the map: look it up, optimise all poses."""
        encoding = self.stepper.encode(self.prior, self.frames[2])
        self.times["query_ms"].append(timed(self.query, self.prior, self.state, encoding))
        self.times["optimize_ms"].append(timed(self.optimize, self.state))

    def summary(self) -> dict[str, float]:
        """Medians of all calls but the first; mebibytes of the state and of optimising it."""
        memory = self.optimize.lower(self.state).compile().memory_analysis()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        return {name: statistics.median(times[1:]) for name, times in self.times.items()} | {
            "state_mib": size / 2**20,
            "optimize_mib": float("nan") if memory is None else memory.temp_size_in_bytes / 2**20,
        }


def filled(state: slam.SlamState, count: int) -> slam.SlamState:
    """The state whose first keyframe is repeated to ``count``, each linked to its nearest."""
    keyframes = state.keyframes

    def repeated(buffer: jax.Array) -> jax.Array:
        return buffer.at[:count].set(buffer[0]) if buffer.ndim else buffer

    rng = np.random.default_rng(0)
    wobble = Sim3.exp(jnp.asarray(1e-3 * rng.normal(size=(keyframes.capacity, 7)), jnp.float32))
    keyframes = jax.tree.map(repeated, keyframes).replace(
        size=jnp.int32(count),
        frame_index=jnp.arange(keyframes.capacity, dtype=jnp.int32),
        T_WC=wobble,
    )
    gaps = [1, 2, max(count // 2, 1)]
    pairs = [(k, k - gap) for k in range(count) for gap in gaps if k >= gap]
    ends = np.asarray([end for i, j in pairs for end in ((i, j), (j, i))], np.int32)
    num_pixels = state.match_init.shape[0]
    graph = empty_graph(len(ends) + 8, num_pixels)
    graph = graph.replace(
        size=jnp.int32(len(ends)),
        i=graph.i.at[: len(ends)].set(ends[:, 0]),
        j=graph.j.at[: len(ends)].set(ends[:, 1]),
        index=jnp.broadcast_to(jnp.arange(num_pixels, dtype=jnp.int32), graph.index.shape),
        valid=jnp.full_like(graph.valid, 255),
        quality=jnp.full_like(graph.quality, 2),
    )
    database = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:1], x.shape) if x.ndim else x, state.database
    )
    return state.replace(keyframes=keyframes, graph=graph, database=database)


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return 1e3 * (time.perf_counter() - begin)


def exponent(sizes: list[float], values: list[float]) -> float:
    """p of the least-squares fit ``value = c size^p``."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(figures: dict[str, Any]) -> str:
    """All figures in columns, exponents last."""
    lines = [f"{figures['device']}, jax {figures['jax']}; maps at {figures['size']}"]
    for group in ("maps", "network"):
        columns = figures[group]
        lines.append("".join(f"{name:>14}" for name in columns))
        for row in zip(*columns.values(), strict=True):
            lines.append("".join(f"{value:14.4g}" for value in row))
        powers = [figures["exponents"].get(name) for name in columns]
        lines.append("".join(f"{'exponent' if p is None else f'{p:.2f}':>14}" for p in powers))
    return "\n".join(lines)


def plot(figures: dict[str, Any]) -> Figure:
    """Time and memory against map size, network time against pixels."""
    maps, network, powers = figures["maps"], figures["network"], figures["exponents"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = (
        ("time, ms", maps, "keyframes", ("frame_ms", "query_ms", "optimize_ms")),
        ("memory, MiB", maps, "keyframes", ("state_mib", "optimize_mib")),
        ("network, ms", network, "pixels", ("encode_ms", "decode_ms")),
    )
    for axes, (title, values, x, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            axes.plot(
                values[x],
                values[name],
                "o-",
                label=f"{name.rsplit('_', 1)[0]}, exponent {powers[name]:.2f}",
            )
        axes.set(
            xscale="log",
            yscale="log",
            xticks=values[x],
            xticklabels=values[x],
            title=title,
            xlabel=x,
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(tyro.cli(Growth).execute())
