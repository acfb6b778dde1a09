"""The network's bricks: linear maps, convolutions, normalisation, rotary attention.

Every brick computes at the precision its ``Numerics`` says. Tokens are ``[b, n, c]``, maps are
``[b, h, w, c]``; parameters are laid out so that no transposition happens at run time.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

Taps = dict[str, Any]
"""Where a module leaves its named intermediate values; ``None`` switches the recording off."""


def tap(taps: Taps | None, **values: Array | Taps) -> None:
    """Leaves intermediate values under their names, if somebody records."""
    if taps is not None:
        taps.update(values)


def branch(taps: Taps | None, name: str) -> Taps | None:
    """The recording of a part of a module, nested under ``name``."""
    return None if taps is None else taps.setdefault(name, {})


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The dtype policy, in the one place where it is written.

    In float32 every product is exact to rounding on every device (``Precision.HIGHEST``: no TF32).
    In bfloat16 the matrix products, attention and convolutions take bfloat16 and accumulate in
    float32; the residual stream, normalisation and softmax stay in float32. The two ends of the
    network (``ends``: patch embedding, last layer of each head, output activations) are float32 in
    any mode, parameters included, at the device's default precision (TF32 on NVIDIA) in bfloat16
    mode.
    """

    compute: np.dtype
    """dtype of the inputs and outputs of matrix products and convolutions."""
    params: np.dtype
    """dtype of the parameters."""
    wide: np.dtype
    """dtype of residual streams, statistics and outputs: at least float32."""
    precision: jax.lax.Precision
    """Precision of products."""

    @classmethod
    def of(cls, dtype: DTypeLike | None, param_dtype: DTypeLike | None) -> "Numerics":
        """The policy for ``MASt3R(dtype=, param_dtype=)``; ``None`` means float32.

        Raises:
            ValueError: for a dtype that is not bfloat16, float32 or float64; float16 overflows.
        """
        allowed = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32), jnp.dtype(jnp.float64))
        compute, params = (jnp.dtype(jnp.float32 if d is None else d) for d in (dtype, param_dtype))
        for name, value in (("dtype", compute), ("param_dtype", params)):
            if value not in allowed:
                raise ValueError(
                    f"{name}={value} is not supported: use bfloat16, float32 or float64"
                )
        narrow = compute == allowed[0]
        return cls(
            compute=compute,
            params=params,
            wide=allowed[1] if narrow else compute,
            precision=jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST,
        )

    @property
    def ends(self) -> "Numerics":
        """The policy of the first layer and of the heads' last layers: nothing below float32."""
        narrow = self.params == jnp.bfloat16
        params = jnp.dtype(jnp.float32) if narrow else self.params
        return dataclasses.replace(self, compute=self.wide, params=params)


class Linear(nnx.Module):
    """``x @ kernel + bias`` over the last axis; kernel ``[c_in, c_out]``."""

    def __init__(self, c_in: int, c_out: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (c_in, c_out), numerics.params))
        self.bias = nnx.Param(jnp.zeros((c_out,), numerics.params))

    def __call__(self, x: Float[Array, "*batch c_in"]) -> Float[Array, "*batch c_out"]:
        """Maps the last axis; the result has the policy's ``compute`` dtype."""
        dtype = self.numerics.compute
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        return jnp.matmul(x.astype(dtype), kernel, precision=self.numerics.precision) + bias


class LayerNorm(nnx.Module):
    """Normalisation over the last axis with learned scale and bias, epsilon 1e-6."""

    def __init__(self, dim: int, *, numerics: Numerics):
        self.numerics = numerics
        self.scale = nnx.Param(jnp.ones((dim,), numerics.params))
        self.bias = nnx.Param(jnp.zeros((dim,), numerics.params))

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalises in at least float32; the result has the policy's ``compute`` dtype."""
        wide = self.numerics.wide
        x = x.astype(wide)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
        x = x * self.scale[...].astype(wide) + self.bias[...].astype(wide)
        return x.astype(self.numerics.compute)


class Conv(nnx.Module):
    """Square convolution of a map, zero-padded by ``size // 2`` on all four sides.

    The padding is explicit because "SAME" pads a strided convolution at the far side only.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        *,
        stride: int = 1,
        use_bias: bool = True,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        self.numerics = numerics
        self.stride = stride
        self.padding = size // 2
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, c_in, c_out), numerics.params))
        self.bias = nnx.Param(jnp.zeros((c_out,), numerics.params)) if use_bias else None

    def __call__(self, x: Float[Array, "b h w c_in"]) -> Float[Array, "b h2 w2 c_out"]:
        """Convolves; the result has the policy's ``compute`` dtype."""
        dtype = self.numerics.compute
        out = jax.lax.conv_general_dilated(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.numerics.precision,
        )
        return out if self.bias is None else out + self.bias[...].astype(dtype)


class Unfold(nnx.Module):
    """Transposed convolution whose kernel size is its stride: every pixel becomes an s x s block.

    Kernel ``[c_in, s, s, c_out]``: ``out[s*i + a, s*j + b] = x[i, j] @ kernel[:, a, b] + bias``.
    """

    def __init__(self, c_in: int, c_out: int, s: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        # Each output pixel sees one kernel pixel, so its fan-in is c_in.
        init = nnx.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=0, out_axis=-1, batch_axis=(1, 2)
        )
        self.kernel = nnx.Param(init(rngs.params(), (c_in, s, s, c_out), numerics.params))
        self.bias = nnx.Param(jnp.zeros((c_out,), numerics.params))

    def __call__(self, x: Float[Array, "b h w c_in"]) -> Float[Array, "b h2 w2 c_out"]:
        """Enlarges the map s times; the result has the policy's ``compute`` dtype."""
        dtype = self.numerics.compute
        batch, height, width, _ = x.shape
        kernel = self.kernel[...].astype(dtype)
        _, s, _, c_out = kernel.shape
        out = jnp.einsum(
            "bhwc,cklo->bhkwlo", x.astype(dtype), kernel, precision=self.numerics.precision
        )
        return out.reshape(batch, height * s, width * s, c_out) + self.bias[...].astype(dtype)


class Mlp(nnx.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(
        self,
        c_in: int,
        hidden: int,
        c_out: int,
        *,
        numerics: Numerics,
        last: Numerics | None = None,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Linear(c_in, hidden, numerics=numerics, rngs=rngs)
        self.fc2 = Linear(hidden, c_out, numerics=last or numerics, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*batch c_in"], taps: Taps | None = None
    ) -> Float[Array, "*batch c_out"]:
        """Applies the MLP; leaves the tap ``gelu``."""
        hidden = jax.nn.gelu(self.fc1(x), approximate=False)
        tap(taps, gelu=hidden)
        return self.fc2(hidden)


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
    return jax.lax.platform_dependent(
        queries,
        keys,
        values,
        cpu=functools.partial(_attend, numerics=numerics, keys_first=True),
        default=functools.partial(_attend, numerics=numerics, keys_first=False),
    )


@attention.defjvp
def _attention_jvp(
    numerics: Numerics, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    # One form for derivatives: a choice between two would keep what both of them remember.
    return jax.jvp(
        functools.partial(_attend, numerics=numerics, keys_first=False), primals, tangents
    )


def _attend(
    queries: Array, keys: Array, values: Array, *, numerics: Numerics, keys_first: bool
) -> Array:
    """Attention with scores laid out ``[b, h, n, m]``, or ``[b, h, m, n]``.

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
