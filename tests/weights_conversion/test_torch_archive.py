"""Checkpoints are read exactly, lazily, and without running anything they contain."""

import copyreg
import mmap
import os
import pathlib
import pickle
import shutil
import struct
import sys
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import DATA
from tests.weights_conversion import archives as a
from weights_conversion import ArchiveError, load_tensors, read_pickle, read_torch_archive
from weights_conversion.inert_pickle import read_inert_pickle

OFFICIAL = DATA / "network" / "tiny_official_layout.pth"


def owner(array: np.ndarray):
    """What finally holds an array's memory."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base  # type: ignore[assignment]
    return array


def formula_weight(key: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The published file's recipe for its numbers (see the golden vectors' specification)."""
    for k in (1, 2, 3, 4):
        key = key.replace(f"scratch.layer{k}_rn.", f"scratch.layer_rn.{k - 1}.")
    x = np.random.default_rng(zlib.crc32((salt + key).encode()))
    x = x.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        is_scale = key.endswith("weight")
        return np.float32(1) + np.float32(0.1) * x if is_scale else np.float32(0.05) * x
    transposed = key.endswith(("act_postprocess.0.1.weight", "act_postprocess.1.1.weight"))
    fan_in = shape[0] if transposed else int(np.prod(shape[1:]))
    x = x * np.float32(1.0 / np.sqrt(float(fan_in)))
    return x * np.float32(0.25) if key.endswith("dpt.head.4.weight") else x


# The published layout


def test_official_layout_has_every_number():
    tensors = load_tensors(OFFICIAL, verify=True)
    assert len(tensors) == 657
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, formula_weight(key, value.shape, "micro/"), key)
        assert value.dtype == np.float32


def test_official_layout_has_the_other_entries():
    archive = read_torch_archive(OFFICIAL)
    assert set(archive) == {"args", "model", "optimizer", "scaler", "epoch", "best_so_far"}
    assert archive["epoch"] == 50 and archive["best_so_far"] == 1.25 and archive["scaler"] == {}
    assert archive["args"]["model"].startswith("AsymmetricMASt3R(pos_embed='RoPE100'")
    assert len(archive["optimizer"]["state"]) > 0
    assert type(archive["args"]).__module__ == "weights_conversion.inert_pickle"


def test_tensors_are_views_of_the_mapped_file():
    tensors = load_tensors(OFFICIAL)
    owners = {id(owner(value)) for value in tensors.values()}
    assert len(owners) == 1
    assert isinstance(owner(next(iter(tensors.values()))), mmap.mmap)
    assert not any(value.flags.writeable for value in tensors.values())
    one = tensors["downstream_head1.dpt.scratch.layer1_rn.weight"]
    assert np.shares_memory(one, tensors["downstream_head1.dpt.scratch.layer_rn.0.weight"])
    # 64-byte alignment of the file survives, so that JAX and BLAS can use the memory as it lies.
    assert all(value.ctypes.data % 64 == 0 for value in tensors.values())


def test_every_truncation_is_refused(tmp_path):
    whole = OFFICIAL.read_bytes()
    rng = np.random.default_rng(0)
    lengths = {0, 1, 3, 4, 29, 30, 31, 100, 4096, len(whole) - 1, len(whole) - 22, len(whole) - 23}
    lengths |= {int(n) for n in rng.integers(0, len(whole), 40)}
    lengths |= {int(n) for n in rng.integers(len(whole) - 50_000, len(whole), 40)}  # the directory
    cut = tmp_path / "cut.pth"
    for length in sorted(lengths):
        cut.write_bytes(whole[:length])
        way_out = "download it again" if length == 0 or length >= 4 else "no zip header"
        with pytest.raises(ArchiveError, match=rf"cut\.pth: .*{way_out}"):
            read_torch_archive(cut)


