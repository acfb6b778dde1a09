"""Straight loops in C++ with OpenMP: compiled when they are first needed, kept in the cache.

The package itself compiles nothing; this is for the benchmark alone.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.bench.machine import cpu_model
from ops import MatchConfig, PixelFactorConfig, RayFactorConfig

NAME = "C++ OpenMP"
SOURCES = ("matching.cpp", "edges.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC")


class NoCompiler(RuntimeError):
    """The C++ peers cannot be had here; the message says why."""


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled peers.

    Raises:
        NoCompiler: there is no g++, or it cannot compile them.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise NoCompiler("no g++ was found")
    folder = pathlib.Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [version, cpu_model(), *FLAGS, *((folder / name).read_text() for name in SOURCES)]
    name = f"peers-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    path = root / "mast3r-slam-jax" / "bench" / name
    if not path.exists():
        path = _build(compiler, folder, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f"what g++ compiled cannot be loaded: {error}") from error


def _build(compiler: str, folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Compile and link; into a temporary folder that stays if the cache cannot be written."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="mast3r-slam-bench-"))
    objects = []
    for source in SOURCES:
        objects.append(str(work / f"{source}.o"))
        _run([compiler, *FLAGS, "-c", str(folder / source), "-o", objects[-1]])
    # Not linked with -ffast-math: some versions of g++ would then add code that has the whole
    # process, us included, take small numbers for zero.
    _run([compiler, "-shared", "-fopenmp", *objects, "-o", str(work / path.name)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copy(work / path.name, beside)
        os.replace(beside, path)
    except OSError:
        return work / path.name
    shutil.rmtree(work)
    return path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise NoCompiler(f"g++ failed: {said[0] if said else 'no message'}")


class Projection:
    """``ops.iterative_projection`` of pointmaps ``[h, w, 3]``, from the identity on."""

    def __init__(self, points_1: Any, points_2: Any, config: MatchConfig) -> None:
        self.height, self.width = points_1.shape[:2]
        count = self.height * self.width
        self.points = [_array(points_1), _array(points_2)]
        self.start = np.arange(count, dtype=np.int32)
        self.uv = np.empty((count, 2), np.float32)
        self.converged = np.empty(count, np.uint8)
        self.config = config
        self.function = library().project

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions ``[hw, 2]`` and convergence ``[hw]``."""
        config = self.config
        self.function(
            *map(_pointer, self.points), _pointer(self.start), self.height, self.width,
            config.max_iterations, _float(config.lambda_init), _float(config.convergence),
            _pointer(self.uv), _pointer(self.converged),
        )  # fmt: skip
        return self.uv, self.converged.astype(bool)


class Refinement:
    """``ops.refine_matches`` of descriptors ``[h, w, d]`` and start indices ``[hw]``."""

    def __init__(
        self, descriptors_1: Any, descriptors_2: Any, start: Any, config: MatchConfig
    ) -> None:
        self.height, self.width, self.channels = descriptors_1.shape
        self.descriptors = [_array(descriptors_1), _array(descriptors_2)]
        self.start = _array(start, np.int32)
        self.index = np.empty(self.height * self.width, np.int32)
        self.config = config
        self.function = library().refine

    def __call__(self) -> np.ndarray:
        """Indices ``[hw]``."""
        self.function(
            *map(_pointer, self.descriptors), _pointer(self.start), self.height, self.width,
            self.channels, self.config.radius, self.config.dilation, _pointer(self.index),
        )  # fmt: skip
        return self.index


class Match:
    """``ops.match`` of pointmaps and descriptors, from the identity on."""

    def __init__(self, maps: Sequence[Any], config: MatchConfig) -> None:
        self.height, self.width, self.channels = maps[2].shape
        count = self.height * self.width
        self.maps = [_array(m) for m in maps]
        self.start = np.arange(count, dtype=np.int32)
        self.index, self.valid = np.empty(count, np.int32), np.empty(count, np.uint8)
        self.config = config
        self.function = library().match

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and validity ``[hw]``."""
        config = self.config
        self.function(
            *map(_pointer, self.maps), _pointer(self.start), self.height, self.width,
            self.channels, config.max_iterations, _float(config.lambda_init),
            _float(config.convergence), _float(config.max_distance), config.radius,
            config.dilation, _pointer(self.index), _pointer(self.valid),
        )  # fmt: skip
        return self.index, self.valid.astype(bool)


class Linearization:
    """``ops.edge_system.linearize_edges``; the confidences of matches are read in float32."""

    def __init__(
        self,
        poses: Any,
        points: Any,
        confidence: Any,
        edges: Any,
        config: RayFactorConfig | PixelFactorConfig,
        K: Any = None,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        self.arrays = [
            _array(poses), _array(points), _array(confidence), _array(edges.i, np.int32),
            _array(edges.j, np.int32), _array(edges.index, np.int32), _array(edges.q),
            _array(edges.valid, np.uint8),
        ]  # fmt: skip
        self.camera = None
        if isinstance(config, PixelFactorConfig):
            assert K is not None and image_shape is not None
            height, width = image_shape
            self.camera = np.array(
                [K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height, config.pixel_border,
                 config.depth_eps],
                np.float32,
            )  # fmt: skip
            self.sigmas = config.sigma_pixel, config.sigma_depth
        else:
            self.sigmas = config.sigma_ray, config.sigma_dist
        self.huber = config.huber
        self.grams = np.empty((len(edges.i), 8, 8), np.float32)
        self.function = library().linearize

    def __call__(self) -> np.ndarray:
        """Gram matrices ``[e, 8, 8]`` of the rows ``[J | z - h]``."""
        count, pixels = self.arrays[5].shape
        self.function(
            *map(_pointer, self.arrays), count, pixels, _float(0.0), *map(_float, self.sigmas),
            _float(self.huber), None if self.camera is None else _pointer(self.camera),
            _pointer(self.grams),
        )  # fmt: skip
        return self.grams


def _array(values: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(values), dtype)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _float(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)
