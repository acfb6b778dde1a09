"""Large symmetric positive definite systems whose active part is smaller than their arrays.

The arrays have a fixed capacity n, of which the first ``size`` rows count; ``size`` may be traced,
and the work grows with its cube. ``"blocked"`` is a left-looking factorisation in square tiles
(Golub and Van Loan, Matrix Computations, section 4.2.9) inside loops of dynamic length: the lower
triangle is kept tile by tile, so that a slice is one piece of memory, and a product with the
inverse of the diagonal tile stands for the triangular solve, so that nearly all work is matrix
products. ``"lapack"`` hands the smallest of a few leading parts that holds ``size`` rows to XLA's
own factorisation: LAPACK on a CPU, cuSOLVER on a GPU. None takes the first on a CPU, and the second
elsewhere, where small tiles would leave the device idle. On two CPU cores the first is as fast at
64 and 256 poses, two to three times as fast with those in arrays for 1,024, and 1.8 times slower at
1,024 (``experiments.solver_speed``).

Single-precision input is factorised in double precision by default; the session itself needs no 64
bits (``ops/double.py``).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from ops.double import dot_general
from ops.implicit import solve_linear
from ops.linear import PIVOT_FLOOR
from ops.records import Record, record

T = TypeVar("T")
Size = Int[Array, ""] | int | None

SMALL_BLOCK, LARGE_BLOCK, LARGE = 112, 224, 4096
"""Rows of a tile below and from ``LARGE`` rows of capacity: whole groups of seven unknowns, and the
fastest of 64 to 256 on two CPU cores with 448 and 1,792 rows, and with 7,168 rows."""


@record
class _Factor(Record):
    """``D H D = L L^T`` with a unit diagonal on the left, in tiles of b x b."""

    tiles: Float[Array, "slots b b"]
    """The lower triangle of L, row by row: tile (i, j) is number ``i (i+1)/2 + j``."""
    inverses: Float[Array, "t b b"]
    """Inverses of L's diagonal tiles."""
    scale: Float[Array, "t b"]
    """The diagonal of D."""
    used: Int[Array, ""]
    """Number of tiles in a column of the active part."""


def cholesky(
    H: Float[Array, "n n"],
    *,
    size: Size = None,
    block: int | None = None,
    implementation: str | None = None,
    precision: str | None = None,
) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
    """The lower triangular L with ``L L^T = H``, and whether there is one.

    Rows and columns from ``size`` on (default n) are taken as the identity's, whatever they hold.
    Only the lower triangle is read. On failure (see ``solve_spd``) L is the identity. L has the
    dtype of H; the other arguments and the errors are those of ``solve_spd``.
    """
    count, dtype = _checked(H, size, block, implementation, precision)

    def blocked(H: Array, count: Array) -> tuple[Array, Array]:
        factor, ok = _factorise(H, count, block or _default_block(H.shape[0]), dtype)
        return _dense(factor, H.shape[0]).astype(H.dtype), ok

    def lapack(H: Array, count: Array) -> tuple[Array, Array]:
        def leading(m: int) -> tuple[Array, Array]:
            L, scale, ok = _factorise_leading(H, count, m, dtype)
            L = jnp.eye(H.shape[0], dtype=dtype).at[:m, :m].set(L / scale[:, None])
            return L.astype(H.dtype), ok

        return _smallest_sufficient(leading, H.shape[0], count)

    L, ok = _dispatch(implementation, blocked, lapack, H, count)
    ok &= jnp.all(jnp.isfinite(L))
    return jnp.where(ok, L, jnp.eye(H.shape[0], dtype=H.dtype)), ok


