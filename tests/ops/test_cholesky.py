"""The large solver against numpy in float64, on pose graphs, and its refusals."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import cholesky, solve_spd

module = importlib.import_module("ops.cholesky")  # the package exports a function of that name
EPS32 = float(np.finfo(np.float32).eps)
IMPLEMENTATIONS = ("blocked", "lapack")


@dataclasses.dataclass
class PoseGraph:
    """A chain of poses with loops, pose 0 fixed; edges hold blocks exact in single precision."""

    poses: int
    i: np.ndarray
    j: np.ndarray
    B: np.ndarray

    @staticmethod
    def random(poses: int, loops: int, condition: float, seed: int = 0) -> "PoseGraph":
        rng = np.random.default_rng(seed)
        ends = np.sort(rng.integers(0, poses, (loops, 2)), axis=1)
        ends = ends[ends[:, 1] > ends[:, 0] + 1]
        i = np.concatenate([np.arange(poses - 1), ends[:, 0]])
        j = np.concatenate([np.arange(1, poses), ends[:, 1]])
        Q = np.linalg.qr(rng.normal(size=(len(i), 7, 7)))[0]
        eigenvalues = condition ** rng.uniform(0, 1, (len(i), 7))
        B = np.einsum("eab,eb,ecb->eac", Q, eigenvalues, Q).astype(np.float32)
        return PoseGraph(poses, i, j, (B + B.transpose(0, 2, 1)) / 2)

    def matrix(self, dtype: type = np.float64) -> np.ndarray:
        """The sum of the edges' blocks, in the given precision, without the fixed pose."""
        H = np.zeros((self.poses, 7, self.poses, 7), dtype)
        for i, j, B in zip(self.i, self.j, self.B, strict=True):
            H[i, :, i] += B
            H[j, :, j] += B
            H[i, :, j] -= B
            H[j, :, i] -= B
        return H[1:, :, 1:].reshape(7 * self.poses - 7, -1)


def relative_error(x: jax.Array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_active_size_matches_numpy(implementation):
    graph = PoseGraph.random(17, loops=20, condition=1e4)
    H, g = graph.matrix(np.float32), np.random.default_rng(1).normal(size=112).astype(np.float32)

    @jax.jit
    def both(H, g, size):
        options = {"size": size, "block": 32, "implementation": implementation}
        return solve_spd(H, g, **options), cholesky(H, **options)

    for size in (7, 28, 32, 35, 105, 112):  # 32 rows are one tile; 112 are three and a half
        garbage = np.full_like(H, np.nan)
        garbage[:size, :size] = np.tril(H[:size, :size])  # what is not to be read is not a number
        garbage[range(size - 1), range(1, size)] = np.inf
        active = H[:size, :size].astype(np.float64)
        (x, ok), (L, ok_factor) = both(garbage, np.where(np.arange(112) < size, g, np.nan), size)
        assert bool(ok) and bool(ok_factor)
        # Only the result is rounded to single precision.
        assert relative_error(x[:size], np.linalg.solve(active, g[:size])) < EPS32
        assert not np.asarray(x[size:]).any()
        expected = np.eye(112)
        expected[:size, :size] = np.linalg.cholesky(active)
        np.testing.assert_allclose(L, expected, rtol=0, atol=EPS32 * abs(expected).max())


def test_float64_input_keeps_its_precision():
    graph = PoseGraph.random(9, loops=9, condition=10)
    H, x = graph.matrix(), np.random.default_rng(0).normal(size=56)
    with jax.enable_x64(True):
        found, ok = jax.jit(lambda H, g: solve_spd(H, g, block=16))(H, H @ x)
    assert bool(ok) and found.dtype == np.float64
    # Normwise bound of a solution by Cholesky: rounding times condition, with a modest constant.
    assert relative_error(found, x) < 10 * np.finfo(np.float64).eps * np.linalg.cond(H)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_ill_conditioned_chain(precision):
    """Rounding the sums of a long chain costs two digits and more, which nothing brings back."""
    graph = PoseGraph.random(65, loops=0, condition=1e4)
    H, g = graph.matrix(np.float32), np.random.default_rng(1).normal(size=448).astype(np.float32)
    exact = np.linalg.solve(graph.matrix(), g)
    of_the_sum = np.linalg.solve(H.astype(np.float64), g)
    lost = relative_error(jnp.asarray(of_the_sum), exact)
    assert lost > 1e-3
    x, ok = jax.jit(lambda H, g: solve_spd(H, g, precision=precision))(H, g)
    assert bool(ok)
    # A single-precision factor makes further errors of the kind that the summation made already.
    assert relative_error(x, of_the_sum) < (EPS32 if precision == "float64" else 10 * lost)


def test_sums_in_double_are_solved_in_double():
    """As a pose graph does it: nothing but the result is ever in single precision."""
    graph = PoseGraph.random(65, loops=0, condition=1e4)
    g = np.random.default_rng(1).normal(size=448).astype(np.float32)

    def solve(g):
        with jax.enable_x64(True):
            x, ok = solve_spd(jnp.asarray(graph.matrix()), g.astype(jnp.float64))
            return x.astype(jnp.float32), ok

    def twice(g):  # a loop, which ``vmap`` goes over again when it has been traced
        return jax.lax.scan(lambda _, k: (0, solve(k * g)), 0, jnp.arange(1.0, 3.0))

    x, ok = jax.jit(jax.vmap(lambda g: twice(g)[1]))(jnp.stack([g, -g]))
    assert ok.all()
    exact = np.linalg.solve(graph.matrix(), g)
    for k, (clip, factor) in enumerate([(0, 1), (0, 2), (1, -1), (1, -2)]):
        assert relative_error(x[clip, k % 2] / factor, exact) < 2 * EPS32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_failure_is_data(implementation):
    """A batch with sizes of its own; each bad system fails alone."""
    graph = PoseGraph.random(9, loops=9, condition=100)
    good = graph.matrix(np.float32)
    rng = np.random.default_rng(0)
    H, g = np.stack([good] * 9), rng.normal(size=(9, 56)).astype(np.float32)
    sizes = np.array([56, 56, 56, 56, 56, 56, 56, 49, 21], np.int32)
    H[1] -= 1.01 * np.linalg.eigvalsh(good)[0] * np.eye(56, dtype=np.float32)  # just indefinite
    H[2, 40, 3] = np.nan
    H[3, 9, 9] = np.inf
    g[4, 5] = np.nan
    ring = 2 * np.eye(8) - np.roll(np.eye(8), 1, axis=0) - np.roll(np.eye(8), -1, axis=0)
    H[5] = np.kron(ring, 3 * np.eye(7))  # singular: no pose is fixed
    H[6] = 0
    H[7, 49:] = np.nan
    H[8, 30, 30] = -1  # beyond its size

    solve = jax.jit(
        jax.vmap(
            lambda H, g, size: solve_spd(H, g, size=size, block=16, implementation=implementation)
        )
    )
    x, ok = solve(H, g, sizes)
    np.testing.assert_array_equal(ok, [True, *[False] * 6, True, True])
    assert not np.asarray(x[1:7]).any()
    for k in (0, 7, 8):
        size = sizes[k]
        expected = np.linalg.solve(H[k, :size, :size].astype(np.float64), g[k, :size])
        assert relative_error(x[k, :size], expected) < EPS32


def test_inside_cond_and_scan():
    graph = PoseGraph.random(5, loops=5, condition=10)
    H, g = jnp.asarray(graph.matrix(np.float32)), jnp.ones(28)

    def step(total, size):
        def solve():
            return solve_spd(H, g, size=size, block=14)[0]

        x = jax.lax.cond(size > 0, solve, lambda: jnp.full(28, -1.0))
        return total + x, x

    sizes = np.array([28, 0, 21], np.int32)
    total, each = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(28), sizes))()
    for k in (0, 2):
        active = np.asarray(H[: sizes[k], : sizes[k]], np.float64)
        assert relative_error(each[k, : sizes[k]], np.linalg.solve(active, g[: sizes[k]])) < EPS32
    np.testing.assert_array_equal(total, each[0] + each[1] + each[2])


