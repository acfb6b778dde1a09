"""The two priors: exact geometry disturbed as its docstring says, and the network's wrapping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mast3r_jax import MASt3R, MASt3RConfig, prepare_image
from slam import SlamConfig, init_state
from slam.priors import GeometryNoise, MASt3RPrior, RenderedGeometryPrior
from slam.types import Frame, TwoViewPrior, keep
from tests.conftest import DATA
from weights_conversion import convert_mast3r, load_tensors
from weights_conversion.convert import infer_config

HEIGHT, WIDTH = 32, 48
K = np.array([[40.0, 0, 23.5], [0, 40.0, 15.5], [0, 0, 1]])


def pose(x, turn=0.0):
    T = np.eye(4)
    T[:3, :3] = [
        [np.cos(turn), 0, np.sin(turn)],
        [0, 1, 0],
        [-np.sin(turn), 0, np.cos(turn)],
    ]
    T[0, 3] = x
    return T


def frame(index, T_WC, depth, bright=True):
    return Frame(
        index=jnp.int32(index),
        timestamp=jnp.float32(0),
        image=jnp.full((HEIGHT, WIDTH, 3), 100 if bright else 0, jnp.uint8),
        depth=jnp.asarray(depth, jnp.float32),
        T_WC=jnp.asarray(T_WC, jnp.float32),
        K=jnp.asarray(K, jnp.float32),
    )


def slanted():
    """Depth of a wall that recedes to the right: no edges."""
    return np.broadcast_to(np.linspace(2.0, 3.0, WIDTH), (HEIGHT, WIDTH))


def points_in_camera(depth):
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    return depth[..., None] * (np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T)


BATCH = 64


def decode(prior, one, two):
    """Both views of a pair of frames."""
    indices = np.zeros(BATCH)
    views = batch(prior, one, two, indices + int(one.index), indices + int(two.index))
    return jax.tree.map(lambda x: np.asarray(x[0]), views)


def batch(prior, first, second, indices_1, indices_2):
    """The same pair again and again under other frame numbers, that is with other noise.

    Not compiled as a whole: operation by operation, all priors share what has been compiled.
    """
    sides = []
    for one, indices in ((first, indices_1), (second, indices_2)):
        encoding = prior.encode(one)
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)), encoding)
        sides.append(repeated.replace(index=jnp.asarray(indices, jnp.int32)))
    return jax.tree.map(np.asarray, prior.decode(*sides))


def many(prior, first, second, count):
    """``batch`` with ``count`` batches, each pair of other frame numbers."""
    numbers = np.arange(count * BATCH).reshape(count, BATCH)
    batches = [batch(prior, first, second, n, n + 10_000) for n in numbers]
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def errors(view, truth):
    """Relative errors along the ray; ``view`` is in its own camera."""
    return np.linalg.norm(view.points, axis=-1) / np.linalg.norm(truth, axis=-1) - 1


EXACT = RenderedGeometryPrior(GeometryNoise.none())


def only(**noise):
    return RenderedGeometryPrior(GeometryNoise(**{**vars(GeometryNoise.none()), **noise}))


@pytest.mark.slow
def test_without_noise_it_is_the_geometry():
    T_1, T_2 = pose(0.3, 0.2), pose(-0.1, -0.4)
    depth_1, depth_2 = slanted(), slanted()[:, ::-1] + 1
    view_1, view_2 = decode(EXACT, frame(4, T_1, depth_1), frame(9, T_2, depth_2))
    X_1, X_2 = points_in_camera(depth_1), points_in_camera(depth_2)
    T_12 = np.linalg.inv(T_1) @ T_2
    # Float32 at a few metres; sums of a handful of terms.
    np.testing.assert_allclose(view_1.points, X_1, atol=3e-6)
    np.testing.assert_allclose(view_2.points, X_2 @ T_12[:3, :3].T + T_12[:3, 3], atol=3e-6)


@pytest.mark.slow
def test_white_noise_has_the_size_that_the_confidence_tells():
    depth = 0.01
    one = frame(0, np.eye(4), slanted())
    partners = np.arange(1, 65)
    view, _ = batch(only(depth=depth), one, one, np.zeros_like(partners), partners)
    confidence = np.asarray(view.confidence[0])
    assert (confidence == np.asarray(view.confidence)).all(), "the level belongs to the frame"
    level = np.sqrt(2 / (confidence - 1))
    assert level.min() >= 0.5 - 1e-6 and level.max() <= 2 + 1e-6 and np.ptp(level) > 0.3
    np.testing.assert_allclose(view.descriptor_confidence[0], 1 + 2 / level, rtol=1e-5)
    white = errors(view, points_in_camera(slanted())) / (depth * level)
    # 64 x 1536 independent draws: the standard error of both is about 0.003.
    assert abs(white.mean()) < 0.015 and abs(white.std() - 1) < 0.015
    # Also at every level by itself, and new in each pair.
    for low, high in ((0.5, 0.8), (0.8, 1.2), (1.2, 2.0)):
        part = white[:, (level >= low) & (level < high)]
        if part.size > 2000:
            assert abs(part.std() - 1) < 0.1
    across = np.corrcoef(white.reshape(64, -1))
    # Off the diagonal: 1 / sqrt(1536) = 0.026 each; five of these.
    assert np.abs(across - np.eye(64)).max() < 0.13


def test_depth_edges_are_told_to_be_four_times_as_bad():
    depth = np.full((HEIGHT, WIDTH), 2.0)
    depth[:, 20:] = 4.0
    view, _ = decode(EXACT, frame(3, np.eye(4), depth), frame(3, np.eye(4), depth))
    at_edge = np.isclose(view.confidence, 1 + 2 / 16, rtol=1e-6)
    # The two columns that meet, and nothing a pixel further.
    assert at_edge[:, 19:21].all() and not at_edge[:, :18].any() and not at_edge[:, 22:].any()


def test_scale_noise_is_one_number_a_pair():
    one = frame(0, np.eye(4), slanted())
    two = frame(1, pose(0.2), slanted())
    view_1, view_2 = many(only(scale=0.01), one, two, 6)
    exact_1, exact_2 = decode(EXACT, one, two)
    ratio_1 = np.asarray(view_1.points)[..., 2] / np.asarray(exact_1.points)[..., 2]
    ratio_2 = np.asarray(view_2.points)[..., 2] / np.asarray(exact_2.points)[..., 2]
    log_scale = np.log(ratio_1.mean((1, 2)))
    # One number for all pixels of both views, to float32.
    for ratio in (ratio_1, ratio_2):
        np.testing.assert_allclose(np.log(ratio), log_scale[:, None, None] + 0 * ratio, atol=2e-6)
    # 384 draws: standard errors 5 % of the deviation for the mean, 3.5 % for the deviation.
    assert abs(log_scale.mean()) < 0.002 and abs(log_scale.std() / 0.01 - 1) < 0.14
    assert abs(np.corrcoef(log_scale[1:], log_scale[:-1])[0, 1]) < 0.2


def pad(*numbers):
    return np.resize(numbers, BATCH)


def test_bias_belongs_to_the_frame():
    prior, truth = only(bias=0.005), points_in_camera(slanted())
    one = frame(0, np.eye(4), slanted())
    # Frame 7 with two partners and in both roles; at one pose view 2 is in its own camera too.
    first, second = batch(prior, one, one, pad(7, 7, 20, 21), pad(20, 21, 7, 7))
    as_first = errors(first, truth)[:2]
    as_second = errors(second, truth)[2:4]
    for error in (as_first[1], *as_second):
        np.testing.assert_allclose(error, as_first[0], atol=1e-6)
    # Another frame's is another one.
    others = errors(first, truth)[2:4]
    assert np.abs(others[0] - others[1]).max() > 1e-3
    # Over many frames its deviation is the one asked for; a frame's field has few degrees of
    # freedom, so the standard error is that of some 500 draws, 3 %.
    first, _ = many(prior, one, one, 5)
    error = errors(first, truth)
    assert abs(error.std() / 0.005 - 1) < 0.12 and abs(error.mean()) < 0.0006
    # Smooth: neighbouring pixels differ by far less than the field varies.
    assert np.abs(np.diff(error, axis=2)).mean() < 0.2 * error.std()


def test_noise_repeats_and_follows_the_seed():
    one, two = frame(0, np.eye(4), slanted()), frame(1, pose(0.2), slanted())
    noisy = RenderedGeometryPrior(GeometryNoise())
    first, again = decode(noisy, one, two), decode(noisy, one, two)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    other = decode(RenderedGeometryPrior(GeometryNoise(seed=1)), one, two)
    assert np.abs(first[0].points - other[0].points).max() > 1e-3


def test_a_surface_point_is_described_alike_from_everywhere():
    # A wall at 2 m: 8 pixels of a camera with f = 40 are 0.4 m, so that b(u) and a(u + 8) coincide.
    depth = np.full((HEIGHT, WIDTH), 2.0)
    a, b = frame(0, np.eye(4), depth), frame(1, pose(0.4), depth)
    view_a, view_b = decode(EXACT, a, b)
    one, two = view_a.descriptors, view_b.descriptors
    np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, atol=1e-6)
    # Phases of up to 200 radians, in float32.
    np.testing.assert_allclose(one[:, 8:], two[:, :-8], atol=1e-4)
    # Points of the wall 0.4 m apart are told apart.
    assert (np.sum(one[:, 8:] * one[:, :-8], -1) < 0.9).all()


def test_descriptor_noise_has_the_norm_asked_for():
    one = frame(0, np.eye(4), slanted())
    view, _ = many(only(descriptor=0.02), one, one, 1)
    exact, _ = decode(EXACT, one, one)
    off = view.descriptors - exact.descriptors
    np.testing.assert_allclose(np.linalg.norm(view.descriptors, axis=-1), 1, atol=1e-6)
    # Normalising takes away the component along the descriptor, one of 24.
    expected = 0.02 * np.sqrt(23 / 24)
    assert np.sqrt(np.mean(np.sum(off**2, -1))) == pytest.approx(expected, rel=0.02)


def test_a_covered_frame_and_unknown_depth_have_no_confidence():
    depth = slanted().copy()
    depth[4:9, 5:11] = 0
    depth[20, 20] = np.nan
    dark, light = frame(0, np.eye(4), slanted(), bright=False), frame(1, pose(0.1), depth)
    view_d, view_l = decode(RenderedGeometryPrior(GeometryNoise()), dark, light)
    assert not np.asarray(view_d.confidence).any()
    assert not np.asarray(view_d.descriptor_confidence).any()
    unknown = ~(depth > 0)
    np.testing.assert_array_equal(np.asarray(view_l.confidence) == 0, unknown)
    np.testing.assert_array_equal(np.asarray(view_l.descriptor_confidence) == 0, unknown)
    assert (np.asarray(view_l.confidence)[~unknown] > 1).all()


@pytest.mark.slow
def test_drift_is_smooth_differs_between_views_and_changes_slowly():
    prior, truth = only(drift=0.01), points_in_camera(slanted())
    one = frame(0, np.eye(4), slanted())
    # Pairs so far apart in time that they have nothing to do with one another.
    apart = 200 * np.arange(BATCH)
    views = batch(prior, one, one, apart, apart[::-1] + 77)
    first, second = (errors(view, truth) for view in views)
    both = np.concatenate([first, second])
    # A field has few degrees of freedom: as many draws as 128 fields times about two, 5 %.
    assert abs(both.std() / 0.01 - 1) < 0.2 and abs(both.mean()) < 0.002
    assert np.abs(np.diff(both, axis=2)).mean() < 0.2 * both.std()
    # It does not average out over an image: the mean over a field's less than one period keeps
    # E[sinc(2a)^2]^2 = 0.3 of the variance, a standard normal.
    assert both.mean((1, 2)).std() > 0.4 * 0.01

    def related(a, b):
        return (a * b).mean() / np.sqrt((a**2).mean() * (b**2).mean())

    assert abs(related(first, second)) < 0.3
    # Three frames later exp(-0.1^2 / 2) of it for each of the two, and 120 later nothing, is left.
    for step_1, step_2, low, high in ((3, 3, 0.97, 1.0), (0, 120, -0.3, 0.3)):
        later, _ = batch(prior, one, one, apart + step_1, apart[::-1] + 77 + step_2)
        assert low < related(first, errors(later, truth)) < high


def test_a_program_compiled_for_one_seed_serves_all():
    compiled = jax.jit(lambda prior, frame: prior.encode(frame).features)
    one = frame(3, np.eye(4), slanted())
    found = []
    for seed in (1, 2):
        prior = RenderedGeometryPrior(GeometryNoise(seed=seed))
        found.append(np.asarray(compiled(prior, one)))
        # Compiled as a whole or one by one, sums round differently.
        np.testing.assert_allclose(found[-1], prior.encode(one).features, atol=1e-5)
    assert compiled._cache_size() == 1
    assert np.abs(found[0] - found[1]).max() > 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drift": -0.1}, r"noise\.drift=-0\.1 must be at least 0"),
        ({"feature": 1.0}, r"noise\.feature=1 must be at least 0 and below 1"),
        ({"seed": -1}, r"noise\.seed=-1 must be at least 0"),
    ],
)
def test_impossible_noise_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GeometryNoise(**values)


@functools.cache
def network() -> MASt3R:
    """A MASt3R of 0.7 million parameters, read from a checkpoint in the published layout."""
    tensors = load_tensors(DATA / "network" / "tiny_official_layout.pth")
    return convert_mast3r(tensors, infer_config(tensors, enc_heads=2, dec_heads=1))


def test_both_priors_are_two_view_priors():
    assert isinstance(EXACT, TwoViewPrior) and isinstance(MASt3RPrior(network()), TwoViewPrior)


def every_byte():
    """An image with every value of a byte in every channel."""
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    return np.stack([values, values[::-1], values[:, ::-1]], -1)


def test_the_network_gets_the_image_as_it_was_trained(monkeypatch):
    rgb = every_byte()
    prepared = prepare_image(rgb, WIDTH)
    np.testing.assert_array_equal(prepared.rgb, rgb)
    got = []

    def encode(self, images):
        got.append(images)
        return jnp.zeros((1, 6, 8))

    monkeypatch.setattr(MASt3R, "encode", encode)
    prior = MASt3RPrior(network())
    image = frame(0, np.eye(4), slanted()).replace(image=jnp.asarray(rgb))
    encoding = prior.encode(image)
    assert encoding.image_shape == (HEIGHT, WIDTH) and encoding.features.shape == (6, 8)
    assert got[0].shape == (1, HEIGHT, WIDTH, 3)

    def pixels(image):
        prior.encode(image)
        return got[-1][0]

    # XLA may divide by multiplying: one unit in the last place of numbers up to 1.
    for found in (got[0][0], jax.jit(pixels)(image)):
        np.testing.assert_allclose(found, prepared.pixels, rtol=0, atol=1.2e-7)


@pytest.mark.slow
def test_wrapping_the_network_changes_nothing():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    prior = MASt3RPrior(network())

    def wrapped(prior, frames):
        one, two = (jax.tree.map(lambda x: x[None], prior.encode(f)) for f in frames)
        return prior.decode(one, two)

    frames = [frame(i, np.eye(4), slanted()).replace(image=jnp.asarray(rgb[i])) for i in (0, 1)]
    found = jax.jit(wrapped)(prior, frames)
    pixels = [jnp.asarray(prepare_image(x, WIDTH).pixels)[None] for x in rgb]
    expected = jax.jit(lambda model, a, b: model(a, b))(network(), *pixels)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        # Two programs of the same arithmetic; the goldens' tolerance (tests/mast3r_jax).
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)


@pytest.mark.slow
def test_what_is_stored_of_a_keyframe_decodes_to_the_same_bits():
    """A network in bfloat16 rounds tokens before all else: stored like that, nothing is lost."""
    model = MASt3R(network().config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    prior = MASt3RPrior(model)
    encoding = prior.encode(frame(0, np.eye(4), slanted()).replace(image=jnp.asarray(every_byte())))
    assert encoding.features.dtype == jnp.float32, "retrieval reads what rounding would bury"
    stored = keep(prior, encoding)
    assert stored.features.dtype == jnp.bfloat16 and stored.image_shape == encoding.image_shape
    decode = jax.jit(lambda prior, e: prior.decode(e, e))

    def batch(encoding):
        return jax.tree.map(lambda x: x[None], encoding)

    full, rounded = decode(prior, batch(encoding)), decode(prior, batch(stored))
    jax.tree.map(np.testing.assert_array_equal, full, rounded)


@pytest.mark.parametrize("dtype, keyframe", [(jnp.bfloat16, 4.72e6), (jnp.float32, 6.292e6)])
def test_bytes_of_a_map(dtype, keyframe):
    """At 512x384, of the published network: points, confidences and tokens; 1.2 MB a factor."""
    model = nnx.eval_shape(
        lambda: MASt3R(MASt3RConfig.vit_large(), rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    )
    config = SlamConfig(size=512, keyframe_capacity=10, edge_capacity=10)
    first = Frame(
        index=jnp.int32(0), timestamp=jnp.float32(0), image=np.zeros((384, 512, 3), np.uint8)
    )
    state = jax.eval_shape(lambda p, f: init_state(p, config, f), MASt3RPrior(model), first)

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 10

    assert size(state.keyframes) == pytest.approx(keyframe, rel=1e-3)
    assert size(state.graph) == pytest.approx(1.204e6, rel=1e-3)
