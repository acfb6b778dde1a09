"""Matching's contract: geometry, dispatch, batches, chunks, derivatives, bad predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops.matching import (
    MatchConfig,
    iterative_projection,
    match,
    refine_matches,
    unique_fraction,
    valid_fraction,
    xla,
)

H, W = 12, 17  # neither divides a chunk
INTERIOR = np.zeros((H, W), bool)  # the search is clamped to it: only there can a pixel find itself
INTERIOR[1:-1, 1:-1] = True
project = jax.jit(iterative_projection, static_argnames="config")
both = jax.jit(match, static_argnames="config")


def plane(shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Pointmap of a bumpy wall seen by a pinhole camera moved sideways, [H, W, 3], in camera 1."""
    v, u = np.mgrid[:H, :W].astype(np.float64)
    z = 2 + 0.1 * np.sin(u / 3 + seed) * np.cos(v / 4)
    return np.stack([z * (u - 8) / 15 + shift, z * (v - 6) / 15, z], axis=-1)


def features(seed: int) -> np.ndarray:
    D = np.random.default_rng(seed).normal(size=(H, W, 8))
    return D / np.linalg.norm(D, axis=-1, keepdims=True)


def inputs(shift: float = 0.05) -> list[jax.Array]:
    arrays = (plane(), plane(shift), features(0), features(1))
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def test_finds_the_ray():
    """The ray interpolated at the answer is the ray towards the point (independent lookup)."""
    from scipy import ndimage

    X1, X2 = plane(), plane(0.05)
    result = project(*(jnp.asarray(x, jnp.float32) for x in (X1, X2)))
    r = X1 / np.linalg.norm(X1, axis=-1, keepdims=True)
    uv = np.asarray(result.uv, np.float64)
    there = np.stack(
        [ndimage.map_coordinates(r[..., c], uv[:, ::-1].T, order=1) for c in range(3)], axis=-1
    )
    there /= np.linalg.norm(there, axis=-1, keepdims=True)
    t = (X2 / np.linalg.norm(X2, axis=-1, keepdims=True)).reshape(-1, 3)
    cost = np.sum((there - t) ** 2, axis=-1)
    np.testing.assert_array_equal(result.converged, cost < 1e-6)
    inner = ((np.arange(H * W) % W > 1) & (np.arange(H * W) % W < W - 3)
             & (np.arange(H * W) // W > 1) & (np.arange(H * W) // W < H - 2))  # fmt: skip
    assert np.all(np.asarray(result.converged)[inner])
    assert np.all((uv >= 1) & (uv <= [W - 2, H - 2]))


def test_refinement_finds_a_planted_descriptor_and_prefers_the_first_of_equals():
    D1 = np.zeros((H, W, 4), np.float32)
    D1[..., 0] = 0.1
    D1[10, 11] = [1, 0, 0, 0]  # five right, five down: in the first window
    D2 = np.zeros((H, W, 4), np.float32)
    D2[..., 0] = 1
    start = jnp.full(H * W, 6 + W * 5, jnp.int32)
    found = jax.jit(refine_matches)(jnp.asarray(D1), jnp.asarray(D2), start)
    np.testing.assert_array_equal(found, 11 + W * 10)
    # all equal: the first candidate of the first window inside the image is (6-5, 5-5)
    D1[:] = 0.1
    found = jax.jit(refine_matches)(jnp.asarray(D1), jnp.asarray(D2), start)
    np.testing.assert_array_equal(found, 1 + W * 0)


@pytest.mark.slow
def test_chunks_do_not_change_the_answer(monkeypatch):
    """Chunks that leave a rest, and that are as large as the image or larger; 0 is no chunks."""
    found = []
    for chunk in (0, 50, H * W, 1000):
        monkeypatch.setattr(xla, "CPU_PROJECTION_CHUNK", chunk)
        monkeypatch.setattr(xla, "CPU_REFINEMENT_CHUNK", chunk)
        found.append(jax.jit(lambda *arrays: match(*arrays))(*inputs()))
    for pieces in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, pieces, found[0])


@pytest.mark.slow
def test_descriptors_of_any_length():
    """Seven channels do not fill a vector register: what is added must not count."""
    X1, X2, D1, D2 = inputs()
    short = match(X1, X2, D1[..., :7], D2[..., :7])
    padded = [jnp.pad(x[..., :7], ((0, 0), (0, 0), (0, 9))) for x in (D1, D2)]
    jax.tree.map(np.testing.assert_array_equal, short, match(X1, X2, *padded))


def test_vmap_gives_batches():
    pairs = [inputs(0.05), inputs(-0.03)]
    batch = [jnp.stack(x) for x in zip(*pairs, strict=True)]
    together = jax.jit(jax.vmap(match))(*batch)
    for b, pair in enumerate(pairs):
        alone = both(*pair)
        jax.tree.map(lambda x, y, b=b: np.testing.assert_array_equal(x[b], y), together, alone)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_predictions_that_are_not_points_give_invalid_matches(bad):
    X1, X2, D1, D2 = inputs(0.0)
    clean = both(X1, X2, D1, D2)
    np.testing.assert_array_equal(clean.valid, INTERIOR.reshape(-1))
    broken = both(X1, X2.at[4, 5:8].set(bad), D1.at[2, 3].set(bad), D2.at[7, 7].set(bad))
    hit = np.zeros((H, W), bool)
    hit[4, 5:8] = True
    np.testing.assert_array_equal(broken.valid, np.asarray(clean.valid) & ~hit.reshape(-1))
    assert np.all((np.asarray(broken.index) >= 0) & (np.asarray(broken.index) < H * W))
    # in image 1 a bad point spoils the derivative around it, no more than that
    broken = both(X1.at[6, 8].set(bad), X2, D1, D2)
    far = np.maximum(*np.abs(np.mgrid[:H, :W] - np.array([6, 8])[:, None, None])) > 3
    assert np.all(np.asarray(broken.valid).reshape(H, W)[far & INTERIOR])
    assert not np.asarray(broken.valid).reshape(H, W)[6, 8]
    assert np.all(np.isfinite(np.asarray(project(X1.at[6, 8].set(bad), X2).uv)))
    # and nothing but rubbish is nothing but invalid
    rubbish = both(jnp.full_like(X1, bad), jnp.full_like(X2, bad), D1, D2)
    assert not np.any(np.asarray(rubbish.valid))
    assert np.all((np.asarray(rubbish.index) >= 0) & (np.asarray(rubbish.index) < H * W))


def test_points_too_far_apart_are_invalid_though_their_rays_agree():
    # A ray that meets a pixel exactly may be truncated to its neighbour, 0.2 away at most.
    X1, _, D1, D2 = inputs()
    config = MatchConfig(max_distance=0.3)
    interior = INTERIOR.reshape(-1)
    np.testing.assert_array_equal(project(X1, 1.3 * X1).converged, interior)
    assert not np.any(np.asarray(both(X1, 1.3 * X1, D1, D2, config=config).valid))  # 0.6 behind
    np.testing.assert_array_equal(both(X1, 1.01 * X1, D1, D2, config=config).valid, interior)


@pytest.mark.slow
def test_derivative_of_the_position():
    """At a converged pixel the position follows the point; the rest of the program stays finite."""
    X1, X2 = (jnp.asarray(x, jnp.float32) for x in (plane(), plane(0.05)))
    n = 5 * W + 7

    def u_of(dx, X1):
        return iterative_projection(X1, X2 + dx * jnp.array([1.0, 0, 0])).uv[n, 0]

    value_and_grad = jax.jit(jax.value_and_grad(u_of, argnums=(0, 1)))
    _, (slope, gradient) = value_and_grad(jnp.float32(0), X1)
    h = 1e-2  # a pixel per unit of x is f/z, about 7
    left, right = (float(value_and_grad(jnp.float32(dx), X1)[0]) for dx in (-h, h))
    numeric = (right - left) / (2 * h)
    assert numeric > 5 and abs(float(slope) - numeric) < 0.05 * numeric
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize("function", ["match", "iterative_projection", "refine_matches"])
def test_dispatch(function):
    X1, X2, D1, D2 = inputs()
    index = jnp.arange(H * W, dtype=jnp.int32)
    call = {
        "match": functools.partial(match, X1, X2, D1, D2),
        "iterative_projection": functools.partial(iterative_projection, X1, X2),
        "refine_matches": functools.partial(refine_matches, D1, D2, index),
    }[function]
    with pytest.raises(ValueError, match=r"unknown implementation 'cuda'.*'xla'"):
        call(implementation="cuda")
    with pytest.raises(NotImplementedError, match="pallas"):
        call(implementation="pallas")
    default, named = jax.jit(lambda: (call(), call(implementation="xla")))()
    jax.tree.map(np.testing.assert_array_equal, default, named)


def test_arguments_that_do_not_belong_together_are_refused():
    X1, X2, _, _ = inputs()
    with pytest.raises(ValueError, match="init has shape"):
        iterative_projection(X1, X2, jnp.arange(5, dtype=jnp.int32))
    with pytest.raises(ValueError, match="no interior"):
        iterative_projection(X1[:2], X2[:2])


def test_fractions_against_numpy():
    rng = np.random.default_rng(0)
    index, valid = rng.integers(0, 300, 300), rng.random(300) < 0.4
    fraction = unique_fraction(jnp.asarray(index, jnp.int32), jnp.asarray(valid))
    assert float(fraction) == pytest.approx(len(np.unique(index[valid])) / 300, rel=1e-6)
    assert float(unique_fraction(jnp.asarray(index, jnp.int32), jnp.zeros(300, bool))) == 0
    assert float(valid_fraction(jnp.asarray(valid))) == pytest.approx(valid.mean(), rel=1e-6)


@pytest.mark.parametrize("case", ["small", "med", "large"])
def test_fractions_of_the_original(golden, case):
    data = golden(f"slam/track_{case}_rays")
    index, valid = jnp.asarray(data["idx_f2k"]), jnp.asarray(data["valid_match_k"])
    assert float(unique_fraction(index, valid)) == pytest.approx(float(data["unique_frac_f"]))
    confident = valid & (jnp.asarray(data["Qk"]) > 1.5)
    assert float(valid_fraction(confident)) == pytest.approx(float(data["match_frac_k"]))
