"""Time by the clock: compilation apart, and contestants that take turns."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

LEAST_ROUNDS = 3
"""Even of what takes longer than its time."""
SHORT_S = 0.05
"""A call that takes less is made once more, uncounted, before the one that counts: others have had
the caches meanwhile."""
PAUSE_S = 0.005
"""Between turns: threads of one library that wait for work go on spinning for about a
millisecond, and would take cores from the next."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Durations of single calls, in the order in which they were made."""

    ms: tuple[float, ...]
    """Milliseconds."""

    @property
    def median(self) -> float:
        """The median in milliseconds."""
        return statistics.median(self.ms)

    def to_json(self) -> dict[str, Any]:
        """Median, best and quartiles in milliseconds, and every sample."""
        low, _, high = quartiles(self.ms)
        return {
            "median_ms": self.median,
            "best_ms": min(self.ms),
            "quartiles_ms": [low, high],
            "samples_ms": list(self.ms),
        }


def quartiles(values: tuple[float, ...]) -> tuple[float, float, float]:
    """First quartile, median, third; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Whatever is compiled here is compiled, and not looked up.

    JAX decides once in a process whether it has a cache: it has to be told to think again.
    """
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def compiled(
    function: Callable[..., Any], *arguments: Any, cached: bool = False
) -> tuple[Callable[[], Any], float]:
    """A call of the compiled function that waits for its result, and the seconds of compiling it.

    ``function`` is one of arrays (or pytrees of them). ``cached`` allows programs that an earlier
    process has compiled: the seconds are then those of looking one up.
    """
    apart = contextlib.nullcontext() if cached else without_compilation_cache()
    with apart:
        begin = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        seconds = time.perf_counter() - begin
    return lambda: jax.block_until_ready(program(*arguments)), seconds


def take_turns(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, seconds: float
) -> dict[str, Samples]:
    """Time single calls of every contestant, one after the other in rounds.

    So what disturbs the machine for a while disturbs them alike, and two contestants can be
    compared round by round. Each round begins with another one.

    Args:
        contestants: by name, what is called without arguments; it returns when its work is done.
        repeats: how many rounds at most.
        seconds: no further round is begun after so long, once there are ``LEAST_ROUNDS``.

    Returns:
        As many samples of each as there were rounds.
    """
    order = list(contestants)
    short = {name: _warmed_up(contestants[name]) < SHORT_S for name in order}
    ms: dict[str, list[float]] = {name: [] for name in order}
    end = time.monotonic() + seconds
    for k in range(repeats):
        if k >= LEAST_ROUNDS and time.monotonic() > end:
            break
        first = k % len(order)
        for name in order[first:] + order[:first]:
            call = contestants[name]
            time.sleep(PAUSE_S)
            if short[name]:
                call()
            begin = time.perf_counter()
            call()
            ms[name].append(1e3 * (time.perf_counter() - begin))
    return {name: Samples(tuple(values)) for name, values in ms.items()}


def ratio(ours: Samples, other: Samples) -> float:
    """How many times longer ours takes: the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(ours.ms, other.ms, strict=True))


def _warmed_up(call: Callable[[], Any]) -> float:
    """Seconds of a call that is not the first; of the first one, if that took a second."""
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        if seconds > 1:
            break
    return seconds
