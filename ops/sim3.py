"""Similarity transforms of 3D space, in jaxlie's style and on its rotations.

A Sim(3) element maps ``x`` to ``s R x + t``. With the tangent ``xi = (tau, omega, sigma)`` and
``W = int_0^1 exp(a (sigma I + [omega]x)) da``, the exponential is ``s = e^sigma``,
``R = exp([omega]x)``, ``t = W tau``. The integral is

    W = C I + A [omega]x + B [omega]x^2,     z = sigma + i theta,  phi(z) = (e^z - 1) / z,
    C = phi(sigma),   A = Im phi(z) / theta,   B = (phi(sigma) - Re phi(z)) / theta^2,

three smooth functions of ``(sigma, theta^2)``. The usual branches on small ``sigma`` and small
``theta`` lose up to 1 % of the translation in float32, because they divide differences of nearly
equal numbers by ``sigma^2``; here the power series of ``phi`` is summed wherever ``|z| < 1`` and
the closed form, rearranged so that nothing is divided by ``sigma`` or ``theta`` alone, is used
beyond. Both branches are evaluated at safe arguments, so that no derivative of any order is NaN.

jaxlie does not survive strict promotion rules and its small products may be rounded to TF32 on
a GPU; ``relaxed`` opens both for exactly the calls that go into it.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import overload

import jax
import jax.numpy as jnp
import jaxlie
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ops.records import Record, record


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Promotion rules and matrix precision under which jaxlie works as intended."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("highest"),
    ):
        yield


@record
class Sim3(Record):
    """Similarity transform ``x -> s R x + t``; leading axes are batch axes and broadcast."""

    wxyz_xyz_scale: Float[Array, "*batch 8"]
    """Unit quaternion (w, x, y, z), translation, scale (positive, not its logarithm)."""

    @classmethod
    def identity(cls, batch_axes: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> "Sim3":
        """The identity, with the given batch axes."""
        element = jnp.array([1, 0, 0, 0, 0, 0, 0, 1], dtype)
        return cls(jnp.broadcast_to(element, (*batch_axes, 8)))

    @classmethod
    def from_parts(
        cls,
        rotation: jaxlie.SO3,
        translation: Float[Array, "*translations 3"],
        scale: Float[Array, "*scales"] | float = 1.0,
    ) -> "Sim3":
        """The transform ``x -> scale * rotation(x) + translation``; batch axes broadcast."""
        wxyz = rotation.wxyz
        factor = jnp.asarray(scale, translation.dtype)
        batch = jnp.broadcast_shapes(wxyz.shape[:-1], translation.shape[:-1], factor.shape)
        parts = (wxyz, translation, factor[..., None])
        return cls(jnp.concatenate([jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in parts], -1))

    @classmethod
    def exp(cls, tangent: Float[Array, "*batch 7"]) -> "Sim3":
        """Exponential of the tangent ``(tau, omega, sigma)``; see the module's equations."""
        tau, omega, sigma = tangent[..., :3], tangent[..., 3:6], tangent[..., 6]
        a, b, c = _integral_coefficients(sigma, jnp.sum(omega * omega, axis=-1))
        with relaxed():
            rotation = jaxlie.SO3.exp(omega)
        return cls.from_parts(rotation, _combine(a, b, c, omega, tau), jnp.exp(sigma))

    def log(self) -> Float[Array, "*batch 7"]:
        """Tangent ``(tau, omega, sigma)`` with ``exp(log(T)) = T`` and ``|omega| <= pi``.

        ``W^-1 = I/C - A/d [omega]x + (A^2 - aB)/(C d) [omega]x^2`` with ``a = C - B theta^2`` and
        ``d = a^2 + A^2 theta^2 = |phi(z)|^2``, which has no zero for ``theta <= pi``.
        """
        omega = _rotation_log(self.wxyz_xyz_scale[..., :4])
        sigma = jnp.log(self.scale())
        theta2 = jnp.sum(omega * omega, axis=-1)
        a, b, c = _integral_coefficients(sigma, theta2)
        real = c - b * theta2
        modulus = real * real + a * a * theta2
        tau = _combine(
            -a / modulus,
            (a * a - real * b) / (c * modulus),
            1 / c,
            omega,
            self.translation(),
        )
        return jnp.concatenate([tau, omega, sigma[..., None]], axis=-1)

    def rotation(self) -> jaxlie.SO3:
        """The rotation, as jaxlie's type."""
        return jaxlie.SO3(self.wxyz_xyz_scale[..., :4])

    def translation(self) -> Float[Array, "*batch 3"]:
        """The translation, in the units of the target frame."""
        return self.wxyz_xyz_scale[..., 4:7]

    def scale(self) -> Float[Array, "*batch"]:
        """The scale, positive."""
        return self.wxyz_xyz_scale[..., 7]

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.wxyz_xyz_scale.shape[:-1]

    @property
    def dtype(self) -> jnp.dtype:
        """The precision of the parameters."""
        return self.wxyz_xyz_scale.dtype

    def rotation_matrix(self) -> Float[Array, "*batch 3 3"]:
        """The rotation as a matrix (without the scale)."""
        with relaxed():
            return self.rotation().as_matrix()

    def as_matrix(self) -> Float[Array, "*batch 4 4"]:
        """The homogeneous matrix ``[[s R, t], [0, 1]]``."""
        linear = self.scale()[..., None, None] * self.rotation_matrix()
        top = jnp.concatenate([linear, self.translation()[..., None]], axis=-1)
        bottom = jnp.broadcast_to(jnp.array([0, 0, 0, 1], self.dtype), (*self.batch_axes, 1, 4))
        return jnp.concatenate([top, bottom], axis=-2)

    def inverse(self) -> "Sim3":
        """The inverse transform."""
        with relaxed():
            rotation = self.rotation().inverse()
        scale = 1 / self.scale()
        linear = Sim3.from_parts(rotation, jnp.zeros_like(self.translation()), scale)
        return Sim3.from_parts(rotation, -linear.apply(self.translation()), scale)

    def apply(self, points: Float[Array, "*points 3"]) -> Float[Array, "*out 3"]:
        """Transform points; batch axes of the transform and of the points broadcast.

        A single transform applies to points of any shape ``[..., 3]``; a batch ``[E]`` applies to
        ``[E, N, 3]`` as ``T[:, None].apply(points)``.
        """
        R = self.rotation_matrix()
        x, y, z = points[..., 0:1], points[..., 1:2], points[..., 2:3]
        rotated = R[..., 0] * x + R[..., 1] * y + R[..., 2] * z
        return self.scale()[..., None] * rotated + self.translation()

    @overload
    def __matmul__(self, other: "Sim3") -> "Sim3": ...
    @overload
    def __matmul__(self, other: Array) -> Array: ...
    def __matmul__(self, other: "Sim3 | Array") -> "Sim3 | Array":
        """Composition with another transform, or application to points."""
        if not isinstance(other, Sim3):
            return self.apply(other)
        with relaxed():
            rotation = self.rotation() @ other.rotation()
        return Sim3.from_parts(
            rotation, self.apply(other.translation()), self.scale() * other.scale()
        )

    def adjoint(self) -> Float[Array, "*batch 7 7"]:
        """The matrix with ``T exp(xi) T^-1 = exp(Ad_T xi)``: rows and columns (tau, omega, sigma).

        ``Ad_T = [[s R, [t]x R, -t], [0, R, 0], [0, 0, 1]]``.
        """
        rotation, t = self.rotation_matrix(), self.translation()
        zero = jnp.zeros_like(rotation)
        t_cross_r = jnp.cross(t[..., :, None], rotation, axis=-2)
        upper = jnp.concatenate(
            [self.scale()[..., None, None] * rotation, t_cross_r, -t[..., None]], axis=-1
        )
        middle = jnp.concatenate([zero, rotation, zero[..., :1]], axis=-1)
        last = jnp.broadcast_to(
            jnp.array([[0, 0, 0, 0, 0, 0, 1]], self.dtype), (*self.batch_axes, 1, 7)
        )
        return jnp.concatenate([upper, middle, last], axis=-2)

    def retract(self, tangent: Float[Array, "*batch 7"]) -> "Sim3":
        """``exp(tangent) @ self``, with the quaternion brought back to unit length."""
        return (Sim3.exp(tangent) @ self).normalize()

    def normalize(self) -> "Sim3":
        """The same transform with a quaternion of unit length, against drift by rounding."""
        wxyz = self.wxyz_xyz_scale[..., :4]
        wxyz = wxyz / jnp.sqrt(jnp.sum(wxyz * wxyz, axis=-1, keepdims=True))
        return Sim3(jnp.concatenate([wxyz, self.wxyz_xyz_scale[..., 4:]], axis=-1))

    def __getitem__(self, index: object) -> "Sim3":
        """Index the batch axes, as numpy does: ``T[3]``, ``T[edges.i]``, ``T[:, None]``."""
        index = index if isinstance(index, tuple) else (index,)
        if not any(item is Ellipsis for item in index):
            index = (*index, Ellipsis)
        return Sim3(self.wxyz_xyz_scale[(*index, slice(None))])


