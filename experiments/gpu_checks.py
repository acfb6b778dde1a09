"""Everything that only a GPU can tell, in parts: one command for a machine one has for minutes.

    python -m experiments.gpu_checks outputs/gpu --minutes 8

Parts come in order of what they are worth. Each runs in a process of its own, so that one that
fails, hangs or fills the memory costs no other; what it measured is written as it ends, and a part
that has been written is not run again: called again with the same folder, the command goes on.

- ``ceilings``: the device, its versions, copy bandwidth and matrix products, to judge the rest by;
- ``parity``: matching, factors, graph, Cholesky and a tiny network against the same on the CPU;
- ``network``: ViT-Large at 512x384, encoder and decoder: seconds to compile, milliseconds to run;
- ``stages``: matching, pose, and global optimisation at 100 keyframes and 300 edges;
- ``system``: frames per second of a procedural walk at 512x384, with the work of ViT-Large;
- ``memory``: bytes of maps of 100, 300 and 1,000 keyframes;
- ``train``: the small prior goes on learning, in ``OUT/small_prior``, for what time is left.

It needs no more than the package's own dependencies. ``--toy`` is the same on small inputs, to try
the command on a CPU: its figures say nothing. Exit status 1 if a part failed or parity did not
hold, 3 if parts are left over.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import slam
from mast3r_jax import MASt3R, MASt3RConfig
from ops import (
    Edges,
    PixelFactorConfig,
    RayFactorConfig,
    Sim3,
    match,
    optimize_graph,
    pinhole,
    solve_relative_pose,
    solve_spd,
)
from ops.records import Record, record
from slam.io.atomic import atomic_write
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.priors import MASt3RPrior, RenderedGeometryPrior
from slam.runner import Stepper
from slam.types import Frame

Part = Literal["ceilings", "parity", "network", "stages", "system", "memory", "train"]
PARTS: tuple[Part, ...] = (
    "ceilings", "parity", "network", "stages", "system", "memory", "train",
)  # fmt: skip
LEFT_OVER = 3
MIN_TRAINING_SECONDS = 90.0
"""Training is not begun with less time left: compiling alone takes most of it."""
GRACE_SECONDS = 15.0
"""For a part that is cut off to write what it has."""


@dataclasses.dataclass(frozen=True)
class GpuChecks:
    """Measure everything that only a GPU can tell; call again to go on."""

    out: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder of what is measured: a JSON file and a log for each part."""
    minutes: float = 8.0
    """This call is over by then; a part that is under way is cut off."""
    parts: tuple[Part, ...] = PARTS
    """Which parts, in this order."""
    toy: bool = False
    """Small inputs, to try the command on a CPU."""
    alone: bool = False
    """Run the first of the parts in this process: what the command calls itself with."""

    def execute(self) -> int:
        """Run what is left; returns the exit status."""
        if self.alone:
            return self._here(self.parts[0])
        if not (self.toy or shutil.which("nvidia-smi")):
            print("error: no NVIDIA GPU is seen here (no nvidia-smi); try the command with --toy")
            return 2
        end = time.monotonic() + 60 * self.minutes
        self.out.mkdir(parents=True, exist_ok=True)
        failed = left_over = False
        for part in self.parts:
            if not self._file(part).exists():
                left = end - time.monotonic()
                if left < (MIN_TRAINING_SECONDS if part == "train" else 5):
                    left_over = True
                    break
                print(f"{part} ...", flush=True)
                status = self._apart(part, left)
                left_over |= status == LEFT_OVER
                failed |= status not in (0, LEFT_OVER)
            if self._file(part).exists():
                failed |= not json.loads(self._file(part).read_text()).get("holds", True)
        print(table(self.out))
        return 1 if failed else LEFT_OVER if left_over else 0

    def _file(self, part: str) -> pathlib.Path:
        return self.out / f"{part}.json"

    def _apart(self, part: Part, seconds: float) -> int:
        """Run a part in a process of its own."""
        command = [sys.executable, "-m", "experiments.gpu_checks", str(self.out), "--alone"]
        command += ["--parts", part, "--minutes", f"{seconds / 60:.3f}"]
        command += ["--toy"] * self.toy
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled")}
        log = self.out / f"{part}.log"
        with log.open("w") as file:
            child = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.terminate()  # training answers by writing what it has
                try:
                    child.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                print(f"  cut off after {seconds:.0f} s, see {log}")
                return LEFT_OVER
        if status not in (0, LEFT_OVER):
            print(f"  failed, see {log}")
        return status

    def _here(self, part: Part) -> int:
        began = time.monotonic()
        if part == "train":
            return self._train()
        figures = {"device": jax.devices()[0].device_kind, **_PARTS[part](self)}
        figures["seconds"] = round(time.monotonic() - began, 1)
        self._write(part, figures)
        return 0

    def _write(self, part: Part, figures: dict[str, Any]) -> None:
        with atomic_write(self._file(part)) as file:
            file.write((json.dumps(figures, indent=1) + "\n").encode())

    def _train(self) -> int:
        """A slice of the small prior's training; what it leaves is in files that can be carried."""
        from experiments.small_prior import SmallPrior

        work = self.out / "small_prior"
        minutes = self.minutes - 0.5
        status = SmallPrior(work, minutes=minutes, toy=self.toy, out=self.out / "preset").execute()
        if status == 0:
            self._write("train", {"preset": str(self.out / "preset")})
        return status

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of images."""
        return (64, 48) if self.toy else (512, 384)

    @property
    def network(self) -> MASt3RConfig:
        """The network whose work is measured."""
        return MASt3RConfig.small() if self.toy else MASt3RConfig.vit_large()


# timing


def measured(function: Callable[..., Any], *arguments: Any, repeats: int = 20) -> dict[str, float]:
    """Seconds to compile; then median and extremes of single calls, in milliseconds."""
    jax.config.update("jax_enable_compilation_cache", False)  # or it would be the time of a lookup
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - begin
    jax.config.update("jax_enable_compilation_cache", True)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.perf_counter() - begin))
    return {
        "compile_s": compile_s,
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
    }


def ceilings(checks: GpuChecks) -> dict[str, Any]:
    """What the device can do at best."""
    n = 512 if checks.toy else 8192
    figures: dict[str, Any] = {
        "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        "backend": jax.default_backend(),
        "driver": _driver(),
    }
    for dtype in (jnp.bfloat16, jnp.float32):
        a = jnp.ones((n, n), dtype)
        ms = measured(lambda a: a @ a, a)["median_ms"]
        figures[f"matmul_{jnp.dtype(dtype).name}_tflops"] = 2 * n**3 / ms / 1e9
    a = jnp.ones((n, n), jnp.float32)
    ms = measured(lambda a: a + 1, a)["median_ms"]
    figures["copy_gb_per_s"] = 2 * a.nbytes / ms / 1e6
    return figures


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


# inputs


def _two_views(size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Pointmaps of two views of one bumpy surface in view 1's camera, and their descriptors."""
    width, height = size
    rng = np.random.default_rng(seed)
    K = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]], np.float32)
    pixels = pinhole.pixel_grid((height, width))
    u, v = np.asarray(pixels).T / width
    depth = 2 + 0.3 * np.sin(9 * u) * np.cos(7 * v)
    points_1 = pinhole.unproject(pixels, jnp.asarray(depth, jnp.float32), jnp.asarray(K))
    shifted = pinhole.unproject(
        pixels + jnp.asarray([3.3, -2.1]), jnp.asarray(depth, jnp.float32), jnp.asarray(K)
    )
    directions = jnp.asarray(rng.normal(size=(3, 24)), jnp.float32)

    def describe(points: jax.Array) -> jax.Array:
        waves = jnp.sin(4 * points @ directions)
        return waves / jnp.linalg.norm(waves, axis=-1, keepdims=True)

    shape = (height, width, -1)
    return {
        "points_1": points_1.reshape(shape),
        "points_2": shifted.reshape(shape),
        "descriptors_1": describe(points_1).reshape(shape),
        "descriptors_2": describe(shifted).reshape(shape),
        "K": jnp.asarray(K),
    }


