"""The real network, objective and training step learn two pairs by heart."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.ingredients import Ingredients, make_recipe
from experiments.training.network import tie_views
from experiments.training.objective import objective
from experiments.training.step import all_devices, new_state, train_many
from mast3r_jax import MASt3R
from mast3r_jax.checkpoint import build, parameter_specs
from tests.experiments.training import cheap

STEPS = 150


def network() -> MASt3R:
    """Random weights that pass on the size of what comes in; drawn by numpy to compile nothing."""
    specs, rng = parameter_specs(cheap.SIZES), np.random.default_rng(0)

    def parameter(name: str) -> np.ndarray:
        shape = specs[name].shape
        if not name.endswith("kernel"):
            return np.full(shape, float(name.endswith("scale")))
        convolution = any(part in name for part in ("level", "conv", "shrink"))
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[-4:-1]) if convolution else shape[-2])

    return tie_views(build(cheap.SIZES, parameter))


@pytest.mark.slow
def test_a_minute_mast3r_learns_two_pairs_by_heart():
    """The regression loss falls to a tenth, errors from 0.9 of the distance to below 0.1.

    Of both views' points, in view 1's frame. The same point for all pixels, the best guess without
    looking, would be off by a quarter: 0.5 (root of the mean square), at a distance of 2.
    """
    config = cheap.changed(
        cheap.CONFIG,
        pairs={"pairs": 2},
        optimizer={"learning_rate": 0.01, "weight_decay": 0.0},
        schedule={"steps": STEPS, "warmup": 10},
    )
    config = dataclasses.replace(config, fixed_pairs=2)
    model = network()
    used = Ingredients(
        network=lambda key: model,
        draw=cheap.draw,
        objective=lambda model, pairs: objective(model, pairs, config.objective),
    )
    recipe = make_recipe(config, all_devices(), used)
    state = new_state(recipe, used.network, jnp.asarray(0, jnp.uint32))
    proposals, last_step = jnp.full(1, STEPS, jnp.int32), jnp.asarray(STEPS, jnp.int32)
    _, sent = train_many(recipe, STEPS, state, proposals, last_step)
    assert int(sent.steps) == STEPS
    seen = {name: np.asarray(rows) for name, rows in sent.metrics.items()}
    assert seen["regression"][-1] < 0.1 * seen["regression"][0]
    assert seen["matching"][-1] < seen["matching"][0]
    for name in ("median_error_1", "median_error_2", "mean_error_1", "mean_error_2"):
        assert seen[name][0] > 0.9 and seen[name][-1] < 0.1, name
    assert seen["skipped"][-1] == 0
