import dataclasses
import json

import numpy as np
import pytest

from mast3r_jax.checkpoint import parameter_specs
from mast3r_jax.config import ConfigError, MASt3RConfig
from tests.mast3r_jax.golden_network import published_shapes


@pytest.mark.parametrize("config", [MASt3RConfig.vit_large(), MASt3RConfig.small()])
def test_json_round_trip(config):
    assert MASt3RConfig.from_json(config.to_json()) == config
    assert hash(config) == hash(MASt3RConfig.from_json(config.to_json()))


def test_the_full_network_has_the_published_number_of_parameters():
    shapes = published_shapes("mast3r_vitl_keys.json")
    unused = ("mask_token", "refinenet4.resConfUnit1")
    twice = [f"layer{k}_rn" for k in (1, 2, 3, 4)]  # the same tensors as layer_rn.{k-1}
    used = [
        shape for name, shape in shapes.items() if not any(u in name for u in (*unused, *twice))
    ]
    ours = parameter_specs(MASt3RConfig.vit_large()).values()
    assert sum(np.prod(s.shape) for s in ours) == sum(np.prod(s) for s in used)


def test_the_small_preset_fits_its_file():
    count = sum(np.prod(s.shape) for s in parameter_specs(MASt3RConfig.small()).values())
    assert 2 * count <= 16_000_000


def test_every_bad_size_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        MASt3RConfig(
            enc_dim=100, enc_heads=3, dec_depth=1, patch_size=14, mlp_ratio=0.0, dpt_dim=-1
        )
    for part in (
        "enc_dim=100 split over enc_heads=3 leaves heads of 33.3333 channels",
        "dec_depth=1",
        "patch_size=14",
        "mlp_ratio must be a positive number, not 0.0",
        "dpt_dim must be a positive integer, not -1",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dec_dim": 12, "dec_heads": 2}, "dec_dim=12 split over dec_heads=2"),
        ({"dpt_layer_dims": (1, 2, 3)}, "dpt_layer_dims must be four positive integers"),
        ({"enc_depth": True}, "enc_depth must be a positive integer, not True"),
        ({"enc_heads": 0}, "enc_heads must be a positive integer, not 0"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MASt3RConfig.small(), **change)


def test_json_of_something_else_is_refused():
    fields = json.loads(MASt3RConfig.small().to_json())
    del fields["enc_dim"]
    fields["colour"] = 3
    with pytest.raises(ConfigError, match="missing field 'enc_dim'; unknown field 'colour'"):
        MASt3RConfig.from_json(json.dumps(fields))
    with pytest.raises(ConfigError, match="not a JSON object"):
        MASt3RConfig.from_json("{")
    with pytest.raises(ConfigError, match="JSON object was expected, not list"):
        MASt3RConfig.from_json("[]")
    fields = json.loads(MASt3RConfig.small().to_json()) | {"dpt_layer_dims": 7}
    with pytest.raises(ConfigError, match="dpt_layer_dims"):
        MASt3RConfig.from_json(json.dumps(fields))
