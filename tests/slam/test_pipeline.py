"""The step as a whole: it tracks, it refuses, it never half-changes the map."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Int

from ops import Sim3, SolverStatus
from ops.records import Record, record
from slam.config import RelocalizationConfig, SlamConfig
from slam.keyframes import grow
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.state import Mode, init_state
from slam.stepper import Stepper
from tests.slam import rim, scenes

pytestmark = pytest.mark.slow

CONFIG = rim.CONFIG
EXACT = RenderedGeometryPrior(GeometryNoise.none())


@pytest.fixture(scope="module")
def stepper():
    return rim.stepper()


def start(prior=EXACT, config=CONFIG, K=None):
    return init_state(prior, config, scenes.frame(0, np.eye(4)), K)


def drive(stepper, prior, state, frames):
    outputs = []
    for frame in frames:
        state, output, _ = stepper(prior, state, frame)
        outputs.append(jax.device_get(output))
    return state, outputs


def leaves(tree):
    return [np.array(x) for x in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.tobytes() == y.tobytes()


def world_pose(state, output):
    slot = jnp.asarray(output.keyframe)
    T_WK = Sim3(state.keyframes.T_WC.wxyz_xyz_scale[slot])
    return T_WK @ Sim3(jnp.asarray(output.T_kf.wxyz_xyz_scale))


def test_first_frame_is_the_first_keyframe(stepper):
    state, (output,) = drive(stepper, EXACT, start(), [scenes.frame(0, scenes.pose(0.3))])
    assert output.mode == Mode.TRACKING and output.is_keyframe
    assert int(state.keyframes.size) == 1
    np.testing.assert_array_equal(
        world_pose(state, output).wxyz_xyz_scale, [1, 0, 0, 0, 0, 0, 0, 1]
    )


PIXEL = 1 / scenes.K[0, 0]
"""Angle of a pixel. Matches are whole pixels, so a pose may be off by about this much, and by as
much times the 2.5 m to the wall in translation; the frame after a keyframe is the worst."""


def test_exact_geometry_gives_poses_within_a_pixel(stepper):
    poses = scenes.walk(12, yaw=0.12)
    frames = [scenes.frame(i, T) for i, T in enumerate(poses)]
    state, outputs = drive(stepper, EXACT, start(), frames)
    assert all(output.mode == Mode.TRACKING for output in outputs)
    assert int(state.keyframes.size) > 1, "the walk is long enough for a second keyframe"
    for output, T_WC in zip(outputs, poses, strict=True):
        found = np.asarray(world_pose(state, output).as_matrix())
        np.testing.assert_allclose(found[:3, 3], T_WC[:3, 3], atol=2.5 * PIXEL)
        np.testing.assert_allclose(found[:3, :3], T_WC[:3, :3], atol=PIXEL)


def test_a_covered_camera_changes_nothing_and_is_found_again(stepper):
    poses = scenes.walk(6)
    frames = [scenes.frame(i, T, bright=i not in (3, 4)) for i, T in enumerate(poses)]
    state, _ = drive(stepper, EXACT, start(), frames[:3])
    before = jax.tree.map(np.array, state)
    state, outputs = drive(stepper, EXACT, state, frames[3:5])
    for output in outputs:
        assert output.mode == Mode.LOST and not output.is_keyframe
    assert_same_bits(
        (state.keyframes, state.graph, state.database, state.T_kf, state.failures),
        (before.keyframes, before.graph, before.database, before.T_kf, before.failures),
    )
    state, (output,) = drive(stepper, EXACT, state, frames[5:])
    assert output.mode == Mode.TRACKING and output.relocalized and output.is_keyframe
    assert int(output.new_links) == 1 and int(output.graph_iterations) > 0
    found = np.asarray(world_pose(state, output).as_matrix())
    np.testing.assert_allclose(found[:3, 3], poses[5][:3, 3], atol=2.5 * PIXEL)
    np.testing.assert_allclose(found[:3, :3], poses[5][:3, :3], atol=PIXEL)


def test_a_place_never_seen_starts_a_submap_after_a_while():
    patience = 3
    config = dataclasses.replace(CONFIG, relocalization=RelocalizationConfig(submap_after=patience))
    stepper = Stepper(config)
    here, there = scenes.walk(2), [scenes.pose(np.pi + 0.04 * i) for i in range(6)]
    frames = [scenes.frame(i, T) for i, T in enumerate([*here, *there])]
    state, outputs = drive(stepper, EXACT, start(config=config), frames)
    lost = [output.mode == Mode.LOST for output in outputs]
    # One frame loses the track, then as many are looked up in vain, the last of which starts anew.
    assert lost == [False, False, True, True, True, False, False, False]
    assert [int(o.submap) for o in outputs] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert outputs[5].is_keyframe and not outputs[5].relocalized
    np.testing.assert_array_equal(
        world_pose(state, outputs[5]).wxyz_xyz_scale, [1, 0, 0, 0, 0, 0, 0, 1]
    )
    assert int(state.graph.size) == 0, "nothing links what has nothing in common"


def test_submaps_are_joined_when_one_sees_the_other():
    config = dataclasses.replace(
        SlamConfig(keyframe_capacity=16, edge_capacity=64),
        relocalization=RelocalizationConfig(submap_after=1),
    )
    stepper = Stepper(config)
    # Ahead, then behind, and from there round to where it began.
    poses = [scenes.pose(0.1 * i) for i in range(3)]
    poses += [scenes.pose(np.pi + 0.15 * i) for i in range(20)]
    frames = [scenes.frame(i, T) for i, T in enumerate(poses)]
    state, outputs = drive(stepper, EXACT, start(config=config), frames)
    submaps = [int(output.submap) for output in outputs]
    assert 1 in submaps and submaps[-1] == 0, "a second submap that became part of the first"
    size = int(state.keyframes.size)
    np.testing.assert_array_equal(state.keyframes.submap[:size], 0)
    for output, T_WC in zip(outputs, poses, strict=True):
        if output.mode != Mode.TRACKING:
            continue
        found = world_pose(state, output).rotation_matrix()
        np.testing.assert_allclose(found, T_WC[:3, :3], atol=3 * PIXEL)


def test_a_view_looked_up_in_vain_changes_nothing(stepper):
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(2))]
    frames += [scenes.frame(i, scenes.pose(np.pi + 0.3 * i)) for i in (2, 3)]
    state, _ = drive(stepper, EXACT, start(), frames[:3])
    before = jax.tree.map(np.array, state)
    state, (output,) = drive(stepper, EXACT, state, frames[3:])
    assert output.mode == Mode.LOST and int(state.failures) == int(before.failures) + 1
    assert_same_bits(
        (state.keyframes, state.graph, state.database, state.T_kf),
        (before.keyframes, before.graph, before.database, before.T_kf),
    )


def test_a_full_map_is_found_again_at_its_last_keyframe(stepper):
    frames = [scenes.frame(i, T, bright=i != 2) for i, T in enumerate(scenes.walk(5))]
    state = start(config=SlamConfig(keyframe_capacity=1))
    state, outputs = drive(stepper, EXACT, state, frames)
    modes = [Mode.TRACKING, Mode.TRACKING, Mode.LOST, Mode.TRACKING, Mode.TRACKING]
    assert [output.mode for output in outputs] == modes
    assert not any(output.full or output.is_keyframe for output in outputs[1:])


@record
class Disturbed(Record):
    """A prior that fails in one of several ways; which one are numbers, so programs are shared."""

    featureless: Bool[Array, ""]
    """Like a network, it predicts something finite for a black image too."""
    broken_rows: Int[Array, ""]
    """So many rows that it predicts of frame 2 are not numbers."""
    blind_columns: Int[Array, ""]
    """So many columns it cannot predict of a frame that is alone."""
    retrieval = EXACT.retrieval

    @classmethod
    def make(cls, featureless=False, broken_rows=0, blind_columns=0):
        return cls(jnp.asarray(featureless), jnp.int32(broken_rows), jnp.int32(blind_columns))

    def encode(self, frame):
        grey = jnp.where(self.featureless, jnp.full_like(frame.image, 128), frame.image)
        return EXACT.encode(frame.replace(image=grey))

    def decode(self, encoding_1, encoding_2):
        first, second = encoding_1.index, encoding_2.index
        rows = jnp.arange(scenes.SHAPE[0])[:, None]
        columns = jnp.arange(scenes.SHAPE[1])
        bad = (first == 2)[:, None, None] & (rows < self.broken_rows)
        bad = bad | ((first == second)[:, None, None] & (columns < self.blind_columns))
        plain = self.featureless & (first == 0)[:, None, None]
        return tuple(
            view.replace(
                points=jnp.where(bad[..., None], jnp.nan, view.points),
                descriptor_confidence=jnp.where(plain, 1.0, view.descriptor_confidence),
            )
            for view in EXACT.decode(encoding_1, encoding_2)
        )


def test_an_image_without_features_is_not_a_first_keyframe(stepper):
    prior = Disturbed.make(featureless=True)
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(2))]
    _, outputs = drive(stepper, prior, start(prior), frames)
    assert [int(output.mode) for output in outputs] == [Mode.STARTING, Mode.TRACKING]


def test_a_black_first_frame_is_not_a_keyframe(stepper):
    frames = [scenes.frame(0, np.eye(4), bright=False), scenes.frame(1, np.eye(4))]
    state, outputs = drive(stepper, EXACT, start(), frames)
    assert [int(o.mode) for o in outputs] == [Mode.STARTING, Mode.TRACKING]
    assert int(state.keyframes.frame_index[0]) == 1


def test_nan_everywhere_is_a_lost_frame(stepper):
    prior = Disturbed.make(broken_rows=scenes.SHAPE[0])
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(4))]
    state, _ = drive(stepper, prior, start(prior), frames[:2])
    before = jax.tree.map(np.array, state.keyframes)
    state, (output,) = drive(stepper, prior, state, frames[2:3])
    assert output.mode == Mode.LOST
    assert_same_bits(state.keyframes, before)
    state, (output,) = drive(stepper, prior, state, frames[3:])
    assert output.mode == Mode.TRACKING


def test_nan_in_a_corner_stays_there(stepper):
    prior = Disturbed.make(broken_rows=8)
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(4))]
    state, outputs = drive(stepper, prior, start(prior), frames)
    assert all(output.mode == Mode.TRACKING for output in outputs)
    size = int(state.keyframes.size)
    assert np.isfinite(np.asarray(state.keyframes.pointmap.points)[:size]).all()
    assert np.isfinite(np.asarray(state.keyframes.pointmap.confidence)[:size]).all()


@pytest.mark.parametrize("calibrated", [False, True])
def test_nothing_is_compiled_after_the_first_frame(calibrated):
    stepper = Stepper(CONFIG)
    frames = [scenes.frame(i, T, bright=i != 4) for i, T in enumerate(scenes.walk(8, yaw=0.15))]
    state = start(K=jnp.asarray(scenes.K, jnp.float32) if calibrated else None)
    signature = jax.tree.map(jax.typeof, state)
    for i, frame in enumerate(frames):
        state, output, _ = stepper(EXACT, state, frame)
        # Shapes, dtypes and weak types: what one step returns is what the next one was made for.
        assert jax.tree.map(jax.typeof, state) == signature
        assert max(stepper.cache_sizes().values()) == 1, f"compiled again at frame {i}"
        if i == 4:
            assert output.mode == Mode.LOST
    assert int(state.keyframes.size) > 1
    spread_only = {"work", "take_in"}
    assert stepper.cache_sizes() == {
        stage: int(stage not in spread_only) for stage in stepper.cache_sizes()
    }


def test_committing_copies_no_buffer(stepper):
    """An extra copy of the map on every frame would go unnoticed but for the time it takes."""
    frame, state = scenes.frame(0, np.eye(4)), start()
    reference = stepper._look_up(state)
    encoding = stepper._encode(EXACT, frame)
    views = stepper._decode(EXACT, reference, encoding)
    found = stepper._match(reference, views)
    solution = stepper._solve(reference, views, found)
    assessment = stepper._assess(reference, views, found, solution)
    no_links = stepper._no_links(EXACT, state, encoding, assessment)
    seen = (frame, encoding, views, found, solution, assessment, *no_links)
    program = stepper._commit.lower(state, *seen).compile().as_text()
    buffers = {x.shape for x in jax.tree.leaves((state.keyframes, state.graph)) if x.size > 1e4}
    assert len(buffers) > 5
    copies = re.findall(r"\[([\d,]+)\]\S* copy\(", program)
    assert copies, "the compiler's text has changed: nothing is copied at all"
    assert not buffers & {tuple(map(int, shape.split(","))) for shape in copies}


def test_growing_recompiles_only_what_touches_the_buffers():
    stepper = Stepper(CONFIG)
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(2))]
    state, _, _ = stepper(EXACT, start(config=SlamConfig(keyframe_capacity=1)), frames[0])
    stepper(EXACT, grow(state, 4), frames[1])
    again = {name for name, times in stepper.cache_sizes().items() if times > 1}
    assert again == {"look_up", "commit"}, "and what a new keyframe needs, when there is one"


def test_the_warm_start_belongs_to_one_keyframe_and_an_unbroken_track(stepper):
    nothing = np.arange(scenes.SHAPE[0] * scenes.SHAPE[1])
    frames = [scenes.frame(i, T, bright=i != 2) for i, T in enumerate(scenes.walk(10, yaw=0.15))]
    state, output, _ = stepper(EXACT, start(), frames[0])
    np.testing.assert_array_equal(state.match_init, nothing)
    state, output, dense = stepper(EXACT, state, frames[1])
    assert output.mode == Mode.TRACKING and not output.is_keyframe
    np.testing.assert_array_equal(state.match_init, dense.correspondence.matches.index)
    assert not np.array_equal(state.match_init, nothing)
    state, output, _ = stepper(EXACT, state, frames[2])
    assert output.mode == Mode.LOST
    np.testing.assert_array_equal(state.match_init, nothing)
    for frame in frames[3:]:
        state, output, dense = stepper(EXACT, state, frame)
        if output.is_keyframe:
            np.testing.assert_array_equal(state.match_init, nothing)
            break
        np.testing.assert_array_equal(state.match_init, dense.correspondence.matches.index)
    assert output.is_keyframe


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_pose_that_could_not_be_solved_changes_nothing(stepper, calibrated):
    K = jnp.asarray(scenes.K, jnp.float32) if calibrated else None
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(2))]
    state, _, _ = stepper(EXACT, start(K=K), frames[0])
    before = jax.tree.map(np.array, state)
    reference = stepper._look_up(state)
    encoding = stepper._encode(EXACT, frames[1])
    views = stepper._decode(EXACT, reference, encoding)
    found = stepper._match(reference, views)
    solution = stepper._solve(reference, views, found)
    assert bool(found.usable_fraction > 0.5), "matches are not what is missing here"
    failed = solution.replace(
        T_kf=Sim3(jnp.full(8, jnp.nan)), status=jnp.int32(SolverStatus.NOT_POSITIVE_DEFINITE)
    )
    assessment = stepper._assess(reference, views, found, failed)
    no_links = stepper._no_links(EXACT, state, encoding, assessment)
    after, output = stepper._commit(
        state, frames[1], encoding, views, found, failed, assessment, *no_links
    )
    assert output.mode == Mode.LOST
    assert_same_bits(after.keyframes, before.keyframes)
    assert_same_bits(after.T_kf, before.T_kf)


def test_invented_points_of_a_keyframe_are_not_tracked_against(stepper):
    """Part of the first frame could not be predicted when that frame was alone."""
    prior = Disturbed.make(blind_columns=64)
    poses = scenes.walk(3)
    frames = [scenes.frame(i, T) for i, T in enumerate(poses)]
    state, outputs = drive(stepper, prior, start(prior), frames)
    for output, T_WC in zip(outputs, poses, strict=True):
        found = np.asarray(world_pose(state, output).as_matrix())
        np.testing.assert_allclose(found[:3, 3], T_WC[:3, 3], atol=2.5 * PIXEL)


def test_the_callers_intrinsics_survive(stepper):
    K = jnp.asarray(scenes.K, jnp.float32)
    stepper(EXACT, start(K=K), scenes.frame(0, np.eye(4)))
    assert not K.is_deleted()


def test_full_buffers_are_reported_and_growing_loses_nothing(stepper):
    frames = [scenes.frame(i, T) for i, T in enumerate(scenes.walk(10, yaw=0.15))]
    state = start(config=SlamConfig(keyframe_capacity=1))
    remaining = iter(frames)
    for frame in remaining:
        state, output, _ = stepper(EXACT, state, frame)
        assert int(output.num_keyframes) == 1
        if output.full:
            break
    assert bool(output.full) and output.mode == Mode.TRACKING and not bool(output.is_keyframe)
    before = jax.tree.map(np.array, state)
    grown = grow(state, 4)
    assert grown.keyframes.capacity == 4
    cut = jax.tree.map(lambda x: x[:1] if x.ndim else x, grown.keyframes)
    assert_same_bits(cut, before.keyframes)
    _, output, _ = stepper(EXACT, grown, next(remaining))
    assert bool(output.is_keyframe) and int(output.num_keyframes) == 2
    with pytest.raises(ValueError, match="cannot shrink"):
        grow(grown, 2)


def test_calibrated_mode_tracks(stepper):
    K = jnp.asarray(scenes.K, jnp.float32)
    poses = scenes.walk(4)
    frames = [scenes.frame(i, T) for i, T in enumerate(poses)]
    state, outputs = drive(stepper, EXACT, start(K=K), frames)
    assert all(output.mode == Mode.TRACKING for output in outputs)
    found = np.asarray(world_pose(state, outputs[-1]).as_matrix())
    np.testing.assert_allclose(found[:3, 3], poses[-1][:3, 3], atol=2.5 * PIXEL)


def test_a_prior_without_geometry_says_so():
    bare = scenes.frame(0, np.eye(4)).replace(depth=None, K=None)
    with pytest.raises(ValueError, match=r"lacks: depth, intrinsics"):
        EXACT.encode(bare)
