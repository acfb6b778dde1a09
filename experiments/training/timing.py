"""Where the time of a training step goes."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.training.step import Recipe, TrainState, gradient, loss, pairs_of_step
from experiments.training.types import PairBatch


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of the pieces of a step, each run by itself."""

    rendering: float
    """Making the pairs."""
    forward: float
    """Network and loss."""
    backward: float
    """What the gradient takes beyond that."""

    def shares(self, step: float) -> dict[str, float]:
        """Shares of a whole step that lasts ``step`` seconds; "other" is the optimiser.

        Pieces may take longer by themselves than within the step, where XLA overlaps and fuses
        them: where their sum exceeds the step, the shares are those of the sum.
        """
        pieces = dataclasses.asdict(self)
        whole = max(step, sum(pieces.values()))
        shares = {name: seconds / whole for name, seconds in pieces.items()}
        return {**shares, "other": 1.0 - sum(shares.values())}


def time_pieces(recipe: Recipe, state: TrainState, repeats: int = 3) -> tuple[StepTimes, PairBatch]:
    """Times pairs, forward and gradient as programs of their own: the median of ``repeats`` runs.

    Also returns the pairs, which are those of the state's step. Compiles three programs; all
    processes of a distributed run must call it.
    """
    draw = jax.jit(lambda state: pairs_of_step(recipe, state))
    pairs = draw(state)
    forward = jax.jit(lambda params, pairs: loss(recipe, params, pairs))
    backward = jax.jit(lambda params, pairs: gradient(recipe, params, pairs))
    rendering = _seconds(draw, (state,), repeats)
    ahead = _seconds(forward, (state.params, pairs), repeats)
    both = _seconds(backward, (state.params, pairs), repeats)
    times = StepTimes(rendering=rendering, forward=ahead, backward=max(both - ahead, 0.0))
    return times, pairs


def _seconds(program: Callable[..., Any], arguments: tuple, repeats: int) -> float:
    jax.block_until_ready(program(*arguments))
    took = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        took.append(time.perf_counter() - begin)
    return statistics.median(took)