def test_random_damage_is_read_or_refused(tmp_path):
    """Flipped bytes anywhere in the structure end in a value or in our error, never another."""
    small = tmp_path / "small.pth"
    body = a.ordered_dict({"w": a.tensor("0", (2, 3)), "b": a.tensor("1", (3,))})
    a.write(small, body, {"0": bytes(24), "1": bytes(12)})
    whole = small.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(500):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        small.write_bytes(damaged)
        try:
            read_torch_archive(small, verify=True)
            outcomes.add("read")
        except ArchiveError as error:
            assert str(error).startswith(str(small))
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_verify_finds_a_flipped_bit(tmp_path):
    path = a.write(tmp_path / "w.pth", a.dict_of({"w": a.tensor("0", (64,))}), {"0": bytes(256)})
    whole = path.read_bytes()
    at = whole.index(bytes(256)) + 100
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    assert read_torch_archive(path)["w"].sum() > 0
    with pytest.raises(ArchiveError, match="data/0 has a wrong checksum"):
        read_torch_archive(path, verify=True)


# Types, strides, byte order, compression


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
        ("ComplexFloatStorage", np.complex64),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_every_storage_type_in_both_byte_orders(tmp_path, kind, dtype, order):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    words = f"u{np.dtype(dtype).itemsize // (2 if np.dtype(dtype).kind == 'c' else 1)}"
    raw = values.reshape(-1).view(words)
    path = a.write(
        tmp_path / "t.pth",
        a.dict_of({"w": a.tensor("0", (2, 3), kind=kind)}),
        {"0": (raw.byteswap() if order == "big" else raw).tobytes()},
        extra={"archive/byteorder": order.encode()},
    )
    read = read_torch_archive(path)["w"]
    assert read.dtype == values.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, values)


def test_strides_and_offsets(tmp_path):
    base = np.arange(24, dtype=np.float32)
    body = a.dict_of(
        {
            "transposed": a.tensor("0", (4, 3), stride=(1, 4), offset=12, count=24),
            "every_other": a.tensor("0", (5,), stride=(2,), offset=1, count=24),
            "scalar": a.tensor("0", (), offset=7, count=24),
            "empty": a.tensor("0", (0, 5), offset=0, count=24),
            "one": a.tensor("0", (1, 1), stride=(999, 999), offset=23, count=24),
        }
    )
    read = read_torch_archive(a.write(tmp_path / "s.pth", body, {"0": base.tobytes()}))
    np.testing.assert_array_equal(read["transposed"], base[12:].reshape(3, 4).T)
    np.testing.assert_array_equal(read["every_other"], base[1:11:2])
    assert read["scalar"].shape == () and read["scalar"] == 7
    assert read["empty"].shape == (0, 5)
    np.testing.assert_array_equal(read["one"], [[23]])


def test_parameters_untyped_storages_and_devices(tmp_path):
    values = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16)
    v3 = a.call(
        a.name("torch._utils", "_rebuild_tensor_v3"),
        a.storage("UntypedStorage", "0", 8, module="torch.storage"),
        a.integer(0),
        a.integers(4),
        a.integers(1),
        b"\x88",
        a.call(a.name("collections", "OrderedDict")),
        a.name("torch", "bfloat16"),
    )
    hooks = a.call(a.name("collections", "OrderedDict"))
    parameter = a.call(a.name("torch._utils", "_rebuild_parameter"), v3, b"\x88", hooks)
    body = a.dict_of(
        {
            "parameter": parameter,
            "device": a.call(a.name("torch", "device"), a.text("cuda"), a.integer(1)),
            "size": a.call(a.name("torch", "Size"), a.integers(2, 3)),
            "dtype": a.name("torch", "float16"),
        }
    )
    read = read_torch_archive(a.write(tmp_path / "p.pth", body, {"0": values.tobytes()}))
    np.testing.assert_array_equal(read["parameter"], values)
    assert read["device"] == "cuda:1" and read["size"] == (2, 3) and read["dtype"] == np.float16


def test_compressed_members_are_inflated(tmp_path):
    values = np.arange(1000, dtype=np.float32)
    body = a.dict_of({"w": a.tensor("0", (1000,))})
    path = a.write(
        tmp_path / "z.pth", body, {"0": values.tobytes()}, compression=zipfile.ZIP_DEFLATED
    )
    np.testing.assert_array_equal(read_torch_archive(path)["w"], values)


