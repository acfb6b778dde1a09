"""The whole SLAM on a device: frames per second, and a profile of some frames."""

import itertools
import pathlib
import shutil
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import slam
from mast3r_jax import MASt3R, MASt3RConfig
from ops.records import Record, record
from slam.io.preparation import prepare_frames
from slam.io.procedural import parse_procedural
from slam.priors import MASt3RPrior, RenderedGeometryPrior
from slam.stepper import Stepper
from slam.types import Frame, TwoViewPrior

LARGEST_TRACE = 16 * 10**6
"""Bytes of a file that is carried away from a borrowed machine."""


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


Walk = tuple[WorkingPrior, slam.SlamConfig, list[Frame]]


def walk(size: tuple[int, int], network: MASt3RConfig, frames: int) -> Walk:
    """A procedural room walked through, and the prior that works as hard as a network."""
    width, height = size
    source = parse_procedural(f"procedural:room?seed=3&frames={frames}&size={width}x{height}")
    prepared = [frame for _, frame in prepare_frames(source, width)]
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    model = MASt3R(network, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    prior = WorkingPrior(RenderedGeometryPrior(), MASt3RPrior(model))
    config = slam.SlamConfig(size=width, keyframe_capacity=32, edge_capacity=128)
    return prior, config, prepared


def system(size: tuple[int, int], network: MASt3RConfig, frames: int) -> dict[str, Any]:
    """A walk twice: each stage waited for, then as ``slam.run`` does it, see ``overlapped``.

    The first gives seconds of every stage, and compiles; the second frames per second.
    """
    prior, config, prepared = walk(size, network, frames)
    state, step = slam.init_state(prior, config, prepared[0]), Stepper(config)
    for frame in prepared:
        state, _, _ = step(prior, state, frame)
    compiled = step.cache_sizes()
    step.timer.waits = False
    start = jax.block_until_ready(slam.init_state(prior, config, prepared[0]))
    ends, outputs = [], []
    begin = time.perf_counter()
    for state, output in overlapped(prior, step, start, prepared):
        ends.append(time.perf_counter())
        outputs.append(output)
        final = state
    jax.block_until_ready(final)
    seconds, between = time.perf_counter() - begin, np.diff([begin, *ends])
    return {
        "size": size,
        "frames": frames,
        "tracked": tracked(outputs),
        "keyframes": int(final.keyframes.size),
        "frames_per_second": frames / seconds,
        "compiled_meanwhile": step.cache_sizes() != compiled,
        "ms_between_frames": {
            "median": 1e3 * statistics.median(between),
            "p99": 1e3 * float(np.percentile(between, 99)),
        },
        "stages": {
            name: {key: value for key, value in row.items() if not np.isnan(value)}
            for name, row in step.timer.summary().items()
        },
        "peak_bytes": _peak(),
    }


def tracked(outputs: list[slam.StepOutput]) -> int:
    """How many frames found their place."""
    return sum(int(output.mode) == int(slam.Mode.TRACKING) for output in outputs)


def overlapped(
    prior: TwoViewPrior, step: Stepper, state: slam.SlamState, frames: list[Frame]
) -> Iterator[tuple[slam.SlamState, slam.StepOutput]]:
    """State and report after each frame, the device never waited for.

    In each frame the next one is encoded before the host reads of this one, as ``slam.run`` does.
    """
    encoding = None
    for n, frame in enumerate(frames):
        coming: list[Any] = [None]

        def encode(n: int = n, coming: list[Any] = coming) -> None:
            if n + 1 < len(frames):
                coming[0] = step.encode(prior, frames[n + 1])

        with jax.profiler.StepTraceAnnotation("frame", step_num=n):
            state, output, _ = step(prior, state, frame, encoding, encode)
        encoding = coming[0]
        yield state, output


def trace(
    size: tuple[int, int], network: MASt3RConfig, out: pathlib.Path, frames: int = 10
) -> dict[str, Any]:
    """A profile of some frames of a walk that is under way, see ``overlapped``.

    ``OUT/trace.xplane.pb`` is for TensorBoard or XProf, ``OUT/trace.trace.json.gz`` for
    ui.perfetto.dev; a file of more than ``LARGEST_TRACE`` bytes is left out, and with both of them
    out ``holds`` is False.
    """
    before = 20  # by then every stage has been compiled, that of a new keyframe too
    prior, config, prepared = walk(size, network, before + frames)
    start, step = slam.init_state(prior, config, prepared[0]), Stepper(config)
    step.timer.waits = False
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 1  # or the host's part is most
    options.enable_hlo_proto = False
    raw = out / "trace"
    shutil.rmtree(raw, ignore_errors=True)
    steps, outputs = overlapped(prior, step, start, prepared), []
    for state, _ in itertools.islice(steps, before):
        jax.block_until_ready(state)
    compiled = step.cache_sizes()
    with jax.profiler.trace(raw, profiler_options=options):
        begin = time.perf_counter()
        for state, output in steps:
            outputs.append(output)
            final = state
        jax.block_until_ready(final)
        seconds = time.perf_counter() - begin
    files = kept(raw, out)
    return {
        "size": size,
        "frames": frames,
        "tracked": tracked(outputs),
        "frames_per_second": frames / seconds,
        "compiled_meanwhile": step.cache_sizes() != compiled,
        "bytes": files,
        "holds": any(size <= LARGEST_TRACE for size in files.values()),
    }


def kept(raw: pathlib.Path, out: pathlib.Path) -> dict[str, int]:
    """Move a profile's files out of their folders, but for what is too large; bytes by name."""
    files = {}
    for path in sorted(path for path in raw.rglob("*") if path.is_file()):
        name = f"trace.{path.name.split('.', 1)[-1]}"
        files[name] = path.stat().st_size
        if files[name] <= LARGEST_TRACE:
            path.replace(out / name)
    shutil.rmtree(raw)
    return files


def _peak() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")
