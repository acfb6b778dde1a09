"""Rotary positions, the forms of attention, and which of them a program holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import mast3r_jax.attention
from mast3r_jax.attention import apply_rotary, attention, rotary_table
from mast3r_jax.layers import Numerics
from tests.ops.cuda import CARD, lowered
from tests.quick import quick_jit


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


@pytest.fixture
def card_where_cudnn_won(monkeypatch):
    """What JAX asks about the card and its library is answered; nothing runs there."""
    monkeypatch.setattr(mast3r_jax.attention, "card", lambda: CARD)
    monkeypatch.setattr(mast3r_jax.attention, "CUDNN_WON", frozenset({CARD}))
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda least: True)


def program(dtype, *, head_dim=64, platform="cuda", change=lambda function: function) -> str:
    """The attention of both views at once, as text."""
    numerics = Numerics.of(dtype, None)
    shape = jax.ShapeDtypeStruct((2, 1, 12, 3, head_dim), dtype)
    both = jax.vmap(lambda q, k, v: attention(q, k, v, numerics))
    return lowered(change(both), shape, shape, shape, platform=platform)


def test_cudnn_is_chosen_where_it_won(card_where_cudnn_won):
    assert "cudnn$fmhaSoftmax" in program(jnp.bfloat16)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": jnp.float32},
        {"dtype": jnp.bfloat16, "head_dim": 12},
        # the same trace, for the machine's other device
        {"dtype": jnp.bfloat16, "platform": "cpu"},
    ],
)
def test_and_not_for_what_it_does_not_take(card_where_cudnn_won, options):
    assert "cudnn" not in program(**options)


def test_and_not_for_derivatives(card_where_cudnn_won):
    """Forward derivatives cuDNN does not have; backward ones are those of the plain form."""

    def slope(function):
        return jax.grad(lambda *x: function(*x).astype(jnp.float32).sum())

    assert "cudnn" not in program(jnp.bfloat16, change=slope)


def test_cudnn_is_not_chosen_on_a_card_that_was_not_measured(card_where_cudnn_won, monkeypatch):
    monkeypatch.setattr(mast3r_jax.attention, "card", lambda: "NVIDIA H100 PCIe")
    assert "cudnn" not in program(jnp.bfloat16)
