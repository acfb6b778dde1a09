"""What the growth experiment makes of its measurements; the measuring is the command's business."""

import math

import pytest

from experiments.growth import exponent, plot, table


def figures():
    maps = {"keyframes": [16, 64, 256], "frame_ms": [5.0, 5.0, 5.0]}
    maps |= {"query_ms": [1.0, 1.0, 2.0], "optimize_ms": [1.0, 8.0, 64.0]}
    maps |= {"state_mib": [1.0, 4.0, 16.0], "optimize_mib": [1.0, 2.0, 4.0]}
    network = {"pixels": [1e4, 4e4], "encode_ms": [1.0, 4.0], "decode_ms": [2.0, 8.0]}
    powers = {name: exponent(maps["keyframes"], maps[name]) for name in maps if name != "keyframes"}
    powers |= {name: exponent(network["pixels"], network[name]) for name in list(network)[1:]}
    return {"device": "cpu", "jax": "0", "size": (64, 48), "maps": maps, "network": network,
            "exponents": powers}  # fmt: skip


def test_exponents_are_those_of_power_laws():
    powers = figures()["exponents"]
    assert powers["frame_ms"] == pytest.approx(0, abs=1e-12)
    assert powers["optimize_ms"] == pytest.approx(1.5) and powers["state_mib"] == pytest.approx(1)
    assert exponent([1, 2, 4], [math.e, math.e, math.e]) == pytest.approx(0, abs=1e-12)


def test_table_and_plot_show_all_of_it():
    lines = table(figures()).splitlines()
    assert len(lines) == 1 + (1 + 3 + 1) + (1 + 2 + 1)
    assert "exponent" in lines[5] and "1.50" in lines[5]
    labels = [text.get_text() for axes in plot(figures()).axes for text in axes.get_legend().texts]
    assert labels[0] == "frame, exponent 0.00" or labels[0] == "frame, exponent -0.00"
    assert len(labels) == 7
