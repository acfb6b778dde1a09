"""The keyframe graph: what is stored of a link, which links hold, and submaps that meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import Sim3, init_fused
from ops.edge_system import unpack_valid
from slam import backend
from slam.config import RelocalizationConfig, SlamConfig
from slam.graph import Links, add_links, empty_graph
from slam.pipeline import judge_links
from slam.slots import add_slots
from slam.state import Keyframes

PIXELS = 20


def links(slots, proposed=None, fraction=None, seed=0):
    """Random matches between a view and the keyframes ``slots``."""
    rng = np.random.default_rng(seed)
    count = len(slots)
    return Links(
        slot=jnp.asarray(slots, jnp.int32),
        proposed=jnp.asarray([True] * count if proposed is None else proposed),
        index=jnp.asarray(rng.integers(0, PIXELS, (count, 2, PIXELS)), jnp.int32),
        valid=jnp.asarray(rng.random((count, 2, PIXELS)) < 0.5),
        quality=jnp.asarray(rng.uniform(1.5, 30.0, (count, 2, PIXELS)), jnp.float32),
        fraction=jnp.asarray(rng.random((count, 2)) if fraction is None else fraction, jnp.float32),
    )


def test_accepted_links_are_stored_as_two_factors_each():
    new = links([3, 0, 2])
    graph, stored = jax.jit(add_links)(
        empty_graph(8, PIXELS), new, jnp.int32(5), jnp.asarray([True, False, True])
    )
    assert stored.tolist() == [True, False, True] and int(graph.size) == 4
    edges = graph.edges()
    np.testing.assert_array_equal(edges.mask, [True] * 4 + [False] * 4)
    np.testing.assert_array_equal(edges.i[:4], [3, 5, 2, 5])
    np.testing.assert_array_equal(edges.j[:4], [5, 3, 5, 2])
    for place, (link, direction) in enumerate([(0, 0), (0, 1), (2, 0), (2, 1)]):
        np.testing.assert_array_equal(edges.index[place], new.index[link, direction])
        valid = unpack_valid(edges.valid[place], PIXELS)
        np.testing.assert_array_equal(valid, new.valid[link, direction])
        # Half precision: 11 bits.
        np.testing.assert_allclose(
            np.asarray(edges.q[place], np.float32), new.quality[link, direction], rtol=2**-11
        )


def test_a_weight_beyond_half_precision_stays_finite():
    new = links([0])
    new = new.replace(quality=jnp.full_like(new.quality, 1e6))
    graph, _ = add_links(empty_graph(2, PIXELS), new, jnp.int32(1), jnp.asarray([True]))
    assert np.isfinite(np.asarray(graph.quality, np.float32)).all()


def test_a_full_graph_leaves_whole_links_out_and_says_so():
    graph, stored = add_links(
        empty_graph(5, PIXELS), links([0, 1, 2]), jnp.int32(3), jnp.asarray([True] * 3)
    )
    assert stored.tolist() == [True, True, False]
    np.testing.assert_array_equal(graph.edges().mask, [True] * 4 + [False])
    np.testing.assert_array_equal(graph.i[:4], [0, 3, 1, 3])
    np.testing.assert_array_equal(graph.i[4:], 0)


def test_growing_a_graph_loses_nothing():
    before, _ = add_links(empty_graph(4, PIXELS), links([0]), jnp.int32(1), jnp.asarray([True]))
    grown = add_slots(before, 4)
    assert grown.capacity == 8 and int(grown.size) == 2
    cut = jax.tree.map(lambda x: x[:4] if x.ndim else x, grown)
    jax.tree.map(np.testing.assert_array_equal, cut, before)


LAST = jnp.int32(3)


def test_a_link_is_as_good_as_its_worse_direction_and_the_last_keyframe_is_exempt():
    fractions = [[0.01, 0.0], [0.1, 0.9], [0.9, 0.099], [0.9, 0.9]]
    proposed = [True, True, True, False]
    new = links([3, 0, 1, 2], proposed, fractions)
    _, kept = judge_links(SlamConfig(), new, jnp.asarray(False), LAST)
    np.testing.assert_array_equal(kept, [True, True, False, False])


@pytest.mark.parametrize("strict", [True, False])
def test_a_lost_view_must_match_all_or_any_of_what_was_looked_up(strict):
    config = SlamConfig(relocalization=RelocalizationConfig(strict=strict))
    lost, proposed = jnp.asarray(True), [False, True, True, True]

    def judge(fractions, proposed=proposed):
        pairs = [[f, 0.5] for f in fractions]
        recognised, kept = judge_links(config, links([3, 0, 1, 2], proposed, pairs), lost, LAST)
        return bool(recognised), np.asarray(kept).tolist()

    assert judge([0.9, 0.3, 0.4, 0.5]) == (True, [False, True, True, True])
    one_fails = judge([0.9, 0.29, 0.4, 0.5])
    assert one_fails == ((False, [False] * 4) if strict else (True, [False, False, True, True]))
    assert judge([0.9, 0.1, 0.1, 0.1]) == (False, [False] * 4)
    nothing = judge([0.9, 0.9, 0.9, 0.9], [False] * 4)
    assert nothing == (False, [False] * 4), "nothing looked up is nothing recognised"


@pytest.mark.parametrize("try_last", [True, False])
def test_a_lost_view_may_match_the_last_keyframe_alone(try_last):
    config = SlamConfig(relocalization=RelocalizationConfig(try_last=try_last))
    fractions = [[0.1, 0.5], [0.9, 0.9], [0.2, 0.9], [0.0, 0.0]]

    def judge(slots, proposed):
        new = links(slots, proposed, fractions)
        recognised, kept = judge_links(config, new, jnp.asarray(True), LAST)
        return bool(recognised), np.asarray(kept).tolist()

    nothing = (False, [False] * 4)
    beside = judge([3, 0, 1, 2], [try_last, True, True, True])
    assert beside == ((True, [True, True, False, False]) if try_last else nothing)
    fractions[1] = [0.2, 0.9]
    looked_up = judge([3, 3, 1, 2], [False, True, True, True])
    assert looked_up == ((True, [False, True, False, False]) if try_last else nothing)


def keyframes(submap, capacity=8, seed=1):
    """A map of random poses; only poses and submaps matter here."""
    rng = np.random.default_rng(seed)
    size = len(submap)
    poses = Sim3.exp(jnp.asarray(0.5 * rng.standard_normal((capacity, 7)), jnp.float32))
    return Keyframes(
        size=jnp.int32(size),
        frame_index=jnp.arange(capacity, dtype=jnp.int32),
        T_WC=poses,
        submap=jnp.asarray([*submap, *[0] * (capacity - size)], jnp.int32),
        pointmap=init_fused(jnp.zeros((capacity, 3)), jnp.ones(capacity)),
        encoding=None,
    )


def test_the_oldest_keyframe_of_each_submap_is_fixed():
    first = backend.first_of_submap(keyframes([0, 0, 2, 2, 0, 1]))
    np.testing.assert_array_equal(first[:6], [True, False, True, False, False, True])
    assert int(backend.next_submap(keyframes([0, 0, 2, 2, 0, 1]))) == 3
    assert int(backend.next_submap(keyframes([]))) == 0


@pytest.mark.parametrize("slot, linked", [(4, 1), (1, 4)])
def test_the_newer_submap_moves_into_the_older_as_one_piece(slot, linked):
    before = keyframes([0, 0, 0, 1, 1, 1])
    after = backend.join_submaps(
        before, jnp.int32(slot), jnp.asarray([linked], jnp.int32), jnp.asarray([True])
    )
    np.testing.assert_array_equal(after.submap[:6], 0)
    old, new = before.T_WC.wxyz_xyz_scale, after.T_WC.wxyz_xyz_scale
    np.testing.assert_array_equal(new[:3], old[:3])
    np.testing.assert_array_equal(new[6:], old[6:])
    # The two linked keyframes meet, and inside the piece nothing has moved.
    np.testing.assert_allclose(new[4], new[1], atol=1e-5)
    for other in (3, 5):
        inside = [(m.T_WC[4].inverse() @ m.T_WC[other]).as_matrix() for m in (before, after)]
        np.testing.assert_allclose(inside[0], inside[1], atol=1e-5)


def test_one_keyframe_joins_several_submaps():
    before = keyframes([0, 1, 2])
    after = backend.join_submaps(
        before, jnp.int32(2), jnp.asarray([1, 0], jnp.int32), jnp.asarray([True, True])
    )
    np.testing.assert_array_equal(after.submap[:3], 0)
    poses = np.asarray(after.T_WC.wxyz_xyz_scale)[:3]
    np.testing.assert_array_equal(poses[0], before.T_WC.wxyz_xyz_scale[0])
    np.testing.assert_allclose(poses[1:], poses[[0, 0]], atol=1e-5)


def test_links_within_a_submap_or_refused_ones_move_nothing():
    before = keyframes([0, 0, 1])
    after = backend.join_submaps(
        before, jnp.int32(1), jnp.asarray([0, 2], jnp.int32), jnp.asarray([True, False])
    )
    jax.tree.map(np.testing.assert_array_equal, after, before)
