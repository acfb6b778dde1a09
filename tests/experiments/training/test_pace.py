"""How many steps to send next, with a clock that the test turns."""

import math

import pytest

from experiments.training.pace import RESERVE_FACTOR, RESERVE_SECONDS, STEP_FACTOR, Pace


def test_single_steps_until_their_time_is_known():
    pace = Pace(dispatch_seconds=2.0, max_steps=100)
    assert pace.proposal(0.0, 0) == pace.proposal(0.5, 1) == 1
    pace.took(1, 0.1)
    assert pace.proposal(1.0, 1) == 20
    pace.took(20, 40.0)
    assert pace.proposal(50.0, 20) == 1  # a step longer than a dispatch should be
    pace.took(99, 99e-4)
    assert pace.proposal(60.0, 1) == 100


def test_an_end_is_an_end():
    pace = Pace(dispatch_seconds=2.0, max_steps=100)
    pace.took(1, 0.1)
    pace.stop()
    assert pace.proposal(1.0, 0) == 0
    # A deadline once missed is missed, whatever the clock says.
    pace = Pace(dispatch_seconds=2.0, max_steps=100, deadline=10.0, reserve=3.0)
    assert pace.proposal(6.9, 0) == 1
    assert pace.proposal(7.1, 0) == pace.proposal(0.0, 0) == 0


@pytest.mark.parametrize("step", [0.03, 0.4, 7.0])
@pytest.mark.parametrize("write", [0.2, 5.0])
@pytest.mark.parametrize("most", [1, 100])
def test_everything_is_written_before_the_deadline(step, write, most):
    """A device that is one dispatch ahead, whose steps and writes now and then take longer."""
    deadline = 120.0
    pace = Pace(dispatch_seconds=2.0, max_steps=most, deadline=deadline, reserve=20.0)
    in_vain = 2 * step if most == 1 else 0.0
    now, pending, made = 10.0, 0, 0
    wrote = False
    while True:
        steps = pace.proposal(now, pending)
        slow = step * (STEP_FACTOR if made % 3 == 0 else 1.0)
        now += pending * slow  # the host waits for the dispatch before
        if pending:
            pace.took(pending, pending * step)
        made, pending = made + pending, steps
        if not wrote and made:
            now += write
            pace.wrote(write)
            wrote = True
        if steps == 0:
            break
    end = now + in_vain + RESERVE_FACTOR * write  # and the process ends within RESERVE_SECONDS
    assert end + RESERVE_SECONDS <= deadline
    # And little of the time is left unused.
    assert deadline - end < 4 * STEP_FACTOR * max(step, 2.0) + RESERVE_SECONDS
    assert math.isfinite(pace.reserve) and pace.reserve == RESERVE_FACTOR * write + RESERVE_SECONDS
