"""What MASt3R is trained to minimise (Leroy et al., ECCV 2024, sections 3.1 and 3.2).

Everything is computed in at least float32 whatever the predictions' dtype. Values and gradients
stay finite where there is nothing to measure: a pair without a valid pixel or match, a predicted
point at the origin, an error of exactly zero. What a pixel that does not count holds, NaN and
infinity included, reaches neither the loss nor its gradient.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from mast3r_jax.pointmap import Pointmap
from ops.rays import norm
from ops.records import Record, record

SKY_ERROR = 2.0
"""Error of a sky pixel, in mean distances: confidence is to be low where no point can be right."""
SMALLEST_SCALE = 1e-8
"""Floor of the mean distance by which points are divided; constant below, without gradient."""
SMALLEST_PROBABILITY = 1e-8
"""Floor of a match's probability; a match worse than that pulls no more."""


@record
class RegressionDetails(Record):
    """What is worth watching in ``confident_regression``; errors count in mean distances."""

    error_1: Float[Array, ""]
    """Mean error of view 1's counted pixels (a sky pixel's is ``SKY_ERROR``), unweighted."""
    error_2: Float[Array, ""]
    """The same of view 2."""
    weighted_1: Float[Array, ""]
    """View 1's share of the loss."""
    weighted_2: Float[Array, ""]
    """View 2's share of the loss."""


@record
class MatchingDetails(Record):
    """What is worth watching in ``matching_infonce``, over the true matches."""

    infonce: Float[Array, ""]
    """Mean InfoNCE loss, not weighted by confidence; ``2 log n`` for uniform similarities."""
    nearest: Float[Array, ""]
    """Share of view 1's pixels whose most similar pixel, of the n of view 2, is the right one."""


def confident_regression(
    prediction_1: Pointmap,
    prediction_2: Pointmap,
    truth_1: Float[Array, "b h1 w1 3"],
    truth_2: Float[Array, "b h2 w2 3"],
    valid_1: Bool[Array, "b h1 w1"],
    valid_2: Bool[Array, "b h2 w2"],
    metric: Bool[Array, "b"],
    sky_1: Bool[Array, "b h1 w1"] | None = None,
    sky_2: Bool[Array, "b h2 w2"] | None = None,
    *,
    alpha: float = 0.2,
) -> tuple[Float[Array, ""], RegressionDetails]:
    """Confidence-weighted 3D regression: ``C l - alpha log C`` per pixel, of each view the mean.

    ``l`` is the distance of the points that ``normalize_jointly`` gives. All points, true and
    predicted, are in view 1's camera; ``metric`` says of which pairs the prediction is judged in
    the truth's units. A sky pixel that is not valid counts with ``l = SKY_ERROR``: it trains the
    confidence alone. Each view is averaged over its counted pixels of the whole batch, and the two
    means are added; a view without any counts 0. DUSt3R (Wang et al., CVPR 2024), section 3.2;
    MASt3R, section 3.1.
    """
    points, truth = normalize_jointly(
        prediction_1.points, prediction_2.points, truth_1, truth_2, valid_1, valid_2, metric
    )
    errors, weighted = [], []
    for view, (prediction, valid, sky) in enumerate(
        ((prediction_1, valid_1, sky_1), (prediction_2, valid_2, sky_2))
    ):
        error = norm(points[view] - truth[view])  # 0 where not valid
        counted = valid
        if sky is not None:
            error = jnp.where(sky & ~valid, SKY_ERROR, error)
            counted = sky | valid
        confidence = _where(counted, prediction.confidence.astype(error.dtype), 1)
        loss = confidence * error - alpha * jnp.log(confidence)
        errors.append(mean_where(counted, error))
        weighted.append(mean_where(counted, loss))
    return weighted[0] + weighted[1], RegressionDetails(*errors, *weighted)


def normalize_jointly(
    points_1: Float[Array, "b h1 w1 3"],
    points_2: Float[Array, "b h2 w2 3"],
    truth_1: Float[Array, "b h1 w1 3"],
    truth_2: Float[Array, "b h2 w2 3"],
    valid_1: Bool[Array, "b h1 w1"],
    valid_2: Bool[Array, "b h2 w2"],
    metric: Bool[Array, "b"],
) -> tuple[
    tuple[Float[Array, "b h1 w1 3"], Float[Array, "b h2 w2 3"]],
    tuple[Float[Array, "b h1 w1 3"], Float[Array, "b h2 w2 3"]],
]:
    """Predicted and true points of both views, freed of their unit; 0 where not valid.

    The truth is divided by its ``mean_distance``, and so is the prediction of a metric pair; any
    other prediction is divided by its own, through which gradients flow.
    """
    dtype = _wide(points_1.dtype)

    def counted(view_1: Array, view_2: Array) -> tuple[Array, Array]:
        return (
            _where(valid_1, view_1.astype(dtype), 0),
            _where(valid_2, view_2.astype(dtype), 0),
        )

    def divided(views: tuple[Array, Array], scale: Array) -> tuple[Array, Array]:
        divisor = scale[:, None, None, None]
        return views[0] / divisor, views[1] / divisor

    points, truth = counted(points_1, points_2), counted(truth_1, truth_2)
    true_scale = mean_distance(*truth, valid_1, valid_2)
    own_scale = mean_distance(*points, valid_1, valid_2)
    scale = jnp.where(metric, true_scale, own_scale)
    return divided(points, scale), divided(truth, true_scale)


