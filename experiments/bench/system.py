"""The whole system on a walk through a room: frames per second, and where their time goes.

The rendered-geometry prior answers, so that tracking, keyframes, loops and optimisation go as they
would with a trained network; a network of the full size does all of its work on every frame beside
it, and its answers are not used.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import slam
from experiments.bench.plan import Plan, written
from experiments.bench.timing import Samples
from experiments.bench.working_prior import WorkingPrior
from mast3r_jax import MASt3R
from slam.config import GraphConfig, SlamConfig
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.procedural import parse_procedural
from slam.priors import MASt3RPrior, RenderedGeometryPrior
from slam.runner import Progress
from slam.stepper import Stepper
from slam.types import TwoViewPrior

TRACKING = {"encoder": "encode", "decoder": "decode", "match": "match", "solve": "solve"}
"""Rows of the report for every frame, and the stages of ``slam.stepper`` they are."""
KEYFRAME = {
    "retrieval": "propose",
    "decoder and match": "verify",
    "Gauss-Newton": "optimize",
    "piece of it, each frame": "backlog",
}
"""Rows for every keyframe."""


@dataclasses.dataclass(frozen=True)
class SystemTimes:
    """What a walk took, frame by frame, once everything was compiled."""

    on: str
    """Network and size."""
    frames_per_second: float
    """Keyframes among them. On a GPU, of a walk of its own in which nobody waits for a frame's
    result before the next is begun; elsewhere, of the same walk as all else here."""
    latency: Samples
    """Of every frame but the first, and but those at which something was compiled. Each of its
    stages was waited for."""
    frames: int
    compiled_frames: int
    """Frames at which something was compiled in the pass that was timed, left out."""
    first_pass_s: float
    """Seconds of the pass before, in which everything was compiled."""
    tracked: int
    keyframes: int
    stages: dict[str, dict[str, float]]
    """By stage of ``slam.stepper``, its summary."""

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Median milliseconds, per frame and per keyframe; stages that were not run are left out.

        ``rest`` is what a frame that is no keyframe takes beyond the other rows.
        """
        median = {name: 1e3 * row["median_s"] for name, row in self.stages.items()}
        frame = {row: median[name] for row, name in TRACKING.items() if name in median}
        frame["rest"] = max(0.0, self.latency.median - sum(frame.values()))
        keyframe = {row: median[name] for row, name in KEYFRAME.items() if name in median}
        return {
            kind: {row: ms for row, ms in rows.items() if np.isfinite(ms)}
            for kind, rows in (("frame", frame), ("keyframe", keyframe))
        }

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "on": self.on,
            "frames_per_second": self.frames_per_second,
            "latency": {
                **self.latency.to_json(),
                "p99_ms": float(np.percentile(self.latency.ms, 99)),
            },
            "frames": self.frames,
            "compiled_frames": self.compiled_frames,
            "first_pass_s": self.first_pass_s,
            "tracked": self.tracked,
            "keyframes": self.keyframes,
            "rows_ms": self.rows,
            "stages": {
                name: {key: value for key, value in row.items() if np.isfinite(value)}
                for name, row in self.stages.items()
            },
        }


def measure_system(plan: Plan) -> SystemTimes:
    """Walk once to compile, and again to be timed.

    Images are rendered before, so that nobody but the system works meanwhile.
    """
    name = f"{plan.network} {written(plan.system_size)}{', spread' * plan.spread}"
    return time_walk(*walk(plan), name)


def walk(plan: Plan) -> tuple[Source, WorkingPrior, SlamConfig]:
    """A room walked through, the prior that works as hard as a network, and the configuration."""
    width, height = plan.system_size
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    model = MASt3R(plan.network_config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    prior = WorkingPrior(RenderedGeometryPrior(), MASt3RPrior(model))
    source = _Rendered(f"procedural:room?seed=3&frames={plan.frames}&size={width}x{height}")
    config = SlamConfig(
        size=width,
        keyframe_capacity=32,
        edge_capacity=128,
        graph=GraphConfig(spread=plan.spread),
    )
    return source, prior, config


def time_walk(source: Source, prior: TwoViewPrior, config: SlamConfig, on: str) -> SystemTimes:
    """Time a source that can be walked through several times; ``on`` is what to call it."""
    stepper = Stepper(config)
    begin = time.perf_counter()
    slam.run(source, prior, stepper=stepper)
    first_pass = time.perf_counter() - begin
    clock = _Clock(stepper)
    result = slam.run(source, prior, stepper=stepper, on_progress=clock, time_every=1)
    if not clock.ms:
        raise SourceError(f"{source.name}: no frame was timed, each compiled something")
    rate = 1e3 * len(clock.ms) / sum(clock.ms)
    if jax.default_backend() != "cpu":
        unwaited = slam.run(source, prior, stepper=stepper, time_every=sys.maxsize)
        rate = unwaited.timing["fps_after_first_frame"]
    return SystemTimes(
        on=on,
        frames_per_second=rate,
        latency=Samples(tuple(clock.ms)),
        frames=len(result.timestamps),
        compiled_frames=clock.compiled,
        first_pass_s=first_pass,
        tracked=int(np.sum(result.tracked)),
        keyframes=int(result.num_keyframes),
        stages=result.timing["stages"],
    )


class _Clock:
    """Told of every frame, it notes how long it took, unless something was compiled."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.ms: list[float] = []
        self.compiled = 0
        self.programs = stepper.cache_sizes()
        self.last: float | None = None

    def __call__(self, progress: Progress) -> None:
        now, programs = time.perf_counter(), self.stepper.cache_sizes()
        if programs != self.programs:
            self.compiled += 1
        elif self.last is not None:
            self.ms.append(1e3 * (now - self.last))
        self.programs = programs
        self.last = time.perf_counter()


class _Rendered:
    """A procedural walk, rendered before anybody asks for it."""

    def __init__(self, uri: str) -> None:
        source = parse_procedural(uri)
        self.name = source.name
        self.images: list[SourceFrame] = list(source)
        self.num_frames: int | None = len(self.images)

    def __iter__(self):
        return iter(self.images)
