"""The imperative rim: feeds frames to the stages, grows buffers, collects results."""

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ops import SolverStatus
from slam.checkpoint import CHECKPOINT, MAP, Checkpointing, on_host, pack
from slam.checkpoint import read as read_saved
from slam.checkpoint import start as start_checkpoints
from slam.collected import Collected
from slam.config import SlamConfig
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.iterable import IterableSource
from slam.io.open_source import frames_from, is_live
from slam.io.prefetch import Prefetch
from slam.io.preparation import prepare_frames
from slam.keyframes import grow
from slam.observations import observe
from slam.reconstruction import Panel, Reconstruction
from slam.snapshot import Observer
from slam.state import Mode, SlamState, StepOutput, init_state
from slam.stepper import DenseResult, StageTimer, Stepper
from slam.types import Frame, TwoViewPrior
from slam.watching import Watch

if TYPE_CHECKING:
    from slam.io.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress display is told after every frame."""

    frame: int
    total: int | None
    mode: Mode
    num_keyframes: int
    match_fraction: float


def run(
    source: Source | Iterable[np.ndarray | SourceFrame],
    prior: TwoViewPrior,
    config: SlamConfig | None = None,
    *,
    calibrated: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    observer: Observer | None = None,
    checkpoint: Checkpointing | None = None,
    map: str | os.PathLike[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
    num_panels: int = 0,
    stepper: Stepper | None = None,
    time_every: int | None = None,
) -> Reconstruction:
    """Run the SLAM over a whole source.

    Args:
        source: frames, from ``open_source``, or anything that yields images uint8 [H, W, 3].
        prior: two-view prior.
        config: the original's defaults when omitted.
        calibrated: use the source's intrinsics (constant over the sequence).
        on_progress: called after every frame.
        observer: looks on, as a viewer does.
        checkpoint: save now and then what a killed run can go on from, or go on from it. The result
            is that of an unbroken run, if the source gives the same frames again; panels are those
            of the frames after it.
        map: results of an earlier run, in whose map the camera looks for its place. The new frames
            extend it. The old keyframes have negative frame numbers, -1 for the last frame then;
            pictures and files call them by their place in the map (``map-000003.png``).
        stop: asked after every frame; once it says yes, no further frame is taken.
        num_panels: how many frames, evenly spread, to keep per-pixel results of.
        stepper: compiled stages of an earlier run, with their configuration, to save compiling
            them again; the sources must have the same image size and the priors the same kind.
        time_every: in every so-many-th frame each stage is waited for and timed; between them the
            device is given the next frame before the host has read of the last one, and keeps busy.
            Results are the same. By default 1 on a CPU, which has nobody to wait for, else 16.

    Returns:
        The reconstruction, on the host. If the source broke off (raised ``SourceError`` after its
        first frame), of what had come until then; ``broken_off`` and a note tell why.

    Raises:
        SourceError: the source cannot be read, is empty, or lacks what was asked of it; or what was
            to be gone on from cannot be used.
    """
    if not isinstance(source, Source):
        source = IterableSource(source)
    if stepper is None:
        stepper = Stepper(config or SlamConfig())
    elif config not in (None, stepper.config):
        raise ValueError("run: the stepper was compiled for another configuration; leave one out")
    config = stepper.config
    if time_every is None:
        time_every = 1 if jax.default_backend() == "cpu" else 16
    timer = stepper.timer = StageTimer()
    begin = time.perf_counter()
    collected = Collected()
    state: SlamState | None = None
    K: np.ndarray | None = None
    # Both are read before anything else is done: they may be unusable.
    earlier = None if map is None else read_saved(map, MAP)
    if checkpoint is not None and checkpoint.resume:
        saved = read_saved(checkpoint.folder, CHECKPOINT)
        blank, K = _blank(prior, config, *_first_frame(source, config.size), calibrated)
        state, collected = saved.state(prior, blank), saved.collected()
    first = len(collected.outputs)
    reports = _Reports(collected, source.num_frames, config.max_keyframes, on_progress)
    panel_frames = _panel_frames(source.num_frames, num_panels)
    panels: list[Panel] = []
    watch = None if observer is None else Watch(observer, source.name, source.num_frames)
    to_come = prepare_frames(frames_from(source, first), config.size, *collected.timestamps[:1])

    first_done = waiting = begin
    seen: tuple[np.ndarray, DenseResult] | None = None
    with contextlib.ExitStack() as stack:
        saver = None
        if checkpoint is not None:
            saver = _Saver(checkpoint, prior, config, source.name)
            stack.enter_context(contextlib.closing(saver))
        ahead = 1 if is_live(source) else 2  # what waits is not the newest any more
        frames = stack.enter_context(contextlib.closing(Prefetch(to_come, ahead)))
        upcoming = _Upcoming(frames, prior, stepper)
        for number, item in enumerate(upcoming, start=first):
            raw, frame = item.raw, item.frame
            # Frames are made in another thread: this is how long the device had to wait for one.
            timer.book("source", upcoming.waited)
            timer.waits = number % time_every == 0
            if state is None:
                state, K = _blank(prior, config, raw, item.host, calibrated)
                if earlier is not None:
                    state, collected.images = earlier.map_for(prior, state), earlier.images()
            elif calibrated:
                _constant_intrinsics(raw, item.host, K)
            # Before the step, which consumes the state: the slot this frame is tracked against.
            slot = max(int(collected.outputs[-1].num_keyframes) - 1, 0) if number else 0
            overlaps = not timer.waits and (number + 1) % time_every != 0
            meanwhile = upcoming.prepare if overlaps else _nothing
            with jax.profiler.StepTraceAnnotation("frame", step_num=number):
                state, output, dense = stepper(prior, state, frame, item.encoding, meanwhile)
            reports.add(raw, item.host, output)
            # The one before is ready, this one may not be; but a map that may be full is looked at.
            reports.read(left=0 if timer.waits or stepper.linking else 1)
            # Against a keyframe, that is: other frames were matched with themselves.
            if number in panel_frames and output.iterations and output.mode == Mode.TRACKING:
                shown = np.asarray(item.host.image), collected.images[slot]
                panels.append(_panel(state, shown, dense, number, slot))
            if not reports.unread:
                state, larger = _with_room(config, state, collected.outputs[-1])
                if larger:
                    collected.growth.append({"frame": number, **larger})
            seen = np.asarray(item.host.image), dense
            if watch is not None and watch.wanted():
                reports.read()
                watch.take(state, collected, *seen)
            done = time.perf_counter()
            timer.book("frame", done - waiting)
            waiting = done
            if number == first:
                first_done = done
            stopped = stop()
            if saver is not None and (stopped or saver.due()):
                reports.read()
                saver.save(state, collected)
            if stopped:
                break
        reports.read()
    if state is None:
        raise upcoming.failure or SourceError(f"{source.name}: the source has no frames")
    broken_off = str(upcoming.failure) if isinstance(upcoming.failure, SourceError) else ""
    if broken_off:
        last = len(collected.outputs) - 1
        collected.notes.append(f"the source broke off after frame {last}: {broken_off}")
    if state.backlog is not None:
        timer.waits = True
        state, output = stepper.catch_up(prior, state, collected.outputs[-1])
        collected.outputs[-1] = jax.device_get(output)
    if watch is not None and seen is not None:
        watch.take(state, collected, *seen)
    end = time.perf_counter()
    later = len(collected.outputs) - first - 1
    timing = {
        "stages": timer.summary(),
        "total_s": end - begin,
        "first_frame_s": first_done - begin,
        "fps_after_first_frame": later / (end - first_done) if later > 0 else float("nan"),
        "growth": collected.growth,
        "time_every": time_every,
        "resumed_at_frame": first or None,
    }
    floating = next(
        (int(o.graph_floating) for o in reversed(collected.outputs) if o.graph_iterations), 0
    )
    if floating:
        collected.notes.append(
            f"{floating} keyframes share no matches with the rest of their part of the map; the "
            "optimisation could not move them"
        )
    failed = [
        int(o.frame_index) for o in collected.outputs if SolverStatus(int(o.graph_status)).failed
    ]
    if failed:
        collected.notes.append(
            f"the keyframe poses could not be optimised {len(failed)} times, first at frame "
            f"{failed[0]}; they were left as they were"
        )
    host = on_host(state)
    size = int(host.keyframes.size)
    known = np.stack(collected.references)
    return Reconstruction(
        name=source.name,
        config=config,
        timestamps=np.asarray(collected.timestamps, np.float64),
        frames=collected.frames(),
        keyframes=jax.tree.map(lambda x: x[:size] if x.ndim else x, host.keyframes),
        images=collected.images_of(state.image_shape),
        reference_T_WC=known if np.isfinite(known).any() else None,
        timing=timing,
        notes=tuple(collected.notes),
        broken_off=broken_off,
        panels=tuple(panels),
        K=None if host.K is None else np.asarray(host.K),
        system=pack(state, host, prior, config, source.name, collected),
        **_links(state),
    )


class _Reports:
    """What happened to the frames: fetched from the device, counted and told."""

    def __init__(
        self,
        collected: Collected,
        total: int | None,
        max_keyframes: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.collected, self.total, self.max_keyframes = collected, total, max_keyframes
        self.on_progress = on_progress
        self.unread: collections.deque[tuple[StepOutput, np.ndarray]] = collections.deque()
        """Reports that may still be in the making, and the images of their frames."""

    def add(self, raw: SourceFrame, host: Frame, output: StepOutput) -> None:
        """A frame was stepped."""
        collected = self.collected
        collected.timestamps.append(raw.timestamp)
        collected.references.append(np.full((4, 4), np.nan) if raw.T_WC is None else raw.T_WC)
        self.unread.append((output, np.asarray(host.image)))

    def read(self, left: int = 0) -> None:
        """Fetch the reports so far, but for the last ``left``."""
        collected = self.collected
        while len(self.unread) > left:
            output, image = self.unread.popleft()
            output = jax.device_get(output)
            collected.outputs.append(output)
            number = len(collected.outputs) - 1
            if output.is_keyframe:
                collected.images.append(image)
            if output.full and not collected.notes:
                collected.notes.append(
                    f"the limit of {self.max_keyframes} keyframes was reached at frame {number}: "
                    "tracking goes on against the last one, and a lost camera is found again only "
                    "there; raise max_keyframes to map further"
                )
            if self.on_progress is not None:
                self.on_progress(
                    Progress(
                        frame=number,
                        total=self.total,
                        mode=Mode(int(output.mode)),
                        num_keyframes=int(output.num_keyframes),
                        match_fraction=float(output.match_fraction),
                    )
                )


class _Saver:
    """Writes checkpoints in the background, so seldom that they take a twentieth of the time."""

    def __init__(
        self, wanted: Checkpointing, prior: TwoViewPrior, config: SlamConfig, name: str
    ) -> None:
        self.wanted, self.prior, self.config, self.name = wanted, prior, config, name
        self._checkpoints: Checkpoints | None = None
        self._last, self._pause = time.perf_counter(), wanted.seconds

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.perf_counter() - self._last >= self._pause

    def save(self, state: SlamState, collected: Collected) -> None:
        """Begin to write one, when the one before is complete."""
        begin = time.perf_counter()
        if self._checkpoints is None:
            self._checkpoints = start_checkpoints(self.wanted)
        self._checkpoints.finish()
        saved = pack(state, on_host(state), self.prior, self.config, self.name, collected)
        self._checkpoints.save(saved.num_frames, saved.with_about())
        self._last = time.perf_counter()
        if self.wanted.seconds:
            self._pause = max(self.wanted.seconds, 20 * (self._last - begin))

    def close(self) -> None:
        """Wait until the last one is complete."""
        if self._checkpoints is not None:
            self._checkpoints.close()


def _first_frame(source: Source, size: int) -> tuple[SourceFrame, Frame]:
    """Read ahead of a run that goes on, which needs to know what frames are like."""
    with contextlib.closing(prepare_frames(source, size)) as frames:
        for first in frames:
            return first
    raise SourceError(f"{source.name}: the source has no frames")


def _blank(
    prior: TwoViewPrior, config: SlamConfig, raw: SourceFrame, frame: Frame, calibrated: bool
) -> tuple[SlamState, np.ndarray | None]:
    """The state before the first frame, and the intrinsics of a calibrated run."""
    K = _constant_intrinsics(raw, frame, None) if calibrated else None
    on_device = None if K is None else jnp.asarray(K)
    return init_state(prior, _within_limit(config), frame, on_device), K


def _links(state: SlamState) -> dict[str, np.ndarray]:
    """Fields ``links, observations`` of a reconstruction."""
    graph, keyframes = state.graph, int(state.keyframes.size)
    factors = slice(1, int(graph.size), 2)  # of a link's two, the one that starts at its candidate
    links = np.stack([graph.j, graph.i], axis=1)[factors]
    return {"links": links, "observations": observe(graph, state.image_shape, keyframes)}


@dataclasses.dataclass(frozen=True)
class _Item:
    """A frame on its way in."""

    raw: SourceFrame
    host: Frame
    frame: Frame
    """The same on the device."""
    encoding: Any = None
    """What the prior extracts of it, if that has been begun."""


class _Upcoming:
    """The frames of a source, on the device; of the next one, what can be done before its turn."""

    def __init__(
        self, frames: Prefetch[tuple[SourceFrame, Frame]], prior: TwoViewPrior, stepper: Stepper
    ) -> None:
        self.frames, self.prior, self.stepper = frames, prior, stepper
        self.waited = 0.0
        """Seconds that the last frame was waited for."""
        self.failure: Exception | None = None
        """Why no more frames come, if the source did not just end."""
        self._next: _Item | None = None

    def __iter__(self) -> Iterator[_Item]:
        while True:
            begin = time.perf_counter()
            item, self._next = self._next or self._take(), None
            if item is None:
                break
            self.waited = time.perf_counter() - begin
            yield item
        if self.failure is not None and not isinstance(self.failure, SourceError):
            raise self.failure  # a mistake of somebody

    def prepare(self) -> None:
        """Have the next frame encoded, if there is one already."""
        if self._next is None and self.frames.ready():
            item = self._take()
            if item is not None:
                encoding = self.stepper.encode(self.prior, item.frame)
                self._next = dataclasses.replace(item, encoding=encoding)

    def _take(self) -> _Item | None:
        """The next frame. What is raised in its place has its turn after the frames before it."""
        try:
            raw, host = next(self.frames)
        except StopIteration:
            return None
        except Exception as error:
            self.failure = error
            return None
        return _Item(raw, host, jax.device_put(host))


def _nothing() -> None:
    pass


def _panel_frames(total: int | None, count: int) -> set[int]:
    if count <= 0:
        return set()
    if total is None:  # unknown length: early frames, further and further apart
        return {8 * 3**i for i in range(count)}
    return {int(i) for i in np.linspace(0, total - 1, count + 2)[1:-1].round()}


def _panel(
    state: SlamState,
    images: tuple[np.ndarray, np.ndarray],
    dense: DenseResult,
    index: int,
    slot: int,
) -> Panel:
    return Panel(
        frame_index=index,
        keyframe_index=int(state.keyframes.frame_index[slot]),
        image_f=images[0],
        image_k=images[1],
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
    # With a backlog, links of one keyframe come in with the frames after it.
    keyframes_ahead = 2 if config.graph.spread else 1
    if graph.capacity - int(graph.size) < 2 * config.max_links * keyframes_ahead:
        larger["factors"] = 2 * graph.capacity
    if larger:
        state = grow(state, larger.get("keyframes"), larger.get("factors"))
    return state, larger


def _within_limit(config: SlamConfig) -> SlamConfig:
    """The configuration whose buffers start no larger than they may ever be."""
    capacity = max(1, min(config.keyframe_capacity, config.max_keyframes))
    return dataclasses.replace(config, keyframe_capacity=capacity)


def _constant_intrinsics(raw: SourceFrame, frame: Frame, K: np.ndarray | None) -> np.ndarray:
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
    return np.asarray(frame.K)
