"""What is done to images, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments.training.augment import PhotoConfig, photograph

NOTHING = PhotoConfig(
    gain=0.0,
    gain_change=0.0,
    white_balance=0.0,
    white_balance_change=0.0,
    gamma=(1.0, 1.0),
    saturation=(1.0, 1.0),
    blur=0.0,
    noise=0.0,
)
RGB = np.random.default_rng(0).uniform(0.1, 0.6, (3, 2, 20, 24, 3)).astype(np.float32)


take = jax.jit(photograph, static_argnames="config")


def taken(seed=0, images=RGB, **changes):
    config = dataclasses.replace(NOTHING, **changes)
    return np.asarray(take(jax.random.key(seed), jnp.asarray(images), config))


def light(images):
    return np.square(0.5 + 0.5 * images.astype(np.float64))


def test_nothing_but_the_range_changes_by_default_of_everything():
    np.testing.assert_allclose(taken(), 2 * RGB - 1, atol=1e-6)


def test_gains_multiply_light_within_their_ranges():
    """One factor a view for green, and nearly the same for red and blue."""
    stops = np.log2(light(taken(gain=0.3, gain_change=0.1)) / light(2 * RGB - 1))
    first = stops[:, :, :1, :1, :1]
    np.testing.assert_allclose(stops, np.broadcast_to(first, stops.shape), atol=1e-4)
    assert np.abs(stops).max() < 0.4 and np.ptp(first) > 0.02
    change = first[:, 0] - first[:, 1]
    assert 0 < np.abs(change).max() < 0.2

    balance = np.log2(light(taken(white_balance=0.3)) / light(2 * RGB - 1))
    np.testing.assert_allclose(balance[..., 1], 0.0, atol=1e-4)
    np.testing.assert_allclose(balance[:, 0].mean((1, 2)), balance[:, 1].mean((1, 2)), atol=1e-4)
    assert 0.02 < np.abs(balance[..., ::2]).max() < 0.3


def test_gamma_and_saturation_follow_their_formulas():
    np.testing.assert_allclose(0.5 + 0.5 * taken(gamma=(1.5, 1.5)), RGB**1.5, atol=1e-5)
    grey = light(taken(saturation=(0.0, 0.0)))
    expected = np.mean(np.square(RGB.astype(np.float64)), axis=-1)
    np.testing.assert_allclose(grey, np.stack([expected] * 3, axis=-1), atol=1e-5)


def test_blur_is_scipys_gaussian_of_some_sigma_of_each_view():
    images = light(taken(blur=0.8))
    for b in range(3):
        for v in range(2):
            source = np.square(RGB[b, v].astype(np.float64))
            errors = [
                np.abs(
                    ndimage.gaussian_filter(
                        source, (sigma, sigma, 0), mode="nearest", truncate=3 / sigma
                    )
                    - images[b, v]
                ).max()
                for sigma in np.linspace(0.1, 0.8, 141)
            ]
            # A step of the search is 0.005 pixels.
            assert min(errors) < 2e-3


def test_noise_is_white_and_of_bounded_strength():
    grey = np.full(RGB.shape, 0.5, np.float32)
    noise = 0.5 * taken(images=grey, noise=0.05).astype(np.float64)
    strength = noise.std((2, 3, 4))
    assert (strength < 0.05 * 1.05).all() and np.ptp(strength) > 0.005
    white = (noise / strength[:, :, None, None, None]).reshape(6, -1)
    # 1,440 numbers a view: means and correlations of 0.026 by chance, of 0.011 over
    # all views.
    correlation = np.corrcoef(white) - np.eye(6)
    assert np.abs(correlation).max() < 0.12 and np.abs(white.mean(axis=1)).max() < 0.12
    for shift in (1, 3, 72):
        assert abs(np.mean(white[:, shift:] * white[:, :-shift])) < 0.05
    # Of a Gaussian 4.6 % lie beyond two standard deviations.
    assert 0.03 < np.mean(np.abs(white) > 2) < 0.06


def test_key_decides():
    np.testing.assert_array_equal(taken(1, noise=0.05), taken(1, noise=0.05))
    assert np.abs(taken(1, noise=0.05) - taken(2, noise=0.05)).max() > 0.01


def test_too_wide_a_blur_is_refused():
    with pytest.raises(ValueError, match=r"blur=1\.5 must be from 0 to 1 pixels"):
        PhotoConfig(blur=1.5)
