"""How many steps to send to the device next, so that it is busy and the time is kept."""

import math

RESERVE_FACTOR = 1.5
"""The writing at the end is given its longest measured time times this."""
RESERVE_SECONDS = 3.0
"""And this long for the process itself, which has to start and to end."""
STEP_FACTOR = 1.2
"""Steps are expected to take their measured time times this when the end is near."""
MEMORY = 0.9
"""Weight of what was known of a step's time against one further step."""


class Pace:
    """Proposes lengths of dispatches; clocks are read by the caller, in seconds from any zero.

    Args:
        dispatch_seconds: what a dispatch should last.
        max_steps: most steps of a dispatch. With 1, the two dispatches that end a slice, which make
            no step, take as long as if they did: see ``step.train_many``.
        deadline: when everything must be written; infinity for no limit.
        reserve: seconds kept free for writing, until it has been measured.
    """

    def __init__(
        self,
        *,
        dispatch_seconds: float,
        max_steps: int,
        deadline: float = math.inf,
        reserve: float = 0.0,
    ):
        self._dispatch_seconds = dispatch_seconds
        self._max_steps = max_steps
        self._deadline = deadline
        self._reserve = reserve
        self._measured_reserve: float | None = None
        self._stopped = False
        self.step_seconds: float | None = None
        """Time of a step, over the last ones."""

    def proposal(self, now: float, pending: int) -> int:
        """Steps to send next, with ``pending`` ones not finished yet; once 0, always 0.

        Single steps, until it is known how long they take.
        """
        left = self._deadline - now - self.reserve
        if self.step_seconds is None:
            steps = 1 if left > 0 else 0
        else:
            wanted = max(1.0, self._dispatch_seconds / self.step_seconds)
            in_vain = 2 if self._max_steps == 1 else 0
            fitting = left / (STEP_FACTOR * self.step_seconds) - pending - in_vain
            steps = int(min(wanted, self._max_steps, fitting)) if fitting >= 1 else 0
        self._stopped |= steps == 0
        return 0 if self._stopped else steps

    def stop(self) -> None:
        """From now on, no further steps."""
        self._stopped = True

    @property
    def reserve(self) -> float:
        """Seconds kept free for writing."""
        measured = self._measured_reserve
        return self._reserve if measured is None else RESERVE_FACTOR * measured + RESERVE_SECONDS

    def took(self, steps: int, seconds: float) -> None:
        """A dispatch has taken so long, from the end of the one before it."""
        now, before = seconds / steps, self.step_seconds
        weight = MEMORY**steps
        self.step_seconds = now if before is None else weight * before + (1 - weight) * now

    def wrote(self, seconds: float) -> None:
        """Everything has been written in this time."""
        self._measured_reserve = max(seconds, self._measured_reserve or 0.0)
