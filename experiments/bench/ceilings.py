"""What the machine can do at best: copying memory, and products of large matrices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import Samples, take_turns


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Best figures of one machine, measured in one go."""

    copy_gb_per_s: float
    """Bytes read and written by copying an array that no cache holds, 1e9 a second."""
    gflop_per_s: dict[str, float]
    """By dtype, 1e9 additions and multiplications a second in a product of two matrices."""
    samples: dict[str, Samples]
    """What that was measured by: the best call counts."""

    def floor_ms(self, operations: float, moved: float, dtype: str) -> dict[str, float]:
        """Milliseconds that so many operations, and so many bytes, take at least."""
        return {
            f"{dtype} product": operations / self.gflop_per_s[dtype] / 1e6,
            "copy": moved / self.copy_gb_per_s / 1e6,
        }

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "copy_gb_per_s": self.copy_gb_per_s,
            "gflop_per_s": self.gflop_per_s,
            "samples": {name: samples.to_json() for name, samples in self.samples.items()},
        }


def measure_ceilings(*, quick: bool = False, seconds: float = 2.0) -> Ceilings:
    """Measure them on the default device.

    Products are jax's, in float32 and float64 and, on a GPU, bfloat16; float32 means float32 (no
    TF32). Copying is the faster of two ways: a number added to all of an array in its own memory,
    and, on a CPU, numpy's copy from one array to another.
    """
    on_gpu = jax.default_backend() == "gpu"
    n = 128 if quick else 8192 if on_gpu else 1536
    copied = (1 if quick else 256 if not on_gpu else 1024) * 2**20
    calls: dict[str, Callable[[], Any]] = {"add in place": _InPlace(copied // 4)}
    if not on_gpu:
        source, target = np.ones(copied // 8), np.zeros(copied // 8)
        calls["numpy copy"] = functools.partial(np.copyto, target, source)
    copies = take_turns(calls, 5 if quick else 20, seconds)
    products = {}
    for dtype in ("float32", "float64", *(["bfloat16"] if on_gpu else [])):
        with jax.enable_x64(dtype == "float64"):
            products[dtype] = take_turns({dtype: _Product(n, dtype)}, 5 if quick else 20, seconds)
    samples = {**copies, **{f"{d} product": made[d] for d, made in products.items()}}
    return Ceilings(
        copy_gb_per_s=2 * copied / min(min(s.ms) for s in copies.values()) / 1e6,
        gflop_per_s={d: 2 * n**3 / min(made[d].ms) / 1e6 for d, made in products.items()},
        samples=samples,
    )


class _InPlace:
    """Adds to an array whose memory it keeps: fresh memory would be paid for page by page."""

    def __init__(self, count: int) -> None:
        self.array = jnp.zeros(count, jnp.float32)
        self.add = jax.jit(lambda a: a + 1, donate_argnums=0)

    def __call__(self) -> None:
        self.array = jax.block_until_ready(self.add(self.array))


class _Product:
    """The product of a matrix with itself."""

    def __init__(self, n: int, dtype: str) -> None:
        self.matrix = jnp.ones((n, n), dtype)
        self.x64 = dtype == "float64"
        precision = "default" if dtype == "bfloat16" else "highest"
        self.multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))

    def __call__(self) -> None:
        with jax.enable_x64(self.x64):
            jax.block_until_ready(self.multiply(self.matrix, self.matrix))
