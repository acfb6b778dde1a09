"""The kernels' parity check: it holds for the kernels, and not for what is wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import kernel_parity
from experiments.kernel_parity import cases, check_and_time
from ops.kernels import Block, Measurement

SIZE = (32, 24)
BLOCK = Block(pixels=256, num_warps=4)


def all_cases():
    return {case.name: case for case in cases(SIZE, 3, 4)}


@pytest.mark.slow
def test_a_kernel_and_one_that_is_wrong():
    case = all_cases()["projection"]
    right = check_and_time(case, [BLOCK], interpret=True)
    assert right["holds"] and right["xla_ms"] > 0 and right["kernel_ms"] < np.inf
    assert Block(**right["best"]) == BLOCK

    def beside(*arguments, **options):
        uv, converged = case.pallas(*arguments, **options)
        return uv + 0.01, converged

    wrong = check_and_time(dataclasses.replace(case, pallas=beside), [BLOCK], interpret=True)
    assert not wrong["holds"]


def test_an_entry_of_the_table_can_be_pasted(monkeypatch):
    monkeypatch.setattr(kernel_parity, "card", lambda: "a card")
    case, block = all_cases()["edges, rays"], Block(64, 2, rounds=128)
    entry = kernel_parity._entry(case, block, 0.5, 1.0)
    (measurement,) = eval(f"({entry})")
    assert isinstance(measurement, Measurement) and measurement.block == block
    assert (measurement.kernel, measurement.kind) == ("linearize_edges", "rays")
    assert measurement.card == "a card" and measurement.kernel_ms < measurement.xla_ms
    assert kernel_parity._entry(case, block, 1.0, 0.5).startswith("#")
    assert kernel_parity._entry(case, None, np.inf, 0.5).startswith("#")


def test_matches_that_differ_by_more_than_rounding():
    case = all_cases()["refinement, float16"]
    expected = case.definition(*case.arguments)
    assert case.compare(np.asarray(expected), np.asarray(expected))["holds"]
    elsewhere = np.array(jnp.roll(expected, 40))
    figures = case.compare(elsewhere, np.asarray(expected))
    assert figures["differ"] > 0.5 and figures["not_by_rounding"] > 100 and not figures["holds"]