def _combine(
    a: Float[Array, "*batch"],
    b: Float[Array, "*batch"],
    c: Float[Array, "*batch"],
    omega: Float[Array, "*batch 3"],
    v: Float[Array, "*batch 3"],
) -> Float[Array, "*batch 3"]:
    """``(c I + a [omega]x + b [omega]x^2) v``."""
    once = jnp.cross(omega, v)
    twice = jnp.cross(omega, once)
    return c[..., None] * v + a[..., None] * once + b[..., None] * twice


def _rotation_log(wxyz: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3"]:
    """Rotation vector of a unit quaternion, accurate up to and including half a turn.

    jaxlie's own logarithm rounds angles within 2e-5 of pi to pi in float32; ``atan2`` has no need
    of that branch.
    """
    wxyz = jnp.where(wxyz[..., :1] < 0, -wxyz, wxyz)
    w, v = wxyz[..., 0], wxyz[..., 1:]
    norm2 = jnp.sum(v * v, axis=-1)
    small = norm2 < 1e-4 * w * w
    tan2 = jnp.where(small, norm2, 0) / jnp.where(small, w * w, 1)
    # atan(x)/x to x^8: the first term left out is x^10/11, below 1e-21 for x^2 < 1e-4.
    series = 1 - tan2 * (1 / 3 - tan2 * (1 / 5 - tan2 * (1 / 7 - tan2 / 9)))
    norm = jnp.sqrt(jnp.where(small, 1, norm2))
    factor = jnp.where(small, series / jnp.where(small, w, 1), jnp.arctan2(norm, w) / norm)
    return 2 * factor[..., None] * v


def _integral_coefficients(
    sigma: Float[Array, "*batch"], theta2: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The coefficients ``(A, B, C)`` of the module's ``W``, from sigma and the squared angle."""
    modulus2 = sigma * sigma + theta2
    small = modulus2 < 1
    near = _series(jnp.where(small, sigma, 0), jnp.where(small, theta2, 0))
    # Beyond |z| = 1, with sinc = sin(theta)/theta and versinc = (1 - cos(theta))/theta^2:
    # A = (sigma e^sigma sinc - e^sigma cos + 1)/|z|^2,
    # B = (sigma e^sigma versinc + C - e^sigma sinc)/|z|^2.
    sinc, versinc = _sinc_versinc(theta2)
    scale, c = jnp.exp(sigma), _expm1_over(sigma)
    safe = jnp.where(small, 1, modulus2)
    a = (scale * (sigma * sinc - 1 + theta2 * versinc) + 1) / safe
    b = (scale * (sigma * versinc - sinc) + c) / safe
    return jnp.where(small, near[0], a), jnp.where(small, near[1], b), c


def _terms(dtype: DTypeLike) -> int:
    """How many terms of ``sum z^k/(k+1)!`` reach rounding for ``|z| < 1``: 1/13! or 1/20!."""
    return 12 if jnp.finfo(dtype).bits <= 32 else 19


def _series(
    sigma: Float[Array, "*batch"], theta2: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """A and B by the power series of phi.

    With ``p = Re z^k``, ``q = Im z^k / theta`` and ``r = (sigma^k - p)/theta^2``, all polynomials
    in ``(sigma, theta^2)``: ``A = sum q/(k+1)!``, ``B = sum r/(k+1)!``.
    """
    p, q, r = jnp.ones_like(sigma), jnp.zeros_like(sigma), jnp.zeros_like(sigma)
    a, b = jnp.zeros_like(sigma), jnp.zeros_like(sigma)
    for k in range(1, _terms(sigma.dtype)):
        p, q, r = sigma * p - theta2 * q, p + sigma * q, sigma * r + q
        weight = 1 / math.factorial(k + 1)
        a, b = a + weight * q, b + weight * r
    return a, b


def _sinc_versinc(
    theta2: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """``sin(theta)/theta`` and ``(1 - cos(theta))/theta^2`` as functions of the squared angle."""
    small = theta2 < 1
    x = jnp.where(small, theta2, 0)
    sinc, versinc = jnp.zeros_like(x), jnp.zeros_like(x)
    for k in reversed(range(_terms(x.dtype) // 2 + 1)):  # Horner, in -theta^2
        sinc = 1 / math.factorial(2 * k + 1) - x * sinc
        versinc = 1 / math.factorial(2 * k + 2) - x * versinc
    theta = jnp.sqrt(jnp.where(small, 1, theta2))
    half = jnp.sin(theta / 2) / theta
    return (
        jnp.where(small, sinc, jnp.sin(theta) / theta),
        jnp.where(small, versinc, 2 * half * half),
    )


def _expm1_over(sigma: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``(e^sigma - 1)/sigma``, which is 1 at 0."""
    small = jnp.abs(sigma) < 1
    x = jnp.where(small, sigma, 0)
    series = jnp.zeros_like(x)
    for k in reversed(range(_terms(x.dtype))):
        series = 1 / math.factorial(k + 1) + x * series
    safe = jnp.where(small, 1, sigma)
    return jnp.where(small, series, jnp.expm1(safe) / safe)
