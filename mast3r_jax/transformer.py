"""The encoder and the twin decoders: pre-norm transformers whose layers are scanned.

All blocks of a transformer are ONE block whose parameters have leading axes, ``[depth, ...]`` in
the encoder and ``[depth, 2, ...]`` in the decoders (view 1, view 2). So a network of any depth
compiles in the time of one layer.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mast3r_jax.attention import CrossAttention, Rotary, SelfAttention, rotary_table
from mast3r_jax.config import MASt3RConfig
from mast3r_jax.layers import LayerNorm, Linear, Mlp, Numerics, Taps, tap

M = TypeVar("M", bound=nnx.Module)
Grid = tuple[int, int]
"""Token rows and columns of an image."""


def stacked(make: Callable[[nnx.Rngs], M], rngs: nnx.Rngs, *sizes: int) -> M:
    """One module whose parameters carry the leading axes ``sizes``, independently drawn."""

    def create(key: Array) -> M:
        return make(nnx.Rngs(key))

    for _ in sizes:
        create = jax.vmap(create)
    return create(jax.random.split(rngs.params(), sizes))


class EncoderBlock(nnx.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        dim = config.enc_dim
        hidden = int(dim * config.mlp_ratio)
        self.norm1 = LayerNorm(dim, numerics=numerics)
        self.attention = SelfAttention(dim, config.enc_heads, numerics=numerics, rngs=rngs)
        self.norm2 = LayerNorm(dim, numerics=numerics)
        self.mlp = Mlp(dim, hidden, dim, numerics=numerics, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], rotary: Rotary, taps: Taps | None = None
    ) -> Float[Array, "b n c"]:
        """One layer on the residual stream ``x``, which keeps its dtype."""
        normed = self.norm1(x)
        attended = self.attention(normed, rotary, taps)
        x = x + attended.astype(x.dtype)
        expanded = self.mlp(self.norm2(x), taps)
        x = x + expanded.astype(x.dtype)
        tap(taps, norm1=normed, attention=attended, mlp=expanded, out=x)
        return x


class DecoderBlock(nnx.Module):
    """Pre-norm self-attention, cross-attention onto the other view, and MLP."""

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, heads = config.dec_dim, config.dec_heads
        hidden = int(dim * config.mlp_ratio)
        self.norm1 = LayerNorm(dim, numerics=numerics)
        self.self_attention = SelfAttention(dim, heads, numerics=numerics, rngs=rngs)
        self.norm2 = LayerNorm(dim, numerics=numerics)
        self.norm_y = LayerNorm(dim, numerics=numerics)
        self.cross_attention = CrossAttention(dim, heads, numerics=numerics, rngs=rngs)
        self.norm3 = LayerNorm(dim, numerics=numerics)
        self.mlp = Mlp(dim, hidden, dim, numerics=numerics, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        other: Float[Array, "b m c"],
        rotary: Rotary,
        other_rotary: Rotary,
        taps: Taps | None = None,
    ) -> Float[Array, "b n c"]:
        """One layer on this view's stream ``x``; ``other`` is the other view's PREVIOUS layer."""
        attended = self.self_attention(self.norm1(x), rotary)
        x = x + attended.astype(x.dtype)
        normed = self.norm_y(other)
        crossed = self.cross_attention(self.norm2(x), normed, rotary, other_rotary)
        x = x + crossed.astype(x.dtype)
        x = x + self.mlp(self.norm3(x)).astype(x.dtype)
        tap(taps, self_attention=attended, norm_y=normed, cross_attention=crossed, out=x)
        return x


class Encoder(nnx.Module):
    """Image to tokens: patch embedding, blocks, final normalisation."""

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        self.numerics = numerics
        pixels = config.patch_size**2 * 3
        self.patch_embed = Linear(pixels, config.enc_dim, numerics=numerics.ends, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: EncoderBlock(config, numerics=numerics, rngs=rngs), rngs, config.enc_depth
        )
        # In full precision: retrieval whitens these tokens, which blows up what rounding leaves
        # in the direction that the normalisation has emptied.
        self.norm = LayerNorm(config.enc_dim, numerics=numerics.ends)

    def __call__(
        self, images: Float[Array, "b h w 3"], taps: Taps | None = None
    ) -> Float[Array, "b n c"]:
        """Tokens in row-major order of the patches; taps ``patch_embed`` and ``blocks``."""
        batch, height, width, _ = images.shape
        p = self.config.patch_size
        grid = (height // p, width // p)
        patches = images.reshape(batch, grid[0], p, grid[1], p, 3).swapaxes(2, 3)
        x = self.patch_embed(patches.reshape(batch, grid[0] * grid[1], p * p * 3))
        tap(taps, patch_embed=x)
        head_dim = self.config.enc_dim // self.config.enc_heads
        rotary = rotary_table(*grid, head_dim, self.config.rope_base, self.numerics.wide)

        def layer(x: Array, block: EncoderBlock) -> tuple[Array, Taps]:
            inside = None if taps is None else {}
            return block(x, rotary, inside), inside or {}

        x, inside = jax.lax.scan(layer, x, self.blocks)
        tap(taps, blocks=inside)
        return self.norm(x)


class Decoder(nnx.Module):
    """Twin decoders in lockstep: in each layer both views read the other's previous layer."""

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        self.numerics = numerics
        self.embed = Linear(config.enc_dim, config.dec_dim, numerics=numerics, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: DecoderBlock(config, numerics=numerics, rngs=rngs),
            rngs,
            config.dec_depth,
            2,
        )
        self.norm = LayerNorm(config.dec_dim, numerics=numerics)

    def __call__(
        self,
        tokens: tuple[Float[Array, "b n c"], Float[Array, "b m c"]],
        grids: tuple[Grid, Grid],
        taps: Taps | None = None,
    ) -> tuple[list[Array], list[Array]]:
        """For each view, the four token lists that ``config.hooks`` names.

        Element 0 is the encoder's tokens themselves, the last one is normalised. Taps
        ``embed_1/2``, ``blocks_1/2`` (stacked over layers) and ``tokens_1/2`` (after the norm).
        """
        head_dim = self.config.dec_dim // self.config.dec_heads
        base, wide = self.config.rope_base, self.numerics.wide
        rotaries = tuple(rotary_table(*grid, head_dim, base, wide) for grid in grids)
        record = taps is not None
        same = grids[0] == grids[1]

        def single(block, x, other, rotary, other_rotary) -> tuple[Array, Taps]:
            inside = {} if record else None
            return block(x, other, rotary, other_rotary, inside), inside or {}

        def layer(views, blocks):
            if same:  # one batched product instead of two small ones
                x = jnp.stack(views)
                both = jax.vmap(single, in_axes=(0, 0, 0, None, None))
                out = both(blocks, x, x[::-1], rotaries[0], rotaries[0])
                (x1, t1), (x2, t2) = _slice(out, 0), _slice(out, 1)
            else:
                x1, t1 = single(_slice(blocks, 0), *views, *rotaries)
                x2, t2 = single(_slice(blocks, 1), *views[::-1], *rotaries[::-1])
            return (x1, x2), (x1, x2, t1, t2)

        views = tuple(self.embed(t).astype(wide) for t in tokens)
        tap(taps, embed_1=views[0], embed_2=views[1])
        views, (layers_1, layers_2, inside_1, inside_2) = jax.lax.scan(layer, views, self.blocks)
        tap(taps, blocks_1=inside_1, blocks_2=inside_2)

        dtype = self.numerics.compute
        hooked = []
        for view, layers in enumerate((layers_1, layers_2)):
            middle = [layers[hook - 1].astype(dtype) for hook in self.config.hooks[1:-1]]
            hooked.append([tokens[view].astype(dtype), *middle, self.norm(views[view])])
            tap(taps, **{f"tokens_{view + 1}": hooked[view][-1]})
        return hooked[0], hooked[1]


def _slice(tree: Any, index: int) -> Any:
    """One element of every leaf's leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
