"""Clips: the scanned step, its choices given back, and its gradient against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mast3r_jax import MASt3R, MASt3RConfig, Pointmap
from ops import MatchConfig, RayFactorConfig
from ops.records import Record, record
from slam import (
    Decisions,
    Frame,
    Mode,
    NoiseModel,
    SlamConfig,
    init_state,
    run_clip,
    trajectory_loss,
)
from slam.config import GraphConfig, TrackingConfig
from slam.losses import map_loss
from slam.priors.rendered import describe
from tests.slam import scenes

pytestmark = pytest.mark.slow

SHAPE, COUNT = (32, 48), 16
K = np.array([[36.0, 0, 23.5], [0, 36.0, 15.5], [0, 0, 1]])
TINY = MASt3RConfig(
    enc_dim=8, enc_depth=1, enc_heads=1, dec_dim=8, dec_depth=2, dec_heads=1, mlp_ratio=1.0,
    descriptor_dim=4, dpt_dim=4, dpt_last_dim=4, dpt_layer_dims=(4, 4, 4, 4),
)  # fmt: skip
CALM = {"max_iterations": 400, "rel_error": 0.0, "delta_norm": 1e-12}
CONFIG = SlamConfig(
    keyframe_capacity=4,
    edge_capacity=8,
    match=MatchConfig(max_distance=0.5),
    tracking=TrackingConfig(rays=RayFactorConfig(**CALM), keyframe_threshold=0.7),
    graph=GraphConfig(rays=RayFactorConfig(**CALM)),
)


@record
class Seen(Record):
    """True geometry of a frame, and what the network makes of its image."""

    features: jax.Array
    points_C: jax.Array
    T_WC: jax.Array


@record
class BentPrior(Record):
    """Exact geometry, bent by a network that looks at the images: poses depend on its weights."""

    model: MASt3R

    def encode(self, frame):
        image = frame.image.astype(frame.depth.dtype) / 127.5 - 1
        v, u = jnp.mgrid[0 : SHAPE[0], 0 : SHAPE[1]].astype(frame.depth.dtype)
        rays = [(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], jnp.ones_like(u)]
        points_C = frame.depth[..., None] * jnp.stack(rays, -1)
        return Seen(self.model.encode(image[None])[0], points_C, frame.T_WC)

    def decode(self, encoding_1, encoding_2):
        bent = self.model.decode(encoding_1.features, encoding_2.features, SHAPE, SHAPE)

        def view(encoding, T_1W, bend):
            points_W = jnp.einsum("bij,bhwj->bhwi", encoding.T_WC[:, :3, :3], encoding.points_C)
            points_W = points_W + encoding.T_WC[:, None, None, :3, 3]
            points = jnp.einsum("bij,bhwj->bhwi", T_1W[:, :3, :3], points_W)
            points = points + T_1W[:, None, None, :3, 3]
            return Pointmap(
                points=points * (1 + 0.02 * jnp.tanh(bend.points[..., 2:] * jnp.ones(3))),
                confidence=2 + jnp.tanh(bend.confidence),
                descriptors=jax.vmap(describe)(points_W),
                descriptor_confidence=3 + jnp.tanh(bend.descriptor_confidence),
            )

        T_1W = jnp.linalg.inv(encoding_1.T_WC)
        return view(encoding_1, T_1W, bent[0]), view(encoding_2, T_1W, bent[1])


def wide(tree):
    """Every number of a tree in double precision."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def frames(dtype=np.float64):
    rng = np.random.default_rng(0)
    clip = [
        Frame(
            index=jnp.int32(i),
            timestamp=jnp.asarray(i, dtype),
            image=jnp.asarray(rng.integers(0, 256, (*SHAPE, 3)), jnp.uint8),
            depth=jnp.asarray(scenes.depth_of(T, SHAPE, K), dtype),
            T_WC=jnp.asarray(T, dtype),
        )
        for i, T in enumerate(scenes.walk(COUNT, yaw=0.05, stride=0.04))
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *clip)


def prior():
    return BentPrior(MASt3R(TINY, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64))


ORDERED = [0, 5, 9]
"""The frames that are made keyframes."""


