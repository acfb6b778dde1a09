"""The edges of a pose graph, and what they say once linearised."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from ops.records import Record, record


@record
class Edges(Record):
    """Directed factors between views: pixel n of view ``j`` shows pixel ``index[n]`` of view ``i``.

    Edges that do not exist, ``mask`` being False, may hold anything, and so may pixels that are
    not valid. An edge from a view to itself says nothing about poses and is left out.
    """

    i: Int[Array, "e"]
    """The view whose camera the residual is taken in."""
    j: Int[Array, "e"]
    """The view whose pixels are counted through."""
    index: Int[Array, "e hw"]
    """Linear pixel index ``u + W*v`` into view ``i`` for each pixel of view ``j``."""
    valid: Bool[Array, "e hw"] | UInt8[Array, "e bytes"]
    """Which matches count, as booleans or packed by ``pack_valid``."""
    q: Float[Array, "e hw"]
    """Confidence of each match, in any precision; computed with in that of the poses."""
    mask: Bool[Array, "e"]
    """Which edges exist."""

    @property
    def active(self) -> Bool[Array, "e"]:
        """Which edges say something about poses."""
        return self.mask & (self.i != self.j)


@record
class EdgeBlocks(Record):
    """Normal equations of every edge in the relative pose ``T_ij <- exp(xi) T_ij``; 0 if inactive.

    ``T_ij = T_i^-1 T_j`` maps view j into the camera of view i; tangent order (tau, omega, sigma).
    """

    hessian: Float[Array, "e 7 7"]
    """``sum w J^T J``."""
    gradient: Float[Array, "e 7"]
    """``sum w J^T (z - h)``, the downhill side."""
    cost: Float[Array, "e"]
    """``1/2 sum w (z - h)^2``."""


def pack_valid(valid: Bool[Array, "*batch hw"]) -> UInt8[Array, "*batch bytes"]:
    """Eight matches to a byte: pixel n is bit ``n % 8``, lowest first, of byte ``n // 8``."""
    return jnp.packbits(valid, axis=-1, bitorder="little")


def unpack_valid(
    packed: UInt8[Array, "*batch bytes"], num_pixels: int
) -> Bool[Array, "*batch {num_pixels}"]:
    """What ``pack_valid`` has packed; the padding of the last byte is dropped."""
    return jnp.unpackbits(packed, axis=-1, count=num_pixels, bitorder="little").astype(bool)
