"""The loop's stopping rule and its statuses, on problems whose course is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops.gauss_newton import StepReport, gauss_newton
from ops.status import SolverStatus

LIMITS = {"max_iterations": 50, "rel_error": 1e-3, "delta_norm": 1e-3}


def halving(x):
    """A step halfway to 1: cost (x - 1)^2, step |x - 1|/2."""
    delta = (1 - x) / 2
    return x + delta, StepReport((x - 1) ** 2, jnp.abs(delta), jnp.asarray(True), extra=x)


def solve(step, x=0.0, **limits):
    return jax.jit(lambda x: gauss_newton(step, x, **{**LIMITS, **limits}))(jnp.float32(x))


def test_stops_by_step_after_taking_it():
    result = solve(halving)
    # step k (from 1) is 2^-k: 2^-10 < 1e-3 is the tenth
    assert SolverStatus(int(result.status)) is SolverStatus.CONVERGED_STEP
    assert int(result.iterations) == 10
    assert float(result.x) == 1 - 2.0**-10
    assert float(result.cost) == 2.0**-18  # at the last linearisation, before the step
    assert float(result.extra) == 1 - 2.0**-9


def test_stops_by_cost_but_never_on_the_first_iteration():
    def flat(x):
        return x + 1, StepReport(jnp.float32(7), jnp.float32(1), jnp.asarray(True))

    result = solve(flat)
    assert SolverStatus(int(result.status)) is SolverStatus.CONVERGED_COST
    assert int(result.iterations) == 2 and float(result.x) == 2


def test_runs_out_of_iterations_and_zero_switches_a_rule_off():
    result = solve(halving, max_iterations=7, rel_error=0.0, delta_norm=0.0)
    assert SolverStatus(int(result.status)) is SolverStatus.MAX_ITERATIONS
    assert int(result.iterations) == 7 and float(result.x) == 1 - 2.0**-7
    none = solve(halving, max_iterations=0)
    assert int(none.iterations) == 0 and float(none.x) == 0


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("cost", SolverStatus.NOT_FINITE),
        ("step", SolverStatus.NOT_FINITE),
        ("x", SolverStatus.NOT_FINITE),
        ("positive_definite", SolverStatus.NOT_POSITIVE_DEFINITE),
    ],
)
def test_failure_keeps_the_last_good_iterate(field, status):
    def breaks_at_half(x):
        later, report = halving(x)
        bad = x >= 0.5
        nan = jnp.where(bad, jnp.nan, 0)
        if field == "positive_definite":
            # a failed factorisation gives a zero step, which must not pass for convergence
            return jnp.where(bad, x, later), report.replace(
                step_norm=jnp.where(bad, 0, report.step_norm), positive_definite=~bad
            )
        if field == "x":
            return later + nan, report
        name = {"cost": "cost", "step": "step_norm"}[field]
        return later, report.replace(**{name: getattr(report, name) + nan})

    result = solve(breaks_at_half)
    assert SolverStatus(int(result.status)) is status
    assert SolverStatus(int(result.status)).failed
    assert float(result.x) == 0.5 and int(result.iterations) == 2


def test_vmap_stops_each_problem_on_its_own():
    alone = [solve(halving, x) for x in (0.0, 0.9, -30.0)]
    together = jax.vmap(lambda x: gauss_newton(halving, x, **LIMITS))(
        jnp.asarray([0.0, 0.9, -30.0])
    )
    np.testing.assert_array_equal(together.iterations, [int(r.iterations) for r in alone])
    np.testing.assert_array_equal(together.x, [float(r.x) for r in alone])


def test_every_status_has_a_sentence():
    messages = [status.message for status in SolverStatus]
    assert len(set(messages)) == len(SolverStatus) and all(m.endswith(".") for m in messages)
    assert [s.name for s in SolverStatus if s.failed] == ["NOT_FINITE", "NOT_POSITIVE_DEFINITE"]
