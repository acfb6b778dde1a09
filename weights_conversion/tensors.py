"""Flat tables of named tensors from any weights file, recognised by its content."""

import json
import mmap
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from weights_conversion.inert_pickle import ArchiveError, printable, read_inert_pickle
from weights_conversion.torch_archive import read_torch_archive

_SAFETENSORS: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


def is_safetensors(path: str | pathlib.Path) -> bool:
    """Whether a file starts like safetensors: a length of 8 bytes, then a JSON object."""
    with pathlib.Path(path).open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, as read-only numpy views of the mapped file.

    The ``safetensors`` library checks the header; its numpy loader would copy and, in older
    versions, refuse bfloat16. Raises ``ArchiveError`` on a damaged file or an unknown dtype.
    """
    path = pathlib.Path(path)
    try:
        with safetensors.safe_open(path, framework="np"):
            pass  # raises on any header that does not describe exactly the bytes that follow it
    except (safetensors.SafetensorError, OSError) as error:
        raise ArchiveError(
            f"{path}: truncated or damaged safetensors file ({printable(error, 200)}); "
            "download it again"
        ) from error
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS:
            raise ArchiveError(
                f"{path}: tensor {printable(name)} has the unsupported type "
                f"{printable(entry['dtype'])}; save it as float32, float16 or bfloat16"
            )
        tensors[name] = np.ndarray(
            tuple(entry["shape"]),
            _SAFETENSORS[entry["dtype"]],
            buffer=data,
            offset=8 + length + entry["data_offsets"][0],
        )
    return tensors


def state_dict(archive: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """The state dict inside a checkpoint: its ``model``, its ``state_dict``, or the whole of it.

    ``name`` is the file's name for messages. Raises ``ArchiveError`` if there is none, or if it
    holds something else than tensors.
    """
    entry = next((key for key in ("model", "state_dict") if isinstance(archive.get(key), dict)), "")
    table = archive[entry] if entry else archive
    other = [key for key, value in table.items() if not isinstance(value, np.ndarray)]
    if not table or len(other) == len(table):
        found = ", ".join(printable(key, 24) for key in list(archive)[:8]) or "nothing"
        raise ArchiveError(
            f"{name}: no tensors under 'model', 'state_dict' or at the top (found: {found}); "
            "pass a checkpoint of the network"
        )
    if other:
        kind = type(table[other[0]]).__name__
        raise ArchiveError(
            f"{name}: entry {printable(other[0])} is a {kind}, not a tensor; "
            "save the model's plain state_dict()"
        )
    return {str(key): value for key, value in table.items()}


def load_archive(path: str | pathlib.Path, *, verify: bool = False) -> dict[str, Any]:
    """Everything in a PyTorch checkpoint or a safetensors file, told apart by their content.

    Tensors are read-only numpy views of the mapped file; nothing is executed. ``verify`` checks the
    checksums of a PyTorch archive (safetensors has none). Raises ``ArchiveError``.
    """
    path = pathlib.Path(path)
    try:
        if is_safetensors(path):
            return read_safetensors(path)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error
    return read_torch_archive(path, verify=verify)


def load_tensors(path: str | pathlib.Path, *, verify: bool = False) -> dict[str, np.ndarray]:
    """The flat state dict of a PyTorch checkpoint or a safetensors file; see ``load_archive``."""
    return state_dict(load_archive(path, verify=verify), str(path))


def read_pickle(path: str | pathlib.Path) -> Any:
    """The value of a bare pickle of numbers and numpy arrays, such as a retrieval codebook.

    Nothing is executed. Raises ``ArchiveError``; a global that is not numpy's or a plain
    container is refused by name.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ArchiveError(f"{path}: is empty; download it again")
    return read_inert_pickle(data, str(path))
