"""The learning experiments: their pieces, and each of them at toy size from rooms to plots.

Whether learning helps is for the experiments to say, at full size; here everything has to be done.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import clips, finetune_end_to_end, learn_noise, self_calibration
from experiments.clips import ClipOptions
from mast3r_jax import Pointmap
from ops import Sim3, pinhole
from slam import Decisions, NoiseModel
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.world.camera import distort

pytestmark = pytest.mark.slow

TOY = ClipOptions(frames=6, stride=4, size=(48, 32))


@pytest.fixture(scope="module")
def clip():
    """A room, and what the rendered geometry with noise says to its frames."""
    config = clips.clip_config(TOY)
    is_keyframe = clips.keyframe_at(TOY.frames, config.keyframe_capacity)
    prior = RenderedGeometryPrior(GeometryNoise(depth=0.03, seed=5))
    return clips.ask(prior, clips.film(5, TOY), is_keyframe), prior, config


def test_keyframes_come_at_even_distances_and_no_more_than_asked():
    assert np.flatnonzero(clips.keyframe_at(16, 4)).tolist() == [0, 4, 8, 12]
    assert np.flatnonzero(clips.keyframe_at(6, 4)).tolist() == [0, 2, 4]


def test_a_recorded_prior_says_what_the_prior_said_and_nothing_of_other_pairs(clip):
    made, prior, _ = clip
    recorded = clips.RecordedPrior(made.views, made.row)
    frame = [jax.tree.map(lambda x, n=n: x[n], made.frames) for n in range(6)]

    def decoded(prior, first, second):
        batch = (jax.tree.map(lambda x: x[None], prior.encode(frame[n])) for n in (first, second))
        return jax.jit(prior.decode)(*batch)

    for pair in ((0, 0), (3, 2), (2, 4)):  # the first, a frame and its keyframe, two keyframes
        for said, again in zip(decoded(prior, *pair), decoded(recorded, *pair), strict=True):
            np.testing.assert_allclose(again.points, said.points, atol=1e-5)
            np.testing.assert_array_equal(again.confidence, said.confidence)
    for view in decoded(recorded, 5, 1):
        assert not view.confidence.any() and not view.descriptor_confidence.any()


def test_confidences_are_turned_round_and_raised(clip):
    made, *_ = clip
    wrong = learn_noise.upside_down(made)
    start = learn_noise.defaults(clip[2])
    truth = start.replace(exponents=jnp.array([-1.0, -1.0]))
    for before, claimed, told in zip(
        made.views, wrong.views, learn_noise.tell(truth, wrong.views)[0], strict=True
    ):
        known = np.asarray(before.confidence) > 0
        order = np.argsort(before.confidence[known])
        assert (np.diff(np.asarray(claimed.confidence[known])[order]) <= 0).all()
        # Raised to -1, what is claimed is the truth again but for a factor.
        np.testing.assert_allclose(9 * told.confidence, before.confidence, rtol=1e-5)
        np.testing.assert_allclose(
            5 * told.descriptor_confidence, before.descriptor_confidence, rtol=1e-5
        )
        assert not (np.asarray(told.confidence)[~known]).any()
    _, noise = learn_noise.tell(start, made.views)
    rays = clip[2].tracking.rays
    np.testing.assert_allclose(noise.tracking.sigmas, [rays.sigma_ray, rays.sigma_dist], rtol=1e-6)


@pytest.fixture
def standard_promotion():
    """Optax mixes integers and numbers; all of a test, for compiled programs depend on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def a_smooth_error(monkeypatch):
    """In place of the SLAM a function of all that it is told, which compiles at once.

    That a clip has the right derivatives is shown where it is run, ``tests/slam/test_clip.py``.
    """

    def play(views, noise, clip, given, config):
        weight = jnp.stack([v.confidence * v.descriptor_confidence for v in views])
        depth = jnp.stack([v.points[..., 2] for v in views])
        error = jnp.sum(weight * (depth - 1.5) ** 2) / jnp.sum(weight)
        for trusted in (noise.tracking, noise.graph):
            error = error + 0.01 * jnp.sum(jnp.log(trusted.sigmas) ** 2)
        poses = Sim3(jnp.tile(Sim3.identity().wxyz_xyz_scale, (len(clip.is_keyframe), 1)))
        return error, Decisions(is_keyframe=clip.is_keyframe), poses

    monkeypatch.setattr(clips, "_play", play)
    for program in (clips.run, clips.trace_back):
        program.clear_cache()
    yield
    for program in (clips.run, clips.trace_back):
        program.clear_cache()


