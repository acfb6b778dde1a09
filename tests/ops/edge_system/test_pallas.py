"""The edges' kernel against its definition, in interpret mode, and lowered for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import PixelFactorConfig, RayFactorConfig, Sim3, kernels, optimize_graph
from ops.edge_system import Edges, FactorNoise, pack_valid, pallas, xla
from ops.kernels import Block
from ops.pinhole import constrain_to_rays
from tests.ops.cuda import CARD, lowered

H, W = 20, 27
HW = H * W  # no multiple of a byte or of a block
K = jnp.asarray([[25, 0, 13], [0, 25, 10], [0, 0, 1]], jnp.float32)
SMALL = Block(pixels=64, num_warps=2, rounds=3)  # three programs an edge, the last one half empty
CONFIGS = {"rays": RayFactorConfig(), "pixels": PixelFactorConfig()}
FULL, EMPTY, ABSENT, LOOP = 2, 3, 4, 5
"""Edges that every and that no match is valid of; one that does not exist; one to its own view."""


def problem(packed=True, calibrated=False, seed=0):
    """Three views of noise around a wall, six edges; what does not count holds no numbers."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:H, :W].reshape(2, -1)
    z = rng.normal(2, 0.2, (3, HW))
    points = np.stack([z * (u - 13) / 25, z * (v - 10) / 25, z], axis=-1)
    points[:, ::50, 2] *= -1  # behind the camera
    if not calibrated:
        points += rng.normal(scale=0.05, size=points.shape)
    T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=(3, 7)), jnp.float32))
    valid = rng.random((6, HW)) < 0.7
    valid[FULL], valid[EMPTY] = True, False
    index = np.minimum(np.arange(HW) + rng.integers(0, 30, (6, HW)), HW - 1)
    i, j, mask = np.array([0, 1, 2, 0, 0, 1]), np.array([1, 2, 0, 2, 1, 1]), np.ones(6, bool)
    mask[ABSENT] = False
    i[ABSENT] = index[ABSENT] = 10**6
    index[~valid] = 10**6
    q = rng.uniform(0.5, 4, (6, HW))
    q[~valid] = np.nan
    confidence = rng.uniform(0, 2, (3, HW))
    # a point whose confidence is too low, or no number, counts no more than what is not valid
    confidence[:, 7::31], points[:, 7::31] = np.nan, np.nan
    if calibrated:
        points = jax.vmap(lambda x: constrain_to_rays(x, K, (H, W)))(jnp.asarray(points))
    is_valid = jnp.asarray(valid)
    edges = Edges(
        *(jnp.asarray(x, jnp.int32) for x in (i, j, index)),
        pack_valid(is_valid) if packed else is_valid,
        jnp.asarray(q, jnp.float16 if packed else jnp.float32),
        jnp.asarray(mask),
    )
    return T, jnp.asarray(points, jnp.float32), jnp.asarray(confidence, jnp.float32), edges


@functools.partial(jax.jit, static_argnames=("kind", "min_confidence", "block"))
def both(T, points, confidence, edges, noise=None, *, kind, min_confidence=0.2, block=SMALL):
    camera = (K, (H, W)) if kind == "pixels" else (None, None)
    arguments = T, points, confidence, edges, CONFIGS[kind], *camera, min_confidence
    return (
        xla.linearize_edges(*arguments, noise=noise),
        pallas.linearize_edges(*arguments, noise=noise, block=block, interpret=True),
    )


