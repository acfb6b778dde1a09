"""From a frame to the two pointmaps the tracker works on."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mast3r_jax.pointmap import Pointmap
from ops.records import Record, record
from slam.types import TwoViewPrior

UNUSABLE_CONFIDENCE = 1e-6
"""Confidence given to pixels a prior could not predict: they lose every average, without 0/0."""


@record
class View(Record):
    """A sanitised prediction for one image; every number in it is finite."""

    points: Float[Array, "h w 3"]
    """Points in the frame's camera."""
    confidence: Float[Array, "h w"]
    """Point confidence, positive."""
    descriptors: Float[Array, "h w d"]
    """Local features."""
    descriptor_confidence: Float[Array, "h w"]
    """Feature confidence; 0 where the pixel is not usable."""
    usable: Bool[Array, "h w"]
    """Where the prior gave a finite prediction with positive confidence."""


def sanitize(pointmap: Pointmap) -> View:
    """Replace what a prior could not predict by harmless numbers, and say where.

    A pixel is usable when all its numbers are finite and its confidence is positive. Others get
    the smallest weight and no descriptor confidence, and what is not finite in them is replaced,
    so that one NaN cannot spread through a filter, a sum or a fused map. A finite point of no
    confidence stays: its ray is still good for matching the pixels around it.
    """
    located = jnp.isfinite(pointmap.points).all(-1)
    described = jnp.isfinite(pointmap.descriptors).all(-1)
    usable = (
        located
        & described
        & jnp.isfinite(pointmap.confidence)
        & jnp.isfinite(pointmap.descriptor_confidence)
        & (pointmap.confidence > 0)
    )
    ahead = jnp.asarray([0.0, 0.0, 1.0], pointmap.points.dtype)
    return View(
        points=jnp.where(located[..., None], pointmap.points, ahead),
        confidence=jnp.where(usable, pointmap.confidence, UNUSABLE_CONFIDENCE),
        descriptors=jnp.where(described[..., None], pointmap.descriptors, 0.0),
        descriptor_confidence=jnp.where(usable, pointmap.descriptor_confidence, 0.0),
        usable=usable,
    )


def decode_pairs(prior: TwoViewPrior, encoding_1: Any, encoding_2: Any) -> tuple[View, View]:
    """Both views of a batch of pairs (leading axis on every leaf), each in view 1's camera."""
    view_1, view_2 = prior.decode(encoding_1, encoding_2)
    return jax.vmap(sanitize)(view_1), jax.vmap(sanitize)(view_2)


def decode_pair(prior: TwoViewPrior, encoding_1: Any, encoding_2: Any) -> tuple[View, View]:
    """Both views of one (unbatched) pair, in view 1's camera."""

    def batch_of_one(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[None], tree)

    views = decode_pairs(prior, batch_of_one(encoding_1), batch_of_one(encoding_2))
    view_1, view_2 = (jax.tree.map(lambda x: x[0], view) for view in views)
    return view_1, view_2
