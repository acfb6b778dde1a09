"""The conversion of published weights: names and shapes both ways, then the numbers."""

import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mast3r_jax import MASt3RConfig
from tests.conftest import DATA
from tests.mast3r_jax.golden_network import (
    TINY,
    assert_matches,
    fields,
    image,
    published_shapes,
    tiny_network,
    tiny_tensors,
)
from tests.quick import quick_jit
from weights_conversion.convert import (
    ConversionError,
    convert_mast3r,
    heads_from_model_string,
    infer_config,
    plan_conversion,
)
from weights_conversion.rules import IGNORED, RULES, canonical
from weights_conversion.tensors import load_tensors
from weights_conversion.torch_archive import read_torch_archive

VIT_LARGE = published_shapes("mast3r_vitl_keys.json")
PTH = DATA / "network" / "tiny_official_layout.pth"


def stand_ins(shapes) -> dict[str, np.ndarray]:
    """Tensors of the given shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_every_published_name_has_one_rule():
    for name in map(canonical, VIT_LARGE):
        rules = sum(rule.match(name) is not None for rule in RULES)
        ignored = any(pattern.fullmatch(name) for pattern, _ in IGNORED)
        # The ignored half of the coarsest stage is spelled like the other stages'.
        assert rules == 1 or ignored, name


def test_the_published_checkpoint_is_vit_large():
    tensors = stand_ins(VIT_LARGE)
    assert infer_config(tensors) == MASt3RConfig.vit_large()
    assignments = plan_conversion(tensors, MASt3RConfig.vit_large())
    # 1017 names less 8 second names, the mask token and 2 x 4 unused tensors.
    assert len({(a.target, a.index) for a in assignments}) == len(assignments) == 1000


@pytest.mark.parametrize("dropped", ["layer1_rn", "layer_rn.0"])
def test_either_name_of_a_shared_tensor_is_enough(dropped):
    shapes = {name: s for name, s in VIT_LARGE.items() if dropped not in name}
    assert infer_config(stand_ins(shapes)) == MASt3RConfig.vit_large()
    assert len(plan_conversion(stand_ins(shapes), MASt3RConfig.vit_large())) == 1000


def test_every_problem_is_named_at_once():
    tensors = stand_ins(published_shapes("tiny_keys.json"))
    del tensors["enc_norm.bias"]
    del tensors["dec_blocks2.3.norm_y.weight"]
    del tensors["downstream_head2.dpt.act_postprocess.1.1.weight"]
    tensors["enc_blocks.3.norm1.weight"] = np.zeros(64)
    tensors["lora.weight"] = np.zeros(3)
    tensors["dec_norm.weight"] = np.zeros(3)
    tensors["dec_norm.bias"] = np.zeros(48, np.int32)
    tensors["decoder_embed.bias"] = np.zeros((48, 1))
    head = "downstream_head1.dpt.scratch."
    tensors[head + "refinenet3.out_conv.weight"] = np.zeros((32, 32, 3, 3))
    tensors[head + "layer1_rn.weight"] = np.ones((32, 24, 3, 3))
    with pytest.raises(ConversionError) as caught:
        plan_conversion(tensors, TINY)
    for part in (
        "missing tensor enc_norm.bias",
        "missing tensor dec_blocks2.3.norm_y.weight",
        "missing tensor downstream_head2.dpt.act_postprocess.1.1.weight",
        "unknown tensor enc_blocks.3.norm1.weight: the network has 3 such layers",
        "unknown tensor lora.weight",
        "dec_norm.weight (vector) has shape (3,), which becomes (3,); the network's is (48,)",
        "dec_norm.bias is of type int32",
        "decoder_embed.bias has shape (48, 1), expected a vector",
        "refinenet3.out_conv.weight has a kernel of 3 x 3 pixels, expected a 1 x 1 convolution",
        f"{head}layer1_rn.weight and {head}layer_rn.0.weight must be the same tensor, but differ",
    ):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 + 10


def test_sizes_that_shapes_do_not_tell_are_asked_for():
    tensors = stand_ins(published_shapes("tiny_keys.json"))
    with pytest.raises(ConversionError, match=r"dec_dim=48 is no multiple .*: pass dec_heads"):
        infer_config(tensors)
    assert infer_config(tensors, enc_heads=4, dec_heads=4) == TINY
    with pytest.raises(ConversionError, match="dec_dim=48 split over dec_heads=5"):
        infer_config(tensors, enc_heads=4, dec_heads=5)
    with pytest.raises(ConversionError, match=r"missing tensor decoder_embed\.weight"):
        infer_config({"enc_norm.weight": np.zeros(3)})


def test_numbers_that_are_not_finite_are_refused():
    damaged = np.where(np.arange(64) == 7, np.float32(np.nan), tiny_tensors()["enc_norm.bias"])
    tensors = {**tiny_tensors(), "enc_norm.bias": damaged}
    with pytest.raises(ConversionError, match=r"enc_norm\.bias holds numbers that are not finite"):
        convert_mast3r(tensors, TINY)


def test_one_decoder_serves_both_views(caplog):
    tensors = tiny_tensors()
    single = {name: value for name, value in tensors.items() if "dec_blocks2" not in name}
    with caplog.at_level(logging.WARNING):
        blocks = convert_mast3r(single, TINY).decoder.blocks
    assert "dec_blocks2" in caplog.text
    both = np.asarray(blocks.mlp.fc1.kernel[...])
    expected = tensors["dec_blocks.7.mlp.fc1.weight"].T
    assert np.array_equal(both[7, 0], expected) and np.array_equal(both[7, 1], expected)


def test_parameters_are_stored_in_the_asked_dtype():
    network = tiny_network("bfloat16", "bfloat16")
    stored = np.asarray(network.encoder.blocks.attention.qkv.kernel[...])
    rounded = tiny_tensors()["enc_blocks.1.attn.qkv.weight"].T.astype(ml_dtypes.bfloat16)
    assert np.array_equal(stored[1], rounded)
    assert network.head_1.dense.last.kernel[...].dtype == jnp.float32  # the ends stay float32


def test_a_checkpoint_on_disk_gives_the_original_s_outputs(golden):
    """From the published file layout to the outputs, with nothing given but the file."""
    heads = heads_from_model_string(read_torch_archive(PTH)["args"]["model"])
    assert heads == {"enc_heads": 2, "dec_heads": 1}
    steps: list[tuple[int, int]] = []
    network = convert_mast3r(
        load_tensors(PTH), **heads, progress=lambda done, total: steps.append((done, total))
    )
    # 657 tensors less the 17 ignored ones, each of them checked and copied.
    assert steps == [(done, 2 * 640) for done in range(1, 2 * 640 + 1)]

    @quick_jit
    def run(model, image_1, image_2):
        tokens = model.encode(jnp.concatenate([image_1, image_2]))
        pair, taps = model.decode_with_intermediates(tokens[:1], tokens[1:], (64, 96), (64, 96))
        return tokens, pair, taps["decoder"]["tokens_1"], taps["decoder"]["tokens_2"]

    images = image(141, 64, 96), image(142, 64, 96)
    tokens, pair, dec1, dec2 = jax.device_get(run(network, *images))
    found = {"feat1": tokens[0], "feat2": tokens[1], "dec1": dec1[0], "dec2": dec2[0]}
    assert_matches(found | fields(pair[0], 1) | fields(pair[1], 2), golden("network/micro_64x96"))
