"""Points as rays and distances: the measurement model that needs no calibration.

``psi(X) = (X/|X|, |X|)`` (paper, section 3.3): the angle between two rays is bounded however bad a
depth is, and the weakly weighted distance keeps a pure rotation solvable.
"""

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Float


def dot(a: Float[Array, "*a d"], b: Float[Array, "*b d"]) -> Float[Array, "*batch"]:
    """Inner product over a last axis of a few components; leading axes broadcast.

    Written out component by component: a reduction over so short an axis is slower on a CPU, and
    some versions of XLA compute it wrongly there (``ops/xla_flags.py``).
    """
    products = [a[..., i] * b[..., i] for i in range(a.shape[-1])]
    return functools.reduce(operator.add, products)


def norm(points: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis, with derivative 0 (not NaN) at the origin."""
    squared = dot(points, points)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def normalize(points: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Unit vectors along the last axis; the zero vector stays zero."""
    length = norm(points)
    return points / jnp.where(length == 0, 1, length)[..., None]


def psi(points: Float[Array, "*batch 3"]) -> Float[Array, "*batch 4"]:
    """Unit ray and distance of each point: ``(X/|X|, |X|)``; a point at the origin gives 0."""
    length = norm(points)
    rays = points / jnp.where(length == 0, 1, length)[..., None]
    return jnp.concatenate([rays, length[..., None]], axis=-1)


def psi_with_jacobian(
    points: Float[Array, "*batch 3"],
) -> tuple[Float[Array, "*batch 4"], Float[Array, "*batch 4 7"]]:
    """``psi(Y)`` and its derivative under ``Y <- exp(xi) Y`` at ``xi = 0``.

    The point moves by ``tau + omega x Y + sigma Y``; with ``r = Y/|Y|``, ``d = |Y|``:

        d ray  = [(I - r r^T)/d | -[r]x | 0],      d distance = [r^T | 0 | d].

    A point at the origin has no ray: its Jacobian is 0.
    """
    value = psi(points)
    x, y, z, d = (value[..., i] for i in range(4))
    present = d > 0
    inverse = jnp.where(present, 1, 0) / jnp.where(present, d, 1)
    o = jnp.zeros_like(d)
    xy, xz, yz = -x * y * inverse, -x * z * inverse, -y * z * inverse
    rows = [
        [(1 - x * x) * inverse, xy, xz, o, z, -y, o],
        [xy, (1 - y * y) * inverse, yz, -z, o, x, o],
        [xz, yz, (1 - z * z) * inverse, y, -x, o, o],
        [x, y, z, o, o, o, d],
    ]
    return value, jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
