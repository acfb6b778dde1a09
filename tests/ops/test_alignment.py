"""The aligned error: against the closed form of the evaluation, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from ops.alignment import aligned_error
from slam.evaluation import ate_rmse


def patterns(seed=0, n=12):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(n, 3))
    R = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    return 0.3 * reference @ R.T + [1.0, -2.0, 0.5] + 0.02 * rng.normal(size=(n, 3)), reference


def test_it_is_the_error_of_the_evaluation():
    for seed in range(3):
        estimate, reference = patterns(seed)
        with jax.enable_x64(True):
            error = aligned_error(jnp.asarray(estimate), jnp.asarray(reference), jnp.ones(12))
        np.testing.assert_allclose(error, ate_rmse(estimate, reference), rtol=1e-12)


def test_what_has_no_weight_may_hold_anything():
    estimate, reference = patterns()
    weight = np.ones(12)
    weight[3] = 0
    with jax.enable_x64(True):
        expected = ate_rmse(np.delete(estimate, 3, 0), np.delete(reference, 3, 0))
        bad = jnp.asarray(estimate).at[3].set(jnp.nan)
        error, gradient = jax.value_and_grad(aligned_error)(
            bad, jnp.asarray(reference), jnp.asarray(weight)
        )
        np.testing.assert_allclose(error, expected, rtol=1e-12)
        assert np.isfinite(gradient).all() and not np.any(gradient[3])


def test_derivative_is_numeric_and_knows_of_the_alignment():
    estimate, reference = patterns(5)
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2, 12)
    with jax.enable_x64(True):
        error = jax.jit(lambda x: aligned_error(x, jnp.asarray(reference), jnp.asarray(weight)))
        direction = rng.normal(size=estimate.shape)
        change = jnp.vdot(jax.grad(error)(jnp.asarray(estimate)), jnp.asarray(direction))
        h = 1e-6
        numeric = (error(estimate + h * direction) - error(estimate - h * direction)) / (2 * h)
        np.testing.assert_allclose(change, numeric, rtol=1e-8)
        # moving all points as one piece changes nothing
        rigid = np.cross([0.1, 0.2, 0.3], estimate) + [1, 2, 3] + 0.5 * estimate
        np.testing.assert_allclose(
            np.vdot(jax.grad(error)(jnp.asarray(estimate)), rigid), 0, atol=1e-12
        )


def test_an_exact_fit_and_too_few_points_stay_finite():
    points = jnp.asarray(patterns()[1], jnp.float32)
    for weight in (jnp.ones(12), jnp.zeros(12), jnp.zeros(12).at[0].set(1.0)):
        error, gradient = jax.value_and_grad(aligned_error)(points, points, weight)
        assert float(error) < 1e-6 and np.isfinite(gradient).all()
