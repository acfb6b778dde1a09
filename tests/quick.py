"""Compiling without the optimiser, for tests of what a program computes and not of how it runs."""

import functools

import jax
from jaxlib.version import __version__ as JAXLIB_VERSION

_OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if tuple(map(int, JAXLIB_VERSION.split(".")[:2])) < (0, 12):  # later ones have no others
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False

quick_jit = functools.partial(jax.jit, compiler_options=_OPTIONS)
"""``jax.jit`` that compiles large programs faster, which is most of the suite's time. Not for tests
of speed, memory, rounding or the compiler."""
