"""Weights on disk: a folder with ``model.safetensors`` and ``config.json``."""

import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jaxtyping import DTypeLike

from mast3r_jax.card import CardError, check_files, has_card
from mast3r_jax.config import ConfigError, MASt3RConfig
from mast3r_jax.layers import Numerics
from mast3r_jax.model import MASt3R

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"
"""Folder of the named presets that travel with the package."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the way out."""


def save(path: str | os.PathLike[str], model: MASt3R, *, dtype: DTypeLike | None = None) -> None:
    """Writes a model into the folder ``path``, replacing a checkpoint that is already there.

    ``dtype`` stores the parameters in another floating type (float16 halves a small preset);
    ``load`` casts them back. The folder appears whole or not at all.

    Raises:
        CheckpointError: if ``path`` is a file, or a folder that holds anything but a checkpoint.
    """
    target = pathlib.Path(path)
    if target.exists():
        if not target.is_dir():
            raise CheckpointError(f"{target}: exists and is no folder; name a new folder")
        foreign = {f.name for f in target.iterdir()} - {WEIGHTS, CONFIG}
        if foreign:
            raise CheckpointError(
                f"{target}: holds {min(foreign)}, which is no part of a checkpoint; name a new "
                "folder"
            )
    arrays = {
        name: np.ascontiguousarray(np.asarray(leaf, None if dtype is None else jnp.dtype(dtype)))
        for name, leaf in _leaves(model).items()
    }
    with replacing(target) as folder:
        (folder / CONFIG).write_text(model.config.to_json(), encoding="utf-8")
        safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "mast3r_jax"})
        # safetensors writes files that only their owner may read.
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """An empty folder that takes the place of ``path`` if the block ends well.

    If the block raises, the folder vanishes and ``path`` is as it was.
    """
    target = pathlib.Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        whole, old = draft / "new", draft / "old"
        whole.mkdir()
        yield whole
        if target.exists():
            target.rename(old)
        try:
            whole.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
) -> MASt3R:
    """Reads a model from a folder written by ``save``, or a preset that comes with the package.

    ``dtype`` and ``param_dtype`` are those of ``MASt3R``; stored numbers are cast. In a folder with
    a card (``mast3r_jax.card``), every preset has one, all files are compared with it.

    Raises:
        CheckpointError: if the checkpoint does not exist, cannot be read, is not that of its card,
            or its tensors do not match its configuration (every difference in one message).
    """
    folder = find(name_or_path)
    if has_card(folder) or folder.parent == PRETRAINED:
        try:
            check_files(folder)
        except CardError as error:
            raise CheckpointError(str(error)) from None
    try:
        config = MASt3RConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    weights = folder / WEIGHTS
    try:
        with safetensors.safe_open(weights, framework="numpy") as archive:
            names = set(archive.keys())
            shapes = {name: tuple(archive.get_slice(name).get_shape()) for name in names}
            specs = parameter_specs(config, dtype=dtype, param_dtype=param_dtype)
            problems = _differences(shapes, specs)
            if problems:
                raise CheckpointError(
                    f"{weights}: does not match {CONFIG} beside it:\n  " + "\n  ".join(problems)
                )
            return build(config, archive.get_tensor, dtype=dtype, param_dtype=param_dtype)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{weights}: not a whole safetensors file: {error}") from None


def parameter_specs(
    config: MASt3RConfig,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter of a network, by dotted name; allocates nothing."""
    _, parameters = _skeleton(config, dtype, param_dtype)
    return {_dotted(path): variable.get_value() for path, variable in parameters}


def build(
    config: MASt3RConfig,
    parameter: Callable[[str], np.ndarray],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
) -> MASt3R:
    """A network whose parameters are fetched one by one by name, cast to their dtype.

    Peak memory beyond the network itself is one parameter. The names are those of
    ``parameter_specs``; ``parameter`` must return arrays of those shapes.
    """
    graph, parameters = _skeleton(config, dtype, param_dtype)
    filled = []
    for path, variable in parameters:
        spec = variable.get_value()
        # Cast on the host: on the device every shape would be a compilation.
        value = np.asarray(parameter(_dotted(path)), spec.dtype)
        assert value.shape == spec.shape, (path, value.shape, spec.shape)
        filled.append((path, variable.replace(jnp.asarray(value))))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def presets() -> list[str]:
    """Names of the pretrained networks that come with the package."""
    return sorted(folder.parent.name for folder in PRETRAINED.glob(f"*/{WEIGHTS}"))


def find(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a checkpoint, given as such or by the name of a preset.

    Raises:
        CheckpointError: there is none, or it is no checkpoint.
    """
    folder = pathlib.Path(name_or_path)
    if not folder.exists() and str(name_or_path) in presets():
        folder = PRETRAINED / name_or_path
    if not folder.exists():
        known = ", ".join(presets()) or "none in this installation"
        raise CheckpointError(
            f"{name_or_path}: no such checkpoint folder, nor a preset ({known}); published "
            "weights are converted by `mast3r-slam convert FILE OUT`"
        )
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: no checkpoint folder, it has no {' and no '.join(missing)}; published "
            "weights are converted by `mast3r-slam convert FILE OUT`"
        )
    return folder


def _skeleton(
    config: MASt3RConfig, dtype: DTypeLike | None, param_dtype: DTypeLike | None
) -> tuple[nnx.GraphDef, tuple[tuple[Any, nnx.Variable], ...]]:
    """A network's structure and its parameters' shapes; traced once (seconds), then remembered."""
    numerics = Numerics.of(dtype, param_dtype)
    widest = jax.dtypes.canonicalize_dtype(np.float64)  # float32 without jax_enable_x64
    return _traced(config, numerics.compute, numerics.params, widest)


@functools.lru_cache(maxsize=16)
def _traced(config: MASt3RConfig, dtype: np.dtype, param_dtype: np.dtype, widest: np.dtype):
    del widest  # part of the key only: it decides what float64 is traced as
    abstract = nnx.eval_shape(
        lambda: MASt3R(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)
    )
    graph, state = nnx.split(abstract)
    return graph, tuple(nnx.to_flat_state(state))


def _differences(
    shapes: Mapping[str, tuple[int, ...]], specs: Mapping[str, jax.ShapeDtypeStruct]
) -> list[str]:
    problems = [f"missing tensor {name}" for name in specs if name not in shapes]
    problems += [f"unknown tensor {name}" for name in sorted(shapes) if name not in specs]
    problems += [
        f"{name} has shape {shapes[name]}, expected {spec.shape}"
        for name, spec in specs.items()
        if name in shapes and shapes[name] != spec.shape
    ]
    return problems


def _leaves(model: MASt3R) -> dict:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {_dotted(path): variable.get_value() for path, variable in flat}


def _dotted(path: tuple) -> str:
    return ".".join(str(part) for part in path)
