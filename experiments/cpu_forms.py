"""Computations that have a form for CPUs and one for accelerators: both of them, timed here.

    python -m experiments.cpu_forms [--size 512 384] [--repeats 20]

- ``attention`` of the small network's encoder: scores laid out keys first, or queries first
  (``mast3r_jax.attention``);
- ``rays``, ``pixels``: normal equations of six edges, the columns of their rows written where they
  belong, or stacked (``ops.edge_system.factors``).

The two forms take turns, so that a disturbance hits both alike. Prints milliseconds of a call
without compilation: median, and first to third quartile. Exit status 1 if two forms do not come to
the same.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import inputs
from experiments.bench.timing import compiled, quartiles, take_turns
from mast3r_jax import MASt3RConfig
from mast3r_jax.attention import plain_attention
from mast3r_jax.layers import Numerics
from ops import Edges, PixelFactorConfig, RayFactorConfig, Sim3
from ops.edge_system import factors, linearize_edges

EDGES = 6
Call = Callable[[], Any]
"""A compiled form with its inputs."""


@dataclasses.dataclass(frozen=True)
class CPUForms:
    """Time both forms."""

    size: tuple[int, int] = (512, 384)
    """Width and height of the images."""
    repeats: int = 20
    """Rounds of each comparison."""

    def execute(self) -> int:
        """Prints the table; the exit status."""
        print(f"jax {jax.__version__}, {jax.default_backend()}, {self.size[0]}x{self.size[1]}: ms")
        differ = False
        for name, forms in self.stages():
            results = [np.asarray(call()) for call in forms.values()]
            error = np.abs(results[1] - results[0]).max() / np.abs(results[0]).max()
            differ |= not error < 1e-4
            for form, samples in take_turns(forms, self.repeats, seconds=60.0).items():
                low, middle, high = quartiles(samples.ms)
                print(f"{name:10s} {form:14s} {middle:8.2f} {low:8.2f} to {high:.2f}")
            print(f"{'':10s} differ by {error:.1g} of the largest number")
        return int(differ)

    def stages(self) -> Iterator[tuple[str, dict[str, Call]]]:
        """Name of every computation, and its two forms."""
        yield "attention", self.attention()
        graph = inputs.graph(self.size, 4)
        yield "rays", self.edges(graph, RayFactorConfig())
        yield "pixels", self.edges(graph, PixelFactorConfig())

    def attention(self) -> dict[str, Call]:
        """Of an image's tokens with themselves."""
        small = MASt3RConfig.small()
        tokens = self.size[0] * self.size[1] // small.patch_size**2
        shape = (3, 1, tokens, small.enc_heads, small.enc_dim // small.enc_heads)
        qkv = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        attend = functools.partial(plain_attention, numerics=Numerics.of(None, None))
        return {
            "keys first": compiled(functools.partial(attend, keys_first=True), *qkv)[0],
            "queries first": compiled(functools.partial(attend, keys_first=False), *qkv)[0],
        }

    def edges(
        self, graph: inputs.Graph, config: RayFactorConfig | PixelFactorConfig
    ) -> dict[str, Call]:
        """Of a walk through a room."""
        some, points = jax.tree.map(lambda x: x[:EDGES], graph.edges), graph.points
        if isinstance(config, PixelFactorConfig):
            points = inputs.constrained(points, graph.K, self.size)

        def form(columns: Callable[..., jax.Array]) -> Call:
            def hessians(T_WC: Sim3, points: Any, confidence: Any, edges: Edges) -> jax.Array:
                shape = self.size[1], self.size[0]
                blocks = linearize_edges(T_WC, points, confidence, edges, config, graph.K, shape)
                return blocks.hessian

            # A function of its own, which JAX has not traced yet.
            with mock.patch.object(factors, "_in_memory", columns):
                return compiled(hessians, graph.start, points, graph.confidence, some)[0]

        return {"written": form(factors._written), "stacked": form(factors._joined)}


if __name__ == "__main__":
    sys.exit(tyro.cli(CPUForms).execute())