def test_work_follows_the_active_size(monkeypatch):
    """Tile updates are counted as they run: t (t^2 - 1) / 6 for a column of t tiles."""
    runs = []
    original = module._minus_product

    def counted(accumulated, left, right):
        jax.debug.callback(lambda: runs.append(1))
        return original(accumulated, left, right)

    monkeypatch.setattr(module, "_minus_product", counted)
    H, g = jnp.eye(64), jnp.ones(64)
    solve = jax.jit(lambda size: solve_spd(H, g, size=size, block=8))
    for size, tiles in ((64, 8), (32, 4), (25, 4), (24, 3), (8, 1), (0, 0)):
        runs.clear()
        x, ok = solve(size)
        jax.effects_barrier()
        assert bool(ok) and float(jnp.sum(x)) == size
        assert len(runs) == tiles * (tiles**2 - 1) // 6


def test_the_choice_follows_the_device():
    def lowered(implementation, platform):
        solve = jax.jit(lambda H, g: solve_spd(H, g, block=8, implementation=implementation)[0])
        shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32), jax.ShapeDtypeStruct((32,), "float32")
        return solve.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()

    # Tiles are factorised by one call in a loop, leading parts by one call for each of them.
    for implementation, platform in ((None, "cpu"), ("blocked", "cpu"), ("blocked", "cuda")):
        assert lowered(implementation, platform).count("potrf") == 1
    for implementation, platform in ((None, "cuda"), ("lapack", "cpu")):
        assert lowered(implementation, platform).count("potrf") > 1


@pytest.mark.slow
def test_a_thousand_poses():
    graph = PoseGraph.random(1025, loops=2048, condition=10)
    H, g = graph.matrix(np.float32), np.random.default_rng(0).normal(size=7168).astype(np.float32)
    x, ok = jax.jit(solve_spd)(H, g)
    assert bool(ok)
    # By the edges in double precision. H and x are rounded to single precision, nothing else is.
    X = np.concatenate([np.zeros(7), np.asarray(x, np.float64)]).reshape(-1, 7)
    pull = np.einsum("eab,eb->ea", graph.B.astype(np.float64), X[graph.j] - X[graph.i])
    product = np.zeros_like(X)
    np.add.at(product, graph.j, pull)
    np.add.at(product, graph.i, -pull)
    residual = np.linalg.norm(product[1:].reshape(-1) - g)
    assert residual < 2 * EPS32 * np.linalg.norm(x) * np.abs(H).sum(1).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "pallas"}, "implementation 'pallas'"),
        ({"precision": "bfloat16"}, "precision 'bfloat16'"),
        ({"size": 15}, "the matrix has 14 rows"),
        ({"block": 0}, "at least one row"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        solve_spd(jnp.eye(14), jnp.ones(14), **options)
