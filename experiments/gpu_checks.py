"""Everything that only a GPU can tell, in parts: one command for a machine one has for minutes.

    python -m experiments.gpu_checks outputs/gpu --minutes 8

Parts come in order of what they are worth. Each runs in a process of its own, so that one that
fails, hangs or fills the memory costs no other; what it measured is written as it ends, and a part
that has been written is not run again: called again with the same folder, the command goes on, and
what was begun and not ended comes after what was not begun.

- ``ceilings``: the device, its versions, copy bandwidth and matrix products, to judge the rest by;
- ``parity``: matching, factors, graph, Cholesky and a tiny network against the same on the CPU;
- ``kernels``: every kernel against its definition, how long both take, and the fastest blocks;
- ``network``: ViT-Large at 512x384, encoder and decoder: seconds to compile, milliseconds to run;
  the same with cuDNN's attention, and both heads as one batch;
- ``stages``: the benchmark (``mast3r-slam bench``) of everything but the whole, at 512x384, with
  ViT-Large, 100 keyframes and six directed edges for each;
- ``system``: that of the whole: frames per second of a procedural walk at 512x384 with the work of
  ViT-Large, keyframes' work done at once, and spread over the frames after them;
- ``memory``: bytes of maps of 100, 300 and 1,000 keyframes, and what optimising them takes more;
- ``trace``: a profile of ten frames of that walk, for TensorBoard or ui.perfetto.dev;
- ``train``: the small prior goes on learning, in ``OUT/small_prior``, for what time is left.

At the end stands which of the goals (``experiments.gpu_goals``) were met. It needs no more than the
package's own dependencies. ``--toy`` is the same on small inputs, to try the command on a CPU,
kernels interpreted: its figures say nothing. Exit status 1 if a part failed or parity did not hold,
3 if parts are left over.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import slam
from experiments import gpu_goals, gpu_network, gpu_parity, gpu_trace, kernel_parity
from experiments.bench import suite
from experiments.bench.ceilings import measure_ceilings
from experiments.bench.machine import describe_machine
from experiments.bench.plan import Plan, quick_plan
from experiments.bench.results import RESULTS
from experiments.gpu_inputs import measured
from mast3r_jax import MASt3R, MASt3RConfig
from slam import pipeline
from slam.io.atomic import atomic_write
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.priors import MASt3RPrior

Part = Literal[
    "ceilings", "parity", "kernels", "network", "stages", "system", "memory", "trace", "train"
]
PARTS: tuple[Part, ...] = (
    "ceilings", "parity", "kernels", "network", "stages", "system", "memory", "trace", "train",
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
        for part in sorted(self.parts, key=self._begun):  # a sort that keeps the order of equals
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
        if not self.toy:
            print(goals(self.out))
        return 1 if failed else LEFT_OVER if left_over else 0

    def _file(self, part: str) -> pathlib.Path:
        return self.out / f"{part}.json"

    def _begun(self, part: Part) -> bool:
        """Whether a part of an earlier call has not come to its end: it may hang."""
        return (self.out / f"{part}.log").exists() and not self._file(part).exists()

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
        self.write(part, figures)
        self._file(f"{part}.partial").unlink(missing_ok=True)
        return 0

    def write(self, part: str, figures: dict[str, Any]) -> None:
        """Leave figures in the folder, whole or not at all."""
        with atomic_write(self._file(part)) as file:
            file.write((json.dumps(figures, indent=1) + "\n").encode())

    def _train(self) -> int:
        """A slice of the small prior's training; what it leaves is in files that can be carried."""
        from experiments.small_prior import SmallPrior

        work = self.out / "small_prior"
        minutes = self.minutes - 0.5
        status = SmallPrior(work, minutes=minutes, toy=self.toy, out=self.out / "preset").execute()
        if status == 0:
            self.write("train", {"preset": str(self.out / "preset")})
        return status

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of images."""
        return (64, 48) if self.toy else (512, 384)

    def plan(self, *only: str) -> Plan:
        """A benchmark of some stages."""
        if self.toy:
            return dataclasses.replace(quick_plan(only), peers=False)
        return Plan(
            network="vit_large",
            sizes=(self.size,),
            network_sizes=(self.size,),
            system_size=self.size,
            frames=120,
            keyframes=100,
            solver_keyframes=(64, 256, 1024),
            only=only,
            peers=False,
        )

    @property
    def network(self) -> MASt3RConfig:
        """The network whose work is measured."""
        return MASt3RConfig.small() if self.toy else MASt3RConfig.vit_large()


def ceilings(checks: GpuChecks) -> dict[str, Any]:
    """What the device can do at best; TF32 is what an NVIDIA card makes of float32 by default."""
    n = 512 if checks.toy else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    ms = measured(jnp.matmul, a, a)["queued_ms"]
    best = measure_ceilings(quick=checks.toy)
    return {
        "machine": describe_machine(),
        "copy_gb_per_s": best.copy_gb_per_s,
        "product_gflop_per_s": {**best.gflop_per_s, "float32 as it comes": 2 * n**3 / ms / 1e6},
    }


def network(checks: GpuChecks) -> dict[str, Any]:
    """The network's speed, see ``gpu_network``; what has been measured is written at once."""
    write = functools.partial(checks.write, "network.partial")
    return gpu_network.network(checks.size, checks.network, write)


EDGES = 6
"""Directed edges of a keyframe: three links, each both ways."""
TOGETHER = (
    ("projection", "refinement", "match"),
    ("pose-rays", "pose-pixels", "fusion"),
    ("edges-rays", "edges-pixels", "optimize"),
    ("encoder", "decoder"),
    ("encoder-block", "decoder-block"),
    ("solver",),
)
"""Stages that share their inputs, the more important ones first."""


