"""Many small random draws from one call of the generator."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32


class Dice:
    """Hands out parts of one block of random bits, each once.

    For use while tracing: each call of JAX's generator is unrolled into the program, and a room
    drawn with a key for every quantity takes a minute to compile on a CPU instead of seconds.
    """

    def __init__(self, key: PRNGKeyArray, count: int) -> None:
        self._block = jax.random.bits(key, (count,), jnp.uint32)
        self._used = 0

    def bits(self, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
        """32 random bits each; raises ``AssertionError`` when the block is used up."""
        first, self._used = self._used, self._used + math.prod(shape)
        if self._used > self._block.size:
            raise AssertionError(f"more than {self._block.size} random numbers are needed")
        return self._block[first : self._used].reshape(shape)

    def uniform(
        self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
    ) -> Float[Array, "..."]:
        """Numbers in [low, high)."""
        fraction = (self.bits(shape) >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
        return low + (high - low) * fraction

    def chance(self, probability: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """True with the given probability."""
        return self.uniform(shape) < probability

    def between(self, n: int, low: tuple[float, ...], high: tuple[float, ...]) -> Array:
        """``n`` points of a box with the given corners."""
        low_, high_ = jnp.array(low, jnp.float32), jnp.array(high, jnp.float32)
        return low_ + self.uniform((n, len(low))) * (high_ - low_)
