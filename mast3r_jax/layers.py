"""The network's bricks: linear maps, convolutions, normalisation; attention has its own module.

Every brick computes at the precision its ``Numerics`` says. Tokens are ``[b, n, c]``, maps are
``[b, h, w, c]``; parameters are laid out so that no transposition happens at run time.
"""

import dataclasses
from typing import Any

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