def solve_spd(
    H: Float[Array, "n n"],
    g: Float[Array, "n"],
    *,
    size: Size = None,
    block: int | None = None,
    implementation: str | None = None,
    precision: str | None = None,
) -> tuple[Float[Array, "n"], Bool[Array, ""]]:
    """Solve ``H x = g`` for a symmetric positive definite ``H``; x is zero from row ``size`` on.

    Returns ``x``, in the dtype of ``g``, and whether that succeeded; if not, ``x`` is zero, never
    NaN. The matrix is first scaled to a unit diagonal; a pivot that is not finite, or below a few
    rounding errors of the factor's precision, is a failure. Only the lower triangle of the first
    ``size`` rows (default n) is read; ``size`` may differ between the systems of a ``vmap``, which
    then all take the time of the largest.

    ``block`` is the number of rows of a tile; ``implementation`` chooses ``"blocked"`` or
    ``"lapack"``, see the module. ``precision`` is that of the factor: ``"float64"`` (default) or,
    for hardware without it, ``"float32"``. Raises ``ValueError`` for arguments that cannot be.

    The entries of a pose graph's matrix are sums over edges. Summed in single precision they can
    spoil the solution by percents, whatever the factor's: sum them in double.
    """
    count, dtype = _checked(H, size, block, implementation, precision)
    n = g.shape[0]
    active = jnp.arange(n, dtype=jnp.int32) < count
    g = jnp.where(active, g, 0)

    def blocked(H: Array, g: Array, count: Array) -> tuple[Array, Array]:
        factor, ok = _factorise(H, count, block or _default_block(n), dtype)
        return _substitute(factor, g.astype(dtype)).astype(g.dtype), ok

    def lapack(H: Array, g: Array, count: Array) -> tuple[Array, Array]:
        def leading(m: int) -> tuple[Array, Array]:
            L, scale, ok = _factorise_leading(H, count, m, dtype)
            x = (scale * g[:m].astype(dtype))[:, None]
            for transpose in (False, True):
                x = lax.linalg.triangular_solve(
                    L, x, left_side=True, lower=True, transpose_a=transpose
                )
            return jnp.zeros_like(g).at[:m].set((scale * x[:, 0]).astype(g.dtype)), ok

        return _smallest_sufficient(leading, n, count)

    x, ok = _dispatch(implementation, blocked, lapack, H, g, count)
    ok &= jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(x))
    return jnp.where(ok & active, x, 0), ok


def solve_spd_linear(
    H: Float[Array, "n n"], g: Float[Array, "n"], *, size: Size = None
) -> Float[Array, "n"]:
    """``solve_spd`` with derivatives in ``H`` and ``g``; 0, with derivative 0, if that fails.

    To JAX it is linear in ``g``, in forward and reverse mode: one more factorisation in the
    derivative, however ``solve_spd`` goes about it. ``H`` has to be zero off the diagonal in rows
    and columns from ``size`` on.
    """
    return solve_linear(H, g, jnp.matmul, lambda H, g: solve_spd(H, g, size=size)[0])


def _checked(
    H: Array, size: Size, block: int | None, implementation: str | None, precision: str | None
) -> tuple[Array, jnp.dtype]:
    """The number of active rows, within the capacity, and the dtype of the factor."""
    if implementation not in (None, "blocked", "lapack"):
        raise ValueError(f"implementation {implementation!r}: expected None, 'blocked' or 'lapack'")
    if precision not in (None, "float64", "float32"):
        raise ValueError(f"precision {precision!r}: expected None, 'float64' or 'float32'")
    if block is not None and block < 1:
        raise ValueError(f"block is {block}, expected at least one row")
    n = H.shape[0]
    if isinstance(size, int) and not 0 <= size <= n:
        raise ValueError(f"size is {size}, but the matrix has {n} rows")
    count = jnp.clip(jnp.asarray(n if size is None else size, jnp.int32), 0, n)
    return count, jnp.dtype(precision or "float64")


def _default_block(n: int) -> int:
    return min(n, SMALL_BLOCK) if n < LARGE else LARGE_BLOCK


