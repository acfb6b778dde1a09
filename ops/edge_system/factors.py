"""What one pair of matched pointmaps says about the pose between their cameras.

A factor compares the measurement ``z`` of every pixel of one view with the prediction
``h(T X)`` made from the other view's matched points. With ``J = dh/dxi`` under
``T <- exp(xi) T`` and the weights ``w = q/sigma^2`` times Huber's weight of the whitened component,
everything a Gauss-Newton step needs of it is one 8 x 8 Gram matrix, that of the rows
``sqrt(w) [J | z - h]``: ``sum w J^T J``, ``sum w J^T (z - h)`` and ``sum w (z - h)^2``.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ops import pinhole, rays, robust
from ops.rays import Column
from ops.records import Record, record
from ops.sim3 import Sim3

PIXELS_AT_A_TIME = 16384
"""Most pixels linearised together on a CPU: their rows take 0.5 MiB each. From 4,096 to 32,768 the
time is the same within its spread (two cores, six edges of 512x384 pixels); 196,608 take three to
five times as long."""


@record
class FactorNoise(Record):
    """How far measurements are trusted, as numbers that can be traced and learned."""

    sigmas: Float[Array, "k"]
    """Standard deviations: of a ray's component and of the distance, or of a pixel's coordinate
    and of the log-depth."""
    huber: Float[Array, ""]
    """Huber's threshold on whitened components."""

    def relative(self) -> "FactorNoise":
        """In units of the first standard deviation: the whole cost changes by its square alone.

        Minima depend on no more than this. Written as the cost of their derivatives, it leaves
        nothing of the first standard deviation but what matters, where the difference of two large
        numbers would be left: near the minimum what a ray costs and what a distance costs pull
        against each other, and rounding is larger than either.
        """
        unit = self.sigmas[:1]
        return FactorNoise(
            jnp.concatenate([jnp.ones_like(unit), self.sigmas[1:] / unit]), self.huber * unit[0]
        )


@dataclasses.dataclass(frozen=True)
class RayFactorConfig:
    """Uncalibrated measurement: unit ray and distance. Values of the original's ``base`` preset."""

    sigma_ray: float = 0.003
    """Standard deviation of a ray component, unitless (about radians)."""
    sigma_dist: float = 10.0
    """Standard deviation of the distance, scene units: weak, there for pure rotations."""
    huber: float = 1.345
    """Huber's threshold on whitened components; see ``robust.huber_weight``."""
    max_iterations: int = 50
    rel_error: float = 1e-3
    """Stop when the cost falls by less than this share."""
    delta_norm: float = 1e-3
    """Stop when the tangent step is shorter than this."""

    def noise(self, dtype: DTypeLike = "float32") -> FactorNoise:
        """The same standard deviations and threshold as arrays."""
        return _as_noise(dtype, self.huber, self.sigma_ray, self.sigma_dist)


@dataclasses.dataclass(frozen=True)
class PixelFactorConfig:
    """Calibrated measurement: pixel and log-depth. Values of the original's ``calib`` preset."""

    sigma_pixel: float = 1.0
    """Standard deviation of u and of v in pixels."""
    sigma_depth: float = 10.0
    """Standard deviation of the log-depth: weak, there for the scale."""
    pixel_border: float = -10.0
    """Predictions must lie this far inside the image; negative allows them outside."""
    depth_eps: float = 1e-6
    """Points must be at least this far in front of the camera."""
    huber: float = 1.345
    """Huber's threshold on whitened components; see ``robust.huber_weight``."""
    max_iterations: int = 50
    rel_error: float = 1e-3
    """Stop when the cost falls by less than this share."""
    delta_norm: float = 1e-3
    """Stop when the tangent step is shorter than this."""

    def noise(self, dtype: DTypeLike = "float32") -> FactorNoise:
        """The same standard deviations and threshold as arrays."""
        return _as_noise(dtype, self.huber, self.sigma_pixel, self.sigma_depth)


def _as_noise(dtype: DTypeLike, huber: float, *sigmas: float) -> FactorNoise:
    return FactorNoise(jnp.asarray(sigmas, dtype), jnp.asarray(huber, dtype))


FactorConfig = RayFactorConfig | PixelFactorConfig


