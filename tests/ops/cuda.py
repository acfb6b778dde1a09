"""Lowering for CUDA on machines without a GPU."""

import contextlib
import warnings

import jax
from jax.sharding import AbstractMesh

CARD = "NVIDIA H100 80GB HBM3"


def lowered(function, *shapes, platform="cuda") -> str:
    """The program that would run on an H100, as text; kernels are calls in it, by name."""
    with _gpu(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
        trace = jax.jit(function).trace(*shapes)
        return trace.lower(lowering_platforms=(platform,)).as_text()


def _gpu() -> contextlib.AbstractContextManager:
    """JAX takes the architecture from an abstract device since 0.11, and assumes one before."""
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=CARD, num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), (), abstract_device=device))