def assert_same(found, expected):
    """Sums of some hundred terms in another order; sizes are those of the diagonal and the cost."""
    size = np.sqrt(np.einsum("...ii->...i", expected.hessian))
    residual = np.sqrt(2 * np.asarray(expected.cost))[..., None]
    for a, b, scale in (
        (found.hessian, expected.hessian, size[..., :, None] * size[..., None, :]),
        (found.gradient, expected.gradient, size * residual),
        (found.cost, expected.cost, np.asarray(expected.cost)),
    ):
        np.testing.assert_array_less(np.abs(a - b), 2e-6 * scale + 1e-30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "packed", "block"),
    [("rays", True, SMALL), ("pixels", False, kernels.DEFAULT_BLOCKS["linearize_edges"])],
)
def test_as_the_definition(kind, packed, block):
    """Packed matches and q in half precision; booleans, single precision, one program an edge."""
    expected, found = both(*problem(packed, kind == "pixels"), kind=kind, block=block)
    assert_same(found, expected)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))
        for edge in range(6):
            assert np.any(np.asarray(leaf)[edge] != 0) == (edge not in (EMPTY, ABSENT, LOOP))
    np.testing.assert_array_equal(found.hessian, np.swapaxes(found.hessian, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_noise_batches_and_what_is_no_number(kind):
    """Noise that is traced; two sets of poses; a valid match of a point that is not finite."""
    T, points, confidence, edges = problem(calibrated=kind == "pixels")
    # At 0.01 pixels, rounding of where a point is seen would change what its match weighs.
    noise = FactorNoise(jnp.asarray([0.01 if kind == "rays" else 0.5, 2.0]), jnp.asarray(0.7))
    two = Sim3(jnp.stack([T.wxyz_xyz_scale, T.wxyz_xyz_scale[::-1]]))
    run = jax.jit(jax.vmap(functools.partial(both, kind=kind), in_axes=(0, None, None, None, None)))
    expected, found = run(two, points, confidence, edges, noise)
    assert_same(found, expected)
    assert not np.allclose(found.cost[0, FULL], found.cost[1, FULL], rtol=1e-3)

    expected, found = run(two, points.at[1, 105:110, 2].set(jnp.nan), confidence, edges, noise)
    np.testing.assert_array_equal(np.isfinite(found.cost), np.isfinite(expected.cost))
    assert not np.isfinite(found.cost).all() and np.isfinite(found.cost[:, FULL]).all()


@pytest.mark.slow
def test_a_graph_solved_by_the_kernel(monkeypatch):
    """Named, through the dispatch, on what passes for a card: poses that are known are found."""
    _, points, confidence, edges = problem()
    true = Sim3.exp(jnp.asarray(np.random.default_rng(1).normal(size=(3, 7)) / 20, jnp.float32))
    seen = true.inverse()[:, None].apply(jnp.nan_to_num(points[0], nan=1.0))
    index = jnp.broadcast_to(jnp.arange(HW, dtype=jnp.int32), (6, HW))
    monkeypatch.setattr(
        pallas, "linearize_edges", functools.partial(pallas.linearize_edges, interpret=True)
    )
    monkeypatch.setattr(kernels, "card", lambda: CARD)
    start = Sim3(jnp.broadcast_to(true.wxyz_xyz_scale[0], (3, 8)))
    solve = jax.jit(
        lambda start, edges: optimize_graph(
            start, seen, confidence, edges, RayFactorConfig(), implementation="pallas"
        )
    )
    found = solve(start, edges.replace(index=index))
    np.testing.assert_allclose(found.T_WC.wxyz_xyz_scale, true.wxyz_xyz_scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "batch"), [("rays", ()), ("pixels", ()), ("rays", (2,))])
def test_lowering_for_a_gpu(kind, batch):
    """At the size that is measured; two sets of poses as a batch."""
    height, width, views, count = 384, 512, 4, 8
    pixels = height * width

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def run(T, points, confidence, i, index, valid, q, mask):
        edges = Edges(i, i, index, valid, q, mask)
        camera = (K, (height, width)) if kind == "pixels" else (None, None)
        linearize = functools.partial(
            pallas.linearize_edges, config=CONFIGS[kind], K=camera[0], image_shape=camera[1],
            min_confidence=0.0,
        )  # fmt: skip
        if batch:
            linearize = jax.vmap(linearize, in_axes=(0, None, None, None))
        return linearize(Sim3(T), points, confidence, edges)

    ends, index = shape(count, dtype=jnp.int32), shape(count, pixels, dtype=jnp.int32)
    q, mask = shape(count, pixels, dtype=jnp.float16), shape(count, dtype=bool)
    for valid in (shape(count, pixels // 8, dtype=jnp.uint8), shape(count, pixels, dtype=bool)):
        text = lowered(
            run, shape(*batch, views, 8), shape(views, pixels, 3), shape(views, pixels),
            ends, index, valid, q, mask,
        )  # fmt: skip
        assert text.count("__gpu$xla.gpu.triton") == 1 and "edge_kernel" in text
