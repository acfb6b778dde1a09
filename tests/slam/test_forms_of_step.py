"""The forms a step comes in: stage by stage, as one program, in batches, with its work spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slam import Mode, init_state, run_clip, runner
from slam.config import GraphConfig, SlamConfig
from slam.pipeline import step
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from tests.slam import rim, scenes

pytestmark = pytest.mark.slow

AT_ONCE = SlamConfig(size=128, keyframe_capacity=16, edge_capacity=64)
SPREAD = dataclasses.replace(AT_ONCE, graph=GraphConfig(spread=True))
NOISY = RenderedGeometryPrior(GeometryNoise())


@functools.cache
def frames():
    """Round a corner, back, covered for a while, recognised, and on."""
    yaws = np.concatenate([0.06 * np.arange(32), 0.06 * np.arange(32)[::-1]])
    poses = [scenes.pose(yaw, (0.02 * i, 0.0, 0.01 * i)) for i, yaw in enumerate(yaws)]
    return [scenes.frame(i, T, bright=i not in (56, 57)) for i, T in enumerate(poses)]


@functools.cache
def drive(config):
    """The runner's stepper over all frames: state and reports, before and after catching up."""
    stepper = rim.stepper(config)
    state, outputs = through(stepper, frames())
    copy = jax.tree.map(jnp.array, state)
    done, last = stepper.catch_up(NOISY, copy, outputs[-1])
    return state, outputs, done, jax.device_get(last)


def start(config):
    return init_state(NOISY, config, frames()[0])


def through(stepper, clip):
    """The runner's stepper over a clip from its start."""
    state, outputs = start(stepper.config), []
    for frame in clip:
        state, output, _ = stepper(NOISY, state, frame)
        outputs.append(jax.device_get(output))
    return state, outputs


def stack(items):
    return jax.tree.map(lambda *x: jnp.stack(x), *items)


def over_clip(state, clip):
    return jax.lax.scan(lambda s, f: step(NOISY, AT_ONCE, s, f), state, clip)


def test_a_clip_as_one_program_is_the_runner_bit_for_bit():
    state, outputs, _, _ = drive(AT_ONCE)
    modes = [int(output.mode) for output in outputs]
    assert modes.count(Mode.LOST) >= 2 and sum(int(o.new_links) for o in outputs) > 5
    together = jax.jit(over_clip, donate_argnums=0)(start(AT_ONCE), stack(frames()))
    for x, y in zip(*map(jax.tree.leaves, (together, (state, stack(outputs)))), strict=True):
        assert np.array(x).tobytes() == np.array(y).tobytes()


def test_a_batch_of_clips_gives_what_each_gives():
    walks = [scenes.walk(6, yaw=yaw, stride=stride) for yaw, stride in ((0.15, 0.03), (-0.1, 0.05))]
    clips = [
        [scenes.frame(i, T, bright=(k, i) != (1, 2)) for i, T in enumerate(walk)]
        for k, walk in enumerate(walks)
    ]
    alone = [through(rim.stepper(AT_ONCE), clip) for clip in clips]
    states, outputs = jax.jit(jax.vmap(over_clip))(
        stack([start(AT_ONCE)] * len(clips)), stack([stack(clip) for clip in clips])
    )
    for k, (state, reports) in enumerate(alone):
        for name in ("mode", "keyframe", "is_keyframe", "relocalized", "new_links", "graph_status"):
            together = np.asarray(getattr(outputs, name))[k]
            np.testing.assert_array_equal(together, [getattr(o, name) for o in reports], name)
        # One batched program or eleven: the compiler fuses, and so rounds, differently.
        np.testing.assert_allclose(
            np.asarray(outputs.T_kf.wxyz_xyz_scale)[k],
            [o.T_kf.wxyz_xyz_scale for o in reports],
            atol=2e-5,
        )
        np.testing.assert_allclose(
            np.asarray(states.keyframes.T_WC.wxyz_xyz_scale)[k],
            state.keyframes.T_WC.wxyz_xyz_scale,
            atol=5e-5,
        )
    assert Mode.LOST in np.asarray(outputs.mode)[1] and np.asarray(outputs.new_links).any()


def links(state):
    size = int(state.graph.size)
    ends = np.stack([state.graph.i[:size], state.graph.j[:size]], axis=1)
    order = np.lexsort(ends.T)
    return ends[order], np.asarray(state.graph.index[:size])[order]


def test_the_same_links_are_found():
    _, outputs, done, last = drive(SPREAD)
    at_once, reports, _, _ = drive(AT_ONCE)
    for name in ("mode", "is_keyframe", "keyframe", "relocalized"):
        np.testing.assert_array_equal(
            [getattr(o, name) for o in outputs], [getattr(o, name) for o in reports], name
        )
    assert any(o.mode == Mode.LOST for o in outputs) and any(o.relocalized for o in outputs)
    (ends, index), (expected, expected_index) = links(done), links(at_once)
    assert len(ends) > 2 * (int(done.keyframes.size) - 1), "some keyframes were looked up"
    np.testing.assert_array_equal(ends, expected)
    np.testing.assert_array_equal(index, expected_index)
    told = sum(int(o.new_links) for o in [*outputs[:-1], last])
    assert told == sum(int(o.new_links) for o in reports) == len(ends) // 2


def test_the_same_poses_come_out():
    """Of the same graph; the last keyframe's pointmap, 1 % off, has seen more frames meanwhile."""
    _, outputs, done, last = drive(SPREAD)
    at_once, _, _, _ = drive(AT_ONCE)
    size = int(done.keyframes.size)
    ours, theirs = (np.asarray(s.keyframes.T_WC.wxyz_xyz_scale[:size]) for s in (done, at_once))
    np.testing.assert_allclose(ours[:-1], theirs[:-1], atol=1e-3)
    np.testing.assert_allclose(ours[-1], theirs[-1], atol=1e-2)
    assert any(o.graph_iterations for o in [*outputs, last])


def test_no_frame_does_more_than_one_piece():
    """A keyframe links with the one before it; then links one by one; then poses."""
    _, outputs, _, _ = drive(SPREAD)
    placed = [o for o in outputs if not o.relocalized]
    assert max(int(o.new_links) for o in placed) == 1
    late = [o for o in placed if o.new_links and not o.is_keyframe]
    optimised = [o for o in placed if o.graph_iterations]
    assert late and optimised
    assert not any(o.is_keyframe or o.new_links for o in optimised)
    together = [o for o in drive(AT_ONCE)[1] if o.new_links > 1]
    assert together, "without spreading there are frames that do more"


def test_a_run_ends_with_nothing_left_to_do():
    results = [
        runner.run(rim.source(), NOISY, stepper=rim.stepper(config)) for config in (SPREAD, AT_ONCE)
    ]
    ours, expected = (sorted(map(tuple, result.links)) for result in results)
    assert ours == expected and len(ours) >= 2
    np.testing.assert_array_equal(results[0].is_keyframe, results[1].is_keyframe)
    assert results[0].frames.graph_iterations.any()


def test_clips_refuse_it():
    with pytest.raises(ValueError, match=r"without graph\.spread"):
        run_clip(NOISY, SPREAD, init_state(NOISY, SPREAD, frames()[0]), frames()[0])
