"""A published retrieval checkpoint and its codebook, as read from their files, to our model.

The checkpoint holds the training arguments under ``args`` and a state dict under ``model``; the
codebook is a pickle of its own. Arguments, names and shapes are checked against one another before
anything is built, and all the problems come in one error.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from mast3r_jax.retrieval import (
    RetrievalModel,
    array_problems,
    build_retrieval,
    setting_problems,
)
from weights_conversion.convert import ConversionError
from weights_conversion.inert_pickle import ArchiveError, printable
from weights_conversion.tensors import read_pickle

SHOWN = 20
"""Problems spelled out in an error; the rest is counted."""
_PARTS = {"weight": "kernel", "bias": "bias"}, {"weight": "norm.scale", "bias": "norm.bias"}


def is_retrieval(archive: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is one of the retrieval head, by its training arguments."""
    arguments = archive.get("args")
    return isinstance(arguments, Mapping) and {"nclusters", "nfeat"} <= set(arguments)


def codebook_beside(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where the codebook of a published checkpoint lies: its name less the last part."""
    return checkpoint.with_name(checkpoint.name.rpartition("_")[0] + "_codebook.pkl")


def read_codebook(path: pathlib.Path) -> Any:
    """The content of a codebook file; nothing in it is run.

    Raises:
        ArchiveError: the file is missing, damaged, or asks for something to be run.
    """
    if not path.is_file():
        raise ArchiveError(
            f"{path}: no such codebook; a retrieval checkpoint needs one: download it beside the "
            "checkpoint, or name it with --codebook FILE"
        )
    return read_pickle(path)


def convert_retrieval(
    checkpoint: Mapping[str, Any], codebook: Any, *, dtype: DTypeLike = jnp.float32
) -> RetrievalModel:
    """The model that a published checkpoint and its codebook describe.

    Args:
        checkpoint: what ``read_torch_archive`` makes of the ``.pth``: ``args`` and ``model``.
        codebook: what ``read_pickle`` makes of the ``.pkl``.
        dtype: of the arrays. The published whitening is float64; in float32 its features are
            off by about 1e-5 of their size, and no golden code changes by a bit.

    Raises:
        ConversionError: arguments, tensors and codebook do not fit together, with every problem.
    """
    problems: list[str] = []
    arguments = checkpoint.get("args")
    if not isinstance(arguments, Mapping):
        raise ConversionError("the checkpoint has no training arguments under 'args'")
    tensors = checkpoint.get("model")
    if not isinstance(tensors, Mapping):
        raise ConversionError("the checkpoint has no state dict under 'model'")

    arrays = _renamed(tensors, problems)
    centroids = _centroids(codebook, arguments.get("nclusters"), problems)
    if centroids is not None:
        arrays["centroids"] = centroids
    shapes = {name: tuple(value.shape) for name, value in arrays.items()}
    if centroids is not None:
        problems += array_problems(shapes, _published)
    problems += _argument_problems(arguments, shapes)
    for name, value in arrays.items():
        with np.errstate(over="ignore"):
            if not np.isfinite(value.astype(jnp.dtype(dtype))).all():
                problems.append(f"{_published(name)} holds numbers that are not finite")
    if problems:
        listed = problems[:SHOWN]
        listed += [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConversionError(
            "checkpoint and codebook do not form a retrieval model:\n  " + "\n  ".join(listed)
        )
    return build_retrieval(
        arrays,
        num_features=arguments["nfeat"],
        residual=bool(arguments.get("residual", False)),
        dtype=dtype,
    )


def _renamed(tensors: Mapping[str, Any], problems: list[str]) -> dict[str, np.ndarray]:
    """The state dict under our names and in our layout."""
    arrays = {}
    if any(str(source).startswith("backbone.") for source in tensors):
        problems.append(
            "backbone.*: the encoder was trained along with this head, so the tokens of the "
            "published network do not fit; only heads of a frozen encoder can be converted"
        )
    for source, value in tensors.items():
        label = printable(source)
        if not isinstance(value, np.ndarray):
            problems.append(f"{label} is a {type(value).__name__}, not a tensor")
        elif label.startswith("backbone."):
            continue
        elif (name := _ours(str(source))) is None:
            problems.append(f"unknown tensor {label}")
        else:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                problems.append(f"{label} is of type {value.dtype}, expected a floating type")
            if name.endswith(".mean"):
                if value.ndim != 2 or value.shape[0] != 1:
                    problems.append(f"{label} has shape {value.shape}, expected one row")
                value = value.reshape(-1)
            # A matrix of PyTorch's linear layers is out x in; that of a whitening is in x out.
            arrays[name] = value.T if name.endswith(".kernel") else value
    return arrays


def _ours(source: str) -> str | None:
    """Our name of a published tensor, None if there is no such tensor."""
    if found := re.fullmatch(r"(prewhiten|postwhiten)\.(m|p)", source):
        return f"{found[1]}.{'mean' if found[2] == 'm' else 'projection'}"
    # The projector is a sequence linear, normalisation, GELU, linear, ...; a GELU has no tensors.
    found = re.fullmatch(r"projector\.([0-9]{1,3})\.(weight|bias)", source)
    if found and (place := int(found[1])) % 3 < 2:
        return f"projector.{place // 3}.{_PARTS[place % 3][found[2]]}"
    return None


def _published(name: str) -> str:
    """The published name of one of our arrays, for messages."""
    part, _, rest = name.partition(".")
    if part != "projector":
        return {"mean": f"{part}.m", "projection": f"{part}.p"}.get(rest, f"codebook's {name}")
    layer, _, parameter = rest.partition(".")
    for offset, names in enumerate(_PARTS):
        for theirs, ours in names.items():
            if ours == parameter:
                transposed = " (transposed)" if ours == "kernel" else ""
                return f"projector.{3 * int(layer) + offset}.{theirs}{transposed}"
    raise AssertionError(name)


def _centroids(codebook: Any, nclusters: Any, problems: list[str]) -> np.ndarray | None:
    """The centroids of a codebook, if it is the one the checkpoint was made with."""
    state = codebook.get("state") if isinstance(codebook, Mapping) else None
    centroids = state.get("centroids") if isinstance(state, Mapping) else None
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not centroids.size:
        problems.append("the codebook has no table of centroids under state, centroids")
        return None
    if not jnp.issubdtype(centroids.dtype, jnp.floating):
        problems.append(f"the codebook's centroids are of type {centroids.dtype}")
        return None
    if codebook.get("type", "Codebook") != "Codebook":
        problems.append(f"the codebook is of type {printable(codebook['type'])}, not Codebook")
    params = codebook.get("params")
    size = params.get("size") if isinstance(params, Mapping) else None
    for value, where in (
        (nclusters, "the checkpoint's nclusters"),
        (size, "the codebook's params, size"),
    ):
        counts = _counts(value)
        if counts is None:
            problems.append(f"{where} is {_shown(value)}, expected a count such as '64k'")
        elif len(centroids) not in counts:
            problems.append(
                f"{where} is {printable(value)}, but the codebook has {len(centroids)} centroids; "
                "pass the codebook that was published with the checkpoint"
            )
    return centroids


def _counts(value: Any) -> set[int] | None:
    """What a number of centroids may mean: an int, digits, or thousands as in '64k'."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    found = re.fullmatch(r"([0-9]{1,9})(k?)", str(value).strip().lower())
    if not found:
        return None
    count = int(found[1])
    return {count * 1000, count * 1024} if found[2] else {count}


def _argument_problems(
    arguments: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Where the training arguments contradict the tensors, or ask for what is not there.

    Only arguments that shape the model are read: how it was trained makes no difference.
    """
    problems = []
    for part in ("prewhiten", "postwhiten"):
        wanted = arguments.get(part) is not None
        there = any(name.startswith(f"{part}.") for name in shapes)
        if wanted and not there:
            problems.append(f"missing tensor {part}.m: the argument {part} asks for a whitening")
        elif there and part in arguments and not wanted:
            problems.append(f"{part}.m is there, but the argument {part} is None")
    kernels = [name for name in shapes if name.endswith(".kernel")]
    kernels.sort(key=lambda name: int(name.split(".")[1]))
    channels = "_".join(str(size) for name in kernels for size in shapes[name][-1:])
    if arguments.get("hdims", "") != channels:
        problems.append(
            f"the argument hdims is {_shown(arguments.get('hdims'))}, but the projector's layers "
            f"have {channels.replace('_', ', ') or 'no'} channels"
        )
    weighting = arguments.get("featweights", "l2norm")
    if weighting != "l2norm":
        problems.append(f"featweights is {_shown(weighting)}; only 'l2norm' is supported")
    residual = arguments.get("residual", False)
    return problems + setting_problems(
        arguments.get("nfeat"), bool(residual), shapes, {"num_features": "nfeat"}
    )


def _shown(value: Any) -> str:
    """A value from a file in a message."""
    return printable(repr(value) if isinstance(value, str) else value)
