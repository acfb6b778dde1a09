"""Points as rays and distances: the measurement model that needs no calibration.

``psi(X) = (X/|X|, |X|)`` (paper, section 3.3): the angle between two rays is bounded however bad a
depth is, and the weakly weighted distance keeps a pure rotation solvable.

``psi`` takes and gives one array for each component: what is made of it entry by entry then runs
over contiguous memory.
"""

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.robust import sqrt_or_zero

Column = Float[Array, "*batch"]
"""One component of every point."""


def dot(a: Float[Array, "*a d"], b: Float[Array, "*b d"]) -> Float[Array, "*batch"]:
    """Inner product over a last axis of a few components; leading axes broadcast.

    Written out component by component: a reduction over so short an axis is slower on a CPU, and
    some versions of XLA compute it wrongly there (``ops/xla_flags.py``).
    """
    products = [a[..., i] * b[..., i] for i in range(a.shape[-1])]
    return functools.reduce(operator.add, products)


def norm(points: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis, with derivative 0 (not NaN) at the origin."""
    return sqrt_or_zero(dot(points, points))


def normalize(points: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Unit vectors along the last axis; the zero vector stays zero."""
    length = norm(points)
    return points / jnp.where(length == 0, 1, length)[..., None]


def psi(points: list[Column]) -> list[Column]:
    """Unit ray (three components) and distance of points given by their three coordinates.

    ``(X/|X|, |X|)``; a point at the origin gives 0.
    """
    x, y, z = points
    distance = sqrt_or_zero(x * x + y * y + z * z)
    inverse = _inverse(distance)
    return [*(coordinate * inverse for coordinate in points), distance]


def psi_with_jacobian(points: list[Column]) -> tuple[list[Column], list[list[Column | None]]]:
    """``psi(Y)`` and its derivative under ``Y <- exp(xi) Y`` at ``xi = 0``, as 4 rows of 7 entries.

    None are those that are 0 for every point.

    The point moves by ``tau + omega x Y + sigma Y``; with ``r = Y/|Y|``, ``d = |Y|``:

        d ray  = [(I - r r^T)/d | -[r]x | 0],      d distance = [r^T | 0 | d].

    A point at the origin has no ray: its Jacobian is 0.
    """
    value = psi(points)
    x, y, z, d = value
    inverse = _inverse(d)
    xy, xz, yz = -x * y * inverse, -x * z * inverse, -y * z * inverse
    return value, [
        [(1 - x * x) * inverse, xy, xz, None, z, -y, None],
        [xy, (1 - y * y) * inverse, yz, -z, None, x, None],
        [xz, yz, (1 - z * z) * inverse, y, -x, None, None],
        [x, y, z, None, None, None, d],
    ]


def _inverse(length: Column) -> Column:
    """``1/length``; 0 for length 0."""
    present = length > 0
    return jnp.where(present, 1, 0) / jnp.where(present, length, 1)
