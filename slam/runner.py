"""The imperative rim: feeds frames to the stages, grows buffers, collects results."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ops import SolverStatus
from ops.edge_system import unpack_valid
from slam.config import SlamConfig
from slam.io.frames import Source, SourceError, SourceFrame
from slam.io.prefetch import Prefetch
from slam.io.preparation import prepare_frames
from slam.keyframes import grow
from slam.reconstruction import MATCH_STRIDE, Panel, Reconstruction
from slam.state import Mode, SlamState, StepOutput, init_state
from slam.stepper import DenseResult, StageTimer, Stepper
from slam.types import Frame, TwoViewPrior


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
    time_every: int | None = None,
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
        time_every: in every so-many-th frame each stage is waited for and timed; between them the
            device is given the next frame before the host has read of the last one, and keeps busy.
            Results are the same. By default 1 on a CPU, which has nobody to wait for, else 16.

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
    K: np.ndarray | None = None
    outputs: list[StepOutput] = []
    timestamps: list[float] = []
    references: list[np.ndarray] = []
    panels: list[Panel] = []
    notes: list[str] = []
    growth: list[dict[str, int]] = []

    if time_every is None:
        time_every = 1 if jax.default_backend() == "cpu" else 16
    unread: collections.deque[tuple[StepOutput, np.ndarray]] = collections.deque()
    images: list[np.ndarray] = []

    def read(left: int = 0) -> None:
        """Fetch what happened to the frames so far, but for the last ``left``."""
        while len(unread) > left:
            output, image = unread.popleft()
            output = jax.device_get(output)
            outputs.append(output)
            if output.is_keyframe:
                images.append(image)
            if output.full and not notes:
                notes.append(
                    f"the limit of {config.max_keyframes} keyframes was reached at frame "
                    f"{len(outputs) - 1}: tracking goes on against the last one, and a lost camera "
                    "is found again only there; raise max_keyframes to map further"
                )
            if on_progress is not None:
                on_progress(
                    Progress(
                        frame=len(outputs) - 1,
                        total=source.num_frames,
                        mode=Mode(int(output.mode)),
                        num_keyframes=int(output.num_keyframes),
                        match_fraction=float(output.match_fraction),
                    )
                )

    begin = time.perf_counter()
    first_done = waiting = begin
    with contextlib.closing(Prefetch(prepare_frames(source, config.size))) as frames:
        upcoming = _Upcoming(frames, prior, stepper)
        for number, item in enumerate(upcoming):
            raw, frame = item.raw, item.frame
            # Frames are made in another thread: this is how long the device had to wait for one.
            timer.book("source", upcoming.waited)
            timer.waits = number % time_every == 0
            if state is None:
                K = _constant_intrinsics(raw, item.host, None) if calibrated else None
                on_device = None if K is None else jnp.asarray(K)
                state = init_state(prior, _within_limit(config), frame, on_device)
            elif calibrated:
                _constant_intrinsics(raw, item.host, K)
            # Before the step, which consumes the state: the slot this frame is tracked against.
            slot = max(int(outputs[-1].num_keyframes) - 1, 0) if outputs else 0
            overlaps = not timer.waits and (number + 1) % time_every != 0
            meanwhile = upcoming.prepare if overlaps else _nothing
            state, output, dense = stepper(prior, state, frame, item.encoding, meanwhile)
            unread.append((output, np.asarray(item.host.image)))
            timestamps.append(raw.timestamp)
            references.append(np.full((4, 4), np.nan) if raw.T_WC is None else raw.T_WC)
            # The one before is ready, this one may not be; but a map that may be full is looked at.
            read(left=0 if timer.waits or stepper.linking else 1)
            # Against a keyframe, that is: other frames were matched with themselves.
            if number in panel_frames and output.iterations and output.mode == Mode.TRACKING:
                shown = np.asarray(item.host.image), images[slot]
                panels.append(_panel(state, shown, dense, number, slot))
            if not unread:
                state, larger = _with_room(config, state, outputs[-1])
                if larger:
                    growth.append({"frame": number, **larger})
            done = time.perf_counter()
            timer.book("frame", done - waiting)
            waiting = done
            if number == 0:
                first_done = done
        read()
    if state is not None and state.backlog is not None:
        timer.waits = True
        state, output = stepper.catch_up(prior, state, outputs[-1])
        outputs[-1] = jax.device_get(output)
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
        "time_every": time_every,
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
        images=np.stack(images) if images else np.zeros((0, *state.image_shape, 3), np.uint8),
        reference_T_WC=known if np.isfinite(known).any() else None,
        timing=timing,
        notes=tuple(notes),
        panels=tuple(panels),
        K=None if state.K is None else np.asarray(state.K),
        **_links(state),
    )


def _links(state: SlamState) -> dict[str, np.ndarray]:
    """Fields ``links, matches, match_pixels`` of a reconstruction."""
    graph, (height, width) = state.graph, state.image_shape
    factors = slice(1, int(graph.size), 2)  # of a link's two, the one that starts at pixels of i
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    pixels = pixels[MATCH_STRIDE // 2 :: MATCH_STRIDE, MATCH_STRIDE // 2 :: MATCH_STRIDE].ravel()
    links = np.stack([graph.j, graph.i], axis=1)[factors]
    matches = np.zeros((0, len(pixels)), np.int32)
    if len(links):
        valid = unpack_valid(graph.valid[factors], height * width)[:, pixels]
        matches = np.asarray(jnp.where(valid, graph.index[factors][:, pixels], -1))
    return {"links": links, "matches": matches, "match_pixels": pixels}


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
        self._next: _Item | None = None
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[_Item]:
        while self._failure is None:
            begin = time.perf_counter()
            item, self._next = self._next, None
            if item is None:
                try:
                    item = self._take()
                except StopIteration:
                    return
            self.waited = time.perf_counter() - begin
            yield item
        raise self._failure

    def prepare(self) -> None:
        """Have the next frame encoded, if there is one already."""
        if self._next is None and self._failure is None and self.frames.ready():
            try:
                item = self._take()
            except StopIteration:
                return
            except Exception as error:  # its turn comes after the frame that is being worked on
                self._failure = error
                return
            encoding = self.stepper.encode(self.prior, item.frame)
            self._next = dataclasses.replace(item, encoding=encoding)

    def _take(self) -> _Item:
        raw, host = next(self.frames)
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
