"""The retrieval head's checkpoint and codebook, in the layout of the published files."""

import itertools
import pickle
import shutil

import jax
import numpy as np
import pytest

from mast3r_jax import has_retrieval, load_retrieval
from tests.mast3r_jax.golden_retrieval import NAMES, checkpoint_of, model_of
from tests.weights_conversion import archives as a
from tests.weights_conversion.test_cli import OFFICIAL, RESULT, call, names, refused
from weights_conversion import ConversionError, convert_retrieval, read_pickle, read_torch_archive
from weights_conversion.retrieval import codebook_beside, is_retrieval

STEM = "MASt3R_512_metric_retrieval"
HEAD_RESULT = {"retrieval.safetensors", "retrieval.json", "NOTICE-retrieval.txt"}
KINDS = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float64): "DoubleStorage"}


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def value(item) -> bytes:
    """The pickle of an argument's value."""
    if item is None:
        return b"N"
    if isinstance(item, bool):
        return b"\x88" if item else b"\x89"
    if isinstance(item, float):
        return b"F" + repr(item).encode() + b"\n"
    return a.text(item) if isinstance(item, str) else a.integer(item)


def write_head(path, arguments: dict, tensors: dict[str, np.ndarray]):
    """A checkpoint as ``torch.save`` lays it out, its arguments an ``argparse.Namespace``."""
    namespace = a.call(a.name("argparse", "Namespace")) + a.dict_of(
        {key: value(item) for key, item in arguments.items()}
    )
    state = {
        key: a.tensor(str(i), array.shape, kind=KINDS[array.dtype])
        for i, (key, array) in enumerate(tensors.items())
    }
    body = a.dict_of({"args": namespace + b"b", "model": a.ordered_dict(state)})
    raw = {str(i): array.tobytes() for i, array in enumerate(tensors.values())}
    return a.write(path, body, raw)


def small() -> tuple[dict, dict]:
    """A head of 8 channels with everything in it, and its codebook."""
    rng = np.random.default_rng(0)

    def whitening(part, d):
        return {f"{part}.m": rng.normal(size=(1, d)), f"{part}.p": rng.normal(size=(d, d))}

    def float32(*shape):
        return rng.normal(size=shape).astype(np.float32)

    sizes = [8, 6, 5, 8]
    projector = {}
    for i, (c_in, c_out) in enumerate(itertools.pairwise(sizes)):
        projector[f"projector.{3 * i}.weight"] = float32(c_out, c_in)
        projector[f"projector.{3 * i}.bias"] = float32(c_out)
        if i < 2:
            projector[f"projector.{3 * i + 1}.weight"] = float32(c_out)
            projector[f"projector.{3 * i + 1}.bias"] = float32(c_out)
    arguments = {
        "pretrained": "mast3r.pth",
        "freeze_backbone": 1,
        "prewhiten": -1,
        "hdims": "6_5_8",
        "residual": True,
        "postwhiten": -1,
        "featweights": "l2norm",
        "nfeat": 300,
        "imsize": 512,
        "nclusters": 7,
        "lr": 1e-4,
    }
    state = whitening("prewhiten", 8) | projector | whitening("postwhiten", 8)
    codebook = {
        "type": "Codebook",
        "params": {"size": 7},
        "state": {"centroids": float32(7, 8)},
    }
    return {"args": arguments, "model": state}, codebook


