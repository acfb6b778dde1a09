"""PyTorch's checkpoint files (zip layout, since PyTorch 1.6) without PyTorch and without execution.

The layout: ``<prefix>/data.pkl`` is a pickle in which every tensor is a call of
``torch._utils._rebuild_tensor_v2`` on a persistent identifier ``("storage", type, key, location,
count)``; ``<prefix>/data/<key>`` holds the numbers; ``<prefix>/byteorder``, where present, says
``little`` or ``big``. Stored (uncompressed) members are mapped, not read: opening a file of
gigabytes costs milliseconds, and a tensor is a read-only view of the file.
"""

import dataclasses
import math
import mmap
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from weights_conversion.inert_pickle import (
    BASIC_GLOBALS,
    ArchiveError,
    Call,
    printable,
    read_inert_pickle,
)

MAX_PICKLE_BYTES = 256 << 20
"""Upper bound of ``data.pkl``; a thousand tensors need 0.2 MB, with optimiser state 0.6 MB."""
MAX_INFLATION = 32
"""A compressed archive may unpack to this many times its size; weights hardly compress at all."""

_DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """The stand-in of a storage class; ``dtype`` is None for untyped bytes."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Where a storage's numbers lie: ``nbytes`` bytes of ``buffer`` from ``start``."""

    key: str
    buffer: Any  # the mapped file, or the bytes of an inflated member
    start: int
    nbytes: int
    dtype: np.dtype | None
    swapped: bool


def _counts(values: Any, what: str) -> tuple[int, ...]:
    if type(values) is not tuple or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError(f"a tensor's {what} is not a tuple of counts")
    return values


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, dtype: np.dtype) -> np.ndarray:
    """A view of ``storage``, after checking that every element of it lies inside."""
    (offset,) = _counts((offset,), "offset")
    shape, strides = _counts(size, "size"), _counts(stride, "stride")
    if len(shape) != len(strides) or len(shape) > 32:
        raise ValueError(f"storage {storage.key}: {len(shape)} sizes with {len(strides)} strides")
    available, count = storage.nbytes // dtype.itemsize, math.prod(shape)
    steps = tuple(s if n > 1 else 1 for n, s in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    if count and last >= available:
        raise ValueError(
            f"a tensor reads element {last} of storage {storage.key}, which has {available}"
        )
    if count > available:
        raise ValueError(f"a tensor of {count} elements repeats the {available} of its storage")
    if not count:
        return np.zeros(shape, dtype)
    view = np.ndarray(
        shape,
        dtype,
        buffer=storage.buffer,
        offset=storage.start + offset * dtype.itemsize,
        strides=tuple(s * dtype.itemsize for s in steps),
    )
    return _native(view) if storage.swapped else view


def _native(view: np.ndarray) -> np.ndarray:
    """A copy of an array stored in the other byte order."""
    width = view.dtype.itemsize // (2 if view.dtype.kind == "c" else 1)
    words = np.ascontiguousarray(view).reshape(-1).view(f"u{width}")
    return words.byteswap().view(view.dtype).reshape(view.shape)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    if type(storage) is not _Storage or storage.dtype is None:
        raise TypeError("a tensor is rebuilt from something that is no typed storage")
    return _rebuild(storage, offset, size, stride, storage.dtype)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> np.ndarray:
    if type(storage) is not _Storage or not isinstance(dtype, np.dtype):
        raise TypeError("a tensor is rebuilt from something that is no storage")
    return _rebuild(storage, offset, size, stride, dtype)


def _rebuild_parameter(data: Any, *_rest: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TypeError("a parameter is rebuilt from something that is no tensor")
    return data


def _device(*args: Any) -> str:
    """A device is only a label here: ``cuda:0``."""
    return ":".join(printable(part) for part in args)


TORCH_GLOBALS: Mapping[str, Any] = {
    **BASIC_GLOBALS,
    "torch._utils._rebuild_tensor": Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
    "torch.Size": Call(lambda sizes=(): _counts(tuple(sizes), "size")),
    "torch.device": Call(_device),
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.{name}": _StorageType(_DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    **{
        f"{module}.{name}": _StorageType(None)
        for module in ("torch", "torch.storage")
        for name in ("UntypedStorage", "TypedStorage", "_UntypedStorage", "_TypedStorage")
    },
}


class _Archive:
    """An open zip of PyTorch's layout: checked member table over a mapped file."""

    def __init__(self, path: pathlib.Path, opened: zipfile.ZipFile, verify: bool):
        self.zip, self.verify = opened, verify
        with path.open("rb") as file:
            self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.inflated = 0
        self.located: dict[str, tuple[Any, int, int]] = {}
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in opened.infolist():
            name = info.filename
            if name in self.members:
                raise zipfile.BadZipFile(f"two members are named {printable(name)}")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise zipfile.BadZipFile(f"member name {printable(name)} leaves the archive")
            self.members[name] = info
        pickles = [n for n in self.members if re.fullmatch(r"[^/]+/data\.pkl", n)]
        if len(pickles) != 1:
            raise ArchiveError(
                f"{path}: a zip file, but not a PyTorch checkpoint: {len(pickles)} members named "
                "*/data.pkl instead of one; pass the .pth file as it was published"
            )
        self.prefix = pickles[0].removesuffix("data.pkl")
        if f"{self.prefix}constants.pkl" in self.members:
            raise ArchiveError(
                f"{path}: a TorchScript program, not a checkpoint; save its weights with "
                "torch.save(module.state_dict(), ...)"
            )
        order = f"{self.prefix}byteorder"
        self.swapped = order in self.members and self.read(order, 16).strip() == b"big"

    def locate(self, name: str) -> tuple[Any, int, int]:
        """(buffer, start, length) of a member: of the mapped file, or of its inflated bytes."""
        if name not in self.members:
            raise zipfile.BadZipFile(f"member {printable(name)} is missing")
        info = self.members[name]
        if info.flag_bits & 0x1:
            raise zipfile.BadZipFile(f"member {printable(name)} is encrypted")
        if info.compress_type == zipfile.ZIP_DEFLATED:
            self.inflated += info.file_size
            if self.inflated > MAX_INFLATION * len(self.buffer) + (1 << 20):
                raise zipfile.BadZipFile(f"unpacks to more than {MAX_INFLATION} times its size")
            data = self.zip.read(info)  # bounded by file_size, checks the CRC
            if len(data) != info.file_size:
                raise zipfile.BadZipFile(f"member {printable(name)} is shorter than declared")
            return data, 0, len(data)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise zipfile.BadZipFile(f"member {printable(name)} has an unusual compression")
        if info.header_offset < 0:
            raise zipfile.BadZipFile(f"member {printable(name)} starts before the file")
        # The local header repeats name and extra field; the data follow it.
        header = self.buffer[info.header_offset : info.header_offset + 30]
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
        start = info.header_offset + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or start + info.file_size > len(self.buffer):
            raise zipfile.BadZipFile(f"member {printable(name)} reaches beyond the file")
        if self.verify and self._crc(start, info.file_size) != info.CRC:
            raise zipfile.BadZipFile(f"member {printable(name)} has a wrong checksum")
        return self.buffer, start, info.file_size

    def _crc(self, start: int, length: int) -> int:
        crc = 0
        for at in range(start, start + length, 1 << 24):
            crc = zlib.crc32(self.buffer[at : min(at + (1 << 24), start + length)], crc)
        return crc

    def read(self, name: str, limit: int) -> bytes:
        if name in self.members and self.members[name].file_size > limit:
            raise zipfile.BadZipFile(f"member {printable(name)} has more than {limit} bytes")
        buffer, start, length = self.locate(name)
        return bytes(buffer[start : start + length])

    def storage(self, pid: Any) -> _Storage:
        """The storage a persistent identifier names, checked against the member's true size."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise TypeError("a persistent identifier is not that of a storage")
        _, kind, key, _location, count = pid
        if type(kind) is not _StorageType or type(key) is not str:
            raise TypeError("a storage has no type or no name")
        (count,) = _counts((count,), "storage length")
        if key not in self.located:
            self.located[key] = self.locate(f"{self.prefix}data/{key}")
        buffer, start, length = self.located[key]
        nbytes = count * (1 if kind.dtype is None else kind.dtype.itemsize)
        if nbytes > length:
            raise ValueError(f"storage {printable(key)} declares {nbytes} bytes but has {length}")
        return _Storage(printable(key), buffer, start, nbytes, kind.dtype, self.swapped)


def _refuse_other_formats(path: pathlib.Path) -> None:
    """Say what the file is when it is not a zip."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(b"PK\x03\x04"):
        return
    resave = "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
    if not head:
        what = "is empty; download it again"
    elif head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):  # the magic number
        what = f"uses PyTorch's layout from before version 1.6; re-save it with PyTorch: {resave}"
    elif head[257:262] == b"ustar":
        what = f"uses PyTorch's old tar layout; re-save it with PyTorch: {resave}"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page, not a checkpoint; the download went wrong, fetch it again"
    elif head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    elif head.startswith(b"\x80"):
        what = "is a bare pickle, not a PyTorch checkpoint; pass the .pth or .safetensors file"
    else:
        what = "is not a PyTorch checkpoint (no zip header); pass the .pth or .safetensors file"
    raise ArchiveError(f"{path}: {what}")


def read_torch_archive(path: str | pathlib.Path, *, verify: bool = False) -> dict:
    """Everything in a PyTorch checkpoint, tensors as read-only numpy views of the mapped file.

    Nothing the file contains is executed: its pickle may name tensor types only
    (``TORCH_GLOBALS``). ``argparse.Namespace`` comes back as a dict, devices as text, dtypes as
    numpy's (bfloat16 from ``ml_dtypes``). Tensors that share a storage share memory; compressed or
    byte-swapped ones are copies. ``verify`` also checks the checksum of every storage, which reads
    the whole file. The file must not be changed while its tensors are in use.

    Raises ``ArchiveError``: not readable, another format, truncated or damaged, a tensor that
    reaches outside of its storage, or a global that is not a tensor type (refused by name).
    """
    path = pathlib.Path(path)
    _refuse_other_formats(path)
    try:
        with zipfile.ZipFile(path) as opened:
            archive = _Archive(path, opened, verify)
            pickled = archive.read(f"{archive.prefix}data.pkl", MAX_PICKLE_BYTES)
            result = read_inert_pickle(pickled, str(path), TORCH_GLOBALS, archive.storage)
    except ArchiveError:
        raise
    # What zipfile and zlib raise on damaged input, beyond BadZipFile.
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        EOFError,
        OSError,
    ) as error:
        raise ArchiveError(
            f"{path}: truncated or damaged archive ({printable(error, 200)}); download it again"
        ) from error
    if not isinstance(result, dict):
        raise ArchiveError(
            f"{path}: holds a {type(result).__name__}, not a dict of tensors; save a state_dict()"
        )
    return result