def factor_gram(
    points: Float[Array, "n 3"],
    measured: Float[Array, "n 3"],
    q: Float[Array, "n"],
    valid: Bool[Array, "n"],
    T: Sim3,
    config: FactorConfig,
    K: Float[Array, "3 3"] | None = None,
    image_shape: tuple[int, int] | None = None,
    pixels: Float[Array, "n 2"] | None = None,
    noise: FactorNoise | None = None,
) -> Float[Array, "8 8"]:
    """Gram matrix of the weighted rows ``[J | z - h]`` of some matched points; module docstring.

    ``T`` maps ``points`` into the camera of ``measured``, where both show the same place with
    confidence ``q`` wherever ``valid``; what is not valid, or has confidence 0, may hold anything.
    A ``PixelFactorConfig`` needs ``K``, ``image_shape = (H, W)`` and the measured points'
    ``pixels`` ``(u, v)``; both points lie on their pixels' rays. ``noise`` takes the place of the
    configuration's.

    Columns of pixels in memory and products of them are the fastest form found on a CPU. One
    reduction of all products, which needs no memory, runs in one loop on one thread and takes half
    again as long; rows of eight numbers, and rows made pixel by pixel, were slower.
    """
    root = robust.sqrt_or_zero(jnp.where(valid, q, 0))
    counts = root != 0  # whatever hides behind other matches stays there; q may not be a number
    seen_at = None if pixels is None else [pixels[:, 0], pixels[:, 1]]
    columns = _Columns(moved(counts, points, T), columns_where(counts, measured), root, seen_at)
    return _gram(config, image_shape, columns, noise or config.noise(points.dtype), K)


class _Columns(NamedTuple):
    """What the rows of every pixel are made of; see ``weighted_rows``."""

    predicted: list[Column]
    measured: list[Column]
    root: Column
    pixels: list[Column] | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gram(
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    columns: _Columns,
    noise: FactorNoise,
    K: Float[Array, "3 3"] | None,
) -> Float[Array, "8 8"]:
    in_parts = functools.partial(_in_parts, config, image_shape)
    at_once = functools.partial(_at_once, config, image_shape)
    return jax.lax.platform_dependent(columns, noise, K, cpu=in_parts, default=at_once)


@_gram.defjvp
def _(
    config: FactorConfig, image_shape: tuple[int, int] | None, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    # The way back through a loop over parts would keep the inputs of each.
    return jax.jvp(functools.partial(_at_once, config, image_shape), primals, tangents)


def _in_parts(
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    columns: _Columns,
    noise: FactorNoise,
    K: Float[Array, "3 3"] | None,
) -> Float[Array, "8 8"]:
    """Some pixels after the others: their rows stay in a CPU's cache."""
    parts = _even_parts(columns.root.size)
    if parts == 1:
        return _at_once(config, image_shape, columns, noise, K)
    size = columns.root.size // parts

    def add(gram: Float[Array, "8 8"], first: Int[Array, ""]) -> tuple[Float[Array, "8 8"], None]:
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), columns)
        return gram + _at_once(config, image_shape, part, noise, K), None

    empty = jnp.zeros((8, 8), columns.root.dtype)
    return jax.lax.scan(add, empty, size * jnp.arange(parts, dtype=jnp.int32))[0]


