"""The tiny network whose outputs the original computed, and the tolerances it is judged by."""

import functools
import json
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mast3r_jax import MASt3R, MASt3RConfig, Pointmap
from tests.conftest import DATA
from tests.data.network import formula
from weights_conversion.convert import convert_mast3r

TINY = MASt3RConfig(
    enc_dim=64,
    enc_depth=3,
    enc_heads=4,
    dec_dim=48,
    dec_depth=10,
    dec_heads=4,
    dpt_dim=32,
    dpt_last_dim=16,
    dpt_layer_dims=(24, 32, 48, 64),
)

# |x - golden| <= tol (1 + |golden|): about 5 times the float32 rounding of the original against
# its own float64 run. LayerNorm with epsilon 1e-5, the smallest mistake tried in the original,
# changes feat by 1.1e-4.
TOLERANCE = {
    "feat": 2e-5,
    "dec": 2e-5,
    "desc": 1e-5,
    "desc_conf": 3e-5,
    "conf": 5e-5,
    "pts3d": 5e-5,
}


def published_shapes(keys_file: str) -> dict[str, list[int]]:
    return json.loads((DATA / "network" / keys_file).read_text())


@functools.cache
def tiny_tensors() -> Mapping[str, np.ndarray]:
    """The published state dict of the tiny network, shared by all tests and thus read-only."""
    formula.selfcheck()
    tensors = {
        name: formula.weight(name, shape)
        for name, shape in published_shapes("tiny_keys.json").items()
    }
    for value in tensors.values():
        value.flags.writeable = False
    return types.MappingProxyType(tensors)


@functools.cache
def tiny_network(dtype: str = "float32", param_dtype: str = "float32") -> MASt3R:
    return convert_mast3r(tiny_tensors(), TINY, dtype=dtype, param_dtype=param_dtype)


def image(seed: int, height: int, width: int) -> jax.Array:
    return jnp.asarray(formula.image(seed, height, width))[None]


def fields(pointmap: Pointmap, view: int) -> dict[str, np.ndarray]:
    """The first pointmap of a batch under the names of the golden files."""
    named = {
        "pts3d": pointmap.points,
        "conf": pointmap.confidence,
        "desc": pointmap.descriptors,
        "desc_conf": pointmap.descriptor_confidence,
    }
    return {f"{name}_{view}": np.asarray(value[0]) for name, value in named.items()}


def part(key: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The part of an array that the golden file holds, by its key."""
    name, _, which = key.partition("_every")
    if which:
        step = int(which)
        if name.endswith("mlp_raw"):
            return values[name][::step]
        return (
            values[name][..., ::step, ::step]
            if name[:4] == "head"
            else values[name][::step, ::step]
        )
    name, _, which = key.partition("_rows16to32")
    return values[name][:, 16:32] if _ else values[name]


def error(actual: np.ndarray, golden: np.ndarray) -> float:
    """The largest |actual - golden| / (1 + |golden|)."""
    assert actual.shape == golden.shape, (actual.shape, golden.shape)
    return float((np.abs(actual - golden) / (1 + np.abs(golden))).max())


def assert_matches(actual: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray]) -> None:
    """Every golden array is matched to its field's tolerance; all failures at once."""
    failures = []
    for key, expected in golden.items():
        found = error(part(key, actual), expected)
        tolerance = TOLERANCE[key.split("_every")[0].rstrip("12").rstrip("_")]
        if not found <= tolerance:
            failures.append(f"{key}: {found:.1e} > {tolerance:.0e}")
    assert not failures, failures
