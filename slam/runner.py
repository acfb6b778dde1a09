"""The imperative rim: feeds frames to the stages, keeps time, grows buffers, collects results."""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ops import SolverStatus
from slam import pipeline as stages
from slam.config import SlamConfig
from slam.graph import Links
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.prefetch import prefetch
from slam.io.preparation import prepare_frames
from slam.keyframes import grow
from slam.linking import Candidates
from slam.reconstruction import Panel, Reconstruction
from slam.slots import blank, read_slot
from slam.state import Mode, SlamState, StepOutput, init_state
from slam.types import Frame, TwoViewPrior, retrieval_of


class StageTimer:
    """Wall-clock seconds by stage; a stage's first call, which compiles, is kept apart."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.later: dict[str, list[float]] = collections.defaultdict(list)

    def call(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call, wait for the device, and book the time under ``name``."""
        begin = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        self.book(name, time.perf_counter() - begin)
        return result

    def book(self, name: str, seconds: float) -> None:
        """Book seconds that were measured elsewhere."""
        if name in self.first:
            self.later[name].append(seconds)
        else:
            self.first[name] = seconds

    def summary(self) -> dict[str, dict[str, float]]:
        """By stage, seconds: the first call (with compilation), and of the others median, 99th
        percentile and sum; and how many calls there were."""
        rows = {}
        for name, first in self.first.items():
            later = self.later[name] or [float("nan")]
            rows[name] = {
                "first_s": first,
                "median_s": float(np.median(later)),
                "p99_s": float(np.percentile(later, 99)),
                "later_sum_s": float(np.sum(self.later[name])),
                "calls": 1 + len(self.later[name]),
            }
        return rows


class Stepper:
    """``slam.pipeline.step`` compiled stage by stage.

    Equal to ``step`` (a test says so), but each stage can be timed, stages that a frame does not
    need are not called, and a map that grows recompiles only the stages that touch its buffers.
    """

    def __init__(self, config: SlamConfig) -> None:
        self.config = config
        self.timer = StageTimer()
        # Partials make these caches this object's own: ``jax.jit`` shares a function's otherwise.
        self._look_up = jax.jit(functools.partial(stages.look_up))
        self._encode = jax.jit(functools.partial(stages.encode))
        self._decode = jax.jit(functools.partial(stages.decode))
        self._match = jax.jit(functools.partial(stages.match_stage, config))
        self._solve = jax.jit(functools.partial(stages.solve_stage, config))
        self._assess = jax.jit(functools.partial(stages.assess, config))
        self._propose = jax.jit(functools.partial(stages.propose, config))
        self._verify = jax.jit(lambda prior, *rest: stages.verify(prior, config, *rest))
        # Donated: an undonated commit copies the whole map on every frame.
        self._commit = jax.jit(functools.partial(stages.commit, config), donate_argnums=0)
        self._optimize = jax.jit(functools.partial(stages.optimize, config))
        self._adopt = jax.jit(functools.partial(stages.adopt), donate_argnums=0)
        self._nothing: dict[Any, tuple[Candidates, Links]] = {}

    def cache_sizes(self) -> dict[str, int]:
        """How often each stage has been compiled."""
        stage = [name for name, value in vars(self).items() if hasattr(value, "_cache_size")]
        return {name.lstrip("_"): getattr(self, name)._cache_size() for name in stage}

    def __call__(
        self, prior: TwoViewPrior, state: SlamState, frame: Frame
    ) -> tuple[SlamState, StepOutput, "DenseResult"]:
        """One step. ``state`` is consumed."""
        call = self.timer.call
        reference = call("look up", self._look_up, state)
        encoding = call("encode", self._encode, prior, frame)
        views = call("decode", self._decode, prior, reference, encoding)
        found = call("match", self._match, reference, views)
        solution = call("solve", self._solve, reference, views, found)
        assessment = call("assess", self._assess, reference, views, found, solution)
        if bool(assessment.wants_links):
            candidates, links = self._search(prior, state, encoding, assessment)
        else:
            candidates, links = self._no_links(prior, state, encoding, assessment)
        seen = (frame, encoding, views, found, solution, assessment, candidates, links)
        state, output = call("commit", self._commit, state, *seen)
        if int(output.new_links):
            poses = call("optimize", self._optimize, state)
            state, output = call("adopt", self._adopt, state, output, poses)
        return state, output, DenseResult(views, found)

    def _search(self, prior: TwoViewPrior, *seen: Any) -> tuple[Candidates, Links]:
        """The frame's links with keyframes, before they are judged."""
        state, encoding, assessment = seen
        candidates, encodings = self.timer.call(
            "propose", self._propose, retrieval_of(prior), state, encoding, assessment
        )
        links = self.timer.call("verify", self._verify, prior, encoding, candidates, encodings)
        return candidates, links

    def _no_links(self, prior: TwoViewPrior, *seen: Any) -> tuple[Candidates, Links]:
        """What a frame has that looks for no links: the same shapes, nothing in them."""
        state, encoding, assessment = seen
        leaves, kind = jax.tree.flatten((prior, encoding))
        kind = kind, *(leaf.shape for leaf in leaves)
        if kind not in self._nothing:
            candidates, encodings = jax.eval_shape(
                self._propose, retrieval_of(prior), state, encoding, assessment
            )
            links = jax.eval_shape(self._verify, prior, encoding, candidates, encodings)
            self._nothing[kind] = blank((candidates, links))
        return self._nothing[kind]


