"""Time and error of the pose graph's linear solver: ``python -m experiments.solver_speed``.

The system is a random pose graph: a chain, as many loops as keyframes, edges with a condition up to
1e4. ``ours`` is ``ops.solve_spd`` on arrays of the given capacity in keyframes; float64 has its
matrix summed in double precision, as the optimiser has, float32 in single. LAPACK and SuperLU are
called through scipy, which has to be installed, in double precision on the active rows alone. The
methods take turns, so that a disturbance by other programs hits them alike; times are the median,
and the range from the best to the third quartile. The error is that against LAPACK's solution.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import quartiles, take_turns
from ops import solve_spd

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
PRECISIONS = ("float64", "float32")


def random_graph(poses: int, condition: float = 1e4, seed: int = 0) -> Edges:
    """Edges ``(i, j, B[E,7,7])`` of a chain of poses from 0 on with as many loops."""
    rng = np.random.default_rng(seed)
    loops = np.sort(rng.integers(0, poses, (poses, 2)), axis=1)
    loops = loops[loops[:, 1] > loops[:, 0] + 1]
    i = np.concatenate([np.arange(poses - 1), loops[:, 0]])
    j = np.concatenate([np.arange(1, poses), loops[:, 1]])
    Q = np.linalg.qr(rng.normal(size=(len(i), 7, 7)))[0]
    B = np.einsum("eab,eb,ecb->eac", Q, condition ** rng.uniform(0, 1, (len(i), 7)), Q)
    B = B.astype(np.float32)
    return i, j, (B + B.transpose(0, 2, 1)) / 2


def summed(edges: Edges, poses: int, dtype: type) -> np.ndarray:
    """The matrix of all poses but the first."""
    H = np.zeros((poses, 7, poses, 7), dtype)
    for i, j, B in zip(*edges, strict=True):
        H[i, :, i] += B
        H[j, :, j] += B
        H[i, :, j] -= B
        H[j, :, i] -= B
    return H[1:, :, 1:].reshape(7 * (poses - 1), -1)


def lapack(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Dense Cholesky in double precision."""
    import scipy.linalg

    factor = scipy.linalg.cho_factor(H.astype(np.float64), lower=True, overwrite_a=True)
    return scipy.linalg.cho_solve(factor, g.astype(np.float64))


def relative_error(x: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(x - expected) / np.linalg.norm(expected))


def compare(active: int, capacities: list[int], repeats: int) -> None:
    """Print one line for each method on one graph of ``active`` free poses."""
    import scipy.sparse
    import scipy.sparse.linalg

    edges = random_graph(active + 1)
    n = 7 * active
    H = {dtype: summed(edges, active + 1, np.dtype(dtype).type) for dtype in PRECISIONS}
    g = np.random.default_rng(1).normal(size=n).astype(np.float32)
    exact = lapack(H["float64"], g)

    sparse = scipy.sparse.csc_matrix(H["float64"])
    methods: dict[str, tuple[float, Callable[..., np.ndarray]]] = {
        "LAPACK float64": (0.0, lambda: lapack(H["float64"], g)),
        "SuperLU float64": (0.0, lambda: scipy.sparse.linalg.splu(sparse).solve(g.astype(float))),
    }
    for capacity in capacities:
        for precision, implementation in (
            *((p, "blocked") for p in PRECISIONS),
            ("float64", "lapack"),
        ):
            methods[f"ours {implementation} {precision}, {capacity}"] = compiled(
                H[precision], g, capacity, implementation
            )

    calls = {name: run for name, (_, run) in methods.items()}
    times = take_turns(calls, repeats, seconds=float("inf"))
    for name, (seconds, run) in methods.items():
        best, (_, median, high) = min(times[name].ms), quartiles(times[name].ms)
        x = run()
        compile_time = f"{seconds:7.1f}" if seconds else "      -"
        print(
            f"{active:>4} {name:<28} {compile_time} {median:8.1f} {f'{best:.1f}-{high:.1f}':>15}"
            f" {relative_error(x, exact):7.0e}",
            flush=True,
        )


def compiled(
    H: np.ndarray, g: np.ndarray, capacity: int, implementation: str | None
) -> tuple[float, Callable[..., np.ndarray]]:
    """Seconds to compile our solver for a capacity, and a call that solves the system with it."""
    n, m = len(g), 7 * capacity
    wide = np.zeros((m, m), H.dtype)
    wide[:n, :n] = H
    with jax.enable_x64(H.dtype == np.float64):
        arguments = (
            jnp.asarray(wide),
            jnp.zeros(m, H.dtype).at[:n].set(g.astype(H.dtype)),
            jnp.int32(n),
        )
        start = time.perf_counter()
        solve = jax.jit(
            functools.partial(solve_spd, implementation=implementation, precision=str(H.dtype))
        )
        solve = solve.lower(*arguments[:2], size=arguments[2]).compile()
        seconds = time.perf_counter() - start

    def ours() -> np.ndarray:
        with jax.enable_x64(H.dtype == np.float64):
            x, ok = solve(*arguments[:2], size=arguments[2])
            return np.asarray(x)[:n] if bool(ok) else np.full(n, np.nan)

    return seconds, ours


def main() -> None:
    """Print the table, one block of lines for each number of keyframes."""
    import scipy

    parser = argparse.ArgumentParser(description="Time and error of the linear solver.")
    parser.add_argument("--active", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, scipy {scipy.__version__}")
    print(f"{'':33} {'compile':>7} {'median':>8} {'best-75 %':>15} {'relative':>8}")
    print(f"{'kf':>4} {'method, capacity':<28} {'s':>7} {'ms':>8} {'ms':>15} {'error':>7}")
    for active in arguments.active:
        compare(active, sorted({active, max(active, arguments.capacity)}), arguments.repeats)


if __name__ == "__main__":
    main()