# Sizes that lie


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (a.tensor("0", (4,), count=5), "declares 20 bytes but has 16"),
        (a.tensor("0", (5,), count=4), "reads element 4 of storage 0, which has 4"),
        (a.tensor("0", (2,), offset=3, count=4), "reads element 4"),
        (a.tensor("0", (2, 2), stride=(3, 1), count=4), "reads element 4"),
        (a.tensor("0", (2,), stride=(-1,), offset=3, count=4), "stride is not a tuple of counts"),
        (a.tensor("0", (-2,), count=4), "size is not a tuple of counts"),
        (a.tensor("0", (2,), offset=-1, count=4), "offset is not a tuple of counts"),
        (a.tensor("0", (2,), count=-4), "storage length is not a tuple of counts"),
        (a.tensor("0", (2, 2), stride=(1,), count=4), "2 sizes with 1 strides"),
        (a.tensor("0", (10**12,), stride=(0,), count=4), "repeats the 4 of its storage"),
        (a.tensor("0", (2**62, 2**62), count=4), "reads element"),
        (a.tensor("0", (0, 2**62, 2**62), count=4), "damaged or hostile"),
        (a.tensor("7", (4,)), "data/7 is missing"),
        (a.tensor("../version", (0,)), "is missing"),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, entry, message):
    path = a.write(tmp_path / "lie.pth", a.dict_of({"w": entry}), {"0": bytes(16)})
    with pytest.raises(ArchiveError, match=message):
        read_torch_archive(path)


def test_inflation_is_bounded(tmp_path):
    """A bomb of 64 MB that compresses a thousandfold is refused before it is unpacked."""
    body = a.dict_of({"w": a.tensor("0", (1 << 24,))})
    path = a.write(
        tmp_path / "bomb.pth", body, {"0": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 100_000
    with pytest.raises(ArchiveError, match="unpacks to more than 32 times its size"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged or hostile"),  # text of 2 GB
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", "damaged or hostile"),  # bytes of 2^63
        (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "damaged or hostile"),  # integer of 2 GB
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "damaged or hostile"),  # frame of 2^63
        (b"\x80\x02}r\xff\xff\xff\xff0.", "damaged or hostile"),  # memo slot 2^32: no table
        (b"\x80\x02})" + b"\x85" * 1000 + b"Ns.", "a dict key is a tuple"),  # hash() would recurse
        (b"\x80\x02}]Ns.", "a dict key is a list"),
        (b"\x80\x02.", "damaged or hostile"),
        (b"\x80\x020.", "damaged or hostile"),
        (b"\x80\x02t.", "damaged or hostile"),
        (b"\x80\x02h\x05.", "damaged or hostile"),
        (b"\x80\x02}", "damaged or hostile"),
        (b"", "damaged or hostile"),
        (b"\xff\xff", "damaged or hostile"),
    ],
)
def test_malformed_pickles_are_refused(program, message):
    with pytest.raises(ArchiveError, match=f"x.pth: .*{message}"):
        read_inert_pickle(program, "x.pth")


def test_deep_nesting_is_harmless():
    """A list in a list, 20000 times, neither recurses while reading nor while being freed."""
    value = read_inert_pickle(a.program(b"]" * 20_000 + b"a" * 19_999), "deep.pth")
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 19_999


# Hostile pickles: nothing runs, the message names what was asked for

MARK = "touched_by_the_pickle"


def shell(marker: pathlib.Path) -> bytes:
    return a.text(f"touch {marker}")


def python(marker: pathlib.Path) -> bytes:
    return a.text(f"open({str(marker)!r}, 'w').close()")


def stack_global(module: str, attribute: str) -> bytes:
    return a.text(module) + a.text(attribute) + b"\x93"


def path_text(marker: pathlib.Path) -> bytes:
    return a.text(str(marker))


