"""From a view's tokens to its pointmap: dense head, descriptor head and output activations."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mast3r_jax.config import MASt3RConfig
from mast3r_jax.dpt import DenseHead
from mast3r_jax.layers import Mlp, Numerics, Taps, tap
from mast3r_jax.pointmap import Pointmap
from mast3r_jax.transformer import Grid


def exponential_points(raw: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """``raw/|raw| * expm1(|raw|)``: the direction kept, the length stretched.

    Smooth at 0, where the value is 0 and the derivative the identity.
    """
    square = jnp.sum(jnp.square(raw), axis=-1, keepdims=True)
    at_zero = square == 0
    length = jnp.sqrt(jnp.where(at_zero, 1.0, square))
    return raw * jnp.where(at_zero, 1.0, jnp.expm1(length) / length)


def unit_descriptors(raw: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """``raw/|raw|``; a zero vector stays zero, with a zero derivative."""
    square = jnp.sum(jnp.square(raw), axis=-1, keepdims=True)
    at_zero = square == 0
    return jnp.where(at_zero, 0.0, raw * jax.lax.rsqrt(jnp.where(at_zero, 1.0, square)))


def patches_to_pixels(
    values: Float[Array, "b n p"], grid: Grid, patch_size: int
) -> Float[Array, "b h w c"]:
    """Spreads each token's ``c * patch_size^2`` numbers over its patch.

    A token's index is ``channel * patch_size^2 + row * patch_size + column``.
    """
    batch, (rows, columns), s = values.shape[0], grid, patch_size
    split = values.reshape(batch, rows, columns, -1, s, s)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * s, columns * s, -1)


class Head(nnx.Module):
    """Everything that belongs to one view after the decoders."""

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        width = config.enc_dim + config.dec_dim
        self.dense = DenseHead(config, numerics=numerics, rngs=rngs)
        self.local_features = Mlp(
            width,
            int(width * config.mlp_ratio),
            (config.descriptor_dim + 1) * config.patch_size**2,
            numerics=numerics,
            last=numerics.ends,
            rngs=rngs,
        )

    def __call__(
        self, hooked: list[Float[Array, "b n _"]], grid: Grid, taps: Taps | None = None
    ) -> Pointmap:
        """Pointmap in view 1's camera, at least float32.

        ``hooked`` are the four token lists of ``MASt3RConfig.hooks``. Taps: the dense head's, and
        ``mlp_raw`` (before), ``mlp_shuffled`` (after spreading over the pixels).
        """
        raw = self.dense(hooked, grid, taps)
        mlp_raw = self.local_features(jnp.concatenate([hooked[0], hooked[-1]], axis=-1))
        local = patches_to_pixels(mlp_raw, grid, self.config.patch_size)
        tap(taps, mlp_raw=mlp_raw, mlp_shuffled=local)
        return Pointmap(
            points=exponential_points(raw[..., :3]),
            confidence=1.0 + jnp.exp(raw[..., 3]),
            descriptors=unit_descriptors(local[..., :-1]),
            descriptor_confidence=jnp.exp(local[..., -1]),
        )
