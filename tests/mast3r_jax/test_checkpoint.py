import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from mast3r_jax import CheckpointError, MASt3R, load, save
from mast3r_jax.checkpoint import parameter_specs
from tests.mast3r_jax.golden_network import TINY, tiny_network


def assert_equal(one: MASt3R, other: MASt3R) -> None:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def mapped(function) -> MASt3R:
    """The tiny network with a numpy function applied to every parameter (nothing is compiled)."""
    return jax.tree.map(lambda leaf: jnp.asarray(function(np.asarray(leaf))), tiny_network())


def test_round_trip_is_exact(tmp_path):
    save(tmp_path / "deep" / "net", tiny_network())
    found = load(tmp_path / "deep" / "net")
    assert found.config == TINY
    assert_equal(found, tiny_network())
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["net"]


def test_round_trip_in_bfloat16_is_exact(tmp_path):
    network = tiny_network("bfloat16", "bfloat16")
    save(tmp_path / "net", network)
    found = load(tmp_path / "net", dtype="bfloat16", param_dtype="bfloat16")
    assert_equal(found, network)
    # The policy comes along: a block of the encoder computes in bfloat16.
    assert found.encoder.blocks.attention.numerics.compute == jnp.bfloat16


def test_storing_in_half_precision_rounds_once(tmp_path):
    save(tmp_path / "net", tiny_network(), dtype="float16")
    stored = safetensors.numpy.load_file(tmp_path / "net" / "model.safetensors")
    assert {a.dtype for a in stored.values()} == {np.dtype(np.float16)}
    assert_equal(load(tmp_path / "net"), mapped(lambda x: x.astype(np.float16).astype(x.dtype)))


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    save(tmp_path / "net", tiny_network())
    file = tmp_path / "net" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    del tensors["encoder.norm.scale"]
    tensors["extra"] = np.zeros(2, np.float32)
    tensors["decoder.embed.kernel"] = tensors["decoder.embed.kernel"][:-1].copy()
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "net")
    for part in (
        str(file),
        "missing tensor encoder.norm.scale",
        "unknown tensor extra",
        "decoder.embed.kernel has shape (63, 48), expected (64, 48)",
    ):
        assert part in str(caught.value)


def test_unreadable_checkpoints_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint folder, nor a preset"):
        load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors and no config\.json"):
        load(tmp_path / "empty")
    file = tmp_path / "mast3r.pth"
    file.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="mast3r-slam convert"):
        load(file)
    save(tmp_path / "net", tiny_network())
    weights = tmp_path / "net" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
        load(tmp_path / "net")
    weights.write_bytes(whole)
    (tmp_path / "net" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: .*missing field 'enc_dim'"):
        load(tmp_path / "net")


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "net", tiny_network())

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "net", mapped(np.zeros_like))
    assert_equal(load(tmp_path / "net"), tiny_network())
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_files_have_the_permissions_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "net", tiny_network())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o777 & ~0o027
    for file in (tmp_path / "net").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~0o027, file.name


def test_only_checkpoints_are_replaced(tmp_path):
    zeros = mapped(np.zeros_like)
    save(tmp_path / "net", tiny_network())
    save(tmp_path / "net", zeros)
    assert_equal(load(tmp_path / "net"), zeros)
    (tmp_path / "net" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"net: holds thesis\.tex, which is no part of"):
        save(tmp_path / "net", tiny_network())
    with pytest.raises(CheckpointError, match=r"thesis\.tex: exists and is no folder"):
        save(tmp_path / "net" / "thesis.tex", tiny_network())
    assert (tmp_path / "net" / "thesis.tex").read_text() == "mine"


def test_parameter_specs_are_the_network_s():
    flat = nnx.to_flat_state(nnx.state(tiny_network()))
    expected = {".".join(map(str, p)): (v[...].shape, v[...].dtype) for p, v in flat}
    assert {k: (s.shape, s.dtype) for k, s in parameter_specs(TINY).items()} == expected
