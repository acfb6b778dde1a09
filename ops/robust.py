"""Robust weighting of residuals by iterative reweighting."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def huber_weight(residual: Float[Array, "*shape"], threshold: float) -> Float[Array, "*shape"]:
    """Huber's weight of whitened residuals, each number on its own.

    1 within the threshold and ``threshold/|r|`` beyond, so that ``w r^2`` grows linearly; at
    1.345 the estimator is 95 % efficient on Gaussian noise (Huber 1964; Holland, Welsch 1977).
    """
    magnitude = jnp.abs(residual)
    outside = magnitude > threshold
    return jnp.where(outside, threshold / jnp.where(outside, magnitude, 1), 1)
