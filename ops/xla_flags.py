"""Tells the CPU compiler what to leave alone, before JAX starts.

Sums over a short axis go to a new library (YNNPACK) from jaxlib 0.10.2 on. In 0.10.2 and 0.11 the
fused program is silently wrong for some sizes, from element 32768 on:
https://github.com/jax-ml/jax/issues/39103. It hits a matrix applied to 10,923 to 49,151 points, so
it made every pose at 128x96 pixels wrong and those at 256x192 right. jaxlib 0.12 is right again,
but what is summed has to be written to memory for that library.

Loops of arrays go, in jaxlib 0.12, into one function each, for one thread; in earlier versions this
was for loops of less than a kilobyte.

With both, jaxlib 0.12 refines matches of 512x384 pixels in 646 ms, and without them in 113; it
projects them in 68 ms, and in 24 (two cores). ``mast3r-slam bench --only projection refinement``
shows it, alone and with

    XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type=+reduce
    --xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000000"
"""

import os
import re
import warnings

import jax
from jax._src.xla_bridge import backends_are_initialized  # there is no public way to ask
from jaxlib.version import __version__ as JAXLIB_VERSION

SUMS = "xla_cpu_experimental_ynn_fusion_type"
"""Accepts types of fusion to add (+) or remove (-)."""
LOOPS = "xla_cpu_small_while_loop_byte_threshold"
"""Bytes that a loop may look at to be compiled as one function."""
SETTINGS = (
    ((0, 10, 2), SUMS, f"--{SUMS}=-reduce"),
    ((0, 12, 0), LOOPS, f"--xla_backend_extra_options={LOOPS}=1024"),
)
"""From which jaxlib on, what, and how it is written in ``XLA_FLAGS``."""
RIGHT_AGAIN, UNKNOWN = (0, 12, 0), (0, 13, 0)
"""From the second one on nothing is set: with a flag that it does not know, JAX does not start."""


def instruct_cpu_compiler() -> None:
    """Set in ``XLA_FLAGS`` what the user has not set.

    Warns when JAX has started computing already: flags are read once.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", JAXLIB_VERSION)[:3])
    given = os.environ.get("XLA_FLAGS", "")
    wanted = [flag for first, name, flag in SETTINGS if first <= version and name not in given]
    if not wanted or version >= UNKNOWN:
        return
    if not backends_are_initialized():
        os.environ["XLA_FLAGS"] = " ".join([given, *wanted]).strip()
        return
    if version < RIGHT_AGAIN:
        harm = "computes some sums wrongly on the CPU (jax-ml/jax#39103)"
    elif jax.default_backend() == "cpu":
        harm = "matches several times more slowly on the CPU than it could"
    else:
        return
    warnings.warn(
        f"jaxlib {JAXLIB_VERSION} {harm} and JAX has started already: import mast3r_jax, ops or "
        f"slam before the first computation, or set XLA_FLAGS='{' '.join(wanted)}'",
        RuntimeWarning,
        stacklevel=3,
    )
