"""Local features for image retrieval: what turns the encoder's tokens into visual words.

"MASt3R-SfM: a fully-integrated solution for unconstrained structure-from-motion" (Duisterhof et
al. 2024), section 4.1: encoder tokens are whitened, optionally projected, and those with the
largest norm are matched by the aggregated selective match kernel (``ops.asmk``).
"""

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, DTypeLike, Float

from mast3r_jax.checkpoint import CheckpointError
from ops import asmk
from ops.records import Record, record, static_field

WEIGHTS, SETTINGS = "retrieval.safetensors", "retrieval.json"
NOTICE = "NOTICE-retrieval.txt"
QUERY_ASSIGNMENTS = 5
"""Centroids a feature of a query is assigned to; one of the database goes to the nearest only."""
_LAYER_NORM_EPSILON = 1e-5
_EXACT = jax.lax.Precision.HIGHEST


@record
class Whitening(Record):
    """``(x - mean) @ projection``, computed in the dtype of its two arrays."""

    mean: Float[Array, " c"]
    projection: Float[Array, "c d"]

    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n d"]:
        """Whitens rows; the result has the dtype of ``x``."""
        centred = x.astype(self.mean.dtype) - self.mean
        return jnp.matmul(centred, self.projection, precision=_EXACT).astype(x.dtype)