def mean_distance(
    points_1: Float[Array, "b h1 w1 3"],
    points_2: Float[Array, "b h2 w2 3"],
    valid_1: Bool[Array, "b h1 w1"],
    valid_2: Bool[Array, "b h2 w2"],
) -> Float[Array, "b"]:
    """Mean distance of each pair's valid points, of both views, from the origin.

    At least ``SMALLEST_SCALE``, which is also the scale of a pair without a valid pixel.
    """
    total, count = jnp.zeros((), points_1.dtype), 0
    for points, valid in ((points_1, valid_1), (points_2, valid_2)):
        total += jnp.sum(norm(_where(valid, points, 0)), axis=(1, 2))
        count += jnp.sum(valid, axis=(1, 2))
    mean = total / jnp.maximum(count, 1).astype(points_1.dtype)
    return jnp.where(mean < SMALLEST_SCALE, SMALLEST_SCALE, mean)


def matching_infonce(
    prediction_1: Pointmap,
    prediction_2: Pointmap,
    pixels_1: Int[Array, "b n 2"],
    pixels_2: Int[Array, "b n 2"],
    matched: Bool[Array, "b n"],
    *,
    temperature: float = 0.05,
    alpha: float = 10.0,
) -> tuple[Float[Array, ""], MatchingDetails]:
    """Confidence-weighted matching loss: ``c l - alpha log c``, the mean over the true matches.

    ``pixels`` are ``(u, v)`` within the image; row i of both shows the same surface point where
    ``matched``, and two unrelated ones elsewhere. ``l`` is ``infonce`` among all n of a pair, so
    the unrelated pixels are what a match has to stand out from (their descriptors must be finite
    too); ``c`` is the mean of the two pixels' descriptor confidences. Without any match the loss
    is 0. MASt3R, section 3.2.
    """
    dtype = _wide(prediction_1.descriptors.dtype)
    views = ((prediction_1, pixels_1), (prediction_2, pixels_2))
    descriptors, confidences = [], []
    for prediction, pixels in views:
        descriptors.append(_at(prediction.descriptors, pixels).astype(dtype))
        confidences.append(_at(prediction.descriptor_confidence[..., None], pixels)[..., 0])
    similarity = similarities(*descriptors)
    loss = infonce(similarity, temperature)
    confidence = _where(matched, (confidences[0] + confidences[1]).astype(dtype) / 2, 1)
    nearest = jnp.argmax(similarity, axis=-1) == jnp.arange(similarity.shape[-1])
    details = MatchingDetails(
        infonce=mean_where(matched, loss), nearest=mean_where(matched, nearest.astype(dtype))
    )
    return mean_where(matched, confidence * loss - alpha * jnp.log(confidence)), details


def similarities(
    descriptors_1: Float[Array, "b n d"], descriptors_2: Float[Array, "b m d"]
) -> Float[Array, "b n m"]:
    """Inner products of every descriptor of view 1 with every one of view 2."""
    return jnp.einsum(
        "bnd,bmd->bnm", descriptors_1, descriptors_2, precision=jax.lax.Precision.HIGHEST
    )


def infonce(similarity: Float[Array, "b n n"], temperature: float) -> Float[Array, "b n"]:
    """``-log p(j=i | i) - log p(i=j | j)`` of the pairs on the diagonal.

    Both are softmaxes of ``similarity / temperature``, over the row and over the column. A
    probability below ``SMALLEST_PROBABILITY`` counts as that, without gradient. The largest logit
    of a sum is taken out: ``exp(1 / temperature)`` leaves float32 at temperatures below 0.0113.
    """
    logits = similarity / temperature
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    floor = math.log(SMALLEST_PROBABILITY)
    loss = jnp.zeros_like(own)
    for axis in (1, 2):
        # Subtracted from both, so that a sure match has a loss of 0 and not of one rounding error
        # of its logit.
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=axis))
        others = jnp.exp(logits - jnp.expand_dims(largest, axis))
        log_probability = own - largest - jnp.log(jnp.sum(others, axis=axis))
        loss -= jnp.where(log_probability < floor, floor, log_probability)
    return loss


def mean_where(mask: Bool[Array, "*shape"], values: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of the values in the mask; 0 if there are none."""
    count = jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)
    return jnp.sum(jnp.where(mask, values, 0)) / count


def _where(mask: Array, values: Array, filler: int) -> Array:
    """Values in the mask; the filler, and no gradient, elsewhere. Trailing axes are filled up."""
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(mask, values, filler)


def _at(image: Float[Array, "b h w c"], pixels: Int[Array, "b n 2"]) -> Float[Array, "b n c"]:
    """Values of every image of a batch at its pixels ``(u, v)``."""
    _, height, width, _ = image.shape
    rows = image.reshape(image.shape[0], height * width, -1)
    index = pixels[..., 0] + width * pixels[..., 1]
    return jnp.take_along_axis(rows, index[..., None], axis=1, mode="clip")


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype, but at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