def test_learning_noise(clip, standard_promotion, a_smooth_error, tmp_path, capsys):
    made, _, config = clip
    wrong, start = learn_noise.upside_down(made), learn_noise.defaults(config)

    def error(trust):
        return float(clips.run(*learn_noise.tell(trust, wrong.views), wrong, config)[0])

    # The chain of derivatives, which is cut in two, against the difference of two runs.
    value, slope = clips.slope(learn_noise.tell, start, wrong, config)
    assert float(value) == pytest.approx(error(start), rel=1e-4)
    direction, h = np.array([1.0, -0.5], np.float32), 0.03
    for name in ("log_tracking", "log_graph", "exponents"):
        at = getattr(start, name)
        ends = [error(start.replace(**{name: at + sign * h * direction})) for sign in (1, -1)]
        along = float(jnp.vdot(getattr(slope, name), direction))
        assert along == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=0.02), name

    status = learn_noise.LearnNoise(out=tmp_path, quick=True).execute()
    numbers = json.loads((tmp_path / "learn_noise.json").read_text())
    (lesson,) = numbers["runs"]
    assert len(lesson["training_cm"]) == 5 and np.isfinite(lesson["training_cm"]).all()
    assert lesson["steps_left_out"] == 0 and lesson["found"] in capsys.readouterr().out
    unseen = numbers["unseen_cm"]
    assert status == int(not unseen["both"]["mean"] < unseen["defaults"]["mean"])
    assert (tmp_path / "learn_noise.png").read_bytes().startswith(b"\x89PNG")


def test_the_slam_has_a_derivative_in_all_that_it_is_told(clip):
    """Of the program itself, not of what stands in for it below; it is traced, not run."""
    made, _, config = clip
    views = clips.without_descriptors(made.views)
    noise = NoiseModel(config.tracking.rays.noise(), config.graph.rays.noise())
    run = functools.partial(clips.run, config=config)
    _, given, poses = jax.eval_shape(run, made.views, noise, made)
    assert poses.wxyz_xyz_scale.shape == (TOY.frames, 8)
    back = functools.partial(clips.trace_back, config=config)
    _, slopes = jax.eval_shape(back, views, noise, made, given)
    for slope, value in zip(*map(jax.tree.leaves, (slopes, (views, noise))), strict=True):
        assert slope.shape == value.shape


def test_teaching_a_network(standard_promotion, a_smooth_error, tmp_path):
    assert finetune_end_to_end.Finetune(out=tmp_path, quick=True).execute() == 0
    numbers = json.loads((tmp_path / "finetune.json").read_text())
    lessons = {lesson["method"]: lesson for lesson in numbers["lessons"]}
    assert list(lessons) == list(finetune_end_to_end.METHODS)
    for lesson in lessons.values():
        assert np.isfinite(lesson["losses"]).all() and lesson["steps_left_out"] == 0
    errors = [numbers["summary"][name]["trajectory_cm"]["mean"] for name in numbers["summary"]]
    assert np.isfinite(errors).all() and len(set(errors)) == 4  # each method led elsewhere
    assert (tmp_path / "finetune.png").read_bytes().startswith(b"\x89PNG")


def test_a_bent_pointmap_has_its_rays_and_says_nothing_of_its_errors(clip):
    views = clip[0].views
    for view, bent in zip(views, finetune_end_to_end.bent(views, 0.1), strict=True):
        known = np.asarray(view.confidence) > 0
        factor = (
            np.linalg.norm(bent.points, axis=-1)[known]
            / np.linalg.norm(view.points, axis=-1)[known]
        )
        assert 0.84 < factor.min() < factor.max() < 1.15 and np.ptp(factor) > 0.05
        crossed = np.cross(np.asarray(view.points)[known], np.asarray(bent.points)[known])
        np.testing.assert_allclose(crossed, 0, atol=1e-5)
        assert (np.asarray(bent.confidence)[known] == 2).all()


def test_an_untaught_network_corrects_nothing(clip):
    view = jax.tree.map(lambda x: x[:1], clip[0].views[0])
    network = finetune_end_to_end.Finetune()._network(0)
    same = network(view, -1.0)
    assert isinstance(same, Pointmap)
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(view), strict=True):
        np.testing.assert_array_equal(a, b)


SHAPE = (32, 48)


@pytest.mark.parametrize(("k1", "k2"), [(0.0, 0.0), (-0.2, 0.05), (0.15, -0.03)])
def test_a_lens_is_what_its_coefficients_say(k1, k2):
    lens = self_calibration.lens(40.0, k1, k2, SHAPE)
    coefficients = lens.coefficients(SHAPE)
    np.testing.assert_allclose(coefficients, [k1, k2, 0, 0], atol=2e-4)
    K, ideal = lens.intrinsics(SHAPE), lens.ideal(SHAPE)
    pixels = pinhole.pixel_grid(SHAPE)
    seen = distort((ideal - K[:2, 2]) / 40.0, coefficients) * 40.0 + K[:2, 2]
    np.testing.assert_allclose(seen, pixels, atol=1e-3)
    # The area is the determinant of the derivative of the distortion.
    at = (ideal - K[:2, 2]) / 40.0
    jacobian = jax.vmap(jax.jacfwd(lambda xy: distort(xy, coefficients)))(at)
    np.testing.assert_allclose(lens.area(SHAPE), jnp.linalg.det(jacobian), rtol=1e-4)
    focal, corner = self_calibration.errors(lens, lens, SHAPE)
    assert focal == corner == 0


def test_a_wrong_focal_length_is_told_in_percent():
    right, wrong = (self_calibration.lens(f, 0.0, 0.0, SHAPE) for f in (40.0, 44.0))
    focal, corner = self_calibration.errors(wrong, right, SHAPE)
    assert focal == pytest.approx(10.0, abs=1e-3)
    assert corner == pytest.approx(0.0, abs=1e-4)  # without distortion every pixel is where it is
