"""MASt3R: two images in, two pointmaps in the first one's camera out (Leroy et al., ECCV 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from mast3r_jax.config import MASt3RConfig
from mast3r_jax.heads import Head
from mast3r_jax.layers import Numerics, Taps, branch
from mast3r_jax.pointmap import Pointmap
from mast3r_jax.transformer import Decoder, Encoder, Grid


class MASt3R(nnx.Module):
    """The two-view network, a pytree of its parameters.

    It goes straight into ``jax.jit`` (``nnx.jit`` would cost more per call)::

        encode = jax.jit(lambda model, images: model.encode(images))
        decode = jax.jit(lambda model, t1, t2: model.decode(t1, t2, (384, 512), (384, 512)))

    ``dtype`` is the dtype of products (default float32, exact on any device; bfloat16 for speed),
    ``param_dtype`` that of the parameters (default float32); ``layers.Numerics`` has the policy.

    Raises:
        ValueError: for a dtype that is not bfloat16, float32 or float64.
    """

    def __init__(
        self,
        config: MASt3RConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
    ):
        numerics = Numerics.of(dtype, param_dtype)
        # XLA compiles this generator several times faster than the default one, and every shape
        # of parameter is a compilation.
        seed = jax.random.bits(rngs.params(), (4,), jnp.uint32)
        rngs = nnx.Rngs(jax.random.wrap_key_data(seed, impl="rbg"))
        self.config = config
        self.encoder = Encoder(config, numerics=numerics, rngs=rngs)
        self.decoder = Decoder(config, numerics=numerics, rngs=rngs)
        self.head_1 = Head(config, numerics=numerics, rngs=rngs)
        self.head_2 = Head(config, numerics=numerics, rngs=rngs)

    @property
    def token_dtype(self) -> np.dtype:
        """What ``decode`` rounds tokens to before anything else."""
        return self.decoder.numerics.compute

    def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """Tokens of images in [-1, 1], row-major over their 16 x 16 patches, ``enc_dim`` channels.

        Raises:
            ValueError: if height or width is not a multiple of the patch size.
        """
        self._grid(_size(images))
        return self.encoder(images)

    def decode(
        self,
        tokens_1: Float[Array, "b n c"],
        tokens_2: Float[Array, "b m c"],
        shape_1: tuple[int, int],
        shape_2: tuple[int, int],
    ) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs, both in view 1's camera.

        ``shape_1`` and ``shape_2`` are the images' (height, width) in pixels, static numbers; they
        may differ. Each pair is seen from its first view: swap the arguments for the other one.

        Raises:
            ValueError: if a shape is no multiple of the patch size or does not fit its tokens.
        """
        return self._decode(tokens_1, tokens_2, shape_1, shape_2, None)

    def __call__(
        self, images_1: Float[Array, "b h1 w1 3"], images_2: Float[Array, "b h2 w2 3"]
    ) -> tuple[Pointmap, Pointmap]:
        """Encodes both views (in one batch where their shapes agree) and decodes them."""
        shape_1, shape_2 = _size(images_1), _size(images_2)
        if shape_1 == shape_2:
            both = self.encode(jnp.concatenate([images_1, images_2]))
            tokens_1, tokens_2 = jnp.split(both, 2)
        else:
            tokens_1, tokens_2 = self.encode(images_1), self.encode(images_2)
        return self.decode(tokens_1, tokens_2, shape_1, shape_2)

    def encode_with_intermediates(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n c"], dict[str, Any]]:
        """``encode``, and a dictionary of intermediate values; under ``jit`` unused ones are free.

        ``patch_embed``, and in ``blocks`` (stacked over layers) ``norm1, qkv, rope_in, rope_out,
        attention, gelu, mlp, out``.
        """
        self._grid(_size(images))
        taps: Taps = {}
        return self.encoder(images, taps), taps

    def decode_with_intermediates(
        self,
        tokens_1: Float[Array, "b n c"],
        tokens_2: Float[Array, "b m c"],
        shape_1: tuple[int, int],
        shape_2: tuple[int, int],
    ) -> tuple[tuple[Pointmap, Pointmap], dict[str, Any]]:
        """``decode``, and a dictionary of intermediate values of each view (1 or 2).

        ``decoder`` has ``embed_1``, in ``blocks_1`` (stacked over layers) ``self_attention, norm_y,
        cross_attention, out``, and ``tokens_1`` (after the final norm); ``head_1`` has ``act1..4,
        rn1..4, refinenet4..1, refinenet3_rcu1, head0, head1, dpt_raw, mlp_raw, mlp_shuffled``.
        """
        taps: Taps = {}
        return self._decode(tokens_1, tokens_2, shape_1, shape_2, taps), taps

    def _decode(self, tokens_1, tokens_2, shape_1, shape_2, taps) -> tuple[Pointmap, Pointmap]:
        grids = (self._grid(shape_1), self._grid(shape_2))
        for view, (tokens, grid) in enumerate(zip((tokens_1, tokens_2), grids, strict=True), 1):
            if tokens.shape[1] != grid[0] * grid[1]:
                raise ValueError(
                    f"shape_{view} has {grid[0]} x {grid[1]} patches, but tokens_{view} holds "
                    f"{tokens.shape[1]} tokens: pass the (height, width) of the encoded image"
                )
        hooked_1, hooked_2 = self.decoder((tokens_1, tokens_2), grids, branch(taps, "decoder"))
        return (
            self.head_1(hooked_1, grids[0], branch(taps, "head_1")),
            self.head_2(hooked_2, grids[1], branch(taps, "head_2")),
        )

    def _grid(self, shape: tuple[int, int]) -> Grid:
        height, width = shape
        p = self.config.patch_size
        if height < p or width < p or height % p or width % p:
            raise ValueError(
                f"an image of {height} x {width} pixels does not divide into {p} x {p} patches: "
                "prepare_image crops to multiples"
            )
        return height // p, width // p


def _size(images: Float[Array, "b h w 3"]) -> tuple[int, int]:
    _, height, width, _ = images.shape
    return height, width