def _graph(size: tuple[int, int], views: int, edges: int) -> dict[str, Any]:
    """A chain of views of one surface, linked both ways to their nearest, perturbed."""
    points = np.asarray(_two_views(size)["points_1"]).reshape(-1, 3)
    rng, n = np.random.default_rng(0), len(points)
    T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=(views, 7)), jnp.float32))
    seen = T.inverse()[:, None].apply(jnp.asarray(points))
    pairs = [(k, k + gap) for gap in range(1, views) for k in range(views - gap)]
    pairs = [end for i, j in pairs for end in ((i, j), (j, i))][:edges]
    i, j = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))
    index = jnp.tile(jnp.arange(n, dtype=jnp.int32), (len(pairs), 1))
    graph = Edges(
        i, j, index, jnp.ones(index.shape, bool), jnp.full(index.shape, 2.0, jnp.float16),
        jnp.ones(len(pairs), bool),
    )  # fmt: skip
    start = T.retract(jnp.asarray(0.02 * rng.normal(size=(views, 7)), jnp.float32))
    return {"start": start, "points": seen, "confidence": jnp.ones((views, n)), "edges": graph}


# parity


def parity(checks: GpuChecks) -> dict[str, Any]:
    """The device against the CPU, on the same inputs and programs."""
    cases = _parity_cases((64, 48) if checks.toy else (256, 192))
    figures: dict[str, Any] = {}
    for name, (function, arguments, tolerance) in cases.items():
        results = []
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            placed = jax.device_put(arguments, device)
            results.append(jax.device_get(jax.jit(function)(*placed)))
        worst, differing = difference(*results)
        holds = worst <= tolerance and differing <= 0.01
        figures[name] = {"error": worst, "tolerance": tolerance, "differing": differing,
                         "holds": holds}  # fmt: skip
    return {"cases": figures, "holds": all(case["holds"] for case in figures.values())}


