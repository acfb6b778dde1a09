"""The two retrieval models of the golden vectors, as the original's checkpoints would hold them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mast3r_jax.retrieval import RetrievalModel
from tests.conftest import DATA
from weights_conversion import convert_retrieval

NAMES = ("A_free", "B_mlp")
HDIMS = {"A_free": "", "B_mlp": "96_64"}
LOST = 12
"""Number of the last image of ``tokens_of``: half of image 0, half of image 3."""


@functools.cache
def vectors(name: str) -> dict[str, np.ndarray]:
    """Everything in one golden file; both sets share the tokens."""
    with np.load(DATA / "slam" / f"retrieval_{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def checkpoint_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checkpoint and codebook as their readers return them."""
    data = vectors(name)
    arguments = {
        "pretrained": "somewhere/mast3r.pth",
        "freeze_backbone": 1,
        "prewhiten": -1,
        "hdims": HDIMS[name],
        "residual": bool(data["residual"]),
        "postwhiten": -1 if "sd/postwhiten.m" in data else None,
        "featweights": "l2norm",
        "nfeat": data["nfeat"].item(),
        "imsize": 512,
        "nclusters": len(data["centroids"]),
    }
    state = {key.removeprefix("sd/"): value for key, value in data.items() if key[:3] == "sd/"}
    size = len(data["centroids"])
    codebook = {"type": "Codebook", "params": {"size": size}}
    return {"args": arguments, "model": state}, {
        **codebook,
        "state": {"centroids": data["centroids"]},
    }


def model_of(name: str, dtype: DTypeLike = jnp.float32) -> RetrievalModel:
    return convert_retrieval(*checkpoint_of(name), dtype=dtype)


def tokens_of() -> np.ndarray:
    """Encoder tokens [13, 192, 64] of the 12 golden images and of the one that got lost."""
    tokens = vectors("A_free")["enc_feat"].astype(np.float32)
    lost = np.where(np.arange(192)[:, None] % 2 == 0, tokens[0], tokens[3])
    return np.concatenate([tokens, lost[None]])


def results(name: str, dtype: DTypeLike = jnp.float32):
    """Selected features, database codes and query codes of all 13 images, in one program."""

    @jax.jit
    def run(model, tokens):
        return jax.vmap(lambda x: (model.select(x), *model.encode_both(x)))(tokens)

    return jax.device_get(run(model_of(name, dtype), jnp.asarray(tokens_of())))


codes = functools.cache(results)


def image(tree: Any, number: int) -> Any:
    """One image of a batch of codes."""
    return jax.tree.map(lambda x: jnp.asarray(x[number]), tree)
