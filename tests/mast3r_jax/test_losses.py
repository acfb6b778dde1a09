"""The training losses against the original's values and gradients (``network/losses.npz``)."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mast3r_jax import Pointmap, losses
from tests.conftest import DATA
from tests.mast3r_jax.golden_losses import targets
from tests.quick import quick_jit

CASES = json.loads((DATA / "network" / "losses.json").read_text())
OUTPUTS = {"points": "pts3d", "confidence": "conf"}
OUTPUTS |= {"descriptors": "desc", "descriptor_confidence": "desc_conf"}


@functools.cache
def arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(DATA / "network" / "losses.npz") as archive:
        return {k[2:]: archive[k] for k in archive.files if k.startswith(case + "/")}


def inputs(case: dict[str, np.ndarray], dtype: type = np.float32) -> tuple:
    """Both predictions, the arguments of the regression and those of the matching."""
    predictions = tuple(
        Pointmap(
            **{
                ours: jnp.asarray(case[f"pred_{theirs}_{view}"].astype(dtype))
                for ours, theirs in OUTPUTS.items()
            }
        )
        for view in (1, 2)
    )
    return predictions, *targets(case, dtype)


@quick_jit
def evaluate(predictions, regression, matching):
    """Values and gradients of both losses, and what they are made of."""

    def regress(predictions):
        return losses.confident_regression(*predictions, *regression)

    def match(predictions):
        return losses.matching_infonce(*predictions, *matching)

    points = [p.points for p in predictions]
    normalized = losses.normalize_jointly(*points, *regression[:5])
    return {
        "regression": jax.value_and_grad(regress, has_aux=True)(predictions),
        "matching": jax.value_and_grad(match, has_aux=True)(predictions),
        "normalized": normalized,
    }


@quick_jit
def per_match(predictions, pixels_1, pixels_2):
    at = [
        jnp.stack([d[p[:, 1], p[:, 0]] for d, p in zip(descriptors, pixels, strict=True)])
        for descriptors, pixels in zip(
            [p.descriptors for p in predictions], (pixels_1, pixels_2), strict=True
        )
    ]
    return losses.infonce(losses.similarities(*at), 0.05)


def worst(found, expected) -> float:
    """The largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", list(CASES))
def test_values_match_the_original(name):
    found, expected = evaluate(*inputs(arrays(name))), CASES[name]
    (regression, at_points), _ = found["regression"]
    (matching, at_matches), _ = found["matching"]
    values, details = expected["values"], expected["details"]
    weighted = at_points.weighted_1, at_points.weighted_2
    pairs = {
        "regression": (regression, values["conf_regr"], sum(opposed(arrays(name)))),
        "weighted_1": (weighted[0], details["conf_loss_1"], opposed(arrays(name))[0]),
        "weighted_2": (weighted[1], details["conf_loss2"], opposed(arrays(name))[1]),
        "error_1": (at_points.error_1, details["Regr3D_pts3d_1"], 0),
        "error_2": (at_points.error_2, details["Regr3D_pts3d_2"], 0),
        "matching": (matching, values["conf_match"], 0),
        "infonce": (at_matches.infonce, details["MatchingLoss"], 0),
        "total": (regression + 0.075 * matching, values["total"], 0),
    }
    for what, (ours, theirs, scale) in pairs.items():
        scale = max(abs(theirs), scale)
        assert abs(float(ours) - theirs) <= 2e-6 * scale, (what, float(ours), theirs)


def opposed(case: dict[str, np.ndarray]) -> list[float]:
    """For each view, the mean size of the two terms that its regression loss is a difference of.

    They nearly cancel in case e, where rounding them changes the original's own loss by 1.4e-6.
    """
    sizes = []
    for view in (1, 2):
        counted, confidence = case[f"counted_mask_{view}"], case[f"pred_conf_{view}"]
        terms = confidence * case[f"pixel_loss_{view}"] + 0.2 * np.log(confidence)
        sizes.append(float(terms[counted].mean()))
    return sizes


def test_values_match_the_original_in_double_precision():
    @quick_jit
    def values(predictions, regression, matching):
        return (
            losses.confident_regression(*predictions, *regression)[0],
            losses.matching_infonce(*predictions, *matching)[0],
        )

    with jax.enable_x64(True):
        for name, case in CASES.items():
            found = values(*inputs(arrays(name), np.float64))
            assert found[0].dtype == found[1].dtype == jnp.float64
            expected = case["fp64_values"]
            np.testing.assert_allclose(found[0], expected["conf_regr"], rtol=1e-13)
            np.testing.assert_allclose(found[1], expected["conf_match"], rtol=1e-13)


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_match_the_original(name):
    case = arrays(name)
    found = evaluate(*inputs(case))
    for loss, key in (("regression", "grad_regr"), ("matching", "grad_match")):
        _, gradients = found[loss]
        for view, gradient in enumerate(gradients, 1):
            for ours, theirs in OUTPUTS.items():
                expected = case.get(f"{key}/{theirs}_{view}")
                if expected is None:  # not connected
                    assert not np.any(getattr(gradient, ours)), (loss, ours, view)
                else:
                    assert worst(getattr(gradient, ours), expected) <= 1e-5, (loss, ours, view)


