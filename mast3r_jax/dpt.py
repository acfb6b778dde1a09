"""The dense head: four levels of tokens, refined from coarse to fine (DPT, Ranftl et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mast3r_jax.config import MASt3RConfig
from mast3r_jax.layers import Conv, Linear, Numerics, Taps, Unfold, tap
from mast3r_jax.transformer import Grid

OUTPUTS = 4
"""Raw channels of a pixel: x, y, z, confidence."""


def upsample_twice(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear enlargement to twice the size with aligned corners.

    Output pixel i samples at ``i (n-1) / (2n-1)`` of an axis of n, so first and last pixels
    coincide. Interpolates in at least float32, returns the input's dtype.
    """
    wide = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    out = x.astype(wide)
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(2 * n) * ((n - 1) / (2 * n - 1))
        low = np.minimum(at.astype(np.int32), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = 2 * n
        weight = jnp.asarray((at - low).reshape(shape), wide)
        below, above = (jnp.take(out, index, axis=axis, mode="clip") for index in (low, high))
        out = below + weight * (above - below)
    return out.astype(x.dtype)


class ResidualUnit(nnx.Module):
    """``x + conv2(relu(conv1(relu(x))))``."""

    def __init__(self, dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.conv1 = Conv(dim, dim, 3, numerics=numerics, rngs=rngs)
        self.conv2 = Conv(dim, dim, 3, numerics=numerics, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the unit; the skip connection adds the un-rectified input."""
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Merges a level into the coarser result and doubles the size; the coarsest takes no merge."""

    def __init__(self, dim: int, *, merges: bool, numerics: Numerics, rngs: nnx.Rngs):
        kw = {"numerics": numerics, "rngs": rngs}
        self.merge = ResidualUnit(dim, **kw) if merges else None
        self.refine = ResidualUnit(dim, **kw)
        self.project = Linear(dim, dim, **kw)

    def __call__(
        self, x: Float[Array, "b h w c"], level: Float[Array, "b h w c"] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        """``project(upsample(refine(x + merge(level))))``."""
        if self.merge is not None and level is not None:
            x = x + self.merge(level)
        return self.project(upsample_twice(self.refine(x)))


class DenseHead(nnx.Module):
    """Tokens of four depths to a full-resolution map of raw point and confidence channels.

    Levels are numbered 0 (finest, 4 pixels) to 3 (coarsest, 32 pixels).
    """

    def __init__(self, config: MASt3RConfig, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, last = config.dpt_dim, config.dpt_last_dim
        sizes = config.dpt_layer_dims
        sources = (config.enc_dim, *[config.dec_dim] * 3)
        kw = {"numerics": numerics, "rngs": rngs}
        self.project = nnx.List(
            [Linear(c_in, c_out, **kw) for c_in, c_out in zip(sources, sizes, strict=True)]
        )
        self.unfold = nnx.List(
            [Unfold(sizes[0], sizes[0], 4, **kw), Unfold(sizes[1], sizes[1], 2, **kw)]
        )
        self.shrink = Conv(sizes[3], sizes[3], 3, stride=2, **kw)
        self.level = nnx.List([Conv(size, dim, 3, use_bias=False, **kw) for size in sizes])
        self.fusion = nnx.List([Fusion(dim, merges=k < 3, **kw) for k in range(4)])
        self.conv1 = Conv(dim, dim // 2, 3, **kw)
        self.conv2 = Conv(dim // 2, last, 3, **kw)
        self.last = Linear(last, OUTPUTS, numerics=numerics.ends, rngs=rngs)

    def __call__(
        self, hooked: list[Float[Array, "b n _"]], grid: Grid, taps: Taps | None = None
    ) -> Float[Array, "b h w 4"]:
        """Raw ``x, y, z, confidence`` per pixel.

        Taps ``act1..4`` and ``rn1..4`` (levels, finest first), ``refinenet4..1`` (after fusion),
        ``refinenet3_rcu1``, ``head0``, ``head1`` (before and after the last enlargement) and
        ``dpt_raw``.
        """
        maps = [tokens.reshape(tokens.shape[0], *grid, -1) for tokens in hooked]
        acts = [project(x) for project, x in zip(self.project, maps, strict=True)]
        acts = [self.unfold[0](acts[0]), self.unfold[1](acts[1]), acts[2], self.shrink(acts[3])]
        levels = [conv(act) for conv, act in zip(self.level, acts, strict=True)]
        for k in range(4):
            tap(taps, **{f"act{k + 1}": acts[k], f"rn{k + 1}": levels[k]})

        path = self.fusion[3](levels[3])
        tap(taps, refinenet4=path)
        # The coarsest level rounds an odd token grid up (5 -> 3 -> 6): cut back to the next one's.
        path = path[:, : grid[0], : grid[1]]
        for k in (2, 1, 0):
            path = self.fusion[k](path, levels[k])
            tap(taps, **{f"refinenet{k + 1}": path})
        if taps is not None and self.fusion[2].merge is not None:
            tap(taps, refinenet3_rcu1=self.fusion[2].merge(levels[2]))

        half = self.conv1(path)
        full = upsample_twice(half)
        raw = self.last(jax.nn.relu(self.conv2(full)))
        tap(taps, head0=half, head1=full, dpt_raw=raw)
        return raw
