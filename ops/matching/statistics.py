"""How much of two images their matches cover."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def unique_fraction(index: Int[Array, "hw"], valid: Bool[Array, "hw"]) -> Float[Array, ""]:
    """Share of image 1's pixels that at least one valid match points at."""
    hit = jnp.zeros(index.shape, bool).at[index].max(valid)
    return jnp.mean(hit, dtype=jnp.float32)


def valid_fraction(valid: Bool[Array, "hw"]) -> Float[Array, ""]:
    """Share of pixels for which a mask holds."""
    return jnp.mean(valid, dtype=jnp.float32)
