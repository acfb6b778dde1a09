"""Other people's pose vectors and matrices, against scipy's rotations."""

import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from ops import lie_convert
from ops.sim3 import Sim3


def sample(n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    xyzw = rng.normal(size=(n, 4))
    xyzw /= np.linalg.norm(xyzw, axis=-1, keepdims=True)
    return rng.normal(size=(n, 3)), xyzw, rng.uniform(0.3, 3, n)


def matrices(t: np.ndarray, xyzw: np.ndarray, s: np.ndarray) -> np.ndarray:
    matrix = np.tile(np.eye(4), (len(t), 1, 1))
    matrix[:, :3, :3] = s[:, None, None] * Rotation.from_quat(xyzw).as_matrix()
    matrix[:, :3, 3] = t
    return matrix


def test_lietorch_vector():
    t, xyzw, s = sample()
    vector = jnp.asarray(np.concatenate([t, xyzw, s[:, None]], axis=-1), jnp.float32)
    T = lie_convert.from_lietorch(vector)
    np.testing.assert_allclose(T.as_matrix(), matrices(t, xyzw, s), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(lie_convert.to_lietorch(T), vector)
    assert lie_convert.from_lietorch(vector[0]).batch_axes == ()


def test_tum_row():
    t, xyzw, s = sample()
    row = jnp.asarray(np.concatenate([t, xyzw], axis=-1), jnp.float32)
    T = lie_convert.from_tum(row)
    np.testing.assert_allclose(T.as_matrix(), matrices(t, xyzw, 0 * s + 1), rtol=0, atol=2e-6)
    scaled = Sim3.from_parts(T.rotation(), T.translation(), jnp.asarray(s, jnp.float32))
    np.testing.assert_array_equal(lie_convert.to_tum(scaled), row)


def test_sim3_matrix_including_half_turns():
    t, xyzw, s = sample()
    xyzw[:3] = np.eye(4)[:3]  # half turns about x, y and z: w = 0
    expected = matrices(t, xyzw, s)
    T = lie_convert.from_matrix(jnp.asarray(expected, jnp.float32))
    np.testing.assert_allclose(lie_convert.to_matrix(T), expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(T.scale(), s, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(T.rotation().wxyz, axis=-1), np.ones(8), rtol=2e-7)


def test_se3_matrix_drops_the_scale_only():
    t, xyzw, s = sample()
    T = lie_convert.from_matrix(jnp.asarray(matrices(t, xyzw, s), jnp.float32))
    np.testing.assert_allclose(
        lie_convert.to_se3_matrix(T), matrices(t, xyzw, 0 * s + 1), rtol=0, atol=2e-6
    )
    rigid = lie_convert.from_matrix(lie_convert.to_se3_matrix(T))
    np.testing.assert_allclose(rigid.scale(), np.ones(8), rtol=1e-6)