def _dispatch(
    implementation: str | None,
    blocked: Callable[..., tuple[Array, Array]],
    lapack: Callable[..., tuple[Array, Array]],
    *arrays: Array,
) -> tuple[Array, Array]:
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):  # never TF32
        if implementation is None:
            return lax.platform_dependent(*arrays, cpu=blocked, default=lapack)
        return (blocked if implementation == "blocked" else lapack)(*arrays)


@custom_vmap
def _largest(count: Array) -> Array:
    """The number itself; in a batch, the largest of the batch, so that loops stay in step.

    JAX would otherwise run a loop of batched length by copying all it carries at every step.
    """
    return count


@_largest.def_vmap
def _largest_of_batch(axis_size: int, in_batched: list[bool], count: Array) -> tuple[Array, bool]:
    return _largest(jnp.max(count) if in_batched[0] else count), False


def _unit_scale(H: Array, active: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """What scales the active diagonal to one, one elsewhere; and whether that is possible."""
    diagonal = jnp.where(active, jnp.diagonal(H)[: len(active)].astype(dtype), 1)
    good = jnp.isfinite(diagonal) & (diagonal > 0)
    return 1 / jnp.sqrt(jnp.where(good, diagonal, 1)), jnp.all(good)


def _factorise_tile(S: Array) -> tuple[Array, Array]:
    """The Cholesky factor of one tile and whether all pivots are sound; if not, the identity."""
    L = lax.linalg.cholesky(S, symmetrize_input=False)
    pivots = jnp.diagonal(L) ** 2
    ok = jnp.all(pivots > PIVOT_FLOOR * float(jnp.finfo(S.dtype).eps))
    return jnp.where(ok, L, jnp.eye(len(S), dtype=S.dtype)), ok


# ---------------------------------------------------------------------------------------- blocked


def _padded(x: Array, b: int) -> Array:
    """The array, longer by zeros up to whole tiles; a copy only where that is needed."""
    return jnp.pad(x, [(0, -length % b) for length in x.shape]) if x.shape[0] % b else x


def _at(i: Array, j: Array) -> Array:
    return i * (i + 1) // 2 + j


def _tile(tiles: Array, i: Array, j: Array) -> Array:
    return lax.dynamic_index_in_dim(tiles, _at(i, j), keepdims=False)


def _minus_product(accumulated: Array, left: Array, right: Array) -> Array:
    """One tile update: ``accumulated - left right^T``."""
    return accumulated - _times_transposed(left, right)


def _times_transposed(left: Array, right: Array) -> Array:
    return dot_general(left, right, (((1,), (1,)), ((), ())))


def _times(left: Array, right: Array) -> Array:
    """``left @ right``, one of them a vector."""
    return dot_general(left, right, (((left.ndim - 1,), (0,)), ((), ())))


def _factorise(H: Array, count: Array, b: int, dtype: jnp.dtype) -> tuple[_Factor, Array]:
    """Factorise the leading ``count`` rows of ``D H D``; identity up to the end of their tile."""
    H = _padded(H, b)
    t = H.shape[0] // b
    used = _largest((count + (b - 1)) // b)
    active = jnp.arange(t * b, dtype=jnp.int32) < count
    scale, ok = _unit_scale(H, active, dtype)
    scale, active = scale.reshape(t, b), active.reshape(t, b)
    identity = jnp.eye(b, dtype=dtype)

    def scaled(i: Array, k: Array) -> Array:
        tile = lax.dynamic_slice(H, (i * b, k * b), (b, b)).astype(dtype)
        tile = tile * scale[i][:, None] * scale[k][None, :]
        outside = jnp.where(i == k, identity, 0)
        return jnp.where(active[i][:, None] & active[k][None, :], tile, outside)

    def column(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tiles, inverses, ok = carry

        def remainder(i: Array, tiles: Array) -> Array:
            """Tile (i, k) less what the columns before k explain."""

            def update(j: Array, rest: Array) -> Array:
                return _minus_product(rest, _tile(tiles, i, j), _tile(tiles, k, j))

            return lax.fori_loop(0, k, update, scaled(i, k))

        L, sound = _factorise_tile(remainder(k, tiles))
        inverse = lax.linalg.triangular_solve(L, identity, left_side=True, lower=True)
        tiles = lax.dynamic_update_index_in_dim(tiles, L, _at(k, k), 0)

        def below(i: Array, tiles: Array) -> Array:
            tile = _times_transposed(remainder(i, tiles), inverse)
            return lax.dynamic_update_index_in_dim(tiles, tile, _at(i, k), 0)

        tiles = lax.fori_loop(k + 1, used, below, tiles)
        return tiles, lax.dynamic_update_index_in_dim(inverses, inverse, k, 0), ok & sound

    start = (jnp.zeros((t * (t + 1) // 2, b, b), dtype), jnp.zeros((t, b, b), dtype), ok)
    tiles, inverses, ok = lax.fori_loop(0, used, column, start)
    return _Factor(tiles, inverses, scale, used), ok


def _substitute(factor: _Factor, g: Array) -> Array:
    """``D L^-T L^-1 D g``, zero in the rows of unused tiles."""
    tiles, inverses, scale, used = factor.tiles, factor.inverses, factor.scale, factor.used
    t, b = scale.shape
    rhs = scale * _padded(g, b).reshape(t, b)

    def forward(k: Array, y: Array) -> Array:
        rest = lax.fori_loop(0, k, lambda j, rest: rest - _times(_tile(tiles, k, j), y[j]), rhs[k])
        return lax.dynamic_update_index_in_dim(y, _times(inverses[k], rest), k, 0)

    def backward(step: Array, x: Array) -> Array:  # x holds y where it is not yet x
        k = used - 1 - step
        rest = lax.fori_loop(
            k + 1, used, lambda i, rest: rest - _times(x[i], _tile(tiles, i, k)), x[k]
        )
        return lax.dynamic_update_index_in_dim(x, _times(rest, inverses[k]), k, 0)

    y = lax.fori_loop(0, used, forward, jnp.zeros_like(rhs))
    return (scale * lax.fori_loop(0, used, backward, y)).reshape(-1)[: len(g)]


def _dense(factor: _Factor, n: int) -> Array:
    """``D^-1 L`` as one array, the identity from the first unused tile on."""
    t, b = factor.scale.shape

    def row(i: Array, L: Array) -> Array:
        def tile(j: Array, L: Array) -> Array:
            part = _tile(factor.tiles, i, j) / factor.scale[i][:, None]
            return lax.dynamic_update_slice(L, part, (i * b, j * b))

        return lax.fori_loop(0, i + 1, tile, L)

    identity = jnp.eye(t * b, dtype=factor.tiles.dtype)
    return lax.fori_loop(0, factor.used, row, identity)[:n, :n]


# ----------------------------------------------------------------------------------------- lapack


def _smallest_sufficient(compute: Callable[[int], T], n: int, count: Array) -> T:
    """``compute(m)`` with the smallest sufficient m of n, 3/4 n, 1/2 n, 3/8 n, ... 1/8 n."""
    sizes = sorted({-(-n * k // 16) for k in (2, 3, 4, 6, 8, 12, 16)})
    index = jnp.searchsorted(jnp.array(sizes, jnp.int32), _largest(count))
    return lax.switch(index, [lambda m=m: compute(m) for m in sizes])


def _factorise_leading(
    H: Array, count: Array, m: int, dtype: jnp.dtype
) -> tuple[Array, Array, Array]:
    """L of the scaled leading m rows, its scale, and whether it is sound."""
    active = jnp.arange(m, dtype=jnp.int32) < count
    scale, ok = _unit_scale(H, active, dtype)
    S = H[:m, :m].astype(dtype) * scale[:, None] * scale[None, :]
    S = jnp.where(active[:, None] & active[None, :], S, jnp.eye(m, dtype=dtype))
    L, sound = _factorise_tile(S)
    return L, scale, ok & sound
