"""Sim(3): reference exponential, group axioms, derivatives, also where they are hard."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from ops import lie_convert
from ops.sim3 import Sim3
from tests.ops.derivatives import jacobians

# Compiled once a shape: operation by operation, compiling takes longer.
exp, log, as_matrix = jax.jit(Sim3.exp), jax.jit(Sim3.log), jax.jit(Sim3.as_matrix)
retract = jax.jit(Sim3.retract)
REGIONS = ["generic", "near_identity", "near_pi", "zero_log_scale", "pure_scale"]


def tangents(region: str, batch: tuple[int, ...], seed: int) -> np.ndarray:
    """Random tangents of one region of the group, float64."""
    rng = np.random.default_rng(seed)
    xi = rng.uniform(-1, 1, (*batch, 7))
    axis = xi[..., 3:6] / np.linalg.norm(xi[..., 3:6], axis=-1, keepdims=True)
    if region == "near_identity":
        xi = xi * 10.0 ** rng.uniform(-9, -3, (*batch, 1))
    elif region == "near_pi":
        xi[..., 3:6] = axis * (np.pi - 10.0 ** rng.uniform(-7, -2, (*batch, 1)))
    elif region == "zero_log_scale":
        xi[..., 6] = 0
    elif region == "pure_scale":
        xi[..., 3:6] = 0
        xi[..., 6] = 3 * xi[..., 6]
    return xi


def generator(xi: np.ndarray) -> np.ndarray:
    """The 4x4 matrix whose matrix exponential is the transform."""
    x, y, z = xi[3:6]
    return np.array(
        [
            [xi[6], -z, y, xi[0]],
            [z, xi[6], -x, xi[1]],
            [-y, x, xi[6], xi[2]],
            [0, 0, 0, 0],
        ]
    )


def assert_same(actual: Sim3, expected: Sim3, tolerance: float):
    """Equal as transforms: quaternions have two signs, matrices one."""
    np.testing.assert_allclose(
        as_matrix(actual), as_matrix(expected), rtol=tolerance, atol=tolerance
    )


# Entries are of order one (at most e times sqrt(3)), so 1e-6 is a few roundings of float32; the
# stored matrices are themselves rounded at 1e-14.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_exp_matches_the_matrix_exponential(golden, dtype, tolerance):
    data = golden("slam/sim3_exp")
    with jax.enable_x64(dtype == np.float64):
        T = exp(jnp.asarray(data["xi"].astype(dtype)))
        assert T.dtype == dtype
        matrix = np.asarray(as_matrix(T))
    np.testing.assert_allclose(matrix, data["T_exact"], rtol=0, atol=tolerance * np.e)


def test_exp_matches_scipy_beyond_the_stored_grid():
    xi = np.concatenate([tangents(region, (20,), 1) for region in REGIONS])
    expected = np.stack([expm(generator(x)) for x in xi])
    scale = np.maximum(1, np.abs(expected).max(axis=(1, 2), keepdims=True))
    matrix = np.asarray(as_matrix(exp(jnp.asarray(xi, jnp.float32))))
    assert np.max(np.abs(matrix - expected) / scale) < 1e-6


def test_conversion_and_exp_agree_with_lietorch(golden):
    """The packed vectors of the original's library (its own error is below 1e-6 in float64)."""
    data = golden("slam/sim3_exp")
    with jax.enable_x64(True):
        ours = np.asarray(lie_convert.to_lietorch(exp(jnp.asarray(data["xi"]))))
    np.testing.assert_allclose(ours, data["lietorch_f64"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["rays", "calib"])
def test_retract_is_the_originals_left_retraction(golden, mode):
    data = golden(f"slam/track_large_{mode}")
    T = lie_convert.from_lietorch(jnp.asarray(data["T_CkCf_init"]))
    for tau, expected in zip(data["taus"], data["T_CkCf_iter"], strict=True):
        T = retract(T, jnp.asarray(tau))
        # Up to eight steps of numbers of order one: 1.8e-7 apart, three roundings.
        np.testing.assert_allclose(lie_convert.to_lietorch(T), expected, rtol=0, atol=3e-7)


@jax.jit
def axioms(xi_a: jax.Array, xi_b: jax.Array, xi_c: jax.Array, points: jax.Array):
    """Pairs that must be equal, by name; transforms as matrices."""
    a, b, c = Sim3.exp(xi_a), Sim3.exp(xi_b), Sim3.exp(xi_c)
    identity = Sim3.identity(a.batch_axes, a.dtype)
    moved = jnp.sum(a.adjoint() * xi_b[..., None, :], axis=-1)
    homogeneous = jnp.concatenate([points, jnp.ones_like(points[..., :1])], axis=-1)
    image = jnp.sum(a.as_matrix() * homogeneous[..., None, :], axis=-1)[..., :3]
    pairs = {
        "inverse": (a @ a.inverse(), identity),
        "identity": (identity @ a, a),
        "associativity": ((a @ b) @ c, a @ (b @ c)),
        "exp of log": (Sim3.exp(a.log()), a),
        "adjoint": (a @ b @ a.inverse(), Sim3.exp(moved)),  # T exp(xi) T^-1 = exp(Ad_T xi)
    }
    pairs = {name: (x.as_matrix(), y.as_matrix()) for name, (x, y) in pairs.items()}
    product = jnp.matmul(a.as_matrix(), b.as_matrix(), precision="highest")
    pairs["composition"] = ((a @ b).as_matrix(), product)
    pairs["application"] = (a.apply(points), image)
    pairs["application by @"] = (a @ points, image)
    return pairs


# Tolerances are relative to the largest entry: products of three transforms with scales up to
# e^3 and back lose a few digits, no more.
@pytest.mark.parametrize(
    ("batch", "dtype", "tolerance", "repeats"),
    [((3, 1, 2), np.float32, 2e-5, 1), ((), np.float64, 5e-14, 5)],
)
def test_group_axioms(batch, dtype, tolerance, repeats):
    with jax.enable_x64(dtype == np.float64):
        points = jnp.asarray(np.random.default_rng(9).normal(size=(*batch, 3)).astype(dtype))
        for region, first in itertools.product(REGIONS, range(0, 3 * repeats, 3)):
            seeds = range(first, first + 3)
            xi = [jnp.asarray(tangents(region, batch, seed).astype(dtype)) for seed in seeds]
            for name, (left, right) in axioms(*xi, points).items():
                assert left.dtype == dtype
                scale = max(1.0, float(jnp.max(jnp.abs(right))))
                np.testing.assert_allclose(
                    left, right, rtol=0, atol=tolerance * scale, err_msg=f"{name}, {region}"
                )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_log_inverts_exp(dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        round_trip = jax.jit(lambda x: Sim3.exp(x).log())
        for region in REGIONS:
            xi = tangents(region, (200,), 3)
            error = np.abs(np.asarray(round_trip(jnp.asarray(xi.astype(dtype)))) - xi).max(axis=-1)
            if region == "near_pi":
                # Past pi by a rounding, the opposite axis is the right answer (the transforms
                # agree, see above): compare tangents safely within the branch.
                error = error[np.linalg.norm(xi[:, 3:6], axis=-1) < np.pi - 1e-5]
            assert error.max() < tolerance * max(1.0, np.abs(xi).max()), region


def test_log_at_exactly_half_a_turn():
    half_turn = Sim3(jnp.array([0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 1.5], jnp.float32))
    xi = log(half_turn)
    np.testing.assert_allclose(xi[3:6], [0, np.pi, 0], atol=1e-6)
    assert_same(exp(xi), half_turn, 2e-6)


def test_log_ignores_the_sign_of_the_quaternion():
    T = exp(jnp.asarray(tangents("generic", (5,), 4), jnp.float32))
    flipped = Sim3(T.wxyz_xyz_scale * jnp.array([-1, -1, -1, -1, 1, 1, 1, 1], jnp.float32))
    np.testing.assert_array_equal(log(T), log(flipped))


HARD_POINTS = {
    "identity": [0.0] * 7,
    "zero rotation": [0.3, -0.2, 0.5, 0, 0, 0, 0.4],
    "zero rotation, large scale": [0.3, -0.2, 0.5, 0, 0, 0, 1.7],
    "zero log-scale": [0.3, -0.2, 0.5, 0.4, 0.1, -0.2, 0],
    "zero log-scale, large angle": [0.3, -0.2, 0.5, 1.4, 0.1, -1.2, 0],
    "tiny": [1e-5, -1e-5, 2e-5, 1e-6, -1e-7, 1e-6, 1e-6],
    "on the branch": [0.3, -0.2, 0.5, 0.6, 0.0, 0.0, 0.8],
    "generic": [0.3, -0.2, 0.5, 1.1, -0.7, 0.5, -0.6],
}


FUNCTIONS = {"exp": lambda x: Sim3.exp(x).wxyz_xyz_scale, "log": lambda x: Sim3(x).log()}


def hard_arguments(name: str) -> jax.Array:
    """Arguments of exp, or of log, at the hard points."""
    xi = jnp.asarray(np.array(list(HARD_POINTS.values())))
    return xi if name == "exp" else exp(xi).wxyz_xyz_scale


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_forward_reverse_numeric(name):
    with jax.enable_x64(True):
        x = np.asarray(hard_arguments(name))
        forward, reverse, numeric = jacobians(FUNCTIONS[name], x, h=1e-3)
        np.testing.assert_allclose(forward, reverse, rtol=0, atol=1e-12)
        # fourth-order differences: error about h^4 = 1e-12, rounding 1e-16/h = 1e-13
        np.testing.assert_allclose(forward, numeric, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_finite_in_float32(name):
    """Both branches are differentiated; the one not taken must not leave a NaN.

    A mixture of all outputs along a mixture of all inputs: whatever is not finite in one entry of
    the second derivative is not finite in the mixture.
    """
    x = hard_arguments(name).astype(jnp.float32)
    rng = np.random.default_rng(6)
    weights = jnp.asarray(rng.uniform(0.5, 1, (len(x), 15 - x.shape[-1])), jnp.float32)
    direction = jnp.asarray(rng.uniform(0.5, 1, x.shape), jnp.float32)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(weights * FUNCTIONS[name](x)))(x)

    _, second = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,)))(x, direction)
    assert second.shape == x.shape and bool(jnp.all(jnp.isfinite(second)))