def _even_parts(num_pixels: int) -> int:
    """Parts of the same size and at most ``PIXELS_AT_A_TIME`` pixels; 1 if that takes tiny ones."""
    fewest = -(-num_pixels // PIXELS_AT_A_TIME)
    return next((n for n in range(fewest, 4 * fewest) if num_pixels % n == 0), 1)


def _at_once(
    config: FactorConfig,
    image_shape: tuple[int, int] | None,
    columns: _Columns,
    noise: FactorNoise,
    K: Float[Array, "3 3"] | None,
) -> Float[Array, "8 8"]:
    camera = None if K is None else pinhole.intrinsics(K)
    predicted, measured, root, pixels = columns
    weights = precisions(noise), noise.huber
    rows = weighted_rows(predicted, measured, root, config, *weights, camera, image_shape, pixels)
    gram = jnp.zeros((8, 8), root.dtype)
    for row in rows:
        entries = _in_memory(row)
        gram += jnp.matmul(entries, entries.T, precision=jax.lax.Precision.HIGHEST)
    return gram


@jax.custom_jvp
def _in_memory(row: list[Column | None]) -> Float[Array, "8 n"]:
    """The columns of a row, one after the other; None are 0."""
    return jax.lax.platform_dependent(row, cpu=_written, default=_joined)


@_in_memory.defjvp
def _change_in_memory(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    # The transpose of joining takes the columns apart; that of writing copies all for each.
    return _in_memory(*primals), _joined(*tangents)


def _written(row: list[Column | None]) -> Float[Array, "8 n"]:
    """Each column where it belongs.

    Whatever joins them has a CPU compute them several times: six edges of 512x384 pixels take 45 to
    50 ms in place of 179 to 255 (``experiments.cpu_forms``, jax 0.10.2).
    """
    columns = jnp.stack([_nothing(row)] * len(row))
    for k, entry in enumerate(row):
        if entry is not None:
            columns = jax.lax.dynamic_update_slice(columns, entry[None], (k, 0))
    return columns


def _joined(row: list[Column | None]) -> Float[Array, "8 n"]:
    """Columns as one kernel of an accelerator makes them."""
    return jnp.stack([_nothing(row) if entry is None else entry for entry in row])


def _nothing(row: list[Column | None]) -> Column:
    return jnp.zeros_like(next(entry for entry in row if entry is not None))


def weighted_rows(
    predicted: list[Column],
    measured: list[Column],
    root: Column,
    config: FactorConfig,
    precision: tuple[Float[Array, ""], Float[Array, ""]],
    huber: Float[Array, ""],
    K: pinhole.Intrinsics | None = None,
    image_shape: tuple[int, int] | None = None,
    pixels: list[Column] | None = None,
) -> list[list[Column | None]]:
    """The rows ``sqrt(w) [J | z - h]`` of every component, eight columns each; None are all 0.

    ``predicted`` are the moved points; ``root`` has the square roots of the confidences;
    ``precision`` is that of ``precisions``. Nothing here depends on how points lie in memory: the
    kernels compute it too.
    """
    if isinstance(config, RayFactorConfig):
        value, jacobian = rays.psi_with_jacobian(predicted)
        z = rays.psi(measured)
    else:
        assert K is not None and image_shape is not None and pixels is not None
        value, in_front, jacobian = pinhole.project_with_jacobian(predicted, K, config.depth_eps)
        z, root = pixel_measurement(config, measured, pixels, root, value, in_front, image_shape)
    rows, scales = [], [precision[0]] * (len(z) - 1) + [precision[1]]
    for seen_at, expected, derivative, scale in zip(z, value, jacobian, scales, strict=True):
        residual = seen_at - expected
        weight = root * scale
        weight = weight * jnp.sqrt(robust.huber_weight(weight * residual, huber))
        entries = (*derivative, residual)
        rows.append([None if entry is None else weight * entry for entry in entries])
    return rows


def columns_where(valid: Bool[Array, "n"], points: Float[Array, "n 3"]) -> list[Column]:
    """The coordinates of the valid points, 1 for the others."""
    # The derivative of a split is one concatenation; that of three slices a sum of three arrays,
    # every number of which XLA computes from all three columns.
    columns = jax.lax.split(points.T, (1, 1, 1))
    return [jnp.where(valid, column[0], 1) for column in columns]


def pixel_measurement(
    config: PixelFactorConfig,
    points: list[Column],
    pixels: list[Column],
    weight: Column,
    predicted: list[Column],
    in_front: Bool[Array, "n"],
    image_shape: tuple[int, int],
) -> tuple[list[Column], Column]:
    """Pixel and log-depth of measured points, and their weights, 0 where one cannot see.

    A match counts if its measured point and its prediction, at ``predicted`` pixels and log-depth,
    are in front of the camera, and the prediction is in or near the image.
    """
    inside = pinhole.inside_image(predicted[0], predicted[1], image_shape, config.pixel_border)
    seen = ~(points[2] <= config.depth_eps)  # not a number: seen, and reported
    z = [*pixels, jnp.log(jnp.where(seen, points[2], 1))]
    return z, jnp.where(in_front & inside & seen, weight, 0)


def precisions(noise: FactorNoise) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``1/sigma`` of all components but the last, and of the last.

    To be multiplied with: XLA divides by a number otherwise when it knows it than when it does not.
    """
    inverse = 1 / noise.sigmas
    return inverse[0], inverse[1]


def moved(counts: Bool[Array, "n"], points: Float[Array, "n 3"], T: Sim3) -> list[Column]:
    """The coordinates of the points that count after a transform; those of the others are finite.

    By a matrix product, whose rows are in memory: three sums would be made wherever they are read,
    from points that are not laid out for it.
    """
    sR = T.scale()[..., None, None] * T.rotation_matrix()
    columns = jnp.where(counts[:, None], points, 1).T
    Y = jnp.matmul(sR, columns, precision=jax.lax.Precision.HIGHEST) + T.translation()[:, None]
    return [row[0] for row in jax.lax.split(Y, (1, 1, 1))]


def checked_calibration(
    count: int, K: Float[Array, "3 3"] | None, image_shape: tuple[int, int] | None
) -> tuple[Float[Array, "3 3"], tuple[int, int]]:
    """Intrinsics and image shape; ``ValueError`` unless both are there and fit ``count`` pixels."""
    if K is None or image_shape is None:
        raise ValueError(
            "a PixelFactorConfig needs K and image_shape=(H, W); without a calibration use a "
            "RayFactorConfig"
        )
    if count != image_shape[0] * image_shape[1]:
        raise ValueError(
            f"calibrated pose: {count} points for an image of {image_shape[0]} x "
            f"{image_shape[1]} pixels; pass one point per keyframe pixel, in order"
        )
    return K, image_shape
