"""The retrieval head against the original's features and codes, and its files."""

import json
import math
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mast3r_jax import CheckpointError, has_retrieval, load_retrieval, save_retrieval
from mast3r_jax.retrieval import NOTICE, SETTINGS, WEIGHTS, RetrievalModel, build_retrieval
from ops import asmk
from tests.mast3r_jax.golden_retrieval import NAMES, codes, model_of, results, tokens_of, vectors

erf = np.vectorize(math.erf)


def head(name: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and attention of every token by the published formulas, in double precision."""
    weights = {k[3:]: v.astype(np.float64) for k, v in vectors(name).items() if k[:3] == "sd/"}
    x = (tokens - weights["prewhiten.m"]) @ weights["prewhiten.p"]
    if name == "A_free":
        return x, np.linalg.norm(x, axis=-1)
    y = x @ weights["projector.0.weight"].T + weights["projector.0.bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * weights["projector.1.weight"] + weights["projector.1.bias"]
    y = y * (1 + erf(y / math.sqrt(2))) / 2
    y = y @ weights["projector.3.weight"].T + weights["projector.3.bias"] + x
    return (y - weights["postwhiten.m"]) @ weights["postwhiten.p"], np.linalg.norm(y, axis=-1)


# The original whitens in float64 and stores float32 (half a rounding of numbers up to 7 is 2e-7;
# its projector computes in float32, a few roundings more). Whitening in float32 costs about 1e-5:
# it divides by the deviation of the weakest direction, and multiplies the rounding of its input.
@pytest.mark.parametrize(("precision", "atol"), [("float32", 5e-5), ("float64", 3e-6)])
@pytest.mark.parametrize("name", NAMES)
def test_features_match_the_original(name, precision, atol):
    data, tokens = vectors(name), tokens_of()
    with jax.enable_x64(precision == "float64"):
        selected, build, query = codes(name) if precision == "float32" else results(name, "float64")
        assert selected.dtype == precision
    np.testing.assert_allclose(selected[0], data["topk_feat_0"], rtol=0, atol=atol)
    features, _ = head(name, tokens)
    for number, order in enumerate(data["topk_idx"]):
        # The right tokens in the right order: each row is the feature of that token alone.
        np.testing.assert_allclose(selected[number], features[number, order], rtol=0, atol=atol)
    for number in (0, 6):
        same_code(build, number, data[f"build_words_{number}"], data[f"build_bits_{number}"])
    same_code(query, 6, data["query_words_6"], data["query_bits_6"])


def same_code(code, number, words, bits):
    count = len(words)
    np.testing.assert_array_equal(code.mask[number], np.arange(code.mask.shape[1]) < count)
    np.testing.assert_array_equal(code.words[number][:count], words)
    np.testing.assert_array_equal(code.bits[number][:count], bits)


@pytest.mark.parametrize("name", NAMES)
def test_double_precision_of_the_test_is_the_original(name):
    """The formulas above give the golden order: nothing is shared with the code under test."""
    data = vectors(name)
    features, attention = head(name, tokens_of()[:12])
    order = np.argsort(-attention, axis=1)[:, : data["topk_idx"].shape[1]]
    np.testing.assert_array_equal(order, data["topk_idx"])
    np.testing.assert_allclose(features[0][order[0]], data["topk_feat_0"], rtol=0, atol=3e-6)


def bare(num_features, dim=4, size=6) -> RetrievalModel:
    """A model without any head: features are the tokens."""
    centroids = np.random.default_rng(0).normal(size=(size, dim)).astype(np.float32)
    return build_retrieval({"centroids": centroids}, num_features=num_features)


@pytest.mark.parametrize(
    ("num_features", "tokens", "kept"),
    [
        (300, 768, 300),
        (300, 192, 192),
        (-0.5, 9, 4),
        (-0.1, 9, 1),
        (-1.0, 9, 9),
        (2.0, 9, 2),
        (-0.25, 768, 192),
    ],
)
def test_number_of_selected_tokens(num_features, tokens, kept):
    assert bare(num_features).num_selected(tokens) == kept


def test_largest_tokens_come_first():
    tokens = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]] * np.float32([[2], [-5], [3], [1]])
    np.testing.assert_array_equal(bare(3).select(jnp.asarray(tokens)), tokens[[1, 2, 0]])
    narrow = bare(3).select(jnp.asarray(tokens, jnp.bfloat16))
    assert narrow.dtype == jnp.float32  # these numbers have few digits
    np.testing.assert_array_equal(narrow, tokens[[1, 2, 0]])


def test_both_codes_are_those_of_the_kernel():
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)
    model = bare(5, size=12)
    for query, assignments in ((False, 1), (True, 5)):
        code = jax.jit(lambda m, t, query=query: m.encode(t, query=query))(model, tokens)
        expected = jax.jit(
            lambda m, t, a=assignments: asmk.encode(m.select(t), m.centroids, assignments=a)
        )(model, tokens)
        assert code.words.shape == (5 * assignments,)
        jax.tree.map(np.testing.assert_array_equal, code, expected)


def test_sizes_come_from_the_arrays():
    model = model_of("B_mlp")
    assert (model.token_dim, model.num_centroids, model.code_size) == (64, 512, 2)
    assert [layer.kernel.shape for layer in model.projector] == [(64, 96), (96, 64)]
    assert (model.residual, model.num_features, model.projector[-1].norm) == (True, -0.5, None)
    assert bare(3, dim=33).code_size == 2
    # A query visits no more centroids than there are.
    code = jax.eval_shape(lambda m, t: m.encode(t, query=True), bare(3, size=2), jnp.ones((5, 4)))
    assert code.words.shape == (6,)


# Files


def assert_same(one: RetrievalModel, other: RetrievalModel) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact_and_leaves_other_files_alone(tmp_path, name):
    folder = tmp_path / "deep" / "net"
    assert not has_retrieval(folder)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"a network")
    save_retrieval(folder, model_of(name), notice="terms")
    assert has_retrieval(folder)
    assert_same(load_retrieval(folder), model_of(name))
    assert (folder / NOTICE).read_text() == "terms"
    assert (folder / "model.safetensors").read_bytes() == b"a network"
    save_retrieval(folder, bare(3))
    assert_same(load_retrieval(folder), bare(3))
    # The terms of other weights are gone with them, and nothing else is left behind.
    assert {f.name for f in folder.iterdir()} == {WEIGHTS, SETTINGS, "model.safetensors"}


def test_files_have_the_permissions_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        save_retrieval(tmp_path, bare(3))
    finally:
        os.umask(before)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, file.name


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_retrieval(tmp_path, bare(3))

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.numpy, "save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            save_retrieval(tmp_path, bare(4))
        with pytest.raises(OSError, match="disk full"):
            save_retrieval(tmp_path / "new", bare(4))
    assert_same(load_retrieval(tmp_path), bare(3))
    assert {f.name for f in tmp_path.iterdir()} == {WEIGHTS, SETTINGS}
    with pytest.raises(CheckpointError, match="exists and is no folder"):
        save_retrieval(tmp_path / WEIGHTS, bare(3))


def test_an_interrupted_save_never_looks_whole(tmp_path, monkeypatch):
    """Cut between the two files: the new weights must not meet the old settings."""
    save_retrieval(tmp_path, bare(3))
    replace = type(tmp_path).replace

    def cut(self, target):
        if self.name == SETTINGS:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_retrieval(tmp_path, bare(4))
    assert has_retrieval(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no retrieval\.json; a published .* convert"):
        load_retrieval(tmp_path)


def test_unreadable_models_say_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no retrieval\.safetensors and no retrieval\."):
        load_retrieval(tmp_path)
    save_retrieval(tmp_path, model_of("B_mlp"))
    weights, settings = tmp_path / WEIGHTS, tmp_path / SETTINGS
    whole, said = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"retrieval\.safetensors: not a whole safetensors"):
        load_retrieval(tmp_path)
    weights.write_bytes(whole)
    for text, message in {
        "{": "not a JSON object",
        "[]": "must hold num_features and residual, and nothing else",
        "{}": "must hold num_features and residual, and nothing else",
        said.replace("-0.5", "-1.5"): r"num_features=-1\.5 must be a count, or minus a share",
        said.replace("-0.5", "2.5"): r"num_features=2\.5 is no whole number",
        said.replace("-0.5", "true"): "num_features=True must be a count",
        said.replace("true", "1"): "residual=1 must be true or false",
    }.items():
        settings.write_text(text)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_retrieval(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_every_wrong_array_is_named_at_once(tmp_path):
    save_retrieval(tmp_path, model_of("B_mlp"))
    arrays = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    del arrays["projector.0.norm.bias"]
    arrays["extra"] = np.zeros(2, np.float32)
    arrays["projector.1.norm.scale"] = np.zeros(64, np.float32)
    arrays["projector.1.kernel"] = np.zeros((95, 64), np.float32)
    arrays["centroids"] = np.zeros((5, 63), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        load_retrieval(tmp_path)
    for part in (
        f"{tmp_path / WEIGHTS}: this is no retrieval model",
        "missing tensor projector.0.norm.bias",
        "unknown tensor extra",
        "unknown tensor projector.1.norm.scale",
        "projector.1.kernel has shape (95, 64), expected (96, 64)",
        "centroids has shape (5, 63), expected (5, 64)",
    ):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 + 5
    with pytest.raises(ValueError, match="residual is set, but there is no projector"):
        build_retrieval({"centroids": np.ones((2, 3))}, num_features=3, residual=True)
    with pytest.raises(ValueError, match=r"centroids has shape \(0, 3\)"):
        build_retrieval({"centroids": np.ones((0, 3))}, num_features=3)


def test_settings_are_readable(tmp_path):
    save_retrieval(tmp_path, bare(300))
    assert json.loads((tmp_path / SETTINGS).read_text()) == {
        "num_features": 300,
        "residual": False,
    }
