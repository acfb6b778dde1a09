"""The network's stages: encoder, decoder, and one block of each beside PyTorch's."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench import work
from experiments.bench.peers import torch_blocks
from experiments.bench.plan import Plan, Size, written
from experiments.bench.stage import Stage
from experiments.bench.timing import compiled
from mast3r_jax import MASt3R
from mast3r_jax.attention import rotary_table


def network_stages(plan: Plan) -> Iterator[Stage]:
    """All stages of the network that are asked for."""
    for size in plan.network_sizes:
        if plan.wants("encoder", "decoder"):
            yield from _whole(plan, size)
        if plan.wants("encoder-block", "decoder-block"):
            yield from _blocks(plan, size)


def _whole(plan: Plan, size: Size) -> Iterator[Stage]:
    """Encoder and decoder as the system runs them: in bfloat16 on a GPU, else in float32."""
    width, height = size
    shape = (height, width)
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    name = jnp.dtype(dtype).name
    on = f"{plan.network} {written(size)}"
    model = MASt3R(plan.network_config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    image = np.random.default_rng(0).uniform(-1, 1, (1, height, width, 3))
    images = jnp.asarray(image, jnp.float32)
    encode, seconds = compiled(lambda m, x: m.encode(x), model, images, cached=plan.quick)
    if plan.wants("encoder"):
        counted = work.encoder(plan.network_config, height * width, name)
        yield Stage("encoder", on, encode, seconds, counted, gate_ceiling=True)
    if plan.wants("decoder"):
        tokens = encode()
        other = tokens[:, ::-1]
        decode, seconds = compiled(
            lambda m, a, b: m.decode(a, b, shape, shape), model, tokens, other, cached=plan.quick
        )
        counted = work.decoder(plan.network_config, height * width, name)
        yield Stage("decoder", on, decode, seconds, counted, gate_ceiling=True)


def _blocks(plan: Plan, size: Size) -> Iterator[Stage]:
    """One block of each kind, in float32 everywhere: so results can be compared closely."""
    width, height = size
    config = plan.network_config
    grid = height // config.patch_size, width // config.patch_size
    on = f"{plan.network} {written(size)}"
    model = MASt3R(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def tokens(dim: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(1, grid[0] * grid[1], dim)), jnp.float32)

    if plan.wants("encoder-block"):
        block = jax.tree.map(lambda leaf: leaf[0], model.encoder.blocks)
        x = tokens(config.enc_dim)
        rotary = rotary_table(*grid, config.enc_dim // config.enc_heads, config.rope_base)
        call, seconds = compiled(
            lambda block, x, rotary: block(x, rotary), block, x, rotary, cached=plan.quick
        )
        peers = plan.beside(
            lambda: torch_blocks.encoder_peer(block, config.enc_heads, x, rotary, call())
        )
        counted = work.encoder_block(config, height * width)
        yield Stage("encoder-block", on, call, seconds, counted, peers)
    if plan.wants("decoder-block"):
        block = jax.tree.map(lambda leaf: leaf[0, 0], model.decoder.blocks)
        x, other = tokens(config.dec_dim), tokens(config.dec_dim)
        rotary = rotary_table(*grid, config.dec_dim // config.dec_heads, config.rope_base)
        call, seconds = compiled(
            lambda block, x, other, rotary: block(x, other, rotary, rotary),
            block, x, other, rotary, cached=plan.quick,
        )  # fmt: skip
        peers = plan.beside(
            lambda: torch_blocks.decoder_peer(block, config.dec_heads, x, other, rotary, call())
        )
        counted = work.decoder_block(config, height * width)
        yield Stage("decoder-block", on, call, seconds, counted, peers)