def test_float32_keeps_the_translation_near_zero_log_scale():
    """Defect of the original: up to 1.2 % of the translation is lost around 2e-6."""
    xi = np.array([[1, 0, 0, theta, 0, 0, sigma]
                   for theta in (0, 1e-6, 2e-6, 1e-3)
                   for sigma in (1e-9, 5e-7, 2e-6, 1e-5, -2e-6)])  # fmt: skip
    expected = np.stack([expm(generator(x)) for x in xi])[:, :3, 3]
    translation = exp(jnp.asarray(xi, jnp.float32)).translation()
    np.testing.assert_allclose(translation, expected, rtol=0, atol=2e-7)


def test_retract_keeps_the_quaternion_unit_over_many_steps():
    xi = jnp.asarray([0.01, 0, 0, 0.02, -0.03, 0.01, 0.0], jnp.float32)
    T, _ = jax.lax.scan(lambda T, _: (T.retract(xi), None), Sim3.identity(), None, length=5000)
    assert abs(float(jnp.linalg.norm(T.rotation().wxyz)) - 1) < 2e-7


def test_parts_batching_and_indexing():
    T = exp(jnp.asarray(tangents("generic", (4,), 5), jnp.float32))
    again = Sim3.from_parts(T.rotation(), T.translation(), T.scale())
    np.testing.assert_array_equal(again.wxyz_xyz_scale, T.wxyz_xyz_scale)

    @jax.jit
    def apply(T, points):
        batched = T[:, None].apply(points)
        one_by_one = jnp.stack([T[i].apply(points[i]) for i in range(4)])
        return batched, one_by_one, jax.vmap(Sim3.apply)(T, points)

    points = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    batched, one_by_one, mapped = apply(T, points)
    np.testing.assert_allclose(batched, one_by_one, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mapped, batched, rtol=0, atol=1e-6)

    one = T[2]
    assert one.batch_axes == () and T[1:3].batch_axes == (2,) and T[..., None].batch_axes == (4, 1)
    assert jax.eval_shape(Sim3.apply, one, points).shape == (4, 6, 3)
    assert jax.eval_shape(lambda a, b: a @ b, one, T).batch_axes == (4,)
    rigid = Sim3.from_parts(T.rotation(), T.translation())
    np.testing.assert_array_equal(rigid.scale(), np.ones(4, np.float32))
