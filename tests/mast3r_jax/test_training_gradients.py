"""Gradients of the whole network's training loss against the original's (``network/tiny_grad``)."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from mast3r_jax import MASt3R, losses
from mast3r_jax.checkpoint import parameter_specs
from tests.conftest import DATA
from tests.data.network import formula
from tests.mast3r_jax.golden_losses import targets
from tests.mast3r_jax.golden_network import TINY, tiny_network, tiny_tensors
from tests.quick import quick_jit
from weights_conversion.convert import Assignment, plan_conversion
from weights_conversion.rules import canonical

EXPECTED = json.loads((DATA / "network" / "tiny_grad.json").read_text())
TOLERANCE = 1e-3
"""Of a tensor's norm; the original's float32 is within 1.2e-4 of its own float64."""


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(DATA / "network" / "tiny_grad.npz") as archive:
        return dict(archive)


def training_loss(model: MASt3R, images, regression, matching):
    predictions = model(*images)
    first, _ = losses.confident_regression(*predictions, *regression)
    second, _ = losses.matching_infonce(*predictions, *matching)
    return first + 0.075 * second, (first, second)


@functools.cache
def gradients():
    """The loss, its two parts, and our gradient of every parameter by dotted name."""
    views = [EXPECTED["view1_images"], EXPECTED["view2_images"]]
    images = [np.stack([formula.image(seed, 64, 96) for seed in seeds]) for seeds in views]
    function = quick_jit(jax.value_and_grad(training_loss, has_aux=True))
    (loss, parts), found = function(
        tiny_network(), tuple(map(jax.numpy.asarray, images)), *targets(arrays())
    )
    flat = nnx.to_flat_state(nnx.state(found, nnx.Param))
    by_name = {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}
    return float(loss), tuple(map(float, parts)), by_name


@functools.cache
def assignments() -> dict[str, Assignment]:
    """Where the parameter of a published name went, by its one canonical name."""
    return {canonical(a.source): a for a in plan_conversion(tiny_tensors(), TINY)}


def of_published(name: str) -> tuple[np.ndarray, Assignment]:
    """Our gradient for a published parameter, in our layout, which only reorders its axes."""
    assignment = assignments()[canonical(name)]
    return gradients()[2][assignment.target][assignment.index], assignment


@pytest.mark.slow
def test_loss_matches_the_original():
    loss, parts, _ = gradients()
    expected = EXPECTED["loss"]
    np.testing.assert_allclose(loss, expected["fp64_total"], rtol=2e-6)
    np.testing.assert_allclose(parts, [expected["conf_regr"], expected["conf_match"]], rtol=2e-6)


@pytest.mark.slow
def test_every_gradient_has_the_originals_norm_and_projection():
    """``probe_dot`` is the inner product with a tensor drawn from the parameter's name.

    An error of TOLERANCE in a random direction changes it by TOLERANCE times the probe's RMS.
    """
    failures = []
    for name, expected in EXPECTED["gradients"].items():
        if expected is None:
            continue
        found, assignment = of_published(name)
        found = found.astype(np.float64)
        probe = formula.weight(name, tiny_tensors()[name].shape, "probe/")
        size = TOLERANCE * expected["norm"]
        dot = np.sum(found * assignment.layout.apply(probe))
        off = abs(np.linalg.norm(found) - expected["norm"]) / size
        turned = abs(dot - expected["probe_dot"]) / size / np.sqrt(np.mean(np.square(probe)))
        if not max(off, turned) <= 1:
            failures.append(f"{name}: norm {off:.2g}, projection {turned:.2g} of the tolerance")
    assert not failures, failures


@pytest.mark.parametrize("name", [k[5:] for k in arrays() if k.startswith("grad/")])
def test_gradient_matches_the_original(name):
    found, assignment = of_published(name)
    expected = assignment.layout.apply(arrays()[f"grad/{name}"])
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)


def test_we_have_exactly_the_parameters_that_the_original_uses():
    used = {canonical(name) for name, value in EXPECTED["gradients"].items() if value is not None}
    assert used == set(assignments())
    specs = parameter_specs(TINY)
    assert sum(np.prod(spec.shape) for spec in specs.values()) == sum(
        tiny_tensors()[a.source].size for a in assignments().values()
    )
    by_name = gradients()[2]
    assert {name: value.shape for name, value in by_name.items()} == {
        name: spec.shape for name, spec in specs.items()
    }
    assert all(np.any(value) for value in by_name.values())