def difference(found: Any, expected: Any) -> tuple[float, float]:
    """Largest error of the numbers, and the share of whole numbers that differ.

    Errors are relative to the largest number of an array; what is not finite is infinitely wrong.
    """
    worst, differing = 0.0, 0.0
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if not np.issubdtype(a.dtype, np.floating):
            differing = max(differing, float(np.mean(a != b)))
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            worst = np.inf
        else:
            worst = max(worst, float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)))
    return worst, differing


def _parity_cases(size: tuple[int, int]) -> dict[str, tuple[Callable[..., Any], tuple, float]]:
    """Functions of arrays, their arguments, and the error allowed relative to the largest number.

    Of whole numbers (matched pixels, iterations, statuses) 1 % may differ: ties of rounding.
    """
    width, height = size
    two, graph = _two_views(size), _graph((32, 24), 5, 12)
    maps = [two[k] for k in ("points_1", "points_2", "descriptors_1", "descriptors_2")]
    points = two["points_1"].reshape(-1, 3)
    moved = Sim3.exp(jnp.asarray([0.1, -0.05, 0.02, 0.03, 0.02, -0.04, 0.05])).apply(points)
    q, valid = jnp.full(len(points), 2.0), jnp.ones(len(points), bool)

    def pose(config: Any) -> Callable[..., Any]:
        return lambda f, k, q, valid, K: (
            solve_relative_pose(
                f, k, q, valid, Sim3.identity(), config, K, (height, width)
            ).T_kf.wxyz_xyz_scale
        )

    pose_arguments = (points, moved, q, valid, two["K"])
    rng = np.random.default_rng(1)
    A = rng.normal(size=(7 * 16, 7 * 16))
    spd = jnp.asarray(A @ A.T + 7 * np.eye(7 * 16), jnp.float32)
    model = MASt3R(MASt3RConfig.small(), rngs=nnx.Rngs(0))
    image = jnp.asarray(rng.uniform(-1, 1, (1, 96, 128, 3)), jnp.float32)
    return {
        "match": (lambda *maps: _discrete(match(*maps)), tuple(maps), 1e-4),
        "pose, rays": (pose(RayFactorConfig()), pose_arguments, 1e-5),
        "pose, pixels": (pose(PixelFactorConfig()), pose_arguments, 1e-4),
        "graph": (
            lambda start, points, confidence, edges: (
                optimize_graph(
                    start, points, confidence, edges, RayFactorConfig(max_iterations=10)
                ).T_WC.wxyz_xyz_scale
            ),
            (graph["start"], graph["points"], graph["confidence"], graph["edges"]),
            1e-4,
        ),
        "Cholesky": (
            lambda H, g: solve_spd(H, g, size=jnp.asarray(7 * 16, jnp.int32)),
            (spd, jnp.ones(7 * 16)),
            1e-4,
        ),
        "network": (lambda m, x: m(x, x)[0].points, (model, image), 2e-2),
    }


