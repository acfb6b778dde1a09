"""Why an iterative solver stopped."""

import enum


class SolverStatus(enum.IntEnum):
    """Outcome of a solver, carried through compiled code as an int32.

    ``SolverStatus(int(status))`` gives the member back on the host; a failure never reads as
    convergence.
    """

    CONVERGED_COST = 0
    CONVERGED_STEP = 1
    MAX_ITERATIONS = 2
    NOT_FINITE = 3
    NOT_POSITIVE_DEFINITE = 4

    @property
    def failed(self) -> bool:
        """Whether the solution must not be used."""
        return self >= SolverStatus.NOT_FINITE

    @property
    def message(self) -> str:
        """One sentence for a user."""
        return _MESSAGES[self]


_MESSAGES = {
    SolverStatus.CONVERGED_COST: "The cost stopped falling; the solution is good.",
    SolverStatus.CONVERGED_STEP: "The last step was negligible; the solution is good.",
    SolverStatus.MAX_ITERATIONS: (
        "The solver used all its iterations without settling; the solution is usable but may be "
        "improved."
    ),
    SolverStatus.NOT_FINITE: (
        "A residual or a step was not a finite number; the solution before it is returned and "
        "should not be trusted."
    ),
    SolverStatus.NOT_POSITIVE_DEFINITE: (
        "The measurements do not determine the solution (too few, or all alike); the solution "
        "before the failing step is returned and should not be trusted."
    ),
}