@pytest.mark.parametrize("name", list(CASES))
def test_parts_match_the_original(name):
    """Normalised points where valid, every counted pixel's error, every match's InfoNCE."""
    case = arrays(name)
    predictions, regression, matching = inputs(case)
    points, truth = evaluate(predictions, regression, matching)["normalized"]
    for view in (1, 2):
        valid, sky = case[f"valid_mask_{view}"], case[f"sky_mask_{view}"]
        assert np.array_equal(valid | sky, case[f"counted_mask_{view}"])
        ours = {"pred": np.asarray(points[view - 1]), "gt": np.asarray(truth[view - 1])}
        for which, value in ours.items():
            assert worst(value[valid], case[f"norm_{which}_{view}"][valid]) <= 2e-6, (which, view)
            assert not np.any(value[~valid])
        error = np.where(valid, np.linalg.norm(ours["pred"] - ours["gt"], axis=-1), 2)
        expected = case[f"pixel_loss_{view}"]
        assert np.array_equal(np.isfinite(expected), valid | sky)
        # A distance between points near 1.
        np.testing.assert_allclose(error[valid | sky], expected[valid | sky], rtol=1e-6, atol=1e-6)
    matched = matching[-1]
    found = np.asarray(per_match(predictions, *matching[:2]))
    # Logits reach 20, where one rounding of a product is 1e-6.
    np.testing.assert_allclose(
        found[matched], case["infonce_per_match"][matched], rtol=1e-6, atol=3e-6
    )


def test_blocks_of_matches_are_a_larger_batch():
    """The original's shuffled blocks: the pair repeated, each with its share of the matches."""
    case, expected = arrays("e"), CASES["e"]["block"]
    predictions, _, matching = inputs(case)
    blocks = len(case["block_perm"][0]) // expected["blocksize"]
    shares = [
        jnp.asarray(np.asarray(a)[0, case["block_perm"][0]]).reshape(blocks, -1, *a.shape[2:])
        for a in matching
    ]

    @quick_jit
    def loss(predictions):
        repeated = jax.tree.map(lambda x: jnp.repeat(x, blocks, axis=0), predictions)
        return jax.value_and_grad(lambda p: losses.matching_infonce(*p, *shares)[0])(repeated)

    value, gradients = loss(predictions)
    assert abs(float(value) - expected["value"]) <= 2e-6 * expected["value"]
    for view, gradient in enumerate(gradients, 1):
        for ours, theirs in (("descriptors", "desc"), ("descriptor_confidence", "desc_conf")):
            summed = np.asarray(getattr(gradient, ours)).sum(axis=0, keepdims=True)
            assert worst(summed, case[f"grad_block_match/{theirs}_{view}"]) <= 1e-5


def finite(tree) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_does_not_count_is_not_read(poison):
    """NaN or infinity in one pixel that does not count changes nothing at all."""
    predictions, regression, matching = inputs(arrays("a"))
    # Descriptors are compared wherever they are sampled, so a bad one may not be.
    sampled = [np.zeros(regression[2].shape, bool) for _ in "12"]
    for marked, pixels in zip(sampled, np.asarray(matching[:2]), strict=True):
        marked[np.arange(len(pixels))[:, None], pixels[..., 1], pixels[..., 0]] = True
    clean = evaluate(predictions, regression, matching)

    poisoned, truths = [], []
    for view in (0, 1):
        valid, sky = regression[2 + view], regression[5 + view]
        out = ~valid & ~sky & ~sampled[view]
        assert out.any()
        place = tuple(np.argwhere(out)[0])

        def bad(leaf, place=place):
            changed = np.array(leaf)
            changed[place] = poison
            return jnp.asarray(changed)

        poisoned.append(jax.tree.map(bad, predictions[view]))
        truths.append(bad(regression[view]))
    found = evaluate(tuple(poisoned), (*truths, *regression[2:]), matching)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


def test_confidence_of_what_is_no_match_is_not_read():
    predictions, regression, matching = inputs(arrays("e"))
    pixels, matched = np.asarray(matching[0]), np.asarray(matching[2])
    right = {tuple(p) for p in pixels[matched]}
    u, v = next(tuple(p) for p in pixels[~matched] if tuple(p) not in right)
    confidence = np.array(predictions[0].descriptor_confidence)
    confidence[0, v, u] = np.inf
    bad = predictions[0].replace(descriptor_confidence=jnp.asarray(confidence))
    clean = evaluate(predictions, regression, matching)["matching"]
    found = evaluate((bad, predictions[1]), regression, matching)["matching"]
    jax.tree.map(np.testing.assert_array_equal, found, clean)


def test_nothing_to_measure_costs_nothing():
    """No valid pixel, no sky, no match in the whole batch: value 0, gradient 0."""
    predictions, regression, matching = inputs(arrays("c"))
    truth, metric = regression[:2], regression[4]
    empty = [jnp.zeros_like(mask) for mask in (*regression[2:4], *regression[5:])]
    nothing = (*truth, *empty[:2], metric, *empty[2:])
    found = evaluate(predictions, nothing, (*matching[:2], np.zeros_like(matching[2])))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, 0)


