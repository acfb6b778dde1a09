"""Image preparation against the original's own outputs, closed forms and plain loops."""

import functools
import json
import zlib

import numpy as np
import pytest

from mast3r_jax.image import ImageTransform, normalize, plan, prepare_image
from tests.conftest import DATA

CASES = json.loads((DATA / "network" / "preprocess.json").read_text())["cases"]


@functools.cache
def drawn_image(seed: int, height: int, width: int) -> np.ndarray:
    """The picture the goldens were made from: band-limited waves and noise (CRC checked below)."""
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(-10.0, 10.0, (3, 12, 2))
    phase = rng.uniform(0.0, 2.0 * np.pi, (3, 12))
    amplitude = rng.uniform(0.1, 0.5, (3, 12))
    noise = rng.standard_normal((height, width, 3))
    side = float(max(height, width))
    x, y = (np.arange(width) / side)[None, :], (np.arange(height) / side)[:, None]
    image = np.empty((height, width, 3))
    for c in range(3):
        total = 0.1 * noise[..., c]
        for k in range(12):
            angle = 2.0 * np.pi * (frequency[c, k, 0] * x + frequency[c, k, 1] * y) + phase[c, k]
            total = total + amplitude[c, k] * np.sin(angle)
        image[..., c] = np.tanh(total)
    image = image.astype(np.float32)
    return (np.float32(255) * (image + np.float32(1)) / np.float32(2)).astype(np.uint8)


@pytest.mark.parametrize("name", CASES)
def test_is_bit_exact_with_the_original(name, golden):
    case = CASES[name]
    image = drawn_image(*(case["input"][k] for k in ("seed", "h", "w")))
    assert zlib.crc32(image.tobytes()) == case["input"]["crc32"], "the test's own image drifted"
    stored = golden("network/preprocess")

    prepared = prepare_image(image, case["size"])

    assert list(prepared.rgb.shape) == case["output_shape"]
    np.testing.assert_array_equal(prepared.rgb[::4, ::4], stored[f"{name}/unnormalized_img"])
    # The checksum is over every pixel: exact, not merely close.
    assert zlib.crc32(prepared.rgb.tobytes()) == case["crc32_full"]
    pixels = np.moveaxis(prepared.pixels, -1, 0)[:, ::16, ::16]
    np.testing.assert_array_equal(pixels, stored[f"{name}/img_sub16"])
    for key, value in case["transformation"].items():
        assert getattr(prepared.transform, key) == value, key


def test_pixels_span_minus_one_to_one_exactly():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels = normalize(ramp)
    assert pixels.dtype == np.float32
    assert pixels[0, 0, 0] == -1.0 and pixels[-1, -1, 0] == 1.0
    expected = np.arange(256).reshape(16, 16) / 127.5 - 1.0
    # Three float32 roundings of numbers up to 1.
    np.testing.assert_allclose(pixels[..., 0], expected, atol=2e-7, rtol=0)


def test_result_owns_its_memory_and_leaves_the_input_alone():
    image = np.zeros((96, 128, 3), np.uint8)
    prepared = prepare_image(image, 128)
    prepared.rgb[:] = 7
    assert image.max() == 0


@pytest.mark.parametrize("size", [64, 96, 256, 512])
@pytest.mark.parametrize("shape", [(480, 640), (641, 480), (100, 100), (333, 1000)])
def test_sides_are_multiples_of_the_patch_and_the_long_side_is_the_size(size, shape):
    transform = plan(shape, size)
    assert transform.shape[0] % 16 == transform.shape[1] % 16 == 0
    assert max(transform.resized_shape) == size
    for start, n, resized in zip(
        transform.crop_start, transform.shape, transform.resized_shape, strict=True
    ):
        assert start >= 0 and start + n <= resized
        assert abs(start - (resized - n) / 2) <= 0.5  # centred to half a pixel


def test_square_image_gives_up_a_quarter_of_its_height():
    assert plan((512, 512), 512).shape == (384, 512)
    assert plan((800, 800), 256).shape == (192, 256)
    assert plan((80, 80), 96).shape == (64, 96)  # 72 is no multiple of 16


