"""The network at the start of a run."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from experiments.training.config import NetworkConfig
from mast3r_jax import MASt3R


def new_network(key: PRNGKeyArray, config: NetworkConfig) -> MASt3R:
    """A network with random weights, float32; traceable.

    ``config.precision`` must have been decided: "auto" counts as float32.
    """
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    model = MASt3R(config.sizes, rngs=nnx.Rngs(params=key), dtype=dtype)
    return tie_views(model) if config.tie_views else model


def tie_views(model: MASt3R) -> MASt3R:
    """A copy whose decoder 2 and head 2 have the weights of decoder 1 and head 1."""
    graph, state = nnx.split(model)
    # The decoders' blocks are stacked, [depth, view, ...].
    state["decoder"]["blocks"] = jax.tree.map(
        lambda leaf: leaf.at[:, 1].set(leaf[:, 0]), state["decoder"]["blocks"]
    )
    state["head_2"] = jax.tree.map(jnp.copy, state["head_1"])
    return nnx.merge(graph, state)
