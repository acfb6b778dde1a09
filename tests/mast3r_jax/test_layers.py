"""The network's functions that have a closed form or an independent implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from mast3r_jax.dpt import upsample_twice
from mast3r_jax.heads import exponential_points, patches_to_pixels, unit_descriptors
from mast3r_jax.layers import Conv, Numerics, Unfold
from tests.quick import quick_jit

EXACT = Numerics.of(None, None)


@pytest.mark.parametrize("shape", [(5, 8), (1, 4), (2, 1), (3, 3)])
def test_upsampling_aligns_corners(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = scipy.ndimage.zoom(x, 2, order=1, grid_mode=False)
    with jax.enable_x64(True):
        found = quick_jit(upsample_twice)(jnp.asarray(x)[None, :, :, None])
        np.testing.assert_allclose(found[0, :, :, 0], expected, atol=1e-12)


def test_strided_convolution_pads_both_sides():
    conv = Conv(1, 1, 3, stride=2, numerics=EXACT, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.arange(9.0).reshape(3, 3, 1, 1)
    x = np.random.default_rng(2).standard_normal((6, 7)).astype(np.float32)
    full = scipy.ndimage.correlate(x, np.arange(9.0).reshape(3, 3), mode="constant")
    # One rounding per product and sum of nine terms up to 8.
    found = np.asarray(conv(jnp.asarray(x[None, :, :, None])))[0, :, :, 0]
    np.testing.assert_allclose(found, full[::2, ::2], atol=3e-5)


def test_unfold_is_a_transposed_convolution():
    """out[s i + a, s j + b] = x[i, j] w[a, b] + bias, with the kernel not flipped."""
    unfold = Unfold(1, 1, 2, numerics=EXACT, rngs=nnx.Rngs(0))
    unfold.kernel[...] = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    unfold.bias[...] = jnp.asarray([0.5])
    out = np.asarray(unfold(jnp.asarray([10.0, 100.0]).reshape(1, 1, 2, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(out, [[10.5, 20.5, 100.5, 200.5], [30.5, 40.5, 300.5, 400.5]])


def test_patches_spread_over_their_pixels():
    """Number c*4 + 2*row + column of a token lands in channel c at (row, column) of its patch."""
    tokens = jnp.arange(2 * 3 * 8.0).reshape(1, 6, 8)
    out = np.asarray(patches_to_pixels(tokens, (2, 3), 2)[0])
    for y, x, c in np.ndindex(4, 6, 2):
        assert out[y, x, c] == 8 * (3 * (y // 2) + x // 2) + 4 * c + 2 * (y % 2) + x % 2


def test_output_activations_are_smooth_at_zero():
    derivative = quick_jit(jax.jacobian(exponential_points))
    np.testing.assert_array_equal(derivative(jnp.zeros(3)), np.eye(3))
    value, derivative = quick_jit(
        lambda x: (unit_descriptors(x), jax.jacobian(unit_descriptors)(x))
    )(jnp.zeros(4))
    np.testing.assert_array_equal(value, np.zeros(4))
    np.testing.assert_array_equal(derivative, np.zeros((4, 4)))


def test_output_activations_match_their_formula():
    raw = np.random.default_rng(3).standard_normal((50, 3)) * np.logspace(-6, 0.8, 50)[:, None]
    length = np.linalg.norm(raw, axis=-1, keepdims=True)
    with jax.enable_x64(True):
        points = quick_jit(exponential_points)(jnp.asarray(raw))
        units = quick_jit(unit_descriptors)(jnp.asarray(raw))
        np.testing.assert_allclose(points, raw / length * np.expm1(length), rtol=1e-13)
        np.testing.assert_allclose(units, raw / length, rtol=1e-13)
