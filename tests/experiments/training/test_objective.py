"""The training objective: the original's loss, figures by numpy, and a network under it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.objective import ObjectiveConfig, judge, median_where, objective
from experiments.training.types import PairBatch
from mast3r_jax import Pointmap
from tests.mast3r_jax.golden_network import tiny_network
from tests.mast3r_jax.test_losses import CASES, arrays, inputs
from tests.quick import quick_jit

EVERY_PIXEL = ObjectiveConfig(figure_stride=1)


@quick_jit
def judged(predictions, batch):
    """Loss, figures (of all pixels) and gradient of predictions."""

    def loss(predictions):
        return judge(predictions[0], predictions[1], batch, EVERY_PIXEL)

    return jax.value_and_grad(loss, has_aux=True)(predictions)


def golden_batch(name: str) -> tuple[tuple[Pointmap, Pointmap], PairBatch]:
    """A golden case without sky: predictions and a batch."""
    predictions, regression, matching = inputs(arrays(name))
    points_1, points_2, valid_1, valid_2, metric, *sky = regression
    assert not any(np.any(s) for s in sky)
    batch, height, width, _ = points_1.shape
    blank = jnp.zeros((batch, height, width, 3))
    return predictions, PairBatch(
        images_1=blank,
        images_2=blank,
        points_1=points_1,
        points_2=points_2,
        valid_1=valid_1,
        valid_2=valid_2,
        pixels_1=matching[0],
        pixels_2=matching[1],
        matched=matching[2],
        metric=metric,
        T_12=jnp.tile(jnp.eye(4), (batch, 1, 1)),
    )


@pytest.mark.parametrize("name", ["b", "e"])
def test_loss_is_the_originals(name):
    predictions, batch = golden_batch(name)
    (loss, figures), gradients = judged(predictions, batch)
    values, details = CASES[name]["values"], CASES[name]["details"]
    np.testing.assert_allclose(loss, values["total"], rtol=2e-6)
    np.testing.assert_array_equal(figures.loss, loss)
    np.testing.assert_allclose(figures.matching, values["conf_match"], rtol=2e-6)
    np.testing.assert_allclose(figures.infonce, details["MatchingLoss"], rtol=2e-6)
    np.testing.assert_allclose(figures.regression, values["conf_regr"], rtol=1e-5)
    case = arrays(name)
    for view, gradient in enumerate(gradients, 1):
        for ours, key, weight in (
            ("points", "grad_regr/pts3d", 1),
            ("confidence", "grad_regr/conf", 1),
            ("descriptors", "grad_match/desc", 0.075),
            ("descriptor_confidence", "grad_match/desc_conf", 0.075),
        ):
            expected = weight * case[f"{key}_{view}"]
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(getattr(gradient, ours), expected, atol=tolerance, rtol=0)


def relative_by_numpy(predictions, batch):
    """Relative errors of valid pixels of both views, and each pair's ratio of mean distances."""
    views = [(predictions[v].points, *truth_of(batch, v)) for v in (0, 1)]
    views = [tuple(np.asarray(a, np.float64) for a in view) for view in views]
    errors, ratios = [[], []], []
    for pair in range(len(batch.metric)):
        valid = [view[2][pair] > 0 for view in views]
        means = [
            np.mean(
                np.concatenate(
                    [
                        np.linalg.norm(view[i][pair][mask], axis=-1)
                        for view, mask in zip(views, valid, strict=True)
                    ]
                )
            )
            for i in (0, 1)
        ]
        ratios.append(means[0] / means[1])
        for view, mask, into in zip(views, valid, errors, strict=True):
            predicted, true = view[0][pair][mask] / means[0], view[1][pair][mask] / means[1]
            distance = np.linalg.norm(true, axis=-1)
            into.append(np.linalg.norm(predicted - true, axis=-1) / distance)
    return [np.concatenate(e) for e in errors], np.array(ratios)


def truth_of(batch: PairBatch, view: int):
    return ((batch.points_1, batch.valid_1), (batch.points_2, batch.valid_2))[view]


def test_figures_match_numpy():
    predictions, batch = golden_batch("b")
    batch = batch.replace(metric=jnp.asarray([True, False]))
    (_, figures), _ = judged(predictions, batch)
    errors, ratios = relative_by_numpy(predictions, batch)
    for view, error in enumerate(errors):
        name = f"error_{view + 1}"
        np.testing.assert_allclose(getattr(figures, f"mean_{name}"), error.mean(), rtol=1e-5)
        np.testing.assert_allclose(getattr(figures, f"median_{name}"), np.median(error), rtol=1e-5)
        valid = np.asarray(truth_of(batch, view)[1])
        confidence = np.asarray(predictions[view].confidence)[valid].mean()
        np.testing.assert_allclose(getattr(figures, f"confidence_{view + 1}"), confidence, 1e-5)
    np.testing.assert_allclose(figures.scale_error, abs(np.log(ratios[0])), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_median_of_the_valid(count):
    values = np.random.default_rng(count).standard_normal(5).astype(np.float32)
    mask = np.arange(5) < count
    expected = np.median(values[mask]) if count else 0
    assert float(median_where(jnp.asarray(mask), jnp.asarray(values))) == np.float32(expected)


def test_what_is_not_valid_reaches_neither_figures_nor_gradient():
    predictions, batch = golden_batch("b")
    clean = judged(predictions, batch)
    place = tuple(np.argwhere(~np.asarray(batch.valid_1))[0])
    bad = batch.replace(points_1=batch.points_1.at[place].set(jnp.nan))
    far = predictions[0].replace(
        points=predictions[0].points.at[place].set(jnp.inf),
        confidence=predictions[0].confidence.at[place].set(jnp.nan),
    )
    found = judged((far, predictions[1]), bad)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@pytest.mark.slow
def test_objective_is_the_judgement_of_the_networks_output():
    rng = np.random.default_rng(0)
    shape = (1, 32, 48)
    points = [jnp.asarray(rng.uniform(1, 2, (*shape, 3)), jnp.float32) for _ in "12"]
    images = [jnp.asarray(rng.uniform(-1, 1, (*shape, 3)), jnp.float32) for _ in "12"]
    pixels = jnp.asarray(rng.integers(0, 32, (1, 20, 2)), jnp.int32)
    batch = PairBatch(
        images_1=images[0],
        images_2=images[1],
        points_1=points[0],
        points_2=points[1],
        valid_1=jnp.ones(shape, bool),
        valid_2=jnp.ones(shape, bool),
        pixels_1=pixels,
        pixels_2=pixels,
        matched=jnp.ones((1, 20), bool),
        metric=jnp.ones(1, bool),
        T_12=jnp.eye(4)[None],
    )
    config = ObjectiveConfig(match_weight=0.5)

    @quick_jit
    def both(model, batch):
        first, second = model(batch.images_1, batch.images_2)
        return objective(model, batch, config), judge(first, second, batch, config)

    found, expected = both(tiny_network(), batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    loss, figures = found
    np.testing.assert_allclose(loss, figures.regression + 0.5 * figures.matching, rtol=1e-6)
    for name, figure in figures.__dict__.items():
        assert figure.shape == () and figure.dtype == jnp.float32 and np.isfinite(figure), name
