"""Steps as pure functions: how they are cut, what is drawn, what is updated, what is left out."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.training.config import OptimizerConfig, ScheduleConfig
from experiments.training.ingredients import decided, make_recipe, motion
from experiments.training.network import new_network, tie_views
from experiments.training.optimizer import decays, learning_rate
from experiments.training.step import (
    Recipe,
    TrainState,
    all_devices,
    new_state,
    pairs_of_step,
    train_many,
    train_step,
)
from experiments.training.timing import StepTimes, time_pieces
from mast3r_jax.checkpoint import build, parameter_specs
from slam.io.frames import SourceError
from tests.experiments.training import cheap

NEVER = 1_000_000
pairs_of = jax.jit(pairs_of_step, static_argnums=0)
one_step = jax.jit(train_step, static_argnums=0)


def state_of(recipe: Recipe, seed: int = 0) -> TrainState:
    return new_state(recipe, cheap.Colours, jnp.asarray(seed, jnp.uint32))


def send(recipe: Recipe, state: TrainState, steps: int, last_step: int = NEVER, most: int = 8):
    proposals, last = jnp.full(1, steps, jnp.int32), jnp.asarray(last_step, jnp.int32)
    return train_many(recipe, most, state, proposals, last)


# how steps are cut


@pytest.mark.slow
def test_results_do_not_depend_on_how_steps_are_cut_into_dispatches():
    traces = []

    def draw(keys, step):
        traces.append(len(keys))
        return cheap.draw(keys, step)

    recipe = dataclasses.replace(cheap.recipe(), draw=draw)
    whole, sent = send(recipe, state_of(recipe), 7)
    assert int(sent.steps) == int(whole.step) == 7
    rows, before = [], len(traces)
    state = state_of(recipe)
    for steps in (1, 2, 0, 4):
        state, part = send(recipe, state, steps)
        assert int(part.steps) == steps
        rows.append({name: values[:steps] for name, values in part.metrics.items()})
    assert len(traces) == before, "lengths are data: one program for all of them"
    chex.assert_trees_all_equal(whole, state)
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    chex.assert_trees_all_equal({n: v[:7] for n, v in sent.metrics.items()}, together)
    # Another capacity is another program around the same steps.
    chex.assert_trees_all_equal(send(recipe, state_of(recipe), 7, most=7)[0], whole)
    assert len(traces) == before + 2


def test_the_most_modest_proposal_the_capacity_and_the_last_step_limit_a_dispatch():
    recipe = cheap.recipe()
    state, sent = send(recipe, state_of(recipe), 9)
    assert int(sent.steps) == 8
    state, sent = send(recipe, state, 4, last_step=10)
    assert (int(sent.steps), int(state.step)) == (2, 10)
    assert np.all(sent.metrics["loss"][:2]) and not np.any(sent.metrics["loss"][2:])
    state, sent = send(recipe, state, 4, last_step=10)
    assert (int(sent.steps), int(state.step)) == (0, 10)
    state, sent = send(recipe, state, -1)
    assert (int(sent.steps), int(state.step)) == (0, 10)


@pytest.mark.slow
def test_without_a_loop_steps_are_the_same_up_to_rounding():
    recipe = cheap.recipe()
    looped, _ = send(recipe, state_of(recipe), 3)
    state = state_of(recipe)
    for proposal, made in ((1, 1), (0, 0), (5, 1), (-1, 0), (1, 1)):
        before = jax.tree.map(jnp.copy, state)
        state, sent = send(recipe, state, proposal, most=1)
        assert int(sent.steps) == made and bool(sent.metrics["loss"][0]) == bool(made)
        if not made:
            chex.assert_trees_all_equal(state, before)
    assert int(state.step) == 3
    chex.assert_trees_all_close(state.params, looped.params, rtol=1e-5, atol=1e-6)


def test_the_state_is_donated():
    recipe = cheap.recipe()
    state = state_of(recipe)
    send(recipe, state, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema)))


# what is drawn


@pytest.mark.slow
def test_a_pair_follows_from_its_number():
    recipe = cheap.recipe()
    state = state_of(recipe).replace(step=jnp.asarray(5, jnp.int32))
    pairs = pairs_of(recipe, state)
    root = jax.random.wrap_key_data(state.key)
    keys = jnp.stack([jax.random.fold_in(root, 5 * 8 + i) for i in range(8)])
    chex.assert_trees_all_equal(pairs, cheap.draw(keys, state.step))
    assert len(np.unique(pairs.images_1[:, 0, 0, 0])) == 8


def test_fixed_pairs_come_round_again():
    config = dataclasses.replace(cheap.CONFIG, fixed_pairs=12)
    recipe = cheap.recipe(config)
    state = state_of(recipe)
    steps = [pairs_of(recipe, state.replace(step=jnp.asarray(n, jnp.int32))) for n in range(4)]
    chex.assert_trees_all_equal(steps[0], steps[3])
    seen = np.concatenate([np.asarray(pairs.images_1[:, 0, 0, 0]) for pairs in steps])
    assert len(np.unique(seen)) == 12


def test_seeds_differ_and_weights_and_pairs_have_keys_of_their_own():
    recipe = cheap.recipe()
    first, second = state_of(recipe, 0), state_of(recipe, 1)
    assert not np.array_equal(first.key, second.key)
    assert not np.array_equal(first.params["kernel"], second.params["kernel"])


def test_motion_grows_to_the_whole_range():
    schedule = ScheduleConfig(motion=0.4, motion_steps=10)
    seen = [float(motion(schedule, jnp.asarray(n, jnp.int32))) for n in (0, 5, 10, 99)]
    assert seen == pytest.approx([0.4, 0.7, 1.0, 1.0])
    at_once = ScheduleConfig(motion=0.4, motion_steps=0)
    assert float(motion(at_once, jnp.asarray(1, jnp.int32))) == 1.0


def test_a_batch_that_does_not_divide_is_refused():
    mesh = all_devices()
    three = jax.sharding.Mesh(np.array([mesh.devices[0]] * 3), mesh.axis_names)
    with pytest.raises(SourceError, match=r"pairs.pairs=8: .* multiple of 3"):
        make_recipe(cheap.CONFIG, three, cheap.ingredients(cheap.CONFIG))


# what is updated


@pytest.mark.slow
def test_updates_are_adamw_s_with_clipping_and_average():
    """Against the published formulas in float64, with gradients in closed form."""
    config = cheap.changed(cheap.CONFIG, optimizer={"clip_norm": 0.5, "weight_decay": 0.3})
    recipe, o, s = cheap.recipe(config), config.optimizer, config.schedule
    state = state_of(recipe)
    start = {name: np.asarray(state.params[name], np.float64) for name in ("kernel", "bias")}
    theta, ema = dict(start), dict(start)
    m = {name: np.zeros_like(x) for name, x in theta.items()}
    v = {name: np.zeros_like(x) for name, x in theta.items()}
    for t in range(5):
        pairs = pairs_of(recipe, state)
        grads = {name: np.zeros_like(x) for name, x in theta.items()}
        views = ((pairs.images_1, pairs.points_1), (pairs.images_2, pairs.points_2))
        for view, (images, points) in enumerate(views):
            x, y = (np.asarray(a, np.float64).reshape(-1, 3) for a in (images, points))
            error = x @ theta["kernel"][view] + theta["bias"][view] - y
            grads["kernel"][view] = 2 * x.T @ error / error.size
            grads["bias"][view] = 2 * error.sum(0) / error.size
        norm = math.sqrt(sum(np.sum(g**2) for g in grads.values()))
        assert norm > o.clip_norm
        if t < s.warmup:
            first = o.learning_rate / (s.warmup + 1)
            rate = first + (o.learning_rate - first) * t / s.warmup
        else:
            turn = math.pi * (t - s.warmup) / (s.steps - s.warmup)
            rate = o.learning_rate * (s.final + (1 - s.final) * 0.5 * (1 + math.cos(turn)))
        decay = min(o.ema_decay, (1 + t) / (10 + t))
        for name, g in grads.items():
            g = g * (o.clip_norm / norm)
            m[name] = o.beta_1 * m[name] + (1 - o.beta_1) * g
            v[name] = o.beta_2 * v[name] + (1 - o.beta_2) * g**2
            m_hat = m[name] / (1 - o.beta_1 ** (t + 1))
            v_hat = v[name] / (1 - o.beta_2 ** (t + 1))
            drawn = o.weight_decay * theta[name] if name == "kernel" else 0.0
            theta[name] = theta[name] - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + drawn)
            ema[name] = decay * ema[name] + (1 - decay) * theta[name]
        state, metrics = one_step(recipe, state)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)  # a sum of 36864
        assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5)
    for name in theta:
        assert np.any(np.abs(theta[name] - start[name]) > 0.05)
        np.testing.assert_allclose(state.params[name][...], theta[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.ema[name][...], ema[name], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_ends_where_it_should():
    rate = learning_rate(OptimizerConfig(learning_rate=2.0), ScheduleConfig(steps=100, warmup=10))
    seen = [float(rate(jnp.asarray(n, jnp.int32))) for n in (0, 10, 55, 100, 500)]
    assert seen == pytest.approx([2 / 11, 2.0, 1.01, 0.02, 0.02])
    no_warmup = learning_rate(OptimizerConfig(learning_rate=2.0), ScheduleConfig(warmup=0))
    assert float(no_warmup(jnp.asarray(0, jnp.int32))) == 2.0


@pytest.mark.slow
def test_steps_that_are_not_finite_change_nothing_and_are_counted():
    def corner(pairs):  # decides what goes wrong; it depends on the data alone, as in practice
        return pairs.images_1[0, 0, 0, 0]

    def objective(model, pairs):
        value, figures = cheap.objective(model, pairs)
        loss_only = jnp.where(corner(pairs) > 0.4, jnp.nan, value)  # whose gradient is 0
        zero = jnp.square(model.bias[0, 0]) * 0.0
        gradient_only = jnp.sqrt(jnp.where(corner(pairs) < -0.4, zero, 1.0))  # no slope at 0
        return loss_only + gradient_only, figures

    recipe = dataclasses.replace(cheap.recipe(), objective=objective)
    state, skipped, in_a_row, reasons = state_of(recipe), 0, 0, set()
    for _ in range(12):
        before = state
        reason = int(np.trunc(corner(pairs_of(recipe, state)) / 0.4))
        reasons.add(np.sign(reason))
        state, metrics = one_step(recipe, state)
        skipped, in_a_row = skipped + (reason != 0), in_a_row + 1 if reason else 0
        assert int(state.skipped) == int(metrics["skipped"]) == skipped
        assert int(metrics["skipped_in_a_row"]) == in_a_row
        assert np.isfinite(metrics["loss"]) == (reason <= 0)
        if reason:
            chex.assert_trees_all_equal(before.params, state.params)
            chex.assert_trees_all_equal(before.optimizer.inner_state, state.optimizer.inner_state)
        else:
            assert not np.array_equal(before.params["kernel"], state.params["kernel"])
        assert np.isfinite(state.ema["kernel"][...]).all()
    assert reasons == {-1, 0, 1}


def test_it_learns():
    config = cheap.changed(cheap.CONFIG, schedule={"steps": 300}, optimizer={"weight_decay": 0.0})
    recipe = cheap.recipe(config)
    state, sent = send(recipe, state_of(recipe), 300, most=300)
    assert float(sent.metrics["loss"][0]) > 1 > 1e-4 > float(sent.metrics["loss"][-1])
    for params in (state.params, state.ema):
        np.testing.assert_allclose(params["kernel"][...], [0.5 * np.eye(3)] * 2, atol=0.01)


# the network at the start


@pytest.mark.slow
def test_views_are_tied_and_kernels_decay():
    specs, rng = parameter_specs(cheap.SIZES), np.random.default_rng(0)
    model = build(cheap.SIZES, lambda name: 0.1 * rng.normal(size=specs[name].shape))
    tied = tie_views(model)
    before, after = nnx.state(model), nnx.state(tied)
    blocks = jax.tree.leaves(after["decoder"]["blocks"])
    assert all(np.array_equal(leaf[:, 0], leaf[:, 1]) for leaf in blocks)
    chex.assert_trees_all_equal(after["head_1"], after["head_2"], before["head_1"])
    chex.assert_trees_all_equal(after["encoder"], before["encoder"])
    kernel = before["decoder"]["blocks"]["mlp"]["fc1"]["kernel"][...]
    assert not np.array_equal(kernel[:, 0], kernel[:, 1]), "the given model was changed"
    # What makes views tied: from the same tokens, they predict the same.
    tokens = jax.random.normal(jax.random.key(1), (1, 6, 16))
    views = jax.jit(lambda m, t: m.decode(t, t, (32, 48), (32, 48)))(tied, tokens)
    chex.assert_trees_all_close(*views, rtol=1e-5, atol=1e-6)

    flat = jax.tree_util.tree_leaves_with_path(decays(before))
    drawn = {jax.tree_util.keystr(path, simple=True, separator=".") for path, yes in flat if yes}
    names = {name + ".value" for name in specs}
    assert drawn == {name for name in names if name.endswith("kernel.value")}
    assert any("norm" in name for name in names - drawn)


def test_precision_is_decided_and_kept():
    auto = cheap.changed(
        cheap.CONFIG, network={"precision": "auto"}, dispatch={"loop": "auto", "most_steps": 9}
    )
    here = decided(auto)  # these tests run on CPUs
    assert (here.network.precision, here.dispatch.loop) == ("float32", "no")
    assert (here.dispatch.max_steps, cheap.CONFIG.dispatch.max_steps) == (1, 4)
    half = cheap.changed(cheap.CONFIG, network={"precision": "bfloat16"})
    assert decided(half) == half
    abstract = nnx.eval_shape(lambda: new_network(jax.random.key(0), half.network))
    assert abstract.encoder.numerics.compute == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(abstract))} == {jnp.dtype("float32")}


# time


def test_shares_of_time():
    times = StepTimes(rendering=1.0, forward=2.0, backward=3.0)
    shares = times.shares(10.0)
    assert shares == pytest.approx(
        {"rendering": 0.1, "forward": 0.2, "backward": 0.3, "other": 0.4}
    )
    assert times.shares(5.0)["other"] == 0.0 and times.shares(5.0)["backward"] == 0.5
    recipe = cheap.recipe()
    state = state_of(recipe)
    measured, pairs = time_pieces(recipe, state, repeats=1)
    assert len(pairs.images_1) == recipe.batch
    assert measured.rendering > 0 and measured.forward > 0 and measured.backward >= 0
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
