"""The similarity that lays one set of points best onto another, in a differentiable form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def aligned_error(
    estimate: Float[Array, "n 3"], reference: Float[Array, "n 3"], weight: Float[Array, "n"]
) -> Float[Array, ""]:
    """Weighted root mean square distance of points, after the best similarity of the estimate.

    The least-squares ``(s, R, t)`` of ``sum w |reference - (s R estimate + t)|^2`` (Umeyama, PAMI
    1991, equations 40 to 43), with respect to which the sum is stationary: so its derivative is
    that with the alignment held, and none goes through the singular value decomposition, whose own
    is infinite for equal singular values. An exact fit, without direction, has derivative 0. Points
    of weight 0 may hold anything.
    """
    known = weight > 0
    estimate = jnp.where(known[:, None], estimate, 0)
    reference = jnp.where(known[:, None], reference, 0)
    share = jnp.where(known, weight, 0)
    share = (share / jnp.maximum(jnp.sum(share), jnp.finfo(share.dtype).tiny))[:, None]
    scale, R, t = jax.lax.stop_gradient(_align(estimate, reference, share))
    moved = scale * jnp.matmul(estimate, R.T, precision=jax.lax.Precision.HIGHEST) + t
    mean_square = jnp.sum(share * (moved - reference) ** 2)
    exact = mean_square == 0
    return jnp.where(exact, 0, jnp.sqrt(jnp.where(exact, 1, mean_square)))


def _align(
    estimate: Float[Array, "n 3"], reference: Float[Array, "n 3"], share: Float[Array, "n 1"]
) -> tuple[Float[Array, ""], Float[Array, "3 3"], Float[Array, "3"]]:
    """Scale, rotation and translation for shares that sum to one."""
    estimate, reference = jax.lax.stop_gradient((estimate, reference))
    highest = jax.lax.Precision.HIGHEST
    centre_e, centre_r = jnp.sum(share * estimate, axis=0), jnp.sum(share * reference, axis=0)
    e, r = estimate - centre_e, reference - centre_r
    U, singular, Vt = jnp.linalg.svd(jnp.matmul((share * r).T, e, precision=highest))
    # The reflection is taken out of the direction of least covariance.
    flip = jnp.sign(jnp.linalg.det(U) * jnp.linalg.det(Vt))
    signs = jnp.stack([jnp.ones_like(flip), jnp.ones_like(flip), flip])
    R = jnp.matmul(U * signs, Vt, precision=highest)
    spread = jnp.sum(share * e * e)
    still = spread == 0
    scale = jnp.where(still, 1, jnp.sum(singular * signs) / jnp.where(still, 1, spread))
    return scale, R, centre_r - scale * jnp.matmul(R, centre_e, precision=highest)