HOSTILE = {
    "reduce posix.system": (
        lambda m: a.call(a.name("posix", "system"), shell(m)),
        "posix.system",
    ),
    "reduce os.system": (lambda m: a.call(a.name("os", "system"), shell(m)), "os.system"),
    "stack_global": (
        lambda m: a.call(stack_global("os", "system"), shell(m)),
        "os.system",
    ),
    "dotted stack_global": (
        lambda m: a.call(stack_global("collections", "OrderedDict.fromkeys"), shell(m)),
        "collections.OrderedDict.fromkeys",
    ),
    "torch's own door": (
        lambda m: a.call(stack_global("torch.serialization", "os.system"), shell(m)),
        "torch.serialization.os.system",
    ),
    "subprocess": (
        lambda m: a.call(
            a.name("subprocess", "call"), b"](" + a.text("touch") + path_text(m) + b"e"
        ),
        "subprocess.call",
    ),
    "builtins.eval": (lambda m: a.call(a.name("builtins", "eval"), python(m)), "builtins.eval"),
    "python 2 eval": (
        lambda m: a.call(a.name("__builtin__", "eval"), python(m)),
        "__builtin__.eval",
    ),
    "builtins.exec": (lambda m: a.call(a.name("builtins", "exec"), python(m)), "builtins.exec"),
    "open for writing": (
        lambda m: a.call(a.name("builtins", "open"), path_text(m), a.text("w")),
        "builtins.open",
    ),
    "getattr gadget": (
        lambda m: a.call(
            a.call(
                a.name("builtins", "getattr"),
                a.call(a.name("builtins", "__import__"), a.text("os")),
                a.text("system"),
            ),
            shell(m),
        ),
        "builtins.getattr",
    ),
    "operator.attrgetter": (
        lambda m: a.call(a.name("operator", "attrgetter"), a.text("system")),
        "operator.attrgetter",
    ),
    "functools.partial": (
        lambda m: a.call(a.name("functools", "partial"), a.name("os", "system"), shell(m)),
        "functools.partial",
    ),
    "runpy": (lambda m: a.call(a.name("runpy", "_run_code"), python(m)), "runpy._run_code"),
    "numpy's own loader": (
        lambda m: a.call(a.name("numpy", "load"), path_text(m)),
        "numpy.load",
    ),
    "torch.load": (lambda m: a.call(a.name("torch", "load"), path_text(m)), "torch.load"),
    "pickle.loads": (lambda m: a.call(a.name("_pickle", "loads"), b"U\x01."), "_pickle.loads"),
    "our own module": (
        lambda m: a.call(a.name("weights_conversion.download", "fetch")),
        "weights_conversion.download.fetch",
    ),
    "INST": (
        lambda m: b"(" + shell(m) + b"ios\nsystem\n",
        "os.system",
    ),
    "OBJ": (lambda m: b"(" + a.name("os", "system") + shell(m) + b"o", "os.system"),
    "NEWOBJ": (
        lambda m: a.name("subprocess", "Popen") + a.tuple_of(shell(m)) + b"\x81",
        "subprocess.Popen",
    ),
    "NEWOBJ_EX": (
        lambda m: a.name("subprocess", "Popen") + a.tuple_of(shell(m)) + b"}\x92",
        "subprocess.Popen",
    ),
    "inside a tensor's hooks": (
        lambda m: a.call(
            a.name("torch._utils", "_rebuild_tensor_v2"),
            a.storage("FloatStorage", "0", 4),
            a.integer(0),
            a.integers(4),
            a.integers(1),
            b"\x89",
            a.call(a.name("posix", "system"), shell(m)),
        ),
        "posix.system",
    ),
    "inside a storage's type": (
        lambda m: (
            a.tuple_of(
                a.text("storage"),
                a.call(a.name("posix", "system"), shell(m)),
                a.text("0"),
                a.text("cpu"),
                a.integer(4),
            )
            + b"Q"
        ),
        "posix.system",
    ),
    "inside a Namespace": (
        lambda m: (
            a.name("argparse", "Namespace")
            + b")\x81"
            + a.dict_of({"model": a.call(a.name("os", "system"), shell(m))})
            + b"b"
        ),
        "os.system",
    ),
    "after a valid tensor": (
        lambda m: a.tensor("0", (4,)) + b"0" + a.call(a.name("nt", "system"), shell(m)),
        "nt.system",
    ),
    "name with control characters": (
        lambda m: a.call(stack_global("os\x1b[2J\n", "system"), shell(m)),
        r"os\x1b[2J\n.system",
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_globals_are_refused_by_name(tmp_path, attack):
    build, named = HOSTILE[attack]
    marker = tmp_path / MARK
    path = a.write(tmp_path / "evil.pth", a.dict_of({"model": build(marker)}), {"0": bytes(16)})
    modules = set(sys.modules)
    with pytest.raises(ArchiveError) as caught:
        read_torch_archive(path)
    assert str(caught.value).startswith(f"{path}: refuses to load {named} (not a tensor type)")
    assert not marker.exists()
    assert set(sys.modules) == modules, "reading a checkpoint imported something"


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler runs them: the tests above would notice if ours did."""
    for attack in ("reduce posix.system", "stack_global", "INST", "OBJ", "builtins.exec"):
        marker = tmp_path / MARK
        pickle.loads(a.program(HOSTILE[attack][0](marker), protocol=4))
        assert marker.exists(), attack
        marker.unlink()


OPCODE_ATTACKS = {
    "copyreg extension 1": (b"\x82\x07", "EXT1 7"),
    "copyreg extension 2": (b"\x83\x07\x00", "EXT2 7"),
    "copyreg extension 4": (b"\x84\x07\x00\x00\x00", "EXT4 7"),
    "persistent id as text": (b"Pstorage\n", "PERSID"),
    "next buffer": (b"\x97", "NEXT_BUFFER"),
    "INST of an allowed class": (b"(icollections\nOrderedDict\n", "old-style class"),
    "OBJ of an allowed class": (b"(" + a.name("collections", "OrderedDict") + b"o", "OBJ"),
    "poison a stand-in": (
        a.name("argparse", "Namespace") + a.dict_of({"__init__": b"N"}) + b"b",
        "sets the state of a Call",
    ),
    "poison a stand-in's slots": (
        a.name("torch._utils", "_rebuild_tensor_v2")
        + a.tuple_of(b"N", a.dict_of({"make": b"N"}))
        + b"b",
        "sets the state of a Call",
    ),
    "poison a storage type": (
        a.name("torch", "FloatStorage") + a.dict_of({"dtype": b"N"}) + b"b",
        "sets the state of a _StorageType",
    ),
    "state of a plain dict": (b"}" + a.dict_of({"x": b"N"}) + b"b", "sets the state of a dict"),
    "state of a list": (b"]" + a.dict_of({"__class__": b"N"}) + b"b", "sets the state of a list"),
    "Namespace with slots": (
        a.name("argparse", "Namespace")
        + b")\x81"
        + a.tuple_of(b"N", a.dict_of({"x": b"N"}))
        + b"b",
        "sets the state of a Namespace",
    ),
    "Namespace with odd names": (
        a.name("argparse", "Namespace") + b")\x81" + b"}(" + a.integer(1) + b"Nub",
        "not a string",
    ),
    "Namespace with arguments": (
        a.call(a.name("argparse", "Namespace"), a.text("x")),
        "damaged or hostile",
    ),
    "items of a Namespace": (
        a.name("argparse", "Namespace") + b")\x81(" + a.text("x") + b"Nu",
        "sets items of a Namespace",
    ),
    "items of a class": (
        a.name("collections", "OrderedDict") + b"(" + a.text("x") + b"Nu",
        "sets items of a Call",
    ),
    "append to a dict": (b"}Na", "appends to a dict"),
    "call of a string": (a.text("os.system") + b")R", "calls a str"),
    "call of a result": (a.call(a.name("collections", "OrderedDict")) + b")R", "calls a Ordered"),
    "call of a dtype": (a.name("torch", "float32") + b")R", "calls a Float32DType"),
    "call of a storage type": (a.name("torch", "FloatStorage") + b")R", "calls a _StorageType"),
    "call without a tuple": (a.name("collections", "OrderedDict") + b"NR", "calls a Call"),
    "tensor from a tensor": (
        a.call(
            a.name("torch._utils", "_rebuild_tensor_v2"),
            a.tensor("0", (4,)),
            a.integer(0),
            a.integers(4),
            a.integers(1),
        ),
        "no typed storage",
    ),
    "persistent id of another kind": (
        a.tuple_of(a.text("module"), b"N", b"N", b"N", b"N") + b"Q",
        "not that of a storage",
    ),
    "persistent id that is text": (a.text("storage") + b"Q", "not that of a storage"),
    "persistent id too short": (a.tuple_of(a.text("storage")) + b"Q", "not that of a storage"),
    "storage of no type": (
        a.tuple_of(a.text("storage"), b"N", a.text("0"), a.text("cpu"), a.integer(4)) + b"Q",
        "no type or no name",
    ),
    "storage named by a number": (
        a.tuple_of(
            a.text("storage"),
            a.name("torch", "FloatStorage"),
            a.integer(0),
            a.text("cpu"),
            a.integer(4),
        )
        + b"Q",
        "no type or no name",
    ),
    "global without names": (b"N" + a.text("x") + b"\x93", "not a string"),
    "numpy objects": (
        a.call(a.name("numpy", "dtype"), a.text("O8")),
        "numpy dtype O8 is not a plain number",
    ),
}


@pytest.mark.parametrize("attack", OPCODE_ATTACKS)
def test_opcode_abuse_is_refused(tmp_path, attack):
    body, message = OPCODE_ATTACKS[attack]
    path = a.write(tmp_path / "evil.pth", a.dict_of({"model": body}), {"0": bytes(16)})
    with pytest.raises(ArchiveError) as caught:
        read_torch_archive(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: damaged or hostile pickle at byte ")


def test_registered_extension_codes_are_not_looked_up(tmp_path):
    """Even a code that this process knows, resolved and cached by pickle, stays closed."""
    marker = tmp_path / MARK
    copyreg.add_extension("os", "system", 0x77)
    try:
        hostile = b"\x82\x77" + a.tuple_of(shell(marker)) + b"R"
        pickle.loads(a.program(hostile))
        assert marker.exists()
        marker.unlink()
        path = a.write(tmp_path / "evil.pth", hostile)
        with pytest.raises(ArchiveError, match="EXT1 119"):
            read_torch_archive(path)
        assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 0x77)


def test_build_on_a_state_dict_sets_nothing(tmp_path):
    poison = a.dict_of({"_metadata": b"N", "__class__": b"N", "keys": b"N", "__len__": b"N"})
    body = a.call(a.name("collections", "OrderedDict")) + poison + b"b"
    read = read_torch_archive(a.write(tmp_path / "b.pth", a.dict_of({"model": body})))["model"]
    assert vars(read) == {} and list(read.keys()) == [] and type(read).__name__ == "OrderedDict"


def test_a_namespace_is_only_a_dict(tmp_path):
    state = a.dict_of({"__class__": a.text("x"), "__setstate__": a.text("y"), "lr": b"N"})
    body = a.name("argparse", "Namespace") + b")\x81" + state + b"b"
    read = read_torch_archive(a.write(tmp_path / "n.pth", a.dict_of({"args": body})))["args"]
    assert dict(read) == {"__class__": "x", "__setstate__": "y", "lr": None}
    assert vars(read) == {} and type(read).__name__ == "Namespace"


# Archives that are none


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before version 1.6"),
        (b"x\0" + b"\0" * 255 + b"ustar  \0", "old tar layout"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (pickle.dumps({"w": 1}), "is a bare pickle"),
        (b"RIFF....", "is not a PyTorch checkpoint"),
    ],
)
def test_other_formats_are_named(tmp_path, content, message):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"file.pth: .*{message}"):
        load_tensors(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ArchiveError, match=r"none\.pth: cannot be read: No such file"):
        load_tensors(tmp_path / "none.pth")
    with pytest.raises(ArchiveError, match="cannot be read: Is a directory"):
        read_torch_archive(tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b""}, "0 members named"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, "2 members named"),
        ({"x/y/data.pkl": b""}, "0 members named"),
        ({"a/data.pkl": b"", "/etc/passwd": b""}, "leaves the archive"),
        ({"a/data.pkl": b"", "a/../../x": b""}, "leaves the archive"),
        ({"a/data.pkl": b"", "a/constants.pkl": b""}, "TorchScript"),
    ],
)
def test_zips_of_another_kind_are_refused(tmp_path, members, message):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, raw in members.items():
            archive.writestr(member, raw)
    with pytest.raises(ArchiveError, match=message):
        read_torch_archive(path)


def test_duplicate_members_are_refused(tmp_path):
    path = a.write(tmp_path / "twice.pth", a.dict_of({}))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", a.program(b"}"))
    with pytest.raises(ArchiveError, match=r"two members are named archive/data\.pkl"):
        read_torch_archive(path)


def test_encrypted_and_overlong_members_are_refused(tmp_path):
    path = a.write(tmp_path / "w.pth", a.dict_of({"w": a.tensor("0", (4,))}), {"0": bytes(16)})
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)  # of archive/data/0
    for at, value, message in (
        (entry + 8, struct.pack("<H", 1), "encrypted"),
        (entry + 20, struct.pack("<II", 2**31, 2**31), "reaches beyond the file"),
        (entry + 10, struct.pack("<H", 14), "unusual compression"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(ArchiveError, match=message):
            read_torch_archive(path)


def test_a_checkpoint_that_is_no_dict_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="holds a list"):
        read_torch_archive(a.write(tmp_path / "l.pth", b"]"))


# Flat tables


def test_where_the_state_dict_may_be(tmp_path):
    flat = {"w": a.tensor("0", (4,))}
    raw = np.arange(4, dtype=np.float32)
    for body in (
        a.ordered_dict(flat),
        a.dict_of({"model": a.ordered_dict(flat), "epoch": a.integer(3)}),
        a.dict_of({"state_dict": a.dict_of(flat)}),
    ):
        tensors = load_tensors(a.write(tmp_path / "f.pth", body, {"0": raw.tobytes()}))
        assert list(tensors) == ["w"]
        np.testing.assert_array_equal(tensors["w"], raw)


def test_checkpoints_without_a_state_dict_are_refused(tmp_path):
    path = a.write(tmp_path / "none.pth", a.dict_of({"epoch": a.integer(3)}))
    with pytest.raises(ArchiveError, match=r"no tensors under 'model'.*found: epoch"):
        load_tensors(path)
    entries = {"w": a.tensor("0", (4,)), "steps": a.integer(1)}
    path = a.write(tmp_path / "mixed.pth", a.dict_of(entries), {"0": bytes(16)})
    with pytest.raises(ArchiveError, match="entry steps is a int, not a tensor"):
        load_tensors(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_safetensors_are_recognised_by_content_and_mapped(tmp_path, dtype):
    values = {"w": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones(3, np.float32)}
    path = tmp_path / "weights.pth"  # the extension lies
    safetensors.numpy.save_file(values, path, metadata={"format": "np"})
    tensors = load_tensors(path)
    assert set(tensors) == {"w", "b"}
    for key, value in values.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value)
        assert isinstance(owner(tensors[key]), mmap.mmap)


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"w": np.arange(60, dtype=np.float32)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"m\.safetensors: "):
            load_tensors(path)


def test_torch_archives_are_recognised_by_content(tmp_path):
    path = tmp_path / "weights.safetensors"
    shutil.copy(OFFICIAL, path)
    assert len(load_tensors(path)) == 657


# Bare pickles (the retrieval codebook)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_codebook_pickles_are_read_without_numpy_s_loader(tmp_path, protocol):
    centroids = np.arange(12, dtype=np.float32).reshape(4, 3)
    codebook = {
        "type": "Codebook",
        "params": {"size": 4, "score": np.float64(0.5)},
        "state": {"centroids": centroids, "fortran": np.asfortranarray(centroids)},
    }
    path = tmp_path / "codebook.pkl"
    path.write_bytes(pickle.dumps(codebook, protocol))
    read = read_pickle(path)
    assert read["type"] == "Codebook" and read["params"] == {"size": 4, "score": 0.5}
    np.testing.assert_array_equal(read["state"]["centroids"], centroids)
    np.testing.assert_array_equal(read["state"]["fortran"], centroids)


def test_numpy_1_module_names_are_known(tmp_path):
    raw = pickle.dumps(np.arange(3.0), 2)
    old = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != raw
    np.testing.assert_array_equal(read_inert_pickle(old, "old.pkl"), [0.0, 1.0, 2.0])


def test_hostile_codebooks_are_refused(tmp_path):
    path = tmp_path / "codebook.pkl"
    marker = tmp_path / MARK
    path.write_bytes(a.program(a.call(a.name("posix", "system"), shell(marker))))
    with pytest.raises(ArchiveError, match=r"refuses to load posix\.system"):
        read_pickle(path)
    path.write_bytes(pickle.dumps(np.array([os.getcwd, 1], dtype=object), 2))
    with pytest.raises(ArchiveError, match=r"refuses|not a plain number"):
        read_pickle(path)
    assert not marker.exists()