@record
class Normalization(Record):
    """Scale and bias of a layer normalisation with epsilon 1e-5."""

    scale: Float[Array, " d"]
    bias: Float[Array, " d"]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Normalises rows."""
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + _LAYER_NORM_EPSILON) * self.scale + self.bias


@record
class ProjectorLayer(Record):
    """A linear map; if ``norm`` is there, a layer normalisation and a GELU (erf) follow it."""

    kernel: Float[Array, "c d"]
    bias: Float[Array, " d"]
    norm: Normalization | None = None

    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n d"]:
        """Maps rows."""
        x = jnp.matmul(x, self.kernel, precision=_EXACT) + self.bias
        return x if self.norm is None else jax.nn.gelu(self.norm(x), approximate=False)


@record
class RetrievalModel(Record):
    """Head and codebook of the image retrieval; all arrays are leaves, float32 in production."""

    prewhiten: Whitening | None
    """Whitening of the encoder's tokens."""
    projector: tuple[ProjectorLayer, ...]
    """Trained layers after it; empty in a training-free head."""
    postwhiten: Whitening | None
    """Whitening of the features; does not take part in their selection."""
    centroids: Float[Array, "k d"]
    """The codebook."""
    num_features: int | float = static_field()
    """Tokens to keep: a count, or a negative number, minus the share of all tokens."""
    residual: bool = static_field(default=False)
    """Whether the projector's input is added to its output."""

    @property
    def token_dim(self) -> int:
        """Channels of the tokens this model reads."""
        if self.prewhiten is not None:
            return self.prewhiten.mean.shape[0]
        return self.projector[0].kernel.shape[0] if self.projector else self.centroids.shape[1]

    @property
    def num_centroids(self) -> int:
        """Size of the codebook."""
        return self.centroids.shape[0]

    @property
    def code_size(self) -> int:
        """Words of 32 bits in each binary vector of a code."""
        return -(-self.centroids.shape[1] // 32)

    def num_selected(self, num_tokens: int) -> int:
        """How many of ``num_tokens`` tokens are kept, at least one."""
        wanted = self.num_features if self.num_features >= 0 else -self.num_features * num_tokens
        return max(1, min(int(wanted), num_tokens))

    def select(self, tokens: Float[Array, "tokens c"]) -> Float[Array, "n d"]:
        """Features of the tokens with the largest attention, in that order.

        The attention of a token is the norm of its feature before the last whitening. Tokens
        should be float32: a layer normalisation leaves a direction without any variance, and
        whitening blows up whatever rounding puts there. Tokens rounded to bfloat16 change most of
        the selection.
        """
        features = tokens.astype(self.centroids.dtype)
        if self.prewhiten is not None:
            features = self.prewhiten(features)
        projected = features
        for layer in self.projector:
            projected = layer(projected)
        if self.residual:
            projected = projected + features
        attention = jnp.sum(jnp.square(projected), axis=-1)  # squaring keeps the order
        _, chosen = jax.lax.top_k(attention, self.num_selected(tokens.shape[0]))
        chosen_features = projected[chosen]
        return chosen_features if self.postwhiten is None else self.postwhiten(chosen_features)

    def encode(self, tokens: Float[Array, "tokens c"], *, query: bool) -> asmk.AsmkCode:
        """The code of an image from its encoder tokens: to query with, or for the database."""
        return self.encode_both(tokens)[1 if query else 0]

    def encode_both(self, tokens: Float[Array, "tokens c"]) -> tuple[asmk.AsmkCode, asmk.AsmkCode]:
        """The code of an image for the database, and the one to query with, from one search."""
        features = self.select(tokens)
        count = min(QUERY_ASSIGNMENTS, self.num_centroids)
        assigned = asmk.nearest(features, self.centroids, count)
        return (
            asmk.aggregate(features, self.centroids, assigned[:, :1]),
            asmk.aggregate(features, self.centroids, assigned),
        )


def has_retrieval(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint folder holds a retrieval model, or a part of one."""
    return any((pathlib.Path(folder) / name).exists() for name in (WEIGHTS, SETTINGS))


def save_retrieval(
    folder: str | os.PathLike[str], model: RetrievalModel, *, notice: str | None = None
) -> None:
    """Writes a model as two files into ``folder``, beside whatever is there already.

    An earlier retrieval model is replaced. The settings come last: a write that is cut short
    leaves no pair of files that looks whole. ``notice`` is the text of a third file, such as the
    terms under which the weights may be used.

    Raises:
        CheckpointError: if ``folder`` is a file.
    """
    target = pathlib.Path(folder)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: exists and is no folder; name a folder")
    arrays = {
        name: np.ascontiguousarray(np.asarray(value)) for name, value in _arrays(model).items()
    }
    settings = {"num_features": model.num_features, "residual": model.residual}
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=".retrieval.", dir=target))
    try:
        (draft / NOTICE).write_text(notice or "", encoding="utf-8")
        (draft / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        safetensors.numpy.save_file(arrays, draft / WEIGHTS, metadata={"format": "mast3r_jax"})
        # safetensors writes files that only their owner may read.
        shutil.copymode(draft / SETTINGS, draft / WEIGHTS)
        for name in (SETTINGS, NOTICE):
            (target / name).unlink(missing_ok=True)
        for name in (WEIGHTS, *([] if notice is None else [NOTICE]), SETTINGS):
            (draft / name).replace(target / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if is_new and not any(target.iterdir()):
            target.rmdir()


def load_retrieval(
    folder: str | os.PathLike[str], *, dtype: DTypeLike = jnp.float32
) -> RetrievalModel:
    """Reads the retrieval model beside a network; stored numbers are cast to ``dtype``.

    Raises:
        CheckpointError: if there is none, it cannot be read, or its tensors do not fit together
            (every problem in one message).
    """
    weights, settings = pathlib.Path(folder) / WEIGHTS, pathlib.Path(folder) / SETTINGS
    missing = [path.name for path in (weights, settings) if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: has no {' and no '.join(missing)}; a published retrieval checkpoint is "
            "added by `mast3r-slam convert RETRIEVAL.pth FOLDER`"
        )
    try:
        values = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{settings}: not a JSON object: {error}") from None
    if not isinstance(values, dict) or set(values) != {"num_features", "residual"}:
        raise CheckpointError(f"{settings}: must hold num_features and residual, and nothing else")
    try:
        arrays = safetensors.numpy.load_file(weights)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{weights}: not a whole safetensors file: {error}") from None
    if problems := setting_problems(**values, names=arrays):
        raise CheckpointError(f"{settings}: {'; '.join(problems)}")
    try:
        return build_retrieval(arrays, **values, dtype=dtype)
    except ValueError as error:
        raise CheckpointError(f"{weights}: {error}") from None


def build_retrieval(
    arrays: Mapping[str, np.ndarray],
    *,
    num_features: int | float,
    residual: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> RetrievalModel:
    """A model from its arrays by name, cast to ``dtype`` on the host.

    The names are those of the fields, such as ``prewhiten.mean``, ``projector.0.norm.scale`` and
    ``centroids``; a part that is absent has no arrays.

    Raises:
        ValueError: if names, shapes or settings do not fit together, with every problem found.
    """
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    problems = array_problems(shapes) + setting_problems(num_features, residual, shapes)
    if problems:
        raise ValueError("this is no retrieval model:\n  " + "\n  ".join(problems))

    def array(name: str) -> Array:
        return jnp.asarray(np.asarray(arrays[name], jnp.dtype(dtype)))

    def whitening(part: str) -> Whitening | None:
        if f"{part}.mean" not in arrays:
            return None
        return Whitening(array(f"{part}.mean"), array(f"{part}.projection"))

    def layer(prefix: str) -> ProjectorLayer:
        norm = None
        if f"{prefix}.norm.scale" in arrays:
            norm = Normalization(array(f"{prefix}.norm.scale"), array(f"{prefix}.norm.bias"))
        return ProjectorLayer(array(f"{prefix}.kernel"), array(f"{prefix}.bias"), norm)

    return RetrievalModel(
        prewhiten=whitening("prewhiten"),
        projector=tuple(layer(f"projector.{i}") for i in range(_depth(shapes))),
        postwhiten=whitening("postwhiten"),
        centroids=array("centroids"),
        num_features=num_features,
        residual=residual,
    )


def array_problems(
    shapes: Mapping[str, tuple[int, ...]], label: Callable[[str], str] = str
) -> list[str]:
    """What is wrong with the arrays of a model, given by name; empty if they fit together.

    ``label`` is what to call an array in the messages.
    """
    expected = _expected_shapes(shapes)
    problems = [f"missing tensor {label(name)}" for name in expected if name not in shapes]
    problems += [f"unknown tensor {label(name)}" for name in shapes if name not in expected]
    problems += [
        f"{label(name)} has shape {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and (shapes[name] != shape or 0 in shape)
    ]
    return problems


def setting_problems(
    num_features: Any,
    residual: Any,
    names: Iterable[str],
    labels: Mapping[str, str] | None = None,
) -> list[str]:
    """What is wrong with the settings of a model whose arrays have these names.

    ``labels`` gives settings other names in the messages.
    """
    problems = []
    label = (labels or {}).get("num_features", "num_features")
    is_number = isinstance(num_features, int | float) and not isinstance(num_features, bool)
    if not is_number or not (num_features >= 1 or -1 <= num_features < 0):
        problems.append(
            f"{label}={num_features!r} must be a count, or minus a share between -1 and 0"
        )
    elif num_features > 0 and num_features != int(num_features):
        problems.append(f"{label}={num_features!r} is no whole number")
    if not isinstance(residual, bool):
        problems.append(f"residual={residual!r} must be true or false")
    elif residual and not any(name.startswith("projector.") for name in names):
        problems.append("residual is set, but there is no projector to add to")
    return problems


def _depth(names: Iterable[str]) -> int:
    """Number of the projector's layers."""
    found = (re.match(r"projector\.([0-9]{1,3})\.", name) for name in names)
    return max((int(m[1]) + 1 for m in found if m), default=0)


def _expected_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that these arrays seem to be; 0 is a size nothing tells."""

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if axis < len(shape) else 0

    def has(part: str) -> bool:
        return any(name.startswith(f"{part}.") for name in shapes)

    expected: dict[str, tuple[int, ...]] = {}
    depth = _depth(shapes)
    width = size("centroids", 1)
    if has("prewhiten"):
        width = size("prewhiten.mean", 0) or size("prewhiten.projection", 0)
        expected |= {"prewhiten.mean": (width,), "prewhiten.projection": (width, width)}
    elif depth:
        width = size("projector.0.kernel", 0)
    for i in range(depth):
        layer = f"projector.{i}"
        channels = size(f"{layer}.kernel", 1) or size(f"{layer}.bias", 0)
        expected |= {f"{layer}.kernel": (width, channels), f"{layer}.bias": (channels,)}
        if i < depth - 1:
            expected |= {f"{layer}.norm.{part}": (channels,) for part in ("scale", "bias")}
        width = channels
    if has("postwhiten"):
        expected |= {"postwhiten.mean": (width,), "postwhiten.projection": (width, width)}
    return expected | {"centroids": (size("centroids", 0), width)}


def _arrays(model: RetrievalModel) -> dict[str, Array]:
    """The arrays of a model by dotted name."""
    leaves, _ = jax.tree.flatten_with_path(model)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