def test_intrinsics_follow_the_original_formula_and_projection():
    # 300x401 is the case whose half crop ends in .5.
    transform = plan((300, 401), 512)
    K = np.array([[400.0, 0.0, 199.0], [0.0, 410.0, 151.0], [0.0, 0.0, 1.0]])
    got = transform.intrinsics(K)
    expected = CASES["300x401_512"]["transformation"]
    assert got[0, 0] == pytest.approx(400.0 / expected["scale_w"], abs=1e-10)
    assert got[1, 1] == pytest.approx(410.0 / expected["scale_h"], abs=1e-10)
    assert got[0, 2] == pytest.approx(199.0 / expected["scale_w"] - expected["half_crop_w"])
    assert got[1, 2] == pytest.approx(151.0 / expected["scale_h"] - expected["half_crop_h"])
    # A source pixel (u, v) sees the same ray at its place in the prepared image.
    ray = np.linalg.solve(K, [120.0, 77.0, 1.0])
    u, v, _ = got @ ray
    assert u == pytest.approx(120.0 / expected["scale_w"] - expected["half_crop_w"])
    assert v == pytest.approx(77.0 / expected["scale_h"] - expected["half_crop_h"])


@pytest.mark.parametrize(
    ("shape", "size"), [((37, 53), 32), ((37, 53), 224), ((60, 48), 64), ((48, 48), 48)]
)
def test_nearest_sampling_equals_a_plain_loop(shape, size):
    transform = plan(shape, size)
    source = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    got = transform.sample_nearest(source)
    assert got.shape == transform.shape
    centres_v, centres_u = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    for row in range(0, transform.shape[0], 5):
        for column in range(0, transform.shape[1], 3):
            v = (row + transform.crop_start[0] + 0.5) * transform.scale_h
            u = (column + transform.crop_start[1] + 0.5) * transform.scale_w
            nearest_v = np.abs(centres_v - v)
            nearest_u = np.abs(centres_u - u)
            # A sample exactly between two pixels may take either.
            v_set = np.flatnonzero(nearest_v <= nearest_v.min() + 1e-9)
            u_set = np.flatnonzero(nearest_u <= nearest_u.min() + 1e-9)
            assert got[row, column] in source[np.ix_(v_set, u_set)]


def test_nearest_sampling_lands_where_the_picture_does():
    # A picture of large flat tiles: away from their edges the resampled picture and the resampled
    # labels must name the same tile.
    labels = np.add.outer(np.arange(240) // 40 * 3, np.arange(320) // 40) * 9 % 256
    picture = labels.astype(np.uint8)[..., None].repeat(3, axis=2)
    prepared = prepare_image(picture, 192)
    sampled = prepared.transform.sample_nearest(labels)
    # Lanczos rings over 3 pixels each side of an edge; a tile is 24 wide here, 16 of them flat.
    flat = np.ones(sampled.shape, bool)
    for axis in (0, 1):
        for shift in range(-4, 5):
            flat &= np.roll(sampled, shift, axis) == sampled
    assert flat.mean() > 0.3
    assert np.array_equal(sampled[flat], prepared.rgb[..., 0][flat])


def test_nearest_sampling_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(10, 10\) do not belong to an image of \(480, 640\)"):
        plan((480, 640), 512).sample_nearest(np.zeros((10, 10)))


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), 64, "must be uint8 RGB in 0..255, not float32"),
        (np.zeros((64, 64), np.uint8), 64, r"shape \[height, width, 3\], not \[64, 64\]"),
        (np.zeros((64, 64, 4), np.uint8), 64, r"not \[64, 64, 4\]"),
        (np.zeros((0, 64, 3), np.uint8), 64, "has no pixels"),
        (np.zeros((10, 640, 3), np.uint8), 512, "640x10 pixels is too narrow"),
        (np.zeros((64, 64, 3), np.uint8), 100, "not a positive multiple of 16"),
        (np.zeros((64, 64, 3), np.uint8), 0, "not a positive multiple of 16"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(image, size, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(image, size)


def test_transform_is_a_plain_value():
    assert plan((480, 640), 512) == ImageTransform((480, 640), (384, 512), (0, 0), (384, 512))
