"""What cameras do to colours: pictures of one scene that differ as two photographs of it do."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from slam.world.dice import Dice
from slam.world.texture import lattice_hash, unit

_BLUR_RADIUS = 3
"""Half the taps of the blur: three times the largest sigma that is allowed."""


@dataclasses.dataclass(frozen=True)
class PhotoConfig:
    """Ranges of the disturbances; zeros (and ``gamma`` and ``saturation`` of 1) leave images be."""

    gain: float = 0.4
    """Brightness of a pair, up to as many stops more or less (in linear light)."""
    gain_change: float = 0.3
    """The same for each view by itself."""
    white_balance: float = 0.2
    """Gain of red and of blue against green in a pair, up to as many stops more or less."""
    white_balance_change: float = 0.05
    """The same for each view by itself."""
    gamma: tuple[float, float] = (0.8, 1.3)
    """Range of the exponent on display-referred values, one for a pair."""
    saturation: tuple[float, float] = (0.5, 1.2)
    """Range of the distance from grey, one for a pair; 0 is grey."""
    blur: float = 0.8
    """Largest sigma in pixels of a view's Gaussian blur; small ones are more frequent."""
    noise: float = 0.03
    """Largest standard deviation of a view's noise, of the full range; small ones are frequent."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.blur <= _BLUR_RADIUS / 3:
            raise ValueError(f"blur={self.blur:g} must be from 0 to {_BLUR_RADIUS / 3:g} pixels")


def photograph(
    key: PRNGKeyArray, rgb: Float[Array, "b v h w 3"], config: PhotoConfig = PhotoConfig()
) -> Float[Array, "b v h w 3"]:
    """Display-referred images in [0, 1] as cameras deliver them, in the network's range [-1, 1].

    The ``v`` views of each of the ``b`` scenes share a camera and its settings, but for small
    changes of gain and white balance; blur and noise are each view's own. In this order: gain and
    white balance, saturation and blur in linear light, then gamma, noise and clipping.
    """
    b, v = rgb.shape[:2]
    c = config
    dice = Dice(key, b * (5 + 6 * v))
    stops = c.gain * dice.uniform((b, 1), -1.0, 1.0) + c.gain_change * dice.uniform(
        (b, v), -1.0, 1.0
    )
    red_blue = c.white_balance * dice.uniform((b, 1, 2), -1.0, 1.0)
    red_blue = red_blue + c.white_balance_change * dice.uniform((b, v, 2), -1.0, 1.0)
    balance = jnp.stack([red_blue[..., 0], jnp.zeros((b, v)), red_blue[..., 1]], axis=-1)
    gain = jnp.exp2(stops[..., None] + balance)
    gamma = dice.uniform((b, 1, 1, 1, 1), *c.gamma)
    saturation = dice.uniform((b, 1, 1, 1, 1), *c.saturation)
    # Squares: half of the views get less than a quarter of the largest value.
    blur = c.blur * dice.uniform((b, v)) ** 2
    noise = c.noise * dice.uniform((b, v)) ** 2

    light = jnp.square(rgb) * gain[:, :, None, None]
    grey = jnp.mean(light, axis=-1, keepdims=True)
    light = grey + saturation * (light - grey)
    if c.blur > 0:
        light = _blurred(_blurred(light, blur, axis=2), blur, axis=3)
    levels = jnp.clip(light, 0.0, 1.0) ** (0.5 * gamma)
    if c.noise > 0:
        levels = levels + noise[:, :, None, None, None] * _white(dice.bits((b, v)), rgb.shape[2:])
    return 2.0 * jnp.clip(levels, 0.0, 1.0) - 1.0


def _white(seeds: UInt32[Array, "b v"], shape: tuple[int, ...]) -> Float[Array, "b v h w 3"]:
    """Noise of unit variance, nearly Gaussian: sums of four bytes of a hash of the place.

    JAX's generator would take half as long as the renderer.
    """
    place = jnp.arange(math.prod(shape), dtype=jnp.int32)
    place, seed = jnp.broadcast_arrays(place, seeds[..., None])
    h = lattice_hash(place, jnp.zeros_like(place), seed).reshape(*seeds.shape, *shape)
    total = sum((unit(h, byte) for byte in range(1, 4)), start=unit(h, 0))
    return (total - 2.0) * math.sqrt(3.0)


def _blurred(
    images: Float[Array, "b v h w 3"], sigma: Float[Array, "b v"], axis: int
) -> Float[Array, "b v h w 3"]:
    """Gaussian blur along one axis, the border repeated."""
    taps = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=jnp.float32)
    # A sigma of a tenth of a pixel is none.
    weights = jnp.exp(-0.5 * jnp.square(taps / jnp.maximum(sigma, 0.1)[..., None]))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    width = [(0, 0)] * images.ndim
    width[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
    padded = jnp.pad(images, width, mode="edge")
    shifted = (
        jax.lax.slice_in_dim(padded, k, k + images.shape[axis], axis=axis)
        for k in range(taps.shape[0])
    )
    return sum(
        (weights[:, :, k, None, None, None] * image for k, image in enumerate(shifted)),
        start=jnp.zeros_like(images),
    )
