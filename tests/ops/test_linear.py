"""The small solver against numpy in float64, and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import linear

solve_spd_small = jax.jit(linear.solve_spd_small)


def system(seed: int, n: int, units: float) -> tuple[np.ndarray, np.ndarray]:
    """A random SPD system whose variables have very different units."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3 * n, n)) * 10.0 ** rng.uniform(-units, units, n)
    return A.T @ A, A.T @ rng.normal(size=3 * n)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_matches_numpy(n):
    H, g = system(n, n, units=3.0)
    expected = np.linalg.solve(H, g)
    scale = 1 / np.sqrt(np.diag(H))  # the natural size of each variable
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        with jax.enable_x64(dtype == np.float64):
            x, ok = solve_spd_small(jnp.asarray(H.astype(dtype)), jnp.asarray(g.astype(dtype)))
            assert bool(ok) and x.dtype == dtype
            error = (np.asarray(x, np.float64) - expected) / scale
            assert np.abs(error).max() < tolerance * np.abs(expected / scale).max()


def test_batches_under_vmap():
    pairs = [system(seed, 7, 1.0) for seed in range(4)]
    H, g = (np.stack(x) for x in zip(*pairs, strict=True))
    H[2] = 0
    x, ok = jax.jit(jax.vmap(solve_spd_small))(
        jnp.asarray(H, jnp.float32), jnp.asarray(g, jnp.float32)
    )
    np.testing.assert_array_equal(ok, [True, True, False, True])
    np.testing.assert_allclose(x[3], np.linalg.solve(*pairs[3]), rtol=1e-4)


SPD = system(0, 4, 0.0)[0]
BAD = {
    "zero": np.zeros((4, 4)),
    "indefinite": np.diag([1.0, 1, -1, 1]),
    "indefinite off the diagonal": SPD + 100 * np.ones((4, 4)) - 100 * np.eye(4),
    "rank one": np.outer([1, 2, 3, 4], [1, 2, 3, 4]),
    "repeated variable": SPD[np.ix_([0, 1, 2, 0], [0, 1, 2, 0])],
    "not a number": np.where(np.eye(4) > 0, np.nan, SPD),
    "infinite": SPD + np.diag([np.inf, 0, 0, 0]),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_and_stays_finite(name):
    x, ok = solve_spd_small(jnp.asarray(BAD[name], jnp.float32), jnp.ones(4))
    assert not bool(ok)
    np.testing.assert_array_equal(x, np.zeros(4))


def test_refuses_a_right_hand_side_that_is_not_finite():
    x, ok = solve_spd_small(jnp.asarray(SPD, jnp.float32), jnp.asarray([1, jnp.nan, 0, 0]))
    assert not bool(ok) and not np.any(x)
