"""The network's blocks in PyTorch, as one would write them there, with the same weights.

Written from ``mast3r_jax/transformer.py`` and ``layers.py``: pre-norm, rotary positions on both
halves of a head, PyTorch's own fused attention, exact GELU. In float32, on all cores or on the GPU.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.bench.machine import cores
from experiments.bench.stage import Agreement, Peer, absent
from mast3r_jax.attention import CrossAttention, Rotary, SelfAttention
from mast3r_jax.layers import LayerNorm as OurLayerNorm
from mast3r_jax.layers import Linear, Mlp
from mast3r_jax.transformer import DecoderBlock, EncoderBlock

NAME = "PyTorch"
TOLERANCE = 1e-4
EPSILON = 1e-6
"""Of the layer norms, as ours."""


def encoder_peer(
    block: EncoderBlock, heads: int, x: jax.Array, rotary: Rotary, expected: jax.Array
) -> Peer:
    """One block of the encoder on tokens ``x[1, n, c]``; ``expected`` is our result."""
    if (why := why_absent()) is not None:
        return absent(NAME, why)
    b = _Builder()
    norm_1, norm_2 = b.norm(block.norm1), b.norm(block.norm2)
    attend, mlp = b.self_attention(block.attention, heads, rotary), b.mlp(block.mlp)

    def forward(x: Any) -> Any:
        x = x + attend(norm_1(x))
        return x + mlp(norm_2(x))

    return b.peer(forward, (x,), expected)


def decoder_peer(
    block: DecoderBlock,
    heads: int,
    x: jax.Array,
    other: jax.Array,
    rotary: Rotary,
    expected: jax.Array,
) -> Peer:
    """One block of a decoder on both views' tokens ``[1, n, c]``; ``expected`` is our result."""
    if (why := why_absent()) is not None:
        return absent(NAME, why)
    b = _Builder()
    norm_1, norm_2, norm_3 = b.norm(block.norm1), b.norm(block.norm2), b.norm(block.norm3)
    norm_y, mlp = b.norm(block.norm_y), b.mlp(block.mlp)
    attend = b.self_attention(block.self_attention, heads, rotary)
    cross = b.cross_attention(block.cross_attention, heads, rotary)

    def forward(x: Any, other: Any) -> Any:
        x = x + attend(norm_1(x))
        x = x + cross(norm_2(x), norm_y(other))
        return x + mlp(norm_3(x))

    return b.peer(forward, (x, other), expected)


def why_absent() -> str | None:
    """Why PyTorch cannot be asked here, if so."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "PyTorch is not installed: pip install torch"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "this PyTorch does not see the GPU"
    return None


class _Builder:
    """Makes PyTorch functions of our modules."""

    def __init__(self) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        self.torch = torch
        self.F = torch.nn.functional
        self.device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        torch.set_num_threads(cores())
        torch.backends.cuda.matmul.allow_tf32 = False

    def tensor(self, array: Any) -> Any:
        """A copy of an array."""
        return self.torch.tensor(np.asarray(array), device=self.device)

    def norm(self, norm: OurLayerNorm) -> Callable[[Any], Any]:
        """Layer norm over the last axis."""
        scale, bias = self.tensor(norm.scale[...]), self.tensor(norm.bias[...])
        return lambda x: self.F.layer_norm(x, (scale.shape[0],), scale, bias, EPSILON)

    def linear(self, linear: Linear) -> Callable[[Any], Any]:
        """Linear map; PyTorch keeps its matrix the other way round."""
        weight = self.tensor(linear.kernel[...]).T.contiguous()
        bias = self.tensor(linear.bias[...])
        return lambda x: self.F.linear(x, weight, bias)

    def mlp(self, mlp: Mlp) -> Callable[[Any], Any]:
        """Two linear maps around an exact GELU."""
        fc1, fc2 = self.linear(mlp.fc1), self.linear(mlp.fc2)
        return lambda x: fc2(self.F.gelu(fc1(x)))

    def rotation(self, rotary: Rotary) -> Callable[[Any], Any]:
        """Turns ``[b, heads, n, d]`` by the tokens' positions."""
        cos, sin = self.tensor(rotary.cos), self.tensor(rotary.sin)  # [n, 2, d/4]

        def turn(x: Any) -> Any:
            pairs = x.unflatten(-1, (2, 2, x.shape[-1] // 4))
            first, second = pairs.unbind(-2)
            turned = (first * cos - second * sin, second * cos + first * sin)
            return self.torch.stack(turned, -2).flatten(-3)

        return turn

    def self_attention(
        self, module: SelfAttention, heads: int, rotary: Rotary
    ) -> Callable[[Any], Any]:
        """Attention of tokens onto themselves."""
        qkv, out, turn = self.linear(module.qkv), self.linear(module.proj), self.rotation(rotary)

        def attend(x: Any) -> Any:
            queries, keys, values = qkv(x).unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)
            mixed = self.F.scaled_dot_product_attention(turn(queries), turn(keys), values)
            return out(mixed.transpose(1, 2).flatten(-2))

        return attend

    def cross_attention(
        self, module: CrossAttention, heads: int, rotary: Rotary
    ) -> Callable[[Any, Any], Any]:
        """Attention of tokens onto another view's."""
        query, key, value, out = (
            self.linear(part) for part in (module.query, module.key, module.value, module.proj)
        )
        turn = self.rotation(rotary)

        def split(x: Any) -> Any:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        def attend(x: Any, other: Any) -> Any:
            queries, keys = turn(split(query(x))), turn(split(key(other)))
            mixed = self.F.scaled_dot_product_attention(queries, keys, split(value(other)))
            return out(mixed.transpose(1, 2).flatten(-2))

        return attend

    def peer(
        self, forward: Callable[..., Any], arrays: tuple[jax.Array, ...], expected: jax.Array
    ) -> Peer:
        """The function on these arrays, compared with what we computed."""
        torch, inputs = self.torch, [self.tensor(array) for array in arrays]

        def call() -> Any:
            with torch.inference_mode():
                result = forward(*inputs)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
            return result

        found = call().cpu().numpy()
        error = float(np.max(np.abs(found - np.asarray(expected))))
        error = error if math.isfinite(error) else math.inf
        return Peer(NAME, call, agreement=Agreement("largest difference", error, TOLERANCE))
