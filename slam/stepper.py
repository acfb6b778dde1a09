"""The stages of ``slam.pipeline.step``, compiled one by one and timed."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from slam import backlog
from slam import pipeline as stages
from slam.config import SlamConfig
from slam.graph import Links
from slam.linking import Candidates
from slam.slots import blank
from slam.state import SlamState, StepOutput
from slam.types import Frame, TwoViewPrior, retrieval_of


class StageTimer:
    """Wall-clock seconds by stage; a stage's first call, which compiles, is kept apart.

    To time a stage is to wait for its results, in which time the device gets no further work.
    While ``waits`` is False only first calls are timed, and all others return at once.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.later: dict[str, list[float]] = collections.defaultdict(list)
        self.waits = True

    def call(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call, and unless that is not wanted, wait and book the time under ``name``."""
        if not self.waits and name in self.first:
            return function(*args)
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

    The host reads one decision of the device in each frame, whether it wants links. ``meanwhile``,
    which is called before that, is the place to give the device more to do (``encode`` of the next
    frame needs nothing of this one), so that it need not wait for the host to have read.
    """

    def __init__(self, config: SlamConfig) -> None:
        self.config = config
        self.timer = StageTimer()
        self.linking = False
        """Whether the last frame wanted links: only then can the map have a keyframe more."""
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
        self._work = jax.jit(lambda prior, state: backlog.work(prior, config, state))
        self._take_in = jax.jit(functools.partial(backlog.adopt, config), donate_argnums=0)
        self._optimize = jax.jit(functools.partial(stages.optimize, config))
        self._adopt = jax.jit(functools.partial(stages.adopt), donate_argnums=0)
        self._nothing: dict[Any, tuple[Candidates, Links]] = {}

    def cache_sizes(self) -> dict[str, int]:
        """How often each stage has been compiled."""
        stage = [name for name, value in vars(self).items() if hasattr(value, "_cache_size")]
        return {name.lstrip("_"): getattr(self, name)._cache_size() for name in stage}

    def encode(self, prior: TwoViewPrior, frame: Frame) -> Any:
        """What the prior extracts of a frame, to be passed to the call that takes it in."""
        return self.timer.call("encode", self._encode, prior, frame)

    def __call__(
        self,
        prior: TwoViewPrior,
        state: SlamState,
        frame: Frame,
        encoding: Any = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[SlamState, StepOutput, "DenseResult"]:
        """One step. ``state`` is consumed."""
        call = self.timer.call
        reference = call("look up", self._look_up, state)
        if encoding is None:
            encoding = self.encode(prior, frame)
        views = call("decode", self._decode, prior, reference, encoding)
        found = call("match", self._match, reference, views)
        solution = call("solve", self._solve, reference, views, found)
        assessment = call("assess", self._assess, reference, views, found, solution)
        meanwhile()
        self.linking = bool(assessment.wants_links)
        if self.linking:
            candidates, links = self._search(prior, state, encoding, assessment)
        else:
            candidates, links = self._no_links(prior, state, encoding, assessment)
        seen = (frame, encoding, views, found, solution, assessment, candidates, links)
        state, output = call("commit", self._commit, state, *seen)
        if state.backlog is not None:
            if not self.linking:
                state, output = self._do_a_piece(prior, state, output)
        elif self.linking and int(output.new_links):
            poses = call("optimize", self._optimize, state)
            state, output = call("adopt", self._adopt, state, output, poses)
        return state, output, DenseResult(views, found)

    def catch_up(
        self, prior: TwoViewPrior, state: SlamState, output: StepOutput
    ) -> tuple[SlamState, StepOutput]:
        """Do all that waits (``slam.backlog``); ``state`` is consumed, ``output`` brought up."""
        while state.backlog is not None and bool(backlog.left(state.backlog)):
            state, output = self._do_a_piece(prior, state, output)
        return state, output

    def _do_a_piece(
        self, prior: TwoViewPrior, state: SlamState, output: StepOutput
    ) -> tuple[SlamState, StepOutput]:
        """The next piece of what waits, if there is any."""
        piece = self.timer.call("backlog", self._work, prior, state)
        return self.timer.call("take in", self._take_in, state, output, piece)

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
