"""Slices of a training run, of any length, each going on where the last one ended."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.training.config import TrainConfig, as_begun
from experiments.training.contact_sheet import draw_pairs
from experiments.training.hosts import agreed, of_first, on_all_devices
from experiments.training.ingredients import (
    Ingredients,
    decided,
    make_recipe,
    procedural_ingredients,
)
from experiments.training.leaves import from_named_arrays
from experiments.training.loop import End, Loop, Progress
from experiments.training.run_folder import (
    PAIRS,
    RunFolder,
    Start,
    open_start,
    parts_config,
    saved_config,
)
from experiments.training.step import Recipe, TrainState, all_devices, new_state
from experiments.training.timing import time_pieces


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a slice came to."""

    ended_by: End
    """Why it ended."""
    step: int
    """Steps made since the start of the run."""
    record: dict[str, Any]
    """Entry of ``train.json``; empty if there was nothing left to do."""


def train(
    config: TrainConfig,
    folder: pathlib.Path,
    *,
    minutes: float = math.inf,
    last_step: int | None = None,
    parts: pathlib.Path | None = None,
    shares: bool = True,
    began: float | None = None,
    ingredients: Callable[[TrainConfig], Ingredients] = procedural_ingredients,
    report: Callable[[Progress], None] = lambda progress: None,
    on_signal: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains for a slice of time, from where the run in ``folder`` has come to.

    In a distributed run (``hosts.join``) all processes call this. Settings and last step are those
    of process 0, which alone reads and writes; the first to run out of time ends it for all.

    Args:
        config: settings; "auto" is decided for the device that the run starts on.
        folder: of the run; made if it does not exist.
        minutes: everything is written when they are over.
        last_step: end there, if it comes before ``config.schedule.steps``.
        parts: an exported state to start from, in a new folder.
        shares: measure the shares of rendering, forward and backward in a run's first slice, and
            draw its first pairs, unless several processes have made them.
        began: ``time.monotonic()`` when the minutes began; now by default.
        ingredients: network, pairs and objective of these settings.
        report: called every few seconds, see ``loop.Loop``.
        on_signal: called when SIGINT or SIGTERM asks for an end, which takes two dispatches.

    Raises:
        CheckpointError: the run cannot be gone on with under these settings, or a file is damaged.
        SourceError: the batch does not divide over the devices.
        OSError: the folder cannot be written to.
    """
    began = time.monotonic() if began is None else began
    start, first = Start(), jax.process_index() == 0
    if first:
        saved = saved_config(folder) or (None if parts is None else parts_config(parts))
        config = as_begun(config, saved)
    config = decided(config)
    if first:
        start = open_start(folder, config, parts)
    common = agreed(
        {
            "config": dataclasses.asdict(config),
            "from": None if start.arrays is None else start.step,
            "last_step": config.schedule.steps if last_step is None else last_step,
            "shares": shares and start.arrays is None,
        }
    )
    config = TrainConfig.from_json(json.dumps(common["config"]))
    used = ingredients(config)
    recipe = make_recipe(config, all_devices(), used)
    step = int(common["from"] or 0)
    last_step = min(int(common["last_step"]), config.schedule.steps)
    if step >= last_step:
        return Outcome(ended_by="steps", step=step, record={})
    place = str(folder if parts is None else parts)
    with contextlib.ExitStack() as stack:
        state = _first_state(recipe, used, config.seed, start, common["from"] is not None, place)
        writer = None
        if first:
            writer = stack.enter_context(contextlib.closing(RunFolder(folder, config, start)))
        loop = Loop(
            config,
            recipe,
            writer,
            last_step=last_step,
            began=began,
            deadline=began + 60 * minutes,
            report=report,
        )
        stack.enter_context(_signals(loop.interrupt, on_signal))
        # Nothing can be refused any more, and compiling begins.
        report(Progress(step, last_step, math.nan, math.nan, math.nan))
        if common["shares"]:
            loop.step_times, pairs = time_pieces(recipe, state)
            if jax.process_count() == 1:  # all pairs are here
                draw_pairs(folder / PAIRS, pairs)
        return Outcome(*loop.run(state, step))


def _first_state(
    recipe: Recipe, used: Ingredients, seed: int, start: Start, resumes: bool, place: str
) -> TrainState:
    """The state to go on from, on all devices: a new one, or that which process 0 has read."""
    given = on_all_devices(recipe, np.asarray(seed, np.uint32))
    if not resumes:
        return new_state(recipe, used.network, given)
    like = jax.eval_shape(lambda seed: new_state(recipe, used.network, seed), given)
    if start.arrays is None:
        host = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), like)
    else:
        host = from_named_arrays(like, start.arrays, place)
    return on_all_devices(recipe, of_first(host))


@contextlib.contextmanager
def _signals(stop: Callable[[], None], told: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for an end; a second one is what it would be otherwise."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def handle(number: int, frame: Any) -> None:
        restore()
        stop()
        told()

    for kind in kinds:
        signal.signal(kind, handle)
    try:
        yield
    finally:
        restore()
