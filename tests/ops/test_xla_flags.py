"""The CPU compiler's wrong sums stay away from every size of image, and so do its slow loops."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.version import __version__ as JAXLIB_VERSION

from ops import Sim3, refine_matches

PROBE = """
import os
{before}
import jax, jax.numpy as jnp, numpy as np
import ops
rng = np.random.default_rng(0)
for n in (3072, 10923, 12288, 20000, 49152):
    p = rng.standard_normal((n, 3)).astype(np.float32)
    packed = rng.standard_normal(13).astype(np.float32)
    # A matrix applied to points as a sum, then scaled and moved: the pattern that goes wrong.
    f = jax.jit(lambda k, p: k[12] * jnp.sum(k[:9].reshape(3, 3) * p[:, None, :], -1) + k[9:12])
    exact = packed[12] * (p.astype(np.float64) @ packed[:9].reshape(3, 3).T) + packed[9:12]
    assert np.abs(np.asarray(f(packed, p)) - exact).max() < 1e-4, n
print("right", os.environ.get("XLA_FLAGS", ""))
"""


def probe(before="", flags=None):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", PROBE.format(before=before)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_importing_the_package_makes_sums_right():
    result = probe()
    assert result.returncode == 0 and "right" in result.stdout, result.stderr


def test_the_users_own_flags_are_kept():
    flags = "--xla_cpu_enable_fast_math=false"
    result = probe(flags=flags)
    assert result.returncode == 0 and flags in result.stdout, result.stderr


def test_too_late_is_said():
    result = probe(before="import jax; jax.numpy.zeros(3).block_until_ready()")
    wrong = JAXLIB_VERSION.startswith(("0.10.", "0.11."))
    assert ("39103" if wrong else "more slowly") in result.stderr
    assert "set XLA_FLAGS='--xla_cpu" in result.stderr and "-reduce" in result.stderr


def test_windows_are_searched_by_parallel_loops():
    """No call for one thread, and no library for sums that would have candidates in memory."""
    descriptors = jax.ShapeDtypeStruct((48, 64, 24), jnp.float32)
    index = jax.ShapeDtypeStruct((48 * 64,), jnp.int32)
    program = jax.jit(refine_matches).lower(descriptors, descriptors, index).compile()
    text = program.as_text()
    assert "while(" in text and "small_call" not in text and "ynn" not in text


@pytest.mark.parametrize("n", [3072, 10923, 12288, 20000, 49152])
def test_points_are_transformed_right_at_every_size(n):
    rng = np.random.default_rng(n)
    points = rng.standard_normal((n, 3)).astype(np.float32)
    T = Sim3.exp(jnp.asarray(rng.standard_normal(7), jnp.float32))
    matrix = np.asarray(T.as_matrix(), np.float64)
    exact = points.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    moved = jax.jit(lambda T, p: T.apply(p))(T, jnp.asarray(points))
    np.testing.assert_allclose(moved, exact, atol=2e-5)