def test_sky_may_be_left_out():
    """Without sky masks only valid pixels count, as with masks that are empty."""
    predictions, regression, _ = inputs(arrays("d"))
    clear = [jnp.zeros_like(mask) for mask in regression[5:]]
    without = losses.confident_regression(*predictions, *regression[:5])
    with_masks = losses.confident_regression(*predictions, *regression[:5], *clear)
    jax.tree.map(np.testing.assert_array_equal, without, with_masks)


def test_points_at_the_origin_and_exact_points_have_finite_gradients():
    predictions, regression, matching = inputs(arrays("c"))
    origin = tuple(p.replace(points=jnp.zeros_like(p.points)) for p in predictions)
    assert finite(evaluate(origin, regression, matching)["regression"])

    def spoil(prediction, truth):  # the truth itself, but for one pixel that is far off
        return prediction.replace(points=truth.at[1, 0, 0].add(1.0))

    spoilt = tuple(map(spoil, predictions, regression))
    assert finite(evaluate(spoilt, regression, matching)["regression"])


def test_equal_descriptors_are_drawn_by_lot():
    """Where all descriptors agree, every probability is 1/n and the first one counts as nearest."""
    predictions, regression, matching = inputs(arrays("b"))
    same = tuple(
        p.replace(descriptors=jnp.full_like(p.descriptors, p.descriptors.shape[-1] ** -0.5))
        for p in predictions
    )
    (_, details), gradients = evaluate(same, regression, matching)["matching"]
    n = matching[0].shape[1]
    np.testing.assert_allclose(details.infonce, 2 * np.log(n), rtol=1e-6)
    np.testing.assert_allclose(details.nearest, 1 / n, rtol=1e-6)
    assert finite(gradients)


def test_nearest_counts_right_matches_of_view_1():
    case = arrays("a")
    predictions, regression, matching = inputs(case)
    (_, details), _ = evaluate(predictions, regression, matching)["matching"]
    right = []
    for b, (first, second) in enumerate(zip(matching[0], matching[1], strict=True)):
        one = case["pred_desc_1"][b, first[:, 1], first[:, 0]].astype(np.float64)
        two = case["pred_desc_2"][b, second[:, 1], second[:, 0]].astype(np.float64)
        right.append((one @ two.T).argmax(axis=1) == np.arange(len(first)))
    np.testing.assert_allclose(details.nearest, np.mean(np.array(right)[matching[2]]), rtol=1e-6)


def test_cold_softmax_and_clip_match_double_precision():
    """At temperature 0.01 the exponentials overflow float32, but not the loss."""
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-1, 1, (1, 6, 6))
    similarity[0, 0, 0] = similarity[0, 0].max() + 1e-3
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(1 / 0.01)))
    weights = np.exp(similarity / 0.01)
    expected = 0
    for axis in (1, 2):
        share = np.diagonal(weights / weights.sum(axis=axis, keepdims=True), axis1=1, axis2=2)
        assert (share < 1e-8).any() and (share > 1e-8).any()
        expected -= np.log(np.maximum(share, 1e-8))
    found, pull = jax.vjp(lambda s: losses.infonce(s, 0.01), jnp.asarray(similarity, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = np.asarray(pull(jnp.ones_like(found))[0])
    assert np.isfinite(gradient).all()


def test_order_of_matches_and_unit_of_truth_do_not_matter():
    predictions, regression, matching = inputs(arrays("b"))  # no metric pair
    reference = evaluate(predictions, regression, matching)
    order = np.random.default_rng(1).permutation(matching[0].shape[1])
    shuffled = tuple(a[:, order] for a in matching)
    scaled = (*(37 * t for t in regression[:2]), *regression[2:])
    larger = tuple(p.replace(points=3 * p.points) for p in predictions)
    found = evaluate(larger, scaled, shuffled)
    for loss in ("regression", "matching"):
        np.testing.assert_allclose(found[loss][0][0], reference[loss][0][0], rtol=2e-6)
    # Points three times as large feel a third of the pull.
    for view in (0, 1):
        before, after = (f["regression"][1][view].points for f in (reference, found))
        assert worst(3 * np.asarray(after), before) <= 1e-5
        before, after = (f["matching"][1][view].descriptors for f in (reference, found))
        assert worst(after, before) <= 1e-5


def test_metric_truth_sets_the_unit():
    """A metric prediction three times too large is wrong, by just that."""
    _, regression, _ = inputs(arrays("d"))
    three = [3 * t for t in regression[:2]]
    points, truth = losses.normalize_jointly(*three, *regression[:5])
    for ours, expected in zip(points, truth, strict=True):
        np.testing.assert_allclose(ours, 3 * np.asarray(expected), rtol=1e-6)


def test_half_precision_is_widened_first():
    predictions, regression, matching = inputs(arrays("d"))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), predictions)
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    found, expected = (evaluate(p, regression, matching) for p in (half, widened))
    for loss in ("regression", "matching"):
        (value, _), gradients = found[loss]
        (reference, _), _ = expected[loss]
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, reference, rtol=2e-6)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(gradients))
