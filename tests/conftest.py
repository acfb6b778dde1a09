"""A stricter session than production: no silent dtype promotion, warnings are errors.

Maths that is judged against double precision opens ``jax.enable_x64`` itself, so that the float32
code under test is the float32 code that ships.
"""

import os
import pathlib
import tempfile

import jax
import numpy as np
import pytest

DATA = pathlib.Path(__file__).parent / "data"

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Compiling is most of the suite's time; every worker and every later run shares the results.
_CACHE = pathlib.Path(
    os.environ.get(
        "MAST3R_SLAM_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "mast3r-slam-jax-test-cache"
    )
)
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def golden():
    """Loader of golden vectors: ``golden("slam/track_small_rays")`` -> dict of numpy arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load
