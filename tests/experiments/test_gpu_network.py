"""The measurement of the network, with a card that is made up: nothing of cuDNN's runs."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mast3r_jax.attention
from experiments import gpu_network
from experiments.gpu_network import network
from mast3r_jax.checkpoint import build, parameter_specs
from tests.mast3r_jax.golden_network import tiny_network

SIZE = (64, 48)


def drawn(config, *, rngs, **dtypes):
    """A network drawn by numpy, for which nothing is compiled."""
    specs, rng = parameter_specs(config, **dtypes), np.random.default_rng(0)
    return build(config, lambda name: rng.normal(0, 0.1, specs[name].shape), **dtypes)


FUSED = 1.5


def traced_only(function, *arguments, **options):
    """Ones, in the shapes of what a function would return, and times that nobody took.

    With fused attention half the time, and ``FUSED`` in place of 1.
    """
    shapes = jax.eval_shape(function, *arguments)
    fused = bool(mast3r_jax.attention.CUDNN_WON)
    value, ms = (FUSED, 0.5) if fused else (1.0, 1.0)
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes), {"median_ms": ms}


@pytest.fixture
def a_card(monkeypatch):
    monkeypatch.setattr(gpu_network, "MASt3R", drawn)
    monkeypatch.setattr(gpu_network, "result_and_measured", traced_only)
    monkeypatch.setattr(gpu_network, "measured", lambda *rest: traced_only(*rest)[1])
    for module in (gpu_network, mast3r_jax.attention):
        monkeypatch.setattr(module, "card", lambda: "a card")


@pytest.fixture
def traced(monkeypatch):
    """How often fused attention was traced: what a GPU would run, and the CPU here leaves out."""
    counted = []

    def attention(queries, keys, values, implementation):
        counted.append(implementation)
        return queries

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    return counted


@pytest.fixture
def config():
    """Small, with heads of a size that cuDNN takes."""
    return dataclasses.replace(tiny_network().config, dec_depth=4, dec_heads=3)


@pytest.mark.parametrize(("value", "holds"), [(1.01, True), (1.5, False)])
def test_both_attentions_are_measured_on_a_card(a_card, traced, config, monkeypatch, value, holds):
    monkeypatch.setattr(sys.modules[__name__], "FUSED", value)
    written = []
    figures = network(SIZE, config, lambda figures: written.append(set(figures)))
    assert [len(names) for names in written] == [3, 4, 5]
    assert traced == ["cudnn"] * 3  # the encoder's, a decoder's own, and across decoders
    assert set(figures) == {"size", "bfloat16", "cudnn", "heads", "float32", "holds"}
    for name in ("tokens_differ", "descriptors_differ"):  # bfloat16 has 8 bits
        assert figures["cudnn"][name] == pytest.approx(value - 1, abs=0.004)
    assert figures["holds"] is holds and figures["cudnn"]["entry"] == 'CUDNN_WON: "a card"'
    times = [figures["cudnn"]["decode"], *figures["heads"].values(), figures["float32"]["encode"]]
    assert len(times) == 4 and all(time["median_ms"] > 0 for time in times)


def test_a_library_that_refuses_costs_no_other_figure(a_card, monkeypatch, config):
    def attention(*arrays, implementation):
        raise RuntimeError(f"{implementation} is not here")

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    figures = network(SIZE, config, lambda figures: None)
    assert "cudnn is not here" in figures["cudnn"]["failed"] and figures["holds"] is False
    assert figures["float32"]["decode"]["median_ms"] > 0


def test_tokens_that_differ_do_not_hold():
    expected = np.array([3.0, 4.0])
    assert gpu_network.relative(1.1 * expected, expected) == pytest.approx(0.1)
