import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from slam.world.camera import distort, undistort
from slam.world.texture import NUM_OCTAVES, lattice_hash, unit, value_noise


def lattice(n=128):
    x, y = np.meshgrid(np.arange(-n // 2, n // 2), np.arange(-n // 2, n // 2))
    return jnp.asarray(x.ravel(), jnp.int32), jnp.asarray(y.ravel(), jnp.int32)


def test_hash_is_uniform_and_uncorrelated():
    x, y = lattice()
    h = lattice_hash(x, y, jnp.full(x.shape, 12345, jnp.uint32))
    n = x.size
    assert len(np.unique(h)) > n - 5  # expected collisions of 2^14 draws of 2^32: 0.03
    for byte in range(4):
        v = np.asarray(unit(h, byte), np.float64)
        assert v.min() == 0.0 and v.max() == 1.0
        # Four standard deviations of a uniform mean, and of a sample correlation.
        assert abs(v.mean() - 0.5) < 4 * np.sqrt(1 / 12 / n)
        image = v.reshape(128, 128)
        for a, b in ((image[:, 1:], image[:, :-1]), (image[1:], image[:-1])):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(n)
    other = lattice_hash(x, y, jnp.full(x.shape, 12346, jnp.uint32))
    assert abs(np.corrcoef(unit(h), unit(other))[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.slow
def test_value_noise_is_lattice_values_smoothly_joined():
    seed = jnp.full(400, 7, jnp.uint32)
    x = jnp.linspace(-5.0, 5.0, 400)
    y = jnp.full(400, 2.25)
    v = np.asarray(value_noise(x, y, seed), np.float64)
    assert np.abs(v).max() <= 1.0 and v.std() > 0.2
    # The cubic fade has slope 1.5 at most, over values that differ by 2 at most.
    assert np.abs(np.diff(v)).max() <= 3.0 * (10 / 399) * 1.01
    ix, iy = jnp.arange(-4, 4), jnp.full(8, -3)
    at_nodes = value_noise(ix.astype(jnp.float32), iy.astype(jnp.float32), seed[:8])
    expected = 2 * unit(lattice_hash(ix, iy, seed[:8])) - 1
    np.testing.assert_allclose(at_nodes, expected, atol=1e-6)
    assert NUM_OCTAVES >= 6


def test_distortion_equals_opencv_and_undistortion_inverts_it():
    rng = np.random.default_rng(0)
    xy = rng.uniform(-0.6, 0.6, (500, 2))
    for k in ((-0.15, 0.05, 0.003, -0.002), (0.2, 0.1, -0.01, 0.01)):
        points = np.concatenate([xy, np.ones((500, 1))], axis=1)
        expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), np.array(k))
        k32 = jnp.array(k, jnp.float32)
        bent = distort(jnp.asarray(xy, jnp.float32), k32)
        np.testing.assert_allclose(bent, expected[:, 0], atol=1e-6)
        np.testing.assert_allclose(undistort(bent, k32), xy, atol=2e-6)
        # OpenCV's own inverse stops after five of its slower iterations.
        cv_ideal = cv2.undistortPoints(expected, np.eye(3), np.array(k))[:, 0]
        np.testing.assert_allclose(undistort(bent, k32), cv_ideal, atol=5e-3)
