"""Records as arrays by name, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ops import FusedPointmap, Sim3

_NESTED = {"T_kf": Sim3, "T_WC": Sim3, "pointmap": FusedPointmap}


def flatten(prefix: str, value: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree by name, which begins with ``prefix``."""
    leaves = jax.tree_util.tree_leaves_with_path(value)
    return {prefix + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def unflatten(prefix: str, cls: type, arrays: Mapping[str, np.ndarray]) -> Any:
    """A record of host arrays, batched over frames or slots, from arrays by name."""
    fields = {}
    for field in dataclasses.fields(cls):
        name = f"{prefix}.{field.name}"
        if field.name == "encoding":
            fields[field.name] = None
        elif field.name in _NESTED:
            fields[field.name] = unflatten(name, _NESTED[field.name], arrays)
        else:
            fields[field.name] = arrays[name]
    # Rebuilt as JAX rebuilds records, without __init__.
    names = [field.name for field in dataclasses.fields(cls)]
    _, structure = jax.tree.flatten(_placeholder(cls, names))
    return jax.tree.unflatten(structure, [fields[name] for name in names])


def _placeholder(cls: type, names: list[str]) -> Any:
    value = object.__new__(cls)
    for name in names:
        object.__setattr__(value, name, 0)
    return value
