"""Measurement models: values, and Jacobians analytic = forward = reverse = numeric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import pinhole, rays, robust
from ops.sim3 import Sim3
from tests.ops.derivatives import jacobians

K = np.array([[51.2, 0, 31.5], [0, 48.7, 23.5], [0, 0, 1]])


def points_in_front(n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(n, 2)), rng.uniform(0.2, 5, (n, 1))], axis=-1)


def components(points):
    return [points[..., k] for k in range(points.shape[-1])]


def ray_value(Y):
    return jnp.stack(rays.psi(components(Y)), axis=-1)


def ray_model(Y):
    value, jacobian = rays.psi_with_jacobian(components(Y))
    return ray_value(Y), (jnp.stack(value, -1), matrices(jacobian))


def pixel_model(Y):
    value, _ = pinhole.project(components(Y), jnp.asarray(K), 1e-6)
    same_value, _, jacobian = pinhole.project_with_jacobian(components(Y), jnp.asarray(K), 1e-6)
    return jnp.stack(value, -1), (jnp.stack(same_value, -1), matrices(jacobian))


def matrices(entries):
    """``[..., c, k]`` of ``entries[c][k][...]``; None is 0."""
    o = jnp.zeros_like(next(entry for entry in entries[0] if entry is not None))
    filled = [[o if entry is None else entry for entry in row] for row in entries]
    return jnp.moveaxis(jnp.asarray(filled), (0, 1), (-2, -1))


@pytest.mark.slow
@pytest.mark.parametrize("model", [ray_model, pixel_model])
def test_jacobian_under_left_perturbation(model):
    with jax.enable_x64(True):
        Y = jnp.asarray(points_in_front())

        def moved(xi, points):
            return model(Sim3.exp(xi).apply(points))[0]

        value, (same_value, jacobian) = model(Y)
        np.testing.assert_array_equal(value, same_value)
        zero = np.zeros((len(Y), 7))
        forward, reverse, numeric = jacobians(moved, zero, np.asarray(Y), h=1e-4)
        # pixels are of order 1e3 here: 1e-10 is a relative rounding
        np.testing.assert_allclose(jacobian, forward, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(jacobian, reverse, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(jacobian, numeric, rtol=1e-8, atol=1e-8)


def test_psi_is_ray_and_distance():
    X = points_in_front()
    length = np.linalg.norm(X, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        ray_value(jnp.asarray(X, jnp.float32)), np.concatenate([X / length, length], -1), rtol=3e-7
    )


def test_the_origin_has_no_ray_and_no_nan():
    origin = jnp.zeros((1, 3))
    value, (same_value, jacobian) = jax.jit(ray_model)(origin)
    np.testing.assert_array_equal(value, np.zeros((1, 4)))
    np.testing.assert_array_equal(same_value, np.zeros((1, 4)))
    np.testing.assert_array_equal(jacobian, np.zeros((1, 4, 7)))
    assert bool(jnp.all(jnp.isfinite(jax.jit(jax.jacrev(ray_value))(origin))))
    assert bool(jnp.all(jnp.isfinite(jax.jit(jax.jacfwd(rays.normalize))(origin))))


def test_projection_flags_points_behind():
    points = jnp.asarray([[0, 0, 1], [1, 1, 0], [0, 0, -1], [1, 0, 1e-7]], jnp.float32)
    value, front, jacobian = pinhole.project_with_jacobian(
        components(points), jnp.asarray(K, jnp.float32), 1e-6
    )
    np.testing.assert_array_equal(front, [True, False, False, False])
    assert bool(jnp.all(jnp.isfinite(jnp.asarray(value))))
    assert bool(jnp.all(jnp.isfinite(matrices(jacobian))))
    np.testing.assert_allclose([column[0] for column in value], [31.5, 23.5, 0])


def test_constrain_to_rays_keeps_depth_and_pixel():
    H, W = 5, 7
    rng = np.random.default_rng(1)
    X = rng.uniform(0.5, 3, (H * W, 3))
    slid = np.asarray(
        pinhole.constrain_to_rays(jnp.asarray(X, jnp.float32), jnp.asarray(K, jnp.float32), (H, W))
    )
    v, u = np.divmod(np.arange(H * W), W)
    back = (K @ slid.T / slid[:, 2]).T
    np.testing.assert_allclose(back[:, 0], u, atol=1e-5)
    np.testing.assert_allclose(back[:, 1], v, atol=1e-5)
    np.testing.assert_allclose(slid[:, 2], X[:, 2], rtol=1e-7)
    with pytest.raises(ValueError, match="35 points for an image of 5 x 6"):
        pinhole.constrain_to_rays(jnp.asarray(X, jnp.float32), jnp.asarray(K, jnp.float32), (5, 6))


def test_inside_image_with_borders():
    uv = jnp.asarray([[0, 0], [-9.9, 3], [-10, 3], [15.9, 3], [16, 3], [3, 14.9], [3, 15]])
    inside = pinhole.inside_image(uv[:, 0], uv[:, 1], (6, 7), -10.0)
    np.testing.assert_array_equal(inside, [1, 1, 0, 1, 0, 1, 0])


def test_huber_weight_is_the_derivative_of_hubers_loss():
    k = 1.345
    with jax.enable_x64(True):
        r = jnp.asarray([-9.0, -1.4, -1.3, 0.0, 0.2, 1.3, 2.0, 1e6])

        def loss(r):
            return jnp.where(jnp.abs(r) < k, r * r / 2, k * (jnp.abs(r) - k / 2))

        np.testing.assert_allclose(
            robust.huber_weight(r, k) * r, jax.vmap(jax.grad(loss))(r), rtol=1e-15
        )
        assert float(robust.huber_weight(jnp.zeros(1), k)[0]) == 1.0
