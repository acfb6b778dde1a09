"""Image operators against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from ops import image

scharr = jax.jit(image.scharr)
bilinear = jax.jit(image.bilinear, static_argnames="width")


def test_scharr_matches_scipy_with_reflected_borders():
    picture = np.random.default_rng(0).normal(size=(6, 9, 2))
    stencil = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32
    du, dv = scharr(jnp.asarray(picture, jnp.float32))
    for c in range(2):
        # "mirror" reflects about the centre of the edge pixel, as numpy's "reflect" does
        expected_u = ndimage.correlate(picture[..., c], stencil, mode="mirror")
        expected_v = ndimage.correlate(picture[..., c], stencil.T, mode="mirror")
        np.testing.assert_allclose(du[..., c], expected_u, atol=5e-7)
        np.testing.assert_allclose(dv[..., c], expected_v, atol=5e-7)


def test_scharr_of_a_ramp():
    v, u = np.mgrid[:5, :8]
    du, dv = scharr(jnp.asarray(3.0 * u - 2.0 * v, jnp.float32)[..., None])
    np.testing.assert_allclose(du[:, 1:-1, 0], 3, rtol=1e-6)
    np.testing.assert_allclose(dv[1:-1, :, 0], -2, rtol=1e-6)


def test_bilinear_matches_scipy():
    rng = np.random.default_rng(1)
    picture = rng.normal(size=(6, 9, 3))
    uv = rng.uniform(0, 1, (50, 2)) * [7.99, 4.99]
    uv[0] = [3, 2]  # on a pixel
    sampled = bilinear(
        jnp.asarray(picture.reshape(-1, 3), jnp.float32), jnp.asarray(uv, jnp.float32), width=9
    )
    for c in range(3):
        expected = ndimage.map_coordinates(picture[..., c], uv[:, ::-1].T, order=1)
        np.testing.assert_allclose(sampled[:, c], expected, atol=5e-6)
    np.testing.assert_array_equal(sampled[0], picture[2, 3].astype(np.float32))


def test_pixel_coordinates_invert_the_linear_index():
    u, v = np.meshgrid(np.arange(9), np.arange(4))
    index = jnp.asarray((u + 9 * v).reshape(-1), jnp.int32)
    np.testing.assert_array_equal(image.pixel_coordinates(index, 9)[:, 0], u.reshape(-1))
    np.testing.assert_array_equal(image.pixel_coordinates(index, 9)[:, 1], v.reshape(-1))
