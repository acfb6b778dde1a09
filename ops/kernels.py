"""Who computes an operation that has a kernel for GPUs, and in what blocks its kernel runs.

``implementation="xla"`` is plain JAX, the definition; it runs anywhere. ``"pallas"`` is a kernel in
Pallas' Triton dialect for NVIDIA GPUs. None takes the kernel on a card where it was measured
against XLA and won, and XLA everywhere else: XLA's own fusions are good, and a kernel that has not
been seen to beat them is more code for nothing. Kernels run on a GPU, and in interpret mode in
tests; ``experiments.gpu_checks`` measures both and prints entries for ``MEASURED``.
"""

import dataclasses
import datetime
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

T = TypeVar("T")
Kernel = Literal["project", "refine_matches", "linearize_edges"]
IMPLEMENTATIONS = ("xla", "pallas")


@dataclasses.dataclass(frozen=True)
class Block:
    """How a kernel's work is cut into programs."""

    pixels: int
    """Pixels a program holds at a time, a power of two."""
    num_warps: int
    """Groups of 32 threads that share them."""
    rounds: int = 1
    """How often a program takes that many pixels, where it adds up what it finds."""
    num_stages: int = 1
    """Depth of software pipelining: gathers gain nothing from it."""

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.pixels & (self.pixels - 1) or self.rounds < 1:
            raise ValueError(f"{self}: pixels must be a power of two, and rounds at least 1")

    @property
    def compiler_params(self) -> triton.CompilerParams:
        """What picks the Triton backend, whatever the default of the version of JAX."""
        return triton.CompilerParams(num_warps=self.num_warps, num_stages=self.num_stages)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A kernel that beat XLA on some card, at 512x384 pixels."""

    kernel: Kernel
    kind: str
    """Of inputs: the type of positions or descriptors, or a factor's residuals, rays or pixels."""
    card: str
    """The device's kind as JAX gives it; others of the same family have to be measured."""
    date: str
    """Day of the measurement, YYYY-MM-DD."""
    block: Block
    """The fastest block that was tried."""
    kernel_ms: float
    """Median of a call with that block."""
    xla_ms: float
    """Median of a call of the definition, compiled by XLA, in the same process."""

    def __post_init__(self) -> None:
        datetime.date.fromisoformat(self.date)
        if not self.kernel_ms < self.xla_ms:
            raise ValueError(f"{self}: XLA is faster, so this does not belong into the table")


MEASURED: tuple[Measurement, ...] = ()
"""No card has been measured so far."""

DEFAULT_BLOCKS: Mapping[Kernel, Block] = types.MappingProxyType(
    {
        "project": Block(pixels=128, num_warps=4),
        "refine_matches": Block(pixels=64, num_warps=4),
        "linearize_edges": Block(pixels=128, num_warps=4, rounds=64),
    }
)
"""Blocks for cards without a measurement: no program spills registers when compiled for an H100."""


def card() -> str | None:
    """The kind of GPU that JAX computes on by default; None if it is none."""
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def measurement(kernel: Kernel, kind: str) -> Measurement | None:
    """That of a kernel on this card and this kind of inputs, if there is one."""
    key = kernel, kind, card()
    return next((m for m in MEASURED if (m.kernel, m.kind, m.card) == key), None)


def checked(implementation: str | None) -> str | None:
    """The same; ``ValueError`` if there is no such implementation."""
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}; choose one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))} or None"
        )
    return implementation


def only(what: str, dtype: jnp.dtype, *allowed: DTypeLike) -> str | None:
    """What keeps a kernel from taking arrays of that type, if something does."""
    names = [jnp.dtype(other).name for other in allowed]
    return None if dtype.name in names else f"{what} of {dtype.name}, it takes {', '.join(names)}"


def run(
    kernel: Kernel,
    implementation: str | None,
    xla: Callable[..., T],
    pallas: Callable[..., T],
    *arrays: Any,
    kind: str,
    obstacle: str | None = None,
) -> T:
    """``xla(*arrays)`` or ``pallas(*arrays, block=...)``; see the module for which.

    ``kind`` is that of the inputs, see ``Measurement``. ``obstacle`` says why the kernel cannot
    take these arrays, if so. Raises ``ValueError`` for an unknown implementation, and
    ``NotImplementedError`` for a kernel asked for by name that cannot run.
    """
    found = measurement(kernel, kind)
    if checked(implementation) == "pallas":
        if card() is None:
            obstacle = f"the kernel needs a CUDA GPU, and JAX runs on {jax.default_backend()}"
        if obstacle is not None:
            raise NotImplementedError(
                f'{kernel}: implementation="pallas": {obstacle}; use implementation="xla" or None'
            )
        return pallas(*arrays, block=found.block if found else DEFAULT_BLOCKS[kernel])
    if implementation == "xla" or found is None or obstacle is not None:
        return xla(*arrays)
    return jax.lax.platform_dependent(
        *arrays, cuda=functools.partial(pallas, block=found.block), default=xla
    )
