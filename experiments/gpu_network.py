"""How fast the network is on a device, in the forms there are to choose from."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

import mast3r_jax.attention
from experiments.gpu_inputs import measured, result_and_measured
from mast3r_jax import MASt3R, MASt3RConfig, Pointmap
from ops.kernels import card

Figures = dict[str, Any]


def network(
    size: tuple[int, int], config: MASt3RConfig, write: Callable[[Figures], None]
) -> Figures:
    """Encoder of one image and decoder of one pair in bfloat16 and float32, and what may be faster.

    ``write`` is given all figures so far whenever there are more. What may be faster is cuDNN's
    attention, and both heads as one batch of two. ``cudnn`` says what to write into
    ``mast3r_jax.attention`` for this card, ``holds`` whether its tokens and descriptors are those
    of the plain one.
    """
    width, height = size
    images = jax.random.uniform(jax.random.key(0), (1, height, width, 3), minval=-1, maxval=1)
    model = MASt3R(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    plain, plain_tokens, plain_views = _encode_and_decode(model, images, frozenset())
    figures: Figures = {"size": size, "bfloat16": plain, "holds": True}
    write(figures)
    if (here := card()) is not None:
        try:
            fused, tokens, views = _encode_and_decode(model, images, frozenset({here}))
        except RuntimeError as error:  # the library refuses, say: the others are still measured
            figures["cudnn"], figures["holds"] = {"failed": str(error)[:300]}, False
        else:
            apart = relative(tokens, plain_tokens)
            described = max(
                relative(view.descriptors, plain.descriptors)
                for view, plain in zip(views, plain_views, strict=True)
            )
            won = _median(fused) < _median(plain)
            figures["cudnn"] = {
                **fused,
                "tokens_differ": apart,
                "descriptors_differ": described,
                "entry": f'CUDNN_WON: "{here}"' if won else "# plain attention is faster",
            }
            # bfloat16 itself costs 0.8 % in tokens, 1.0 in descriptors (``vitl_parity``)
            figures["holds"] = apart < 0.02 and described < 0.03
        write(figures)
    figures["heads"] = _heads(model, plain_tokens, (height, width))
    write(figures)
    del model
    model = MASt3R(config, rngs=nnx.Rngs(0))
    figures["float32"], *_ = _encode_and_decode(model, images, frozenset())
    return figures


def _encode_and_decode(
    model: MASt3R, images: jax.Array, cudnn_won: frozenset[str]
) -> tuple[Figures, jax.Array, tuple[Pointmap, Pointmap]]:
    shape = images.shape[1], images.shape[2]
    with mock.patch.object(mast3r_jax.attention, "CUDNN_WON", cudnn_won):
        # Functions of their own, which JAX has not traced yet.
        tokens, encode = result_and_measured(lambda m, x: m.encode(x), model, images)
        views, decode = result_and_measured(
            lambda m, t: m.decode(t, t, shape, shape), model, tokens
        )
    return {"encode": encode, "decode": decode}, tokens, views


def _heads(model: MASt3R, tokens: jax.Array, shape: tuple[int, int]) -> Figures:
    """One after the other, or stacked, their convolutions in two groups."""
    patch = model.config.patch_size
    grid = shape[0] // patch, shape[1] // patch
    hooked = jax.jit(lambda m, t: m.decoder((t, t), (grid, grid)))(model, tokens)
    stacked = jax.tree.map(lambda *pair: jnp.stack(pair), model.head_1, model.head_2)
    both = jax.tree.map(lambda *pair: jnp.stack(pair), *hooked)
    return {
        "one by one": measured(
            lambda m, hooked: (m.head_1(hooked[0], grid), m.head_2(hooked[1], grid)), model, hooked
        ),
        "one batch": measured(jax.vmap(lambda head, hooked: head(hooked, grid)), stacked, both),
    }


def _median(figures: Figures) -> float:
    return figures["encode"]["median_ms"] + figures["decode"]["median_ms"]


def relative(found: ArrayLike, expected: ArrayLike) -> float:
    """Root mean square of the difference, relative to that of what is expected."""
    a, b = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
