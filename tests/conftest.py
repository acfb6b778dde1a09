"""A stricter session than production: no silent dtype promotion, warnings are errors.

Maths that is judged against double precision opens ``jax.enable_x64`` itself, so that the float32
code under test is the float32 code that ships.
"""

import gc
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
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


SLOWEST = (
    *("test_pipeline", "test_implicit", "test_clip", "test_forms_of_step", "test_learning"),
    *("test_cli", "test_pose_graph", "test_trace", "test_stages", "test_runner", "test_priors"),
)
"""Files that take longest. They come first, so that no worker has a long one left at the end."""


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files to each worker: their tests share fixtures and traced programs, which are most of
    the time, and which a test on the other worker would make again."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


MOST_MAPS = 20_000
"""Pieces of memory that a process may have before it lets go of its programs: each takes dozens,
Linux allows 65,530 of them, and LLVM ends the process that asks for more."""


@pytest.fixture(autouse=True, scope="module")
def programs_of_few_files():
    """Programs that no test will run again are not kept for ever; what a file leaves behind, such
    as traces of programs, is not looked through for garbage again and again."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def golden():
    """Loader of golden vectors: ``golden("slam/track_small_rays")`` -> dict of numpy arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load
