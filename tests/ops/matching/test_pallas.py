"""The matching kernels against their definition, in interpret mode, and lowered for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops.kernels import Block
from ops.matching import MatchConfig, pallas, xla
from ops.matching.differentiable import projection
from tests.ops.cuda import lowered

CONFIG = MatchConfig()
SMALL = Block(pixels=64, num_warps=2)
H, W = 20, 27  # 540 pixels: no multiple of a block
HALVES = (jnp.float16, jnp.bfloat16)


def surface(height=H, width=W, shift=0.0):
    """Pointmap of a bumpy wall seen by a pinhole camera moved a little, [height, width, 3]."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    z = 2 + 0.1 * np.sin(u / 3) * np.cos(v / 4)
    points = [z * (u - width / 2) / width + shift, z * (v - height / 2) / width + shift, z]
    return np.stack(points, axis=-1).astype(np.float32)


def starts(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).permutation(count), jnp.int32)


@functools.partial(jax.jit, static_argnames="block")
def both_projections(points_11, points_21, init, block=SMALL):
    arguments = points_11, points_21, init, CONFIG
    return xla.project(*arguments), pallas.project(*arguments, block=block, interpret=True)


def assert_same_projection(points_11, points_21, init, **block):
    """The same pixels converge, to the same place.

    Rounding differs where a compiler makes one instruction of a product and a sum: some 1e-6 px.
    A pixel that does not converge wanders, and rounding decides where to.
    """
    expected, found = both_projections(
        jnp.asarray(points_11), jnp.asarray(points_21), init, **block
    )
    height, width = points_11.shape[:2]
    np.testing.assert_array_equal(found[1], expected[1])
    converged = np.asarray(expected[1])
    np.testing.assert_allclose(found[0][converged], expected[0][converged], rtol=0, atol=1e-5)
    uv = np.asarray(found[0])
    assert np.all((uv >= 1) & (uv <= [width - 2, height - 2]))
    return converged.reshape(height, width)


@pytest.mark.parametrize("size", [(H, W), (3, 3)])
def test_projection(size):
    """No multiple of a block; less than one; starting anywhere."""
    count = size[0] * size[1]
    for seed in range(2):
        converged = assert_same_projection(
            surface(*size), surface(*size, shift=0.02), starts(count, seed)
        )
    assert converged.mean() > 0.5 or size == (3, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_projection_of_what_is_no_point(bad):
    good, init = surface(shift=0.01), starts(H * W)
    broken_1, broken_2 = surface(), good.copy()
    broken_1[6, 8] = broken_1[15, 20, 1] = bad
    broken_2[4, 5:8] = bad
    converged = assert_same_projection(surface(), broken_2, init)
    assert not converged[4, 5:8].any() and converged[10:15, 10:15].all()
    assert_same_projection(broken_1, good, init)
    assert not assert_same_projection(np.full_like(good, bad), np.full_like(good, bad), init).any()


@pytest.mark.slow
def test_projection_of_a_batch():
    """Of images that are made of whole blocks."""
    batch = [
        jnp.stack([jnp.asarray(surface(8, 16, shift)) for shift in shifts])
        for shifts in ([0, 0.01, 0.02], [0.02, 0, -0.01])
    ]
    init = jnp.stack([starts(8 * 16, seed) for seed in range(3)])
    expected, found = jax.jit(jax.vmap(both_projections))(*batch, init)
    np.testing.assert_array_equal(found[1], expected[1])
    difference = np.abs(found[0] - expected[0])[np.asarray(expected[1])]
    assert 0 < len(difference) and difference.max() < 1e-5


@pytest.mark.slow
def test_derivatives_do_not_depend_on_who_finds_the_position():
    points_11, points_21 = jnp.asarray(surface()), jnp.asarray(surface(shift=0.02))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(H * W, 2)), jnp.float32)

    def gradient(project):
        def weighted(points_11, points_21):
            found = projection(project, points_11, points_21, jnp.arange(H * W, dtype=jnp.int32))
            return jnp.sum(found.uv * weights)

        return jax.grad(weighted, argnums=(0, 1))(points_11, points_21)

    by_kernel = functools.partial(pallas.project, config=CONFIG, block=SMALL, interpret=True)
    by_definition = functools.partial(xla.project, config=CONFIG)
    found, expected = jax.jit(lambda: (gradient(by_kernel), gradient(by_definition)))()
    for a, b in zip(found, expected, strict=True):
        scale = np.abs(b).max()
        assert scale > 0
        # positions apart by 1e-6 px, on a surface that bends by about its size per pixel
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-4)