def write_files(folder, checkpoint, codebook):
    """Both files under names like the published ones."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{STEM}_trainingfree.pth"
    write_head(path, checkpoint["args"], checkpoint["model"])
    (folder / f"{STEM}_codebook.pkl").write_bytes(pickle.dumps(codebook))
    return path


def assert_same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_golden_heads_give_their_models(tmp_path, capsys, name):
    """From files to files; that these models give the golden codes is tested with the model."""
    path = write_files(tmp_path / "published", *checkpoint_of(name))
    assert is_retrieval(read_torch_archive(path))
    out = tmp_path / "weights"
    assert call("convert", path, out) == 0
    said = capsys.readouterr().out
    assert f"{3 if name == 'A_free' else 11} used, 0 ignored" in said and "CC BY-NC-SA" in said
    assert names(out) == HEAD_RESULT
    assert_same(load_retrieval(out), model_of(name))
    notice = (out / "NOTICE-retrieval.txt").read_text()
    for part in (f"{STEM}_trainingfree.pth", f"{STEM}_codebook.pkl", "CC BY-NC-SA 4.0"):
        assert part in notice


def test_every_tensor_gets_its_place():
    checkpoint, codebook = small()
    model, tensors = convert_retrieval(checkpoint, codebook), checkpoint["model"]
    np.testing.assert_array_equal(model.centroids, codebook["state"]["centroids"])
    for part, whitening in (("prewhiten", model.prewhiten), ("postwhiten", model.postwhiten)):
        assert whitening is not None
        rounded = tensors[f"{part}.m"][0].astype(np.float32)
        np.testing.assert_array_equal(whitening.mean, rounded)
        rounded = tensors[f"{part}.p"].astype(np.float32)
        np.testing.assert_array_equal(whitening.projection, rounded)
    for i, layer in enumerate(model.projector):
        source = f"projector.{3 * i}"
        np.testing.assert_array_equal(layer.kernel, tensors[f"{source}.weight"].T)
        np.testing.assert_array_equal(layer.bias, tensors[f"{source}.bias"])
        assert (layer.norm is None) == (i == 2)
        if layer.norm is not None:
            source = f"projector.{3 * i + 1}"
            np.testing.assert_array_equal(layer.norm.scale, tensors[f"{source}.weight"])
            np.testing.assert_array_equal(layer.norm.bias, tensors[f"{source}.bias"])
    assert (model.num_features, model.residual, len(model.projector)) == (300, True, 3)


def test_a_head_may_have_no_tensors_at_all(tmp_path):
    checkpoint, codebook = small()
    arguments = checkpoint["args"] | {"prewhiten": None, "postwhiten": None, "hdims": ""}
    del arguments["residual"]  # older checkpoints have no such argument
    path = write_files(tmp_path / "published", {"args": arguments, "model": {}}, codebook)
    assert call("convert", path, tmp_path / "weights") == 0
    model = load_retrieval(tmp_path / "weights")
    assert (model.prewhiten, model.projector, model.postwhiten) == (None, (), None)


@pytest.mark.parametrize(
    ("nclusters", "size", "count"),
    [(7, "7", 7), ("1k", "1k", 1000), ("1k", 1024, 1024), ("64k", "64k", 65536)],
)
def test_numbers_of_centroids_are_spelled_in_many_ways(nclusters, size, count):
    checkpoint, codebook = small()
    checkpoint["args"]["nclusters"], codebook["params"]["size"] = nclusters, size
    codebook["state"]["centroids"] = np.zeros((count, 8), np.float32)
    assert convert_retrieval(checkpoint, codebook).num_centroids == count


def changed(part: str, name: str, new):
    """The small head with one entry replaced, or removed."""
    checkpoint, codebook = small()
    table = {**checkpoint, "codebook": codebook}[part]
    if new is None:
        del table[name]
    else:
        table[name] = new
    return checkpoint, codebook


@pytest.mark.parametrize(
    ("part", "name", "new", "message"),
    [
        ("model", "prewhiten.p", None, "missing tensor prewhiten.p"),
        ("model", "projector.4.bias", None, "missing tensor projector.4.bias"),
        ("model", "projector.2.weight", np.ones(6), "unknown tensor projector.2.weight"),
        ("model", "projector.7.weight", np.ones(8), "unknown tensor projector.7.weight"),
        ("model", "\x1b[2J", np.ones(6), r"unknown tensor \x1b[2J"),
        ("model", "backbone.enc_norm.bias", np.ones(6), "encoder was trained along"),
        ("model", "prewhiten.m", np.ones(8), "prewhiten.m has shape (8,), expected one row"),
        ("model", "projector.0.bias", np.ones(6, int), "projector.0.bias is of type int64"),
        (
            "model",
            "projector.3.weight",
            np.ones((5, 7)),
            "projector.3.weight (transposed) has shape (7, 5), expected (6, 5)",
        ),
        ("model", "postwhiten.p", np.full((8, 8), np.nan), "postwhiten.p holds numbers that are"),
        ("model", "postwhiten.p", np.full((8, 8), 1e300), "postwhiten.p holds numbers that are"),
        ("args", "hdims", "6_5_9", "hdims is '6_5_9', but the projector's layers have 6, 5, 8"),
        ("args", "hdims", 5, "hdims is 5, but"),
        ("args", "featweights", "attn", "featweights is 'attn'; only 'l2norm' is supported"),
        ("args", "nfeat", "many", "nfeat='many' must be a count"),
        ("args", "nclusters", 8, "nclusters is 8, but the codebook has 7 centroids"),
        ("args", "nclusters", "lots", "nclusters is 'lots', expected a count such as '64k'"),
        ("codebook", "params", {"size": 9}, "params, size is 9, but the codebook has 7"),
        ("codebook", "params", [9], "params, size is None, expected a count"),
        ("codebook", "type", "Kernel", "the codebook is of type Kernel"),
        ("codebook", "state", None, "no table of centroids under state, centroids"),
        ("codebook", "state", {"centroids": np.ones((7, 8), int)}, "centroids are of type int64"),
        (
            "codebook",
            "state",
            {"centroids": np.ones((7, 9))},
            "codebook's centroids has shape (7, 9), expected (7, 8)",
        ),
    ],
)
def test_what_does_not_fit_is_named(part, name, new, message):
    with pytest.raises(ConversionError) as caught:
        convert_retrieval(*changed(part, name, new))
    first, *problems = str(caught.value).splitlines()
    assert first == "checkpoint and codebook do not form a retrieval model:"
    assert len(problems) == 1 and message in problems[0]


def test_arguments_and_tensors_must_agree():
    checkpoint, codebook = small()
    checkpoint["args"] |= {"prewhiten": None, "hdims": ""}
    for name in list(checkpoint["model"]):
        if name.startswith(("postwhiten", "projector")):
            del checkpoint["model"][name]
    with pytest.raises(ConversionError) as caught:
        convert_retrieval(checkpoint, codebook)
    for part in (
        "prewhiten.m is there, but the argument prewhiten is None",
        "missing tensor postwhiten.m: the argument postwhiten asks for a whitening",
        "residual is set, but there is no projector",
    ):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 + 3
    with pytest.raises(ConversionError, match=r"prewhiten\.p is a int, not a tensor"):
        convert_retrieval(*changed("model", "prewhiten.p", 3))
    for entry in ("args", "model"):
        with pytest.raises(ConversionError, match=f"under '{entry}'"):
            convert_retrieval({**checkpoint, entry: 3}, codebook)
    many = {f"head.{i}": np.ones(1) for i in range(30)}
    with pytest.raises(ConversionError, match=r"\.\.\. and 13 more"):
        convert_retrieval({**checkpoint, "model": checkpoint["model"] | many}, codebook)


def test_codebooks_are_found_beside_their_head(tmp_path, capsys):
    path = write_files(tmp_path / "published", *small())
    book = path.with_name(f"{STEM}_codebook.pkl")
    assert codebook_beside(path) == book
    elsewhere = tmp_path / "book.pkl"
    book.rename(elsewhere)
    said = refused(capsys, "convert", path, tmp_path / "weights")
    assert said.startswith(f"{book}: no such codebook") and "--codebook FILE" in said
    said = refused(capsys, "convert", path, tmp_path / "weights", "--codebook", tmp_path / "no")
    assert said.startswith(f"{tmp_path / 'no'}: no such codebook")
    assert not (tmp_path / "weights").exists()
    assert call("convert", path, tmp_path / "weights", "--codebook", elsewhere) == 0
    assert_same(load_retrieval(tmp_path / "weights"), convert_retrieval(*small()))


def test_bad_files_leave_nothing_behind(tmp_path, capsys):
    path = write_files(tmp_path, *small())
    book = path.with_name(f"{STEM}_codebook.pkl")
    whole_head, whole_book = path.read_bytes(), book.read_bytes()
    evil = pickle.dumps(small()[1])[:-1] + b"cposix\nsystem\n."
    flipped = bytearray(whole_head)
    at = whole_head.index(small()[0]["model"]["postwhiten.p"].tobytes())
    flipped[at] ^= 1
    before = names(tmp_path)
    for head, content, message in (
        (whole_head[:900], whole_book, "truncated or damaged"),
        (bytes(flipped), whole_book, "wrong checksum"),
        (whole_head, whole_book[:100], "damaged or hostile pickle"),
        (whole_head, b"", "is empty; download it again"),
        (whole_head, evil, "refuses to load posix.system"),
        (whole_head, pickle.dumps([1]), "no table of centroids"),
        (whole_head, pickle.dumps(changed("codebook", "type", "K")[1]), "of type K"),
    ):
        path.write_bytes(head)
        book.write_bytes(content)
        said = refused(capsys, "convert", path, tmp_path / "deep" / "out")
        assert message in said and said.startswith(str(tmp_path))
        assert names(tmp_path) == before


@pytest.mark.slow
def test_network_and_head_share_a_folder_in_any_order(tmp_path, capsys):
    head = write_files(tmp_path / "published", *small())
    for first, second in ((OFFICIAL, head), (head, OFFICIAL)):
        out = tmp_path / f"weights of {first.stem}"
        assert call("convert", first, out) == 0
        kept = {path.name: path.read_bytes() for path in out.iterdir()}
        assert call("convert", second, out) == 0
        assert names(out) == RESULT | HEAD_RESULT
        assert all((out / name).read_bytes() == raw for name, raw in kept.items())
        for source in (first, second):
            capsys.readouterr()
            said = f"{out}: holds a conversion already; pass --overwrite, or choose another folder"
            assert refused(capsys, "convert", source, out) == said
        assert call("convert", second, out, "--overwrite") == 0
        assert names(out) == RESULT | HEAD_RESULT
        assert_same(load_retrieval(out), convert_retrieval(*small()))
    shutil.rmtree(out)
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"x")
    assert "holds other files (photo.jpg)" in refused(capsys, "convert", head, out)
    assert not has_retrieval(out)


def test_options_of_the_other_kind_are_refused(tmp_path, capsys):
    head = write_files(tmp_path, *small())
    for option in (("--dtype", "bfloat16"), ("--enc-heads", 4), ("--dec-heads", 4)):
        said = refused(capsys, "convert", head, tmp_path / "out", *option)
        assert "leave out --dtype, --enc-heads and --dec-heads" in said
    said = refused(capsys, "convert", OFFICIAL, tmp_path / "out", "--codebook", head)
    assert said == f"--codebook: is for a retrieval head, which {OFFICIAL} is not"
    assert not (tmp_path / "out").exists()


def test_inspect_recognises_a_head(tmp_path, capsys):
    head = write_files(tmp_path, *small())
    assert call("inspect", head) == 0
    said = capsys.readouterr().out
    assert "retrieval head" in said and "6_5_8" in said and "prewhiten" in said
    assert "not a MASt3R network" not in said


def test_readers_give_what_was_written(tmp_path):
    """The test's own writer is checked: what is read back is what went in."""
    checkpoint, codebook = small()
    path = write_files(tmp_path, checkpoint, codebook)
    found = read_torch_archive(path)
    assert dict(found["args"]) == checkpoint["args"]
    for one, other in ((found["model"], checkpoint["model"]),):
        assert set(one) == set(other)
        for name, array in other.items():
            np.testing.assert_array_equal(one[name], array)
            assert one[name].dtype == array.dtype
    found = read_pickle(codebook_beside(path))
    np.testing.assert_array_equal(found["state"]["centroids"], codebook["state"]["centroids"])
