"""One Gauss-Newton loop, for whatever can be linearised and retracted.

A problem supplies one function, ``step(x) -> (x_next, report)``: linearise at ``x``, solve,
retract. The loop only counts, judges and stops. It stops after a step when the relative decrease
of the cost or the length of the step falls under its threshold; the cost is the one the
linearisation saw, that is, before the step, as in the original, whose first comparison (with
infinity) never stops it.

Reverse-mode differentiation cannot pass a loop of unknown length: ``unrolled`` always makes
``max_iterations`` rounds, of which those after the end change nothing. The derivative of what the
loop converges to needs no loop at all (``ops/implicit.py``).
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.records import Record, record
from ops.status import SolverStatus

X = TypeVar("X")


@record
class StepReport(Record):
    """What one Gauss-Newton step tells the loop."""

    cost: Float[Array, ""]
    """Cost at the linearisation point, before the step."""
    step_norm: Float[Array, ""]
    """Euclidean length of the tangent step."""
    positive_definite: Bool[Array, ""]
    """Whether the normal equations could be factorised."""
    extra: Any = None
    """Anything the caller wants to see of the last step (a pytree of fixed shapes)."""


@record
class GaussNewtonResult(Record, Generic[X]):
    """Where the loop ended."""

    x: X
    """The last good iterate: after a failure, the one before the failing step."""
    cost: Float[Array, ""]
    """Cost of the last linearisation, one step before ``x``; 0 if there was none."""
    iterations: Int[Array, ""]
    """How many linearisations were made, a failing one included."""
    status: Int[Array, ""]
    """A ``SolverStatus`` as int32."""
    extra: Any
    """``StepReport.extra`` of the last linearisation; zeros if there was none."""


def gauss_newton(
    step: Callable[[X], tuple[X, StepReport]],
    x: X,
    *,
    max_iterations: int,
    rel_error: float,
    delta_norm: float,
    unrolled: bool = False,
) -> GaussNewtonResult[X]:
    """Iterate ``step`` from ``x`` until it converges, fails or has used ``max_iterations``.

    Converged by cost when ``|previous - cost| < rel_error * previous``, by step when the step's
    norm is below ``delta_norm``; 0 switches a criterion off. A step that is not finite or whose
    system is not positive definite ends the loop with that status and leaves ``x`` as it was.
    ``unrolled`` gives the same result in a form that can be differentiated step by step; ``step``
    then has to be differentiable, too.
    """
    report = jax.eval_shape(step, x)[1]

    def unfinished(carry: tuple[GaussNewtonResult[X], Array]) -> Array:
        result, done = carry
        return ~done & (result.iterations < max_iterations)

    def body(carry: tuple[GaussNewtonResult[X], Array]) -> tuple[GaussNewtonResult[X], Array]:
        result, _ = carry
        x_next, report = step(result.x)
        leaves = jax.tree.leaves((x_next, report.cost, report.step_norm))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        good = finite & report.positive_definite
        first = result.iterations == 0
        by_cost = ~first & (jnp.abs(result.cost - report.cost) < rel_error * result.cost)
        by_step = report.step_norm < delta_norm
        status = jnp.select(
            [~jnp.isfinite(report.cost), ~report.positive_definite, ~finite, by_cost, by_step],
            [
                _code(SolverStatus.NOT_FINITE),
                _code(SolverStatus.NOT_POSITIVE_DEFINITE),
                _code(SolverStatus.NOT_FINITE),
                _code(SolverStatus.CONVERGED_COST),
                _code(SolverStatus.CONVERGED_STEP),
            ],
            _code(SolverStatus.MAX_ITERATIONS),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), x_next, result.x)
        result = GaussNewtonResult(kept, report.cost, result.iterations + 1, status, report.extra)
        return result, status != _code(SolverStatus.MAX_ITERATIONS)

    start = GaussNewtonResult(
        x,
        jnp.zeros((), report.cost.dtype),
        jnp.zeros((), jnp.int32),
        _code(SolverStatus.MAX_ITERATIONS),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), report.extra),
    )
    carry = (start, jnp.zeros((), bool))
    if not unrolled:
        return jax.lax.while_loop(unfinished, body, carry)[0]

    def body_if_unfinished(
        carry: tuple[GaussNewtonResult[X], Array], _: None
    ) -> tuple[tuple[GaussNewtonResult[X], Array], None]:
        return jax.lax.cond(unfinished(carry), body, lambda carry: carry, carry), None

    return jax.lax.scan(body_if_unfinished, carry, None, length=max_iterations)[0][0]


def _code(status: SolverStatus) -> Int[Array, ""]:
    return jnp.asarray(int(status), jnp.int32)
