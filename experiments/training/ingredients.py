"""What a run is made of: network, pairs and objective, and how they follow from its settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.training.config import ScheduleConfig, TrainConfig
from experiments.training.network import new_network
from experiments.training.objective import objective
from experiments.training.pairs import procedural_pairs
from experiments.training.step import Recipe
from experiments.training.types import PairBatch
from slam.io.frames import SourceError


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """Pure functions that a run is made of."""

    network: Callable[[PRNGKeyArray], nnx.Module]
    """First weights; the network is one that ``mast3r_jax.save`` takes."""
    draw: Callable[[Array, Int[Array, ""]], PairBatch]
    """See ``Recipe.draw``."""
    objective: Callable[[Any, PairBatch], tuple[Float[Array, ""], Any]]
    """See ``Recipe.objective``."""


def procedural_ingredients(config: TrainConfig) -> Ingredients:
    """A new MASt3R, procedural rooms, and the published objective."""
    one = dataclasses.replace(config.pairs, pairs=1)

    def draw(keys: Array, step: Int[Array, ""]) -> PairBatch:
        grown = 1.0 if config.fixed_pairs else motion(config.schedule, step)
        return one_for_each(keys, lambda key: procedural_pairs(key, one, grown))

    return Ingredients(
        network=lambda key: new_network(key, config.network),
        draw=draw,
        objective=lambda model, pairs: objective(model, pairs, config.objective),
    )


def one_for_each(keys: Array, draw: Callable[[PRNGKeyArray], PairBatch]) -> PairBatch:
    """The first pair of what is drawn with each of the keys."""
    return jax.tree.map(lambda x: x[:, 0], jax.vmap(draw)(keys))


def motion(schedule: ScheduleConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Motion between the cameras of a pair, in parts of the whole range: grows linearly to 1."""
    grown = step.astype(jnp.float32) / max(schedule.motion_steps, 1)
    return jnp.minimum(schedule.motion + (1 - schedule.motion) * grown, 1.0)


def decided(config: TrainConfig) -> TrainConfig:
    """The same settings, with those that are "auto" chosen for this device."""
    on_gpu = jax.default_backend() == "gpu"
    network, dispatch = config.network, config.dispatch
    if network.precision == "auto":
        network = dataclasses.replace(network, precision="bfloat16" if on_gpu else "float32")
    if dispatch.loop == "auto":
        dispatch = dataclasses.replace(dispatch, loop="yes" if on_gpu else "no")
    return dataclasses.replace(config, network=network, dispatch=dispatch)


def make_recipe(config: TrainConfig, mesh: Mesh, used: Ingredients) -> Recipe:
    """What a step needs, for these settings and devices.

    Raises:
        SourceError: the batch does not divide over the devices.
    """
    batch, devices = config.pairs.pairs, mesh.size
    if batch % devices:
        raise SourceError(
            f"pairs.pairs={batch}: a batch must divide evenly over the {devices} devices; choose a "
            f"multiple of {devices}"
        )
    return Recipe(
        graph=nnx.graphdef(nnx.eval_shape(lambda: used.network(jax.random.key(0)))),
        draw=used.draw,
        objective=used.objective,
        batch=batch,
        optimizer=config.optimizer,
        schedule=config.schedule,
        mesh=mesh,
        cycle=config.fixed_pairs,
    )
