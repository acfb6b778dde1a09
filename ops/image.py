"""Image operators: derivative by Scharr's stencil, bilinear lookup."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def scharr(image: Float[Array, "h w c"]) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"]]:
    """Derivatives of an image per pixel along u and v, reflected at the borders.

    Stencil ``[[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]] / 32`` along u, its transpose along v (Scharr
    2000): the smoothing across the derivative makes its direction accurate.
    """
    height, width = image.shape[:2]
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    across = (padded[:, 2:] - padded[:, :-2]) / 32
    down = (padded[2:] - padded[:-2]) / 32
    du = 3 * across[:height] + 10 * across[1 : height + 1] + 3 * across[2:]
    dv = 3 * down[:, :width] + 10 * down[:, 1 : width + 1] + 3 * down[:, 2:]
    return du, dv


def bilinear(
    table: Float[Array, "hw c"], uv: Float[Array, "n 2"], width: int
) -> Float[Array, "n c"]:
    """Values of an image between its pixels; ``table`` has its rows in linear pixel order.

    ``uv`` are pixel coordinates within ``[0, W-1) x [0, H-1)``: callers clamp, nothing is checked.
    """
    corner = jnp.floor(uv)
    cell = corner.astype(jnp.int32)
    index = cell[:, 0] + width * cell[:, 1]
    du, dv = ((uv - corner)[:, k] for k in range(2))
    # As one sum over corners: XLA computes it once, with all channels of a row side by side, where
    # three nested interpolations are computed anew, number by number, wherever they are used.
    index = jnp.stack([index, index + 1, index + width, index + width + 1], axis=-1)
    weight = jnp.stack([(1 - du) * (1 - dv), du * (1 - dv), (1 - du) * dv, du * dv], axis=-1)
    rows = table.at[index].get(mode="promise_in_bounds")
    return jnp.sum(rows * weight[..., None], axis=1)


def pixel_coordinates(index: Int[Array, "n"], width: int) -> Int[Array, "n 2"]:
    """``(u, v)`` of linear indices ``u + W*v``."""
    return jnp.stack([index % width, index // width], axis=-1)
