"""Attention with rotary positions, and who computes it.

On CPUs and by default it is plain JAX, in a form for each. In bfloat16 there is cuDNN's fused
attention besides (``jax.nn.dot_product_attention``), which never writes the scores to memory; it is
taken on the cards where it was measured to be faster, ``CUDNN_WON``, and nowhere else.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from mast3r_jax.layers import Linear, Numerics, Taps, tap
from ops.kernels import card

CUDNN_WON: frozenset[str] = frozenset()
"""Kinds of GPU, as JAX gives them, on which ViT-Large at 512x384 ran faster with cuDNN's attention.

None has been measured so far; ``experiments.gpu_checks`` does, and says what to write here.
"""


class Rotary(NamedTuple):
    """Cosines and sines of a token grid's rotation angles, ``[n, 2, head_dim // 4]``.

    The middle axis is (y, x).
    """

    cos: Array
    sin: Array


def rotary_table(
    height: int, width: int, head_dim: int, base: float, dtype: DTypeLike = jnp.float32
) -> Rotary:
    """Angles of the 2D rotary embedding (Su et al. 2021, per axis) for a row-major token grid.

    ``height`` and ``width`` count tokens; positions are integers from 0. One half of a head's
    ``head_dim`` channels turns with y, the other with x, at ``base^(-2i / (head_dim/2))``.
    """
    quarter = head_dim // 4
    frequency = float(base) ** (-np.arange(quarter) / quarter)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angle = np.stack([y.ravel(), x.ravel()], axis=-1)[:, :, None] * frequency
    return Rotary(jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype))


def apply_rotary(x: Float[Array, "b n h d"], rotary: Rotary) -> Float[Array, "b n h d"]:
    """Rotates queries or keys by their token's position.

    The head's channels are ``[y half | x half]``; within a half, channel i is paired with channel
    i + d/4. Computed in the table's dtype, returned in the input's.
    """
    *lead, head_dim = x.shape
    pairs = x.reshape(*lead, 2, 2, head_dim // 4).astype(rotary.cos.dtype)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    cos, sin = rotary.cos[:, None], rotary.sin[:, None]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def attention(
    queries: Float[Array, "b n h d"],
    keys: Float[Array, "b m h d"],
    values: Float[Array, "b m h d"],
    numerics: Numerics,
) -> Float[Array, "b n h d"]:
    """Scaled dot-product attention; scores and softmax in at least float32."""
    forms = {
        "cpu": functools.partial(plain_attention, numerics=numerics, keys_first=True),
        "default": functools.partial(plain_attention, numerics=numerics, keys_first=False),
    }
    if _cudnn_takes(queries) and card() in CUDNN_WON:
        forms["cuda"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.lax.platform_dependent(queries, keys, values, **forms)


def _cudnn_takes(queries: Array) -> bool:
    """By the limits that JAX states for every card of compute capability 8 and more."""
    head_dim = queries.shape[-1]
    return queries.dtype == jnp.bfloat16 and head_dim <= 128 and head_dim % 8 == 0


@attention.defjvp
def _attention_jvp(
    numerics: Numerics, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    # One form for derivatives: a choice between two would keep what both of them remember.
    return jax.jvp(
        functools.partial(plain_attention, numerics=numerics, keys_first=False), primals, tangents
    )


def plain_attention(
    queries: Array, keys: Array, values: Array, *, numerics: Numerics, keys_first: bool
) -> Array:
    """``attention`` with scores laid out ``[b, h, n, m]``, or ``[b, h, m, n]``.

    Keys first, a CPU's vector units go through the softmax of many queries side by side; it adds up
    a row number by number: 3.6 ms in place of 6.0 at 512x384 (``experiments.cpu_forms``).
    """
    scores, axis = ("bhmn", -2) if keys_first else ("bhnm", -1)
    similarity = jnp.einsum(
        f"bnhd,bmhd->{scores}",
        queries,
        keys,
        precision=numerics.precision,
        preferred_element_type=numerics.wide,
    )
    weights = jax.nn.softmax(similarity * (1.0 / math.sqrt(queries.shape[-1])), axis=axis)
    return jnp.einsum(
        f"{scores},bmhd->bnhd", weights.astype(values.dtype), values, precision=numerics.precision
    )


class SelfAttention(nnx.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, dim: int, heads: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, numerics=numerics, rngs=rngs)
        self.proj = Linear(dim, dim, numerics=numerics, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], rotary: Rotary, taps: Taps | None = None
    ) -> Float[Array, "b n c"]:
        """Mixes tokens; taps ``qkv``, and ``rope_in``/``rope_out`` of the queries."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x)
        # The published order: query, key, value, each of them head by head.
        split = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads)
        queries, keys, values = (split[:, :, i] for i in range(3))
        turned = apply_rotary(queries, rotary)
        tap(taps, qkv=qkv, rope_in=queries, rope_out=turned)
        mixed = attention(turned, apply_rotary(keys, rotary), values, self.numerics)
        return self.proj(mixed.reshape(x.shape))


class CrossAttention(nnx.Module):
    """Multi-head attention of one view's tokens onto the other's, each with its own positions."""

    def __init__(self, dim: int, heads: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.heads = heads
        self.query = Linear(dim, dim, numerics=numerics, rngs=rngs)
        self.key = Linear(dim, dim, numerics=numerics, rngs=rngs)
        self.value = Linear(dim, dim, numerics=numerics, rngs=rngs)
        self.proj = Linear(dim, dim, numerics=numerics, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        other: Float[Array, "b m c"],
        rotary: Rotary,
        other_rotary: Rotary,
    ) -> Float[Array, "b n c"]:
        """Reads ``other`` (m tokens) for each of the n tokens of ``x``."""
        batch, _, dim = x.shape
        shape = (batch, -1, self.heads, dim // self.heads)
        queries = apply_rotary(self.query(x).reshape(shape), rotary)
        keys = apply_rotary(self.key(other).reshape(shape), other_rotary)
        values = self.value(other).reshape(shape)
        mixed = attention(queries, keys, values, self.numerics)
        return self.proj(mixed.reshape(x.shape))
