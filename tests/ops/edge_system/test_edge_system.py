"""The contract of per-edge accumulation: storage, parts, memory, dispatch, bad arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import Edges, PixelFactorConfig, RayFactorConfig, Sim3, constrain_to_rays
from ops.edge_system import factors, linearize_edges, pack_valid, unpack_valid, xla

HW = 37  # no multiple of a byte


def problem(num_edges=6, hw=HW):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, hw, 3)) * 0.2 + np.array([0, 0, 2.0])
    T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=(3, 7)), jnp.float32))
    edges = Edges(
        jnp.arange(num_edges, dtype=jnp.int32) % 3,
        (jnp.arange(num_edges, dtype=jnp.int32) + 1) % 3,
        jnp.asarray(rng.integers(0, hw, (num_edges, hw)), jnp.int32),
        pack_valid(jnp.asarray(rng.random((num_edges, hw)) < 0.7)),
        jnp.asarray(rng.uniform(1, 4, (num_edges, hw)), jnp.float16),
        jnp.ones(num_edges, bool),
    )
    return T, jnp.asarray(points, jnp.float32), jnp.ones((3, hw)), edges


@pytest.mark.parametrize("hw", [1, 8, 37, 40000])
def test_packed_bits(hw):
    valid = np.random.default_rng(hw).random((2, hw)) < 0.5
    packed = jax.jit(pack_valid)(jnp.asarray(valid))
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(packed, np.packbits(valid, axis=-1, bitorder="little"))
    restored = jax.jit(functools.partial(unpack_valid, num_pixels=hw))(packed)
    assert restored.dtype == bool
    np.testing.assert_array_equal(restored, valid)


@pytest.mark.slow
@pytest.mark.parametrize("config", [RayFactorConfig(), PixelFactorConfig()], ids=["rays", "pixels"])
def test_parts_do_not_matter(config, monkeypatch):
    """Parts are a CPU's; 35 pixels fall into 5 of 7, and in no fewer than 35 of at most 4."""
    shape, K = (5, 7), jnp.asarray([[6.0, 0, 3], [0, 6, 2], [0, 0, 1]])
    T, points, confidence, edges = problem(hw=35)
    points = jax.vmap(lambda x: constrain_to_rays(x, K, shape))(points)

    def run(at_most):
        monkeypatch.setattr(factors, "PIXELS_AT_A_TIME", at_most)
        arguments = (T, points, confidence, edges, config, K, shape)
        return jax.jit(lambda: linearize_edges(*arguments, implementation="xla"))()

    assert factors._even_parts(35) == 1
    whole = run(35)
    diagonal = np.sqrt(np.einsum("eii->ei", whole.hessian))
    for at_most, parts in ((7, 5), (8, 5), (4, 35), (1, 35)):
        some = run(at_most)
        assert factors._even_parts(35) == parts and factors._even_parts(37) in (1, 37)
        # sums of 35 terms in another order
        np.testing.assert_allclose(some.cost, whole.cost, rtol=2e-6)
        size = diagonal[:, :, None] * diagonal[:, None, :]
        np.testing.assert_allclose(some.hessian / size, whole.hessian / size, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("together", [2, 3, 8])
def test_edges_may_be_taken_together(together):
    """As on an accelerator; inactive edges between active ones, and more places than edges."""
    T, points, confidence, edges = problem()
    edges = edges.replace(mask=edges.mask.at[1].set(False))

    @functools.partial(jax.jit, static_argnums=0)
    def run(together, *arrays):
        return xla.linearize_edges(*arrays, RayFactorConfig(), None, None, 0.0, together)

    alone, several = (run(n, T, points, confidence, edges) for n in (1, together))
    for a, b in zip(jax.tree.leaves(several), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * np.abs(b).max())
    assert not several.hessian[1].any() and several.hessian[0].any()


@pytest.mark.slow
def test_memory_does_not_grow_with_edges_times_pixels():
    """Room for 64 edges of 4,096 pixels needs 2 MB as booleans and floats, and 33 MB as rows."""
    config = RayFactorConfig()

    def temporary(num_edges):
        arguments = problem(num_edges, 4096)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        lowered = jax.jit(lambda *a: linearize_edges(*a, config)).lower(*shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(4), temporary(64)
    # a block of 8 x 8 numbers and a place in the order for each edge, some of it twice
    assert many - few < 60 * 1024 < 60 * 4096


def test_dispatch_and_bad_arguments():
    T, points, confidence, edges = problem()
    config = RayFactorConfig()
    with pytest.raises(NotImplementedError, match='use implementation="xla"'):
        linearize_edges(T, points, confidence, edges, config, implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation 'cuda'"):
        linearize_edges(T, points, confidence, edges, config, implementation="cuda")
    with pytest.raises(ValueError, match="needs K and image_shape"):
        linearize_edges(T, points, confidence, edges, PixelFactorConfig())
    with pytest.raises(ValueError, match="37 points for an image of 3 x 5"):
        linearize_edges(T, points, confidence, edges, PixelFactorConfig(), jnp.eye(3), (3, 5))
    with pytest.raises(ValueError, match="edges match 37 pixels, the views have 36"):
        linearize_edges(T, points[:, 1:], confidence[:, 1:], edges, config)
