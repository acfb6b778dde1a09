"""Which implementation runs: read from the lowered program."""

import re

import jax
import jax.numpy as jnp
import pytest

from ops import RayFactorConfig, Sim3, kernels
from ops.edge_system import Edges, linearize_edges
from ops.kernels import Block, Measurement
from ops.matching import match
from tests.ops.cuda import CARD, lowered

H, W = 12, 16
NAMES = {"project": "project_kernel", "refine_matches": "refine_kernel",
         "linearize_edges": "edge_kernel"}  # fmt: skip


def everything(implementation, dtype=jnp.float32):
    """A function that uses every kernel, and the shapes of its arguments."""

    def run(points, descriptors, poses, index):
        matches = match(points, points, descriptors, descriptors, implementation=implementation)
        ends = jnp.arange(2, dtype=jnp.int32)
        edges = Edges(
            ends,
            1 - ends,
            index,
            jnp.ones(index.shape, bool),
            jnp.ones(index.shape, points.dtype),
            jnp.ones(2, bool),
        )
        views = jnp.stack([points, points]).reshape(2, H * W, 3)
        blocks = linearize_edges(
            Sim3(poses),
            views,
            views[..., 2],
            edges,
            RayFactorConfig(),
            implementation=implementation,
        )
        return matches, blocks

    return run, (
        jax.ShapeDtypeStruct((H, W, 3), dtype),
        jax.ShapeDtypeStruct((H, W, 24), dtype),
        jax.ShapeDtypeStruct((2, 8), dtype),
        jax.ShapeDtypeStruct((2, H * W), jnp.int32),
    )


def used(implementation, platform):
    """The kernels in a lowered program, each with its number of warps."""
    function, shapes = everything(implementation)
    text = lowered(function, *shapes, platform=platform)
    calls = re.findall(r'name = "(\w+)", num_stages = \d+ : i32, num_warps = (\d+)', text)
    assert len(calls) == text.count("__gpu$xla.gpu.triton(")
    return {name: int(warps) for name, warps in calls}


@pytest.fixture
def on_a_card(monkeypatch):
    monkeypatch.setattr(kernels, "card", lambda: CARD)


@pytest.fixture
def measured(monkeypatch):
    """A table in which two kernels won on one card, and one elsewhere or with other inputs."""
    block = Block(pixels=32, num_warps=1)
    table = [
        Measurement(kernel, kind, card, "2026-01-01", block, kernel_ms=1.0, xla_ms=2.0)
        for kernel, kind, card in (
            ("project", "float32", CARD),
            ("linearize_edges", "rays", CARD),
            ("refine_matches", "float32", "NVIDIA A100-SXM4-80GB"),
            ("refine_matches", "bfloat16", CARD),
        )
    ]
    monkeypatch.setattr(kernels, "MEASURED", tuple(table))


DEFAULT_WARPS = {name: kernels.DEFAULT_BLOCKS[kernel].num_warps for kernel, name in NAMES.items()}


def test_without_a_measurement_no_kernel_is_chosen(on_a_card, monkeypatch):
    monkeypatch.setattr(kernels, "MEASURED", ())
    assert used(None, "cuda") == used("xla", "cuda") == {}
    assert used("pallas", "cuda") == DEFAULT_WARPS


def test_kernels_are_chosen_where_they_won(on_a_card, measured):
    won = {"project_kernel": 1, "edge_kernel": 1}
    assert used(None, "cuda") == won
    assert used(None, "cpu") == {}  # the same trace, lowered for where there are no kernels
    assert used("xla", "cuda") == {}
    assert used("pallas", "cuda") == DEFAULT_WARPS | won


def test_a_table_is_of_no_use_without_its_card(measured, monkeypatch):
    assert used(None, "cuda") == {}
    monkeypatch.setattr(kernels, "card", lambda: "NVIDIA H100 PCIe")
    assert used(None, "cuda") == {}


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_named_kernel_that_cannot_run_is_refused():
    with pytest.raises(NotImplementedError, match=r'CUDA GPU.* cpu; use implementation="xla"'):
        used("pallas", "cpu")


def test_arrays_a_kernel_does_not_take(on_a_card, measured):
    with jax.enable_x64(True):
        function, shapes = everything("pallas", jnp.float64)
        with pytest.raises(NotImplementedError, match="points of float64, it takes float32"):
            lowered(function, *shapes)
        function, shapes = everything(None, jnp.float64)
        assert "gpu.triton" not in lowered(function, *shapes)


def test_what_does_not_belong_into_the_table():
    block = Block(pixels=64, num_warps=2)
    for date, xla_ms in (("2026-01-01", 1.0), ("2026-01-01", float("nan")), ("1 January", 2.0)):
        with pytest.raises(ValueError, match=r"XLA is faster|isoformat"):
            Measurement("project", "float32", CARD, date, block, kernel_ms=1.0, xla_ms=xla_ms)
    for pixels, rounds in ((96, 1), (0, 1), (64, 0)):
        with pytest.raises(ValueError, match="power of two"):
            Block(pixels, num_warps=2, rounds=rounds)
    keys = [(m.kernel, m.kind, m.card) for m in kernels.MEASURED]
    assert len(keys) == len(set(keys))
