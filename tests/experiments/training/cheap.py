"""Ingredients of training runs that compile at once: pairs without a room, a network of one layer.

A pixel's point is a linear function of its colour, so that the network of one layer can learn it
exactly. View 2 is view 1 moved by one patch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.training.config import (
    CheckpointConfig,
    DispatchConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from experiments.training.ingredients import Ingredients, make_recipe
from experiments.training.pairs import PairConfig
from experiments.training.step import Recipe, all_devices
from experiments.training.types import PairBatch
from mast3r_jax import MASt3R, MASt3RConfig
from ops.records import Record, record

SIZES = MASt3RConfig(
    enc_dim=16,
    enc_depth=1,
    enc_heads=2,
    dec_dim=16,
    dec_depth=2,
    dec_heads=2,
    mlp_ratio=1.0,
    descriptor_dim=4,
    dpt_dim=8,
    dpt_last_dim=8,
    dpt_layer_dims=(8, 8, 8, 8),
)
CONFIG = TrainConfig(
    network=NetworkConfig(sizes=SIZES, precision="float32"),
    pairs=PairConfig(size=(48, 32), pairs=8, correspondences=16),
    optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=0.01),
    schedule=ScheduleConfig(steps=12, warmup=3),
    dispatch=DispatchConfig(loop="yes", most_steps=4, seconds=0.05),
    checkpoints=CheckpointConfig(part_megabytes=0.1),
)


class Colours(MASt3R):
    """For each view, a linear map from a pixel's colour to its point."""

    def __init__(self, key: PRNGKeyArray):
        self.config = SIZES  # which is what mast3r_jax.save writes beside the weights
        self.kernel = nnx.Param(jax.random.normal(key, (2, 3, 3)))
        self.bias = nnx.Param(jnp.zeros((2, 3)))

    def __call__(self, *images: Float[Array, "b h w 3"]) -> list[Float[Array, "b h w 3"]]:
        return [
            jnp.matmul(x, self.kernel[view], precision="highest") + self.bias[view]
            for view, x in enumerate(images)
        ]


@record
class Figures(Record):
    error: Float[Array, ""]


def draw(keys: Array, step: Int[Array, ""]) -> PairBatch:
    """A pair for each key, of patches of random colours."""
    del step
    b, (width, height), n = len(keys), CONFIG.pairs.size, CONFIG.pairs.correspondences

    def view(key: Array) -> Array:
        colours = jax.random.uniform(key, (height // 16, width // 16, 3), minval=-1.0)
        return jnp.repeat(jnp.repeat(colours, 16, axis=0), 16, axis=1)

    first = jax.vmap(view)(keys)
    second = jnp.roll(first, 16, axis=2)
    every = jnp.arange(n) * (width * height // n)
    pixels = jnp.broadcast_to(jnp.stack([every % width, every // width], axis=-1), (b, n, 2))
    moved = (pixels + jnp.array([16, 0])) % jnp.array([width, height])
    valid = jnp.ones((b, height, width), bool)
    return PairBatch(
        images_1=first,
        images_2=second,
        points_1=points_of(first),
        points_2=points_of(second),
        valid_1=valid,
        valid_2=valid,
        pixels_1=pixels,
        pixels_2=moved,
        matched=jnp.ones((b, n), bool),
        metric=jnp.zeros(b, bool),
        T_12=jnp.broadcast_to(jnp.eye(4), (b, 4, 4)),
    )


def points_of(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    return 0.5 * images + jnp.array([0.0, 0.0, 2.0])


def objective(model: Colours, pairs: PairBatch) -> tuple[Float[Array, ""], Figures]:
    """Mean squared distance of the points."""
    seen = model(pairs.images_1, pairs.images_2)
    both = zip(seen, (pairs.points_1, pairs.points_2), strict=True)
    errors = [jnp.mean(jnp.square(points - true)) for points, true in both]
    return errors[0] + errors[1], Figures(error=errors[0])


def ingredients(config: TrainConfig) -> Ingredients:
    del config
    return Ingredients(network=Colours, draw=draw, objective=objective)


def recipe(config: TrainConfig = CONFIG) -> Recipe:
    return make_recipe(config, all_devices(), ingredients(config))


def changed(config: TrainConfig, **sections: dict) -> TrainConfig:
    """The configuration with other values in its sections: ``changed(c, optimizer={...})``."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )
