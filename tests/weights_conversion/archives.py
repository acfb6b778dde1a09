"""PyTorch archives written by hand: a small pickle assembler and a zip writer."""

import math
import struct
import zipfile


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def integers(*values: int) -> bytes:
    return tuple_of(*(integer(v) for v in values))


def dict_of(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def call(function: bytes, *args: bytes) -> bytes:
    return function + tuple_of(*args) + b"R"


def ordered_dict(items: dict[str, bytes]) -> bytes:
    """With ``_metadata`` set by BUILD, as a state dict has it."""
    metadata = dict_of({"_metadata": call(name("collections", "OrderedDict"))})
    return call(name("collections", "OrderedDict")) + dict_of(items)[1:] + metadata + b"b"


def storage(kind: str, key: str, count: int, module: str = "torch", place: str = "cuda:0") -> bytes:
    parts = text("storage"), name(module, kind), text(key), text(place), integer(count)
    return tuple_of(*parts) + b"Q"


def tensor(
    key: str,
    size: tuple[int, ...],
    *,
    kind: str = "FloatStorage",
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
    count: int | None = None,
) -> bytes:
    """``_rebuild_tensor_v2`` of one storage of ``count`` elements, contiguous by default."""
    if stride is None:
        stride = tuple(math.prod(size[i + 1 :]) for i in range(len(size)))
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(kind, key, math.prod(size) if count is None else count),
        integer(offset),
        integers(*size),
        integers(*stride),
        b"\x89",
        hooks,
    )


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def write(
    path,
    body: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    extra: dict[str, bytes] | None = None,
    prefix: str = "archive",
    compression: int = zipfile.ZIP_STORED,
):
    """A zip of PyTorch's layout at ``path``: ``body`` is the pickle without header and STOP."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}/data.pkl", program(body))
        for key, raw in (storages or {}).items():
            archive.writestr(f"{prefix}/data/{key}", raw)
        archive.writestr(f"{prefix}/version", "3\n")
        for member, raw in (extra or {}).items():
            archive.writestr(member, raw)
    return path
