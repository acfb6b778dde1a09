"""The network against the original's outputs and intermediates (``tests/data/network``)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mast3r_jax import MASt3R
from tests.mast3r_jax.golden_network import (
    TINY,
    assert_matches,
    error,
    fields,
    image,
    part,
    tiny_network,
)
from tests.quick import quick_jit

SHAPE = (80, 128)


def run_pair(model, image_1, image_2):
    """Tokens, pointmaps and all intermediates of two images of ``SHAPE``."""
    both, taps = model.encode_with_intermediates(jnp.concatenate([image_1, image_2]))
    pair, inside = model.decode_with_intermediates(both[:1], both[1:], SHAPE, SHAPE)
    return both, pair, {"encoder": taps, **inside}


@functools.cache
def traced_pair():
    """``run_pair`` in float32, compiled as it ships."""
    # On the host: slicing on the device would compile once per shape.
    images = image(121, *SHAPE), image(122, *SHAPE)
    return jax.device_get(jax.jit(run_pair)(tiny_network(), *images))


def outputs(tokens, pair, decoder) -> dict[str, np.ndarray]:
    found = {"feat1": tokens[0], "feat2": tokens[1]}
    found |= {"dec1": decoder["tokens_1"][0], "dec2": decoder["tokens_2"][0]}
    found = {name: np.asarray(value, np.float32) for name, value in found.items()}
    return found | fields(pair[0], 1) | fields(pair[1], 2)


def test_outputs_match_the_original(golden):
    tokens, pair, taps = traced_pair()
    assert_matches(outputs(tokens, pair, taps["decoder"]), golden("network/tiny_80x128"))


def test_views_of_different_shapes_match_the_original(golden):
    @quick_jit
    def run(model, image_1, image_2):
        tokens = model.encode(image_1), model.encode(image_2)
        pair, taps = model.decode_with_intermediates(*tokens, (96, 128), (128, 96))
        decoder = {name: taps["decoder"][name] for name in ("tokens_1", "tokens_2")}
        return (tokens[0][0], tokens[1][0]), pair, decoder

    found = run(tiny_network(), image(131, 96, 128), image(132, 128, 96))
    assert_matches(outputs(*jax.device_get(found)), golden("network/tiny_mixed"))


def named_intermediates(taps) -> dict[str, np.ndarray]:
    """Our intermediates of view 1 under the names of the golden file."""
    enc, dec = taps["encoder"], taps["decoder"]
    first = {name: value[0, 0] for name, value in enc["blocks"].items()}
    named = {
        "patch_embed1": enc["patch_embed"][0],
        "enc0_norm1_1": first["norm1"],
        "enc0_qkv_1": first["qkv"],
        "rope_in": first["rope_in"].swapaxes(0, 1),
        "rope_out": first["rope_out"].swapaxes(0, 1),
        "enc0_attn_1": first["attention"],
        "enc0_gelu_1": first["gelu"],
        "enc0_mlp_1": first["mlp"],
        "decoder_embed1": dec["embed_1"][0],
        "dec0_selfattn_1": dec["blocks_1"]["self_attention"][0, 0],
        "dec0_normy_1": dec["blocks_1"]["norm_y"][0, 0],
        "dec0_crossattn_1": dec["blocks_1"]["cross_attention"][0, 0],
    }
    named |= {f"enc{i}_out_1": enc["blocks"]["out"][i, 0] for i in range(TINY.enc_depth)}
    for view in (1, 2):
        for i in range(1, TINY.dec_depth):
            named[f"dec{view}_tokens{i}"] = dec[f"blocks_{view}"]["out"][i - 1, 0]
        named[f"dec{view}_tokens10"] = dec[f"tokens_{view}"][0]
        for name, value in taps[f"head_{view}"].items():
            is_map = value.ndim == 4
            named[f"head{view}_{name}"] = value[0].transpose(2, 0, 1) if is_map else value[0]
    return {name: np.asarray(value) for name, value in named.items()}


def test_intermediates_match_the_original(golden):
    tokens, _, taps = traced_pair()
    found = named_intermediates(taps)
    found |= {f"dec{view}_tokens0": np.asarray(tokens[view - 1]) for view in (1, 2)}
    expected = golden("network/tiny_debug_80x128")
    expected.pop("rope_pos")  # the positions show in rope_out
    # As for feat; raw head values are sums over some hundred terms of order 1, like tokens.
    failures = {
        key: worst
        for key, value in expected.items()
        if not (worst := error(part(key, found), value)) <= 2e-5
    }
    assert not failures


def test_float32_products_are_exact_whatever_the_session_asks():
    """On a CPU every product is exact; what accelerators are told stands in the program."""
    with jax.default_matmul_precision("bfloat16"):
        lowered = jax.jit(run_pair).lower(tiny_network(), image(1, *SHAPE), image(2, *SHAPE))
    lines = lowered.as_text().splitlines()
    for operation in ("stablehlo.dot_general", "stablehlo.convolution"):
        products = [line for line in lines if operation in line]
        assert products and all(line.count("HIGHEST") == 2 for line in products)


# Relative RMS error of bfloat16. A value is rounded to 8 bits (RMS 0.1 %) about four times per
# block over 13 blocks on the longest path, and such independent errors add up as their root:
# 0.001 * sqrt(52) = 0.7 %; the bound is three times that. Points and confidences are exponentials
# of the head's output, which multiplies the error by that output's range (up to 4.5 here).
BFLOAT16_BOUND = {"feat": 0.02, "dec": 0.02, "desc": 0.02, "desc_conf": 0.09}
BFLOAT16_BOUND |= {"conf": 0.09, "pts3d": 0.09}


def test_bfloat16_stays_near_float32(golden):
    @quick_jit
    def run(model, image_1, image_2):
        tokens, pair, taps = run_pair(model, image_1, image_2)
        return tokens, pair, {name: taps["decoder"][name] for name in ("tokens_1", "tokens_2")}

    images = image(121, *SHAPE), image(122, *SHAPE)
    tokens, pair, decoder = jax.device_get(run(tiny_network("bfloat16"), *images))
    assert tokens.dtype == jnp.float32, "retrieval needs the tokens unrounded"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(pair))
    found = outputs(tokens, pair, decoder)
    for key, expected in golden("network/tiny_80x128").items():
        difference = np.linalg.norm(part(key, found) - expected)
        relative = difference / np.linalg.norm(expected - expected.mean())
        bound = BFLOAT16_BOUND[key.split("_every")[0].rstrip("12").rstrip("_")]
        # Below a tenth of one rounding it would not have been bfloat16.
        assert 1e-4 < relative < bound, (key, relative)


def test_is_a_pytree_that_jit_compiles_once():
    encode = quick_jit(lambda model, images: model.encode(images))
    images = image(1, 32, 48)
    small = tiny_network()
    doubled = jax.tree.map(lambda leaf: jnp.asarray(2 * np.asarray(leaf)), small)
    assert encode(small, images).shape == (1, 6, TINY.enc_dim)
    assert not np.allclose(encode(small, images), encode(doubled, images))
    assert encode._cache_size() == 1


def test_shapes_are_checked():
    model = tiny_network()
    with pytest.raises(ValueError, match="40 x 64 pixels does not divide into 16 x 16 patches"):
        model.encode(jnp.zeros((1, 40, 64, 3)))
    with pytest.raises(ValueError, match="shape_2 has 2 x 4 patches, but tokens_2 holds 6 tokens"):
        tokens = jnp.zeros((1, 8, 64)), jnp.zeros((1, 6, 64))
        model.decode(*tokens, (32, 64), (32, 64))


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_half_precision_that_overflows_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=float16 is not supported"):
        MASt3R(TINY, rngs=nnx.Rngs(0), **{name: jnp.float16})
