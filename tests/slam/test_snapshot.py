"""Snapshots of a map: what a viewer is given."""

import jax
import jax.numpy as jnp
import numpy as np

from ops import Sim3
from slam.snapshot import compose_poses
from tests.slam import rim


def test_poses_are_composed_as_sim3():
    tangents = jax.random.normal(jax.random.key(0), (2, 5, 7))
    T_WK, T_kf = Sim3.exp(tangents[0]), Sim3.exp(tangents[1])
    poses = [np.asarray(T.wxyz_xyz_scale) for T in (T_WK, T_kf)]
    composed, expected = compose_poses(*poses), np.asarray((T_WK @ T_kf).wxyz_xyz_scale)
    sign = np.sign(np.sum(composed[:, :4] * expected[:, :4], axis=1, keepdims=True))
    np.testing.assert_allclose(composed[:, :4], sign * expected[:, :4], atol=1e-5)
    np.testing.assert_allclose(composed[:, 4:], expected[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_finished_map_shows_what_its_cloud_has():
    result = rim.result()
    shown = result.snapshot()
    assert shown.submap == 0 and shown.num_frames == result.num_frames
    np.testing.assert_allclose(shown.positions, result.trajectory().positions, atol=1e-5)
    np.testing.assert_array_equal(shown.links, result.links)
    parts = []
    for slot, view in shown.changed.items():
        T_WC = Sim3(jnp.asarray(shown.keyframe_poses[slot]))
        parts.append(np.asarray(T_WC.apply(jnp.asarray(view.points)))[view.confidence > 1.5])
        np.testing.assert_array_equal(view.image, result.images[slot])
    np.testing.assert_allclose(np.concatenate(parts), result.point_cloud(1.5).points, atol=1e-5)