def _outcome(solution: Any) -> tuple[Any, ...]:
    return solution.T_WC.wxyz_xyz_scale, solution.status, solution.iterations


def _discrete(matches: Any) -> tuple[Any, Any]:
    return matches.index, matches.valid


# speed


def network(checks: GpuChecks) -> dict[str, Any]:
    """Encoder of one image and decoder of one pair, in bfloat16 and in float32."""
    width, height = checks.size
    images = jnp.zeros((1, height, width, 3), jnp.float32)
    figures: dict[str, Any] = {"size": checks.size}
    for dtype in (jnp.bfloat16, jnp.float32):
        model = MASt3R(checks.network, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
        tokens = jax.jit(lambda m, x: m.encode(x))(model, images)
        shape = (height, width)
        figures[jnp.dtype(dtype).name] = {
            "encode": measured(lambda m, x: m.encode(x), model, images),
            "decode": measured(lambda m, t, s=shape: m.decode(t, t, s, s), model, tokens),
        }
    return figures


def stages(checks: GpuChecks) -> dict[str, Any]:
    """What follows the network, one by one."""
    views, links = (6, 18) if checks.toy else (100, 300)
    two, graph = _two_views(checks.size), _graph(checks.size, views, links)
    maps = [two[k] for k in ("points_1", "points_2", "descriptors_1", "descriptors_2")]
    points = two["points_1"].reshape(-1, 3)
    moved = Sim3.exp(jnp.asarray([0.1, -0.05, 0.02, 0.03, 0.02, -0.04, 0.05])).apply(points)
    q, valid = jnp.full(len(points), 2.0), jnp.ones(len(points), bool)
    ten = RayFactorConfig(max_iterations=10, rel_error=0.0, delta_norm=0.0)

    def pose(f: jax.Array, k: jax.Array, q: jax.Array, valid: jax.Array) -> Any:
        return solve_relative_pose(f, k, q, valid, Sim3.identity(), RayFactorConfig())

    def optimize(start: Sim3, points: jax.Array, confidence: jax.Array, edges: Edges) -> Any:
        return optimize_graph(start, points, confidence, edges, ten)

    arguments = graph["start"], graph["points"], graph["confidence"], graph["edges"]
    figures = {
        "match": measured(match, *maps),
        "pose": measured(pose, points, moved, q, valid)
        | {"iterations": int(jax.jit(pose)(points, moved, q, valid).iterations)},
        f"optimize, {views} keyframes, {links} edges, 10 iterations": measured(
            optimize, *arguments, repeats=5
        ),
    }
    for count in (16,) if checks.toy else (64, 256, 1024):
        H = jnp.eye(7 * count) * 2 + 1e-3
        figures[f"Cholesky, {count} keyframes"] = measured(
            lambda H, n=count: solve_spd(H, H[0], size=jnp.asarray(7 * n, jnp.int32))[0],
            H, repeats=5,
        )  # fmt: skip
    return {"size": checks.size, "stages": figures}


@record
class WorkingPrior(Record):
    """The rendered geometry, and the whole work of a network, whose answers are not used."""

    geometry: RenderedGeometryPrior
    """What is said."""
    network: MASt3RPrior
    """What is computed."""

    def encode(self, frame: Frame) -> Any:
        """Both encodings."""
        geometry = self.geometry.encode(frame)
        return BothEncodings(geometry.features, geometry, self.network.encode(frame))

    def decode(self, encoding_1: Any, encoding_2: Any) -> Any:
        """The geometry's pointmaps; a number of the network's is added to them times 0."""
        views = self.geometry.decode(encoding_1.geometry, encoding_2.geometry)
        worked = self.network.decode(encoding_1.network, encoding_2.network)

        def marked(view: Any, work: Any) -> Any:
            nothing = 0 * sum(jnp.mean(leaf) for leaf in jax.tree.leaves(work))
            return view.replace(points=view.points + jnp.nan_to_num(nothing).astype(jnp.float32))

        return tuple(marked(view, work) for view, work in zip(views, worked, strict=True))


@record
class BothEncodings(Record):
    """What both priors need of a frame."""

    features: Any
    """The geometry's, for retrieval."""
    geometry: Any
    network: Any


def system(checks: GpuChecks) -> dict[str, Any]:
    """A walk, frame by frame, each waited for: seconds of every stage and frames per second.

    Frames at which something was compiled are counted and left out.
    """
    width, height = checks.size
    frames = 20 if checks.toy else 120
    source = parse_procedural(f"procedural:room?seed=3&frames={frames}&size={width}x{height}")
    prepared = [frame for _, frame in prepare_frames(source, width)]
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    model = MASt3R(checks.network, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    prior = WorkingPrior(RenderedGeometryPrior(), MASt3RPrior(model))
    config = slam.SlamConfig(size=width, keyframe_capacity=32, edge_capacity=128)
    state, step = slam.init_state(prior, config, prepared[0]), Stepper(config)
    settled, tracked = [], 0
    for frame in prepared:
        compiled, begin = step.cache_sizes(), time.perf_counter()
        state, output, _ = step(prior, state, frame)
        if step.cache_sizes() == compiled:
            settled.append(time.perf_counter() - begin)
        tracked += int(output.mode) == int(slam.Mode.TRACKING)
    return {
        "size": checks.size,
        "frames": frames,
        "tracked": tracked,
        "keyframes": int(state.keyframes.size),
        "frames_per_second": len(settled) / sum(settled),
        "frames_that_compiled": frames - len(settled),
        "latency_ms": {
            "median": 1e3 * statistics.median(settled),
            "p99": 1e3 * float(np.percentile(settled, 99)),
        },
        "stages": {
            name: {key: value for key, value in row.items() if not np.isnan(value)}
            for name, row in step.timer.summary().items()
        },
        "peak_bytes": _peak(),
    }


def memory(checks: GpuChecks) -> dict[str, Any]:
    """Bytes of a map by its capacity, three edges a keyframe."""
    width, height = checks.size
    source = parse_procedural(f"procedural:room?seed=3&frames=1&size={width}x{height}")
    frame = next(frame for _, frame in prepare_frames(source, width))
    prior = MASt3RPrior(nnx.eval_shape(lambda: MASt3R(checks.network, rngs=nnx.Rngs(0))))
    figures = {}
    for count in (4, 8) if checks.toy else (100, 300, 1000):
        config = slam.SlamConfig(
            size=width, keyframe_capacity=count, edge_capacity=3 * count, max_keyframes=count
        )
        state = jax.eval_shape(
            lambda prior, frame, config=config: slam.init_state(prior, config, frame), prior, frame
        )
        bytes_of = {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
            for name, part in (("keyframes", state.keyframes), ("graph", state.graph))
        }
        figures[str(count)] = {
            "gib": sum(bytes_of.values()) / 2**30,
            "mb_a_keyframe": bytes_of["keyframes"] / count / 1e6,
            "mb_an_edge": bytes_of["graph"] / (3 * count) / 1e6,
        }
    return {"size": checks.size, "maps": figures}


def _peak() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


_PARTS: dict[str, Callable[[GpuChecks], dict[str, Any]]] = {
    "ceilings": ceilings, "parity": parity, "network": network, "stages": stages,
    "system": system, "memory": memory,
}  # fmt: skip


def table(out: pathlib.Path) -> str:
    """All that has been measured, in a column."""
    lines = []
    for part in PARTS:
        path = out / f"{part}.json"
        if path.exists():
            lines.append(f"{part}:")
            lines += [f"  {name}: {value}" for name, value in _flat(json.loads(path.read_text()))]
    return "\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}, ")
        else:
            rows.append((prefix + name, f"{value:.4g}" if isinstance(value, float) else value))
    return rows


if __name__ == "__main__":
    sys.exit(tyro.cli(GpuChecks).execute())