@dataclasses.dataclass(frozen=True)
class DenseResult:
    """Per-pixel results of one step, for looking at."""

    views: stages.Views
    correspondence: stages.Correspondence


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress display is told after every frame."""

    frame: int
    total: int | None
    mode: Mode
    num_keyframes: int
    match_fraction: float


def run(
    source: Source,
    prior: TwoViewPrior,
    config: SlamConfig | None = None,
    *,
    calibrated: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    num_panels: int = 0,
    stepper: Stepper | None = None,
) -> Reconstruction:
    """Run the SLAM over a whole source.

    Args:
        source: frames, from ``open_source`` or your own iterable.
        prior: two-view prior.
        config: the original's defaults when omitted.
        calibrated: use the source's intrinsics (constant over the sequence).
        on_progress: called after every frame.
        num_panels: how many frames, evenly spread, to keep per-pixel results of.
        stepper: compiled stages of an earlier run, with their configuration, to save compiling
            them again; the sources must have the same image size and the priors the same kind.

    Returns:
        The reconstruction, on the host.

    Raises:
        SourceError: the source cannot be read, is empty, or lacks what was asked of it.
    """
    if stepper is None:
        stepper = Stepper(config or SlamConfig())
    elif config not in (None, stepper.config):
        raise ValueError("run: the stepper was compiled for another configuration; leave one out")
    config = stepper.config
    timer = stepper.timer = StageTimer()
    panel_frames = _panel_frames(source.num_frames, num_panels)
    state: SlamState | None = None
    outputs: list[StepOutput] = []
    timestamps: list[float] = []
    references: list[np.ndarray] = []
    panels: list[Panel] = []
    notes: list[str] = []
    growth: list[dict[str, int]] = []

    begin = time.perf_counter()
    first_done = begin
    with contextlib.closing(prefetch(prepare_frames(source, config.size))) as frames:
        waiting = begin
        for raw, host_frame in frames:
            # Frames are made in another thread: this is how long the device had to wait for one.
            timer.book("source", time.perf_counter() - waiting)
            frame: Frame = jax.device_put(host_frame)
            number = len(outputs)
            if state is None:
                K = _constant_intrinsics(raw, frame, None) if calibrated else None
                state = init_state(prior, _within_limit(config), frame, K)
            elif calibrated:
                _constant_intrinsics(raw, frame, state.K)
            # Before the step, which consumes the state: the slot this frame is tracked against.
            slot = max(int(outputs[-1].num_keyframes) - 1, 0) if outputs else 0
            state, output, dense = stepper(prior, state, frame)
            output = jax.device_get(output)
            outputs.append(output)
            timestamps.append(raw.timestamp)
            references.append(np.full((4, 4), np.nan) if raw.T_WC is None else raw.T_WC)
            # Against a keyframe, that is: other frames were matched with themselves.
            if number in panel_frames and output.iterations and output.mode == Mode.TRACKING:
                panels.append(_panel(state, frame, dense, number, slot))
            state, larger = _with_room(config, state, output)
            if larger:
                growth.append({"frame": number, **larger})
            if output.full and not notes:
                notes.append(
                    f"the limit of {config.max_keyframes} keyframes was reached at frame {number}: "
                    "tracking goes on against the last one, and a lost camera is found again only "
                    "there; raise max_keyframes to map further"
                )
            if on_progress is not None:
                on_progress(
                    Progress(
                        frame=number,
                        total=source.num_frames,
                        mode=Mode(int(output.mode)),
                        num_keyframes=int(output.num_keyframes),
                        match_fraction=float(output.match_fraction),
                    )
                )
            done = time.perf_counter()
            timer.book("frame", done - waiting)
            waiting = done
            if number == 0:
                first_done = done
    if state is None:
        raise SourceError(f"{source.name}: the source has no frames")
    end = time.perf_counter()
    later = len(outputs) - 1
    timing = {
        "stages": timer.summary(),
        "total_s": end - begin,
        "first_frame_s": first_done - begin,
        "fps_after_first_frame": later / (end - first_done) if later else float("nan"),
        "growth": growth,
    }
    floating = next((int(o.graph_floating) for o in reversed(outputs) if o.graph_iterations), 0)
    if floating:
        notes.append(
            f"{floating} keyframes share no matches with the rest of their part of the map; the "
            "optimisation could not move them"
        )
    failed = [int(o.frame_index) for o in outputs if SolverStatus(int(o.graph_status)).failed]
    if failed:
        notes.append(
            f"the keyframe poses could not be optimised {len(failed)} times, first at frame "
            f"{failed[0]}; they were left as they were"
        )
    size = int(state.keyframes.size)
    keyframes = jax.tree.map(lambda x: x[:size] if x.ndim else x, jax.device_get(state.keyframes))
    known = np.stack(references)
    return Reconstruction(
        name=source.name,
        config=config,
        timestamps=np.asarray(timestamps, np.float64),
        frames=jax.tree.map(lambda *x: np.stack(x), *outputs),
        keyframes=keyframes,
        reference_T_WC=known if np.isfinite(known).any() else None,
        timing=timing,
        notes=tuple(notes),
        panels=tuple(panels),
        K=None if state.K is None else np.asarray(state.K),
        links=np.stack([state.graph.i, state.graph.j], axis=1)[: int(state.graph.size) : 2],
    )


def _panel_frames(total: int | None, count: int) -> set[int]:
    if count <= 0:
        return set()
    if total is None:  # unknown length: early frames, further and further apart
        return {8 * 3**i for i in range(count)}
    return {int(i) for i in np.linspace(0, total - 1, count + 2)[1:-1].round()}


def _panel(state: SlamState, frame: Frame, dense: DenseResult, index: int, slot: int) -> Panel:
    return Panel(
        frame_index=index,
        keyframe_index=int(state.keyframes.frame_index[slot]),
        image_f=np.asarray(frame.image),
        image_k=np.asarray(read_slot(state.keyframes.image, jnp.int32(slot))),
        views=jax.device_get(dense.views),
        correspondence=jax.device_get(dense.correspondence),
    )


def _with_room(
    config: SlamConfig, state: SlamState, output: StepOutput
) -> tuple[SlamState, dict[str, int]]:
    """The state with room for whatever the next frame may add, and which buffers had to grow."""
    larger = {}
    keyframes, graph = state.keyframes, state.graph
    if output.num_keyframes == keyframes.capacity < config.max_keyframes:
        larger["keyframes"] = min(2 * keyframes.capacity, config.max_keyframes)
    if graph.capacity - int(graph.size) < 2 * config.max_links:
        larger["factors"] = 2 * graph.capacity
    if larger:
        state = grow(state, larger.get("keyframes"), larger.get("factors"))
    return state, larger


def _within_limit(config: SlamConfig) -> SlamConfig:
    """The configuration whose buffers start no larger than they may ever be."""
    capacity = max(1, min(config.keyframe_capacity, config.max_keyframes))
    return dataclasses.replace(config, keyframe_capacity=capacity)


def _constant_intrinsics(raw: SourceFrame, frame: Frame, K: jax.Array | None) -> jax.Array:
    """The frame's intrinsics, which calibrated mode needs to be there and to stay the same."""
    where = raw.origin or f"frame {raw.index}"
    if frame.K is None:
        raise SourceError(
            f"{where}: has no intrinsics, which calibrated mode needs; pass --calib FILE, add a "
            "calibration.txt (fx fy cx cy), or run without --calibrated"
        )
    if raw.distortion is not None:
        raise SourceError(
            f"{where}: the lens distorts, and calibrated mode needs straight images; open the "
            "source with rectify=True"
        )
    if K is not None and not np.allclose(frame.K, K, rtol=1e-3):
        raise SourceError(
            f"{where}: intrinsics change here, which calibrated mode does not support; "
            "run without --calibrated"
        )
    return jnp.asarray(frame.K)
