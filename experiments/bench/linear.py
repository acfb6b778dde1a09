"""The linear solver of the pose graph, beside LAPACK's Cholesky and SuperLU."""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from experiments import solver_speed
from experiments.bench import work
from experiments.bench.plan import Plan
from experiments.bench.stage import Agreement, Peer, Stage, absent
from experiments.bench.timing import without_compilation_cache

TOLERANCE = 1e-6
"""Of solutions, relative: condition numbers are about 1e8, and all compute in double precision."""
LAPACK, SUPERLU = "LAPACK Cholesky", "SuperLU"


def solver_stages(plan: Plan) -> Iterator[Stage]:
    """Our solver at its own size, in double precision, as the optimiser calls it."""
    if not plan.wants("solver"):
        return
    for keyframes in plan.solver_keyframes:
        active = keyframes - 1  # the first one is held
        H = solver_speed.summed(solver_speed.random_graph(keyframes), keyframes, np.float64)
        g = np.random.default_rng(1).normal(size=7 * active).astype(np.float32)
        with without_compilation_cache():
            seconds, call = solver_speed.compiled(H, g, active, None)
        x = call()
        solvers = scipy_solvers(H, g).items()
        peers = plan.beside(*(functools.partial(_scipy_peer, *named, x) for named in solvers))
        counted = work.cholesky(7 * active)
        yield Stage("solver", f"{keyframes} keyframes", call, seconds, counted, peers)


def scipy_solvers(
    H: np.ndarray, g: np.ndarray
) -> dict[str, Callable[[], Callable[[], np.ndarray]]]:
    """By name, what makes the solver of ``H x = g``; raises ``ImportError`` without scipy."""

    def lapack() -> Callable[[], np.ndarray]:
        import scipy.linalg  # noqa: F401 - that it is there

        return lambda: solver_speed.lapack(H, g)

    def superlu() -> Callable[[], np.ndarray]:
        import scipy.sparse
        import scipy.sparse.linalg

        sparse, right = scipy.sparse.csc_matrix(H), g.astype(float)
        return lambda: scipy.sparse.linalg.splu(sparse).solve(right)

    return {LAPACK: lapack, SUPERLU: superlu}


def _scipy_peer(name: str, make: Callable[[], Callable[[], np.ndarray]], x: np.ndarray) -> Peer:
    try:
        call = make()
    except ImportError:
        return absent(name, "scipy is not installed: pip install scipy")
    error = solver_speed.relative_error(x, call())
    error = error if np.isfinite(error) else np.inf
    return Peer(name, call, agreement=Agreement("relative error", error, TOLERANCE))