def descriptors(height=H, width=W, channels=24, seed=0):
    D = np.random.default_rng(seed).normal(size=(height, width, channels))
    return D / np.linalg.norm(D, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="block")
def both_refinements(descriptors_1, descriptors_2, index, block=SMALL):
    arguments = descriptors_1, descriptors_2, index, CONFIG
    return (
        xla.refine_matches(*arguments),
        pallas.refine_matches(*arguments, block=block, interpret=True),
    )


@pytest.mark.parametrize("size", [(H, W, 24), (3, 4, 5), (8, 16, 16)])
def test_refinement(size):
    """In single precision: the same pixels, whatever the size, the start and the channels."""
    D1, D2 = (jnp.asarray(descriptors(*size, seed), jnp.float32) for seed in (0, 1))
    for index in (starts(size[0] * size[1]), jnp.arange(size[0] * size[1], dtype=jnp.int32)):
        expected, found = both_refinements(D1, D2, index)
        np.testing.assert_array_equal(found, expected)
        assert np.any(np.asarray(found) != index)


@pytest.mark.parametrize("dtype", HALVES)
def test_refinement_in_half_precision(dtype):
    """Products of halves are exact and sums are single: who differs differs by their rounding."""
    D1, D2 = (jnp.asarray(descriptors(seed=seed), dtype) for seed in (0, 1))
    expected, found = both_refinements(D1, D2, starts(H * W))
    differ = np.flatnonzero(np.asarray(found) != expected)
    assert len(differ) < 0.005 * H * W
    rows, queries = (np.asarray(D, np.float64).reshape(-1, 24) for D in (D1, D2))
    for n in differ:
        assert abs(rows[found[n]] @ queries[n] - rows[expected[n]] @ queries[n]) < 24 * 2.0**-24


def test_refinement_of_what_is_no_number_and_of_equals():
    D1, D2 = (descriptors(seed=seed).astype(np.float32) for seed in (0, 1))
    index = starts(H * W)
    D1[5, 6:9], D1[12, 13, 4] = np.nan, np.inf
    D2[7, 7], D2[8, 8, 0], D2[9, 9] = np.nan, -np.inf, 0
    for dtype in (jnp.float32, jnp.float16):
        expected, found = both_refinements(jnp.asarray(D1, dtype), jnp.asarray(D2, dtype), index)
        np.testing.assert_array_equal(found, expected)
        assert found[7 * W + 7] == index[7 * W + 7]  # nothing is better than where it started
    rubbish = jnp.full((H, W, 24), jnp.nan)
    np.testing.assert_array_equal(both_refinements(rubbish, rubbish, index)[1], index)
    equal = jnp.full((H, W, 24), 0.25)
    expected, found = both_refinements(equal, equal, index)
    np.testing.assert_array_equal(found, expected)
    # the first candidate inside the image of the first window, 15 pixels left and up in steps of 5
    u, v = np.asarray(index) % W, np.asarray(index) // W
    first = [np.where(x >= 15, x - 15, x % 5) for x in (u, v)]
    np.testing.assert_array_equal(found, first[0] + W * first[1])


@pytest.mark.slow
def test_refinement_of_a_batch():
    D1, D2 = (
        jnp.stack([jnp.asarray(descriptors(seed=seed + k), jnp.float32) for k in range(2)])
        for seed in (0, 2)
    )
    index = jnp.stack([starts(H * W, seed) for seed in range(2)])
    expected, found = jax.jit(jax.vmap(both_refinements, in_axes=(0, 0, 0)))(D1, D2, index)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_lowering_for_a_gpu(batch):
    """At the size that is measured, alone and as one launch for a batch."""

    def shape(*tail, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((*batch, *tail), dtype)

    height, width = 384, 512
    points, index = shape(height, width, 3), shape(height * width, dtype=jnp.int32)
    project = functools.partial(pallas.project, config=CONFIG)
    refine = functools.partial(pallas.refine_matches, config=CONFIG)
    if batch:
        project, refine = jax.vmap(project), jax.vmap(refine)
    text = lowered(project, points, points, index)
    assert text.count("__gpu$xla.gpu.triton") == 1 and "project_kernel" in text
    for dtype in (jnp.float32, *HALVES):
        rows = shape(height, width, 24, dtype=dtype)
        text = lowered(refine, rows, rows, index)
        assert text.count("__gpu$xla.gpu.triton") == 1 and "refine_kernel" in text
