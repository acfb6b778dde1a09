"""The network's functions that have a closed form or an independent implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from mast3r_jax.dpt import upsample_twice
from mast3r_jax.heads import exponential_points, patches_to_pixels, unit_descriptors
from mast3r_jax.layers import Conv, Numerics, Unfold, apply_rotary, attention, rotary_table
from tests.mast3r_jax.golden_network import quick_jit

EXACT = Numerics.of(None, None)


@pytest.mark.parametrize("shape", [(5, 8), (1, 4), (2, 1), (3, 3)])
def test_upsampling_aligns_corners(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = scipy.ndimage.zoom(x, 2, order=1, grid_mode=False)
    with jax.enable_x64(True):
        found = quick_jit(upsample_twice)(jnp.asarray(x)[None, :, :, None])
        np.testing.assert_allclose(found[0, :, :, 0], expected, atol=1e-12)


def test_rotary_embedding_depends_on_relative_positions():
    """Turned queries and keys have products that a shift of both positions leaves unchanged."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        table = rotary_table(4, 5, 12, 100.0, jnp.float64)
        query, key = (jnp.asarray(np.tile(rng.standard_normal(12), (1, 20, 1, 1))) for _ in "qk")
        turn = quick_jit(apply_rotary)
        turned_query, turned_key = (np.asarray(turn(x, table))[0, :, 0] for x in (query, key))
    products = (turned_query @ turned_key.T).reshape(4, 5, 4, 5)
    # (y, x) -> (y + 1, x + 2) for both sides
    np.testing.assert_allclose(products[:3, :3, :3, :3], products[1:, 2:, 1:, 2:], atol=1e-12)
    assert not np.allclose(products[0, 0, 0, 1], products[0, 0, 1, 0])


def test_rotary_angles_have_the_published_frequencies():
    """Channels are [y | x], pairs lie half a half apart, frequencies are 100^(-2i/(d/2))."""
    with jax.enable_x64(True):
        one = jnp.asarray(np.tile(np.eye(8)[1] + np.eye(8)[4], (1, 6, 1, 1)))
        table = rotary_table(2, 3, 8, 100.0, jnp.float64)
        turned = np.asarray(quick_jit(apply_rotary)(one, table))[0, :, 0]
    y, x = np.divmod(np.arange(6), 3)
    expected = np.zeros((6, 8))
    expected[:, 1], expected[:, 3] = np.cos(y / 10), np.sin(y / 10)
    expected[:, 4], expected[:, 6] = np.cos(x), np.sin(x)
    np.testing.assert_allclose(turned, expected, atol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_attention_is_one_formula_however_scores_lie(platform):
    """Each platform's form, its scores laid out its way, and the derivative that both share."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 8)) for n in (5, 7, 7))
    scores = np.einsum("bnhd,bmhd->bnhm", q, k) / np.sqrt(8)
    weights = np.exp(scores)
    expected = np.einsum("bnhm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)

    with jax.enable_x64(True):
        q, k, v, change = (jnp.asarray(x) for x in (q, k, v, rng.normal(size=q.shape)))
        numerics = Numerics.of(jnp.float64, None)
        traced = jax.jit(lambda *x: attention(*x, numerics)).trace(q, k, v)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("2x3x7x5xf64" in text, "2x3x5x7xf64" in text) == (
            platform == "cpu",
            platform == "cuda",
        )
        if platform == "cpu":
            np.testing.assert_allclose(attention(q, k, v, numerics), expected, rtol=1e-12)
        else:  # what a GPU computes is what is differentiated
            value, _ = jax.jvp(lambda *x: attention(*x, numerics), (q, k, v), (q, k, v))
            np.testing.assert_allclose(value, expected, rtol=1e-12)
        h = 1e-6
        _, slope = jax.jvp(lambda q: attention(q, k, v, numerics), (q,), (change,))
        ends = (attention(q + s * change, k, v, numerics) for s in (h, -h))
        right, left = (np.asarray(end) for end in ends)
        np.testing.assert_allclose(slope, (right - left) / (2 * h), rtol=0, atol=1e-9)


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
