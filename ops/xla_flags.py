"""Keeps a wrong CPU compiler pass switched off.

jaxlib 0.10.2 hands sums over a short axis to a new library (YNNPACK), and for some sizes the fused
program is silently wrong from element 32768 on: https://github.com/jax-ml/jax/issues/39103. It hits
a matrix applied to 10,923 to 49,151 points, so it made every pose at 128x96 pixels wrong and those
at 256x192 right. JAX 0.12 is right again; a test compares both with numpy.
"""

import os
import re
import warnings

from jax._src.xla_bridge import backends_are_initialized  # there is no public way to ask
from jaxlib.version import __version__ as JAXLIB_VERSION

FLAG = "xla_cpu_experimental_ynn_fusion_type"
"""Accepts types of fusion to add (+) or remove (-)."""


def avoid_wrong_reductions() -> None:
    """Switch the pass off, unless the user has set the flag or jaxlib is not affected.

    Warns when JAX has started computing already: flags are read once.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", JAXLIB_VERSION)[:3])
    flags = os.environ.get("XLA_FLAGS", "")
    if not (0, 10, 2) <= version < (0, 12, 0) or FLAG in flags:
        return
    if backends_are_initialized():
        warnings.warn(
            f"jaxlib {JAXLIB_VERSION} computes some sums wrongly on the CPU "
            "(jax-ml/jax#39103) and JAX has started already: import mast3r_jax, ops or slam before "
            f"the first computation, or set XLA_FLAGS=--{FLAG}=-reduce",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=-reduce".strip()
