"""What training minimises, and what is worth logging beside it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from experiments.training.types import PairBatch
from mast3r_jax import MASt3R, Pointmap
from mast3r_jax.losses import (
    confident_regression,
    matching_infonce,
    mean_distance,
    mean_where,
    normalize_jointly,
)
from ops.rays import norm
from ops.records import Record, record


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the training loss; the defaults are the published ones."""

    regression_alpha: float = 0.2
    """How much a confident point is worth: a pixel's best confidence is this over its error."""
    match_alpha: float = 10.0
    """How much a confident descriptor is worth, likewise."""
    temperature: float = 0.05
    """Of the softmax over descriptor similarities."""
    match_weight: float = 0.075
    """Weight of the matching loss; that of the regression is 1."""
    figure_stride: int = 4
    """Median errors are taken over every n-th row and column: sorting all pixels would cost."""


@record
class Figures(Record):
    """One number per batch for each thing worth watching, float32.

    Relative errors are the distance between predicted and true point over the true point's
    distance, once each pair's points, true and predicted, are divided by their mean distance.
    """

    loss: Float[Array, ""]
    """The objective."""
    regression: Float[Array, ""]
    """Confidence-weighted 3D regression loss."""
    matching: Float[Array, ""]
    """Confidence-weighted matching loss, before its weight."""
    infonce: Float[Array, ""]
    """InfoNCE loss, not weighted by confidence."""
    nearest: Float[Array, ""]
    """Share of true matches whose descriptor is nearest to its partner's among those sampled."""
    mean_error_1: Float[Array, ""]
    """Mean relative error of view 1's points."""
    mean_error_2: Float[Array, ""]
    """Mean relative error of view 2's points, in view 1's camera."""
    median_error_1: Float[Array, ""]
    """Median relative error of view 1's points."""
    median_error_2: Float[Array, ""]
    """Median relative error of view 2's points."""
    scale_error: Float[Array, ""]
    """Mean of ``|log(predicted / true mean distance)|`` over the metric pairs."""
    confidence_1: Float[Array, ""]
    """Mean confidence of view 1's points."""
    confidence_2: Float[Array, ""]
    """Mean confidence of view 2's points."""


def objective(
    model: MASt3R, batch: PairBatch, config: ObjectiveConfig
) -> tuple[Float[Array, ""], Figures]:
    """The training loss of a network on a batch, and figures of the same forward pass.

    For ``jax.value_and_grad(objective, has_aux=True)``.
    """
    return judge(*model(batch.images_1, batch.images_2), batch, config)


def judge(
    prediction_1: Pointmap, prediction_2: Pointmap, batch: PairBatch, config: ObjectiveConfig
) -> tuple[Float[Array, ""], Figures]:
    """``regression + match_weight * matching`` of predictions for a batch, and the figures.

    MASt3R (Leroy et al., ECCV 2024), section 3.2. The figures carry no gradient.
    """
    regression, _ = confident_regression(
        prediction_1,
        prediction_2,
        batch.points_1,
        batch.points_2,
        batch.valid_1,
        batch.valid_2,
        batch.metric,
        alpha=config.regression_alpha,
    )
    matching, details = matching_infonce(
        prediction_1,
        prediction_2,
        batch.pixels_1,
        batch.pixels_2,
        batch.matched,
        temperature=config.temperature,
        alpha=config.match_alpha,
    )
    loss = regression + config.match_weight * matching
    valid = (batch.valid_1, batch.valid_2)
    errors, scale_error = relative_errors(prediction_1, prediction_2, batch)
    every = slice(config.figure_stride // 2, None, config.figure_stride)
    figures = Figures(
        loss=loss,
        regression=regression,
        matching=matching,
        infonce=details.infonce,
        nearest=details.nearest,
        mean_error_1=mean_where(valid[0], errors[0]),
        mean_error_2=mean_where(valid[1], errors[1]),
        median_error_1=median_where(valid[0][:, every, every], errors[0][:, every, every]),
        median_error_2=median_where(valid[1][:, every, every], errors[1][:, every, every]),
        scale_error=scale_error,
        confidence_1=mean_where(valid[0], prediction_1.confidence),
        confidence_2=mean_where(valid[1], prediction_2.confidence),
    )
    return loss, jax.lax.stop_gradient(figures)


def relative_errors(
    prediction_1: Pointmap, prediction_2: Pointmap, batch: PairBatch
) -> tuple[tuple[Float[Array, "b h w"], Float[Array, "b h w"]], Float[Array, ""]]:
    """Each view's relative errors, 0 where not valid, and the error in scale: see ``Figures``."""
    predicted = (prediction_1.points, prediction_2.points)
    true = (batch.points_1, batch.points_2)
    valid = (batch.valid_1, batch.valid_2)
    own_scales = jnp.zeros_like(batch.metric)
    points, truth = normalize_jointly(*predicted, *true, *valid, own_scales)

    def relative(view: int) -> Array:
        distance = norm(truth[view])
        return norm(points[view] - truth[view]) / jnp.where(distance > 0, distance, 1)

    ratio = mean_distance(*predicted, *valid) / mean_distance(*true, *valid)
    return (relative(0), relative(1)), mean_where(batch.metric, jnp.abs(jnp.log(ratio)))


def median_where(mask: Bool[Array, "*shape"], values: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Median of the values in the mask; 0 if there are none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=None)
    count = jnp.sum(mask)
    lower, upper = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
    return jnp.where(count > 0, (lower + upper) / 2, 0)