def stages(checks: GpuChecks) -> dict[str, Any]:
    """The benchmark of everything but the whole system."""
    return _benchmarks(checks, "stages", {names[0]: checks.plan(*names) for names in TOGETHER})


def system(checks: GpuChecks) -> dict[str, Any]:
    """The benchmark of the whole system."""
    plan = checks.plan("system")
    spread = dataclasses.replace(plan, spread=True)
    figures = _benchmarks(checks, "system", {"system": plan, "system-spread": spread})
    stats = jax.devices()[0].memory_stats() or {}
    return figures | {"peak_bytes": stats.get("peak_bytes_in_use")}


def _benchmarks(checks: GpuChecks, part: str, plans: dict[str, Plan]) -> dict[str, Any]:
    """Runs of the benchmark, each in a folder of its own; one that is complete is not run again.

    What has been measured is written after each. One that was begun and not ended comes last, and
    one that fails ends the part when the others are done.
    """
    best, figures, failed = None, {}, []
    paths = {name: checks.out / "bench" / name / RESULTS for name in plans}

    def complete(name: str) -> bool:
        return paths[name].exists() and json.loads(paths[name].read_text())["complete"]

    for name in sorted(plans, key=lambda name: paths[name].parent.exists() and not complete(name)):
        if not complete(name):
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            best = best or measure_ceilings(quick=checks.toy)
            try:
                suite.run(plans[name], paths[name].parent, _say, best)
            except Exception:
                traceback.print_exc()
                failed.append(name)
        if paths[name].exists():
            figures |= gpu_goals.figures(json.loads(paths[name].read_text()))
            checks.write(f"{part}.partial", figures)
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: failed, see above")
    return figures


def _say(line: str) -> None:
    print(line, flush=True)


def memory(checks: GpuChecks) -> dict[str, Any]:
    """Bytes of a map by its capacity, six directed edges a keyframe, the network in bfloat16."""
    width, height = checks.size
    source = parse_procedural(f"procedural:room?seed=3&frames=1&size={width}x{height}")
    frame = next(frame for _, frame in prepare_frames(source, width))
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    prior = MASt3RPrior(nnx.eval_shape(lambda: MASt3R(checks.network, rngs=nnx.Rngs(0), **half)))
    figures = {}
    for count in (4, 8) if checks.toy else (100, 300, 1000):
        config = slam.SlamConfig(
            size=width, keyframe_capacity=count, edge_capacity=EDGES * count, max_keyframes=count
        )
        state = jax.eval_shape(
            lambda prior, frame, config=config: slam.init_state(prior, config, frame), prior, frame
        )
        bytes_of = {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
            for name, part in (("keyframes", state.keyframes), ("graph", state.graph))
        }
        optimize = jax.jit(functools.partial(pipeline.optimize, config)).lower(state).compile()
        needs = optimize.memory_analysis()
        figures[str(count)] = {
            "gb": sum(bytes_of.values()) / 1e9,
            **({} if needs is None else {"gb_to_optimize": needs.temp_size_in_bytes / 1e9}),
            "mb_a_keyframe": bytes_of["keyframes"] / count / 1e6,
            "mb_an_edge": bytes_of["graph"] / (EDGES * count) / 1e6,
        }
    return {"size": checks.size, "maps": figures}


def parity(checks: GpuChecks) -> dict[str, Any]:
    """The device against the CPU, on the same inputs and programs."""
    return gpu_parity.parity((64, 48) if checks.toy else (256, 192))


def kernels(checks: GpuChecks) -> dict[str, Any]:
    """The kernels against their definitions; a case that has been written is not run again."""
    path = checks.out / "kernels.partial.json"
    done = json.loads(path.read_text()) if path.exists() else {}

    def write(name: str, figures: dict[str, Any]) -> None:
        done[name] = figures
        checks.write("kernels.partial", done)

    return kernel_parity.kernels(checks.size, checks.toy, dict(done), write)


def trace(checks: GpuChecks) -> dict[str, Any]:
    """A profile, see ``gpu_trace``."""
    frames = gpu_trace.BEFORE + (4 if checks.toy else 10)
    plan = dataclasses.replace(checks.plan("system"), frames=frames)
    return gpu_trace.trace(plan, checks.out)


_PARTS: dict[str, Callable[[GpuChecks], dict[str, Any]]] = {
    "ceilings": ceilings, "parity": parity, "kernels": kernels, "network": network,
    "stages": stages, "system": system, "memory": memory, "trace": trace,
}  # fmt: skip


def table(out: pathlib.Path) -> str:
    """All that has been measured, in a column."""
    lines = []
    for part, (name, figures) in _written(out).items():
        lines.append(f"{part}:" if name == part else f"{part}, as far as it came:")
        lines += [f"  {name}: {value}" for name, value in _flat(figures)]
    return "\n".join(lines)


def goals(out: pathlib.Path) -> str:
    """Which of the goals were met, a line each."""
    verdicts = gpu_goals.verdicts({part: figures for part, (_, figures) in _written(out).items()})
    return "\n".join(["goals:", *(f"  {line}" for line in verdicts)])


def _written(out: pathlib.Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """By part, the name of what it has written last, and the figures."""
    found = {}
    for part in PARTS:
        for name in (f"{part}.partial", part):
            path = out / f"{name}.json"
            if path.exists():
                found[part] = name, json.loads(path.read_text())
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}, ")
        elif isinstance(value, list) and all(isinstance(line, str) for line in value):
            rows.append((prefix + name, "\n    ".join(["", *value])))
        else:
            rows.append((prefix + name, f"{value:.4g}" if isinstance(value, float) else value))
    return rows


if __name__ == "__main__":
    sys.exit(tyro.cli(GpuChecks).execute())