@functools.cache
def recorded():
    """A clip with ordered keyframes: frames, prior, state before, what came out."""
    with jax.enable_x64(True):
        clip, bent = frames(), prior()
        first = jax.tree.map(lambda x: x[0], clip)
        state = wide(init_state(bent, CONFIG, first, noise=noise_of(jnp.zeros((2, 2)))))
        order = Decisions(is_keyframe=jnp.zeros(COUNT, bool).at[jnp.asarray(ORDERED)].set(True))
        run = jax.jit(lambda *arguments: run_clip(arguments[0], CONFIG, *arguments[1:]))
        return clip, bent, state, run(bent, state, clip, order)


def noise_of(exponents):
    """The configuration's standard deviations, times e to these powers."""
    tracking, graph = (wide(part.rays.noise()) for part in (CONFIG.tracking, CONFIG.graph))
    return NoiseModel(
        tracking.replace(sigmas=tracking.sigmas * jnp.exp(exponents[0])),
        graph.replace(sigmas=graph.sigmas * jnp.exp(exponents[1])),
    )


@functools.cache
def loss_of_all():
    """The value and gradient of the trajectory and map error in the network's weights and the noise
    of measurements, all choices given; and both of them."""
    clip, bent, state, result = recorded()
    graph, weights = nnx.split(bent.model)
    slots = result.state.keyframes.frame_index
    truth = jax.vmap(lambda T, X: X @ T[:3, :3].T + T[:3, 3])(
        clip.T_WC[slots], jax.vmap(bent.encode)(clip).points_C[slots].reshape(4, -1, 3)
    )

    def loss(parameters):
        weights, exponents = parameters
        told, start = nnx.merge(graph, weights), state.replace(noise=noise_of(exponents))
        again = run_clip(BentPrior(told), CONFIG, start, clip, result.decisions, segment=2)
        error = trajectory_loss(again.trajectory(), clip.T_WC, again.placed)
        known = jnp.ones(truth.shape[:2], bool)
        return error + 0.1 * map_loss(again.state.keyframes, truth, known), again

    # One program for values and gradients: to compile another one takes longer than it saves.
    return jax.jit(jax.value_and_grad(loss, has_aux=True)), (weights, jnp.zeros((2, 2)))


def test_ordered_keyframes_are_linked_and_all_is_tracked():
    clip, _, _, result = recorded()
    assert (np.asarray(result.outputs.mode) == Mode.TRACKING).all() and result.placed.all()
    np.testing.assert_array_equal(np.flatnonzero(result.outputs.is_keyframe), ORDERED)
    assert int(result.outputs.new_links.sum()) == len(ORDERED) - 1
    with jax.enable_x64(True):
        error = float(trajectory_loss(result.trajectory(), clip.T_WC, result.placed))
    assert 1e-5 < error < 0.1  # matches are whole pixels, and a pixel is 6 cm at 2 m


def test_the_same_choices_give_the_same_clip():
    _, _, _, result = recorded()
    with jax.enable_x64(True):
        value_and_gradient, parameters = loss_of_all()
        (_, again), _ = value_and_gradient(parameters)
        np.testing.assert_allclose(
            again.trajectory().wxyz_xyz_scale, result.trajectory().wxyz_xyz_scale, atol=1e-10
        )
    for name in ("is_keyframe", "keyframe", "new_links", "mode", "match_fraction"):
        np.testing.assert_array_equal(
            getattr(again.outputs, name), getattr(result.outputs, name), name
        )


def test_gradient_of_a_clip_is_that_of_finite_differences():
    """Trajectory and map, in a network's weights and in the noise, along 8 random directions."""
    with jax.enable_x64(True):
        value_and_gradient, parameters = loss_of_all()
        _, gradient = value_and_gradient(parameters)
        h, expected, found = 1e-7, [], []  # further, some pixels cross a kink of Huber's weight
        for seed in range(8):
            rng = np.random.default_rng(seed)
            direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), parameters)  # noqa: B023
            moved = (jax.tree.map(lambda x, d: x + s * d, parameters, direction) for s in (h, -h))  # noqa: B023
            right, left = (value_and_gradient(at)[0][0] for at in moved)
            expected.append(float(right - left) / (2 * h))
            found.append(float(sum(map(jnp.vdot, *map(jax.tree.leaves, (gradient, direction))))))
        assert np.max(np.abs(expected)) > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected)))


def test_segments_divide_the_clip():
    clip, bent, state, _ = recorded()
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"16 frames do not divide .* of 5"):
        run_clip(bent, CONFIG, state, clip, segment=5)
