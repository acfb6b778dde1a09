"""Putting a trained network among those that come with the package."""

import dataclasses
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from mast3r_jax.card import CARD, README, ModelCard, has_card, sha256_of
from mast3r_jax.checkpoint import WEIGHTS, CheckpointError, replacing, save
from mast3r_jax.model import MASt3R
from mast3r_jax.retrieval import RetrievalModel, save_retrieval

MAX_BYTES = 16_000_000
"""Of a packaged folder without its picture; a file of more than this is also more than the limits
that code hosts and package indices are comfortable with for a file that everybody downloads."""


def package(
    folder: str | os.PathLike[str],
    model: MASt3R,
    retrieval: RetrievalModel | None,
    card: ModelCard,
    *,
    curves: str | os.PathLike[str] | None = None,
) -> ModelCard:
    """Writes a network, its retrieval model and its card into ``folder``, all in float16.

    Whatever was packaged there before is replaced; the folder appears whole or not at all.

    Args:
        folder: ``mast3r_jax.checkpoint.PRETRAINED / name`` for a preset of the package.
        model: the network.
        retrieval: of its tokens; None leaves loops and lost cameras open.
        card: what is known of it; number of parameters, name of the picture and checksums are
            filled in.
        curves: a PNG with the metrics while training.

    Returns:
        The card as written.

    Raises:
        CheckpointError: a number does not fit into float16, the files are larger than
            ``MAX_BYTES``, or ``folder`` holds something that was not packaged.
    """
    target = pathlib.Path(folder)
    if target.exists() and not has_card(target):
        raise CheckpointError(
            f"{target}: exists and has no {CARD}, so it was not packaged; name a new folder"
        )
    _check_range(target, model, retrieval)
    with replacing(target) as draft:
        save(draft, model, dtype=np.float16)
        if retrieval is not None:
            save_retrieval(draft, jax.tree.map(lambda x: x.astype(jnp.float16), retrieval))
        size = sum(path.stat().st_size for path in draft.iterdir())
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{target}: {WEIGHTS} and the files beside it take {size / 1e6:.2f} MB, more than "
                f"the {MAX_BYTES / 1e6:g} MB of a packaged network; make it smaller"
            )
        picture = None
        if curves is not None:
            picture = pathlib.Path(curves).name
            shutil.copyfile(curves, draft / picture)
        card = dataclasses.replace(
            card,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(model)),
            curves=picture,
            files={path.name: sha256_of(path) for path in sorted(draft.iterdir())},
        )
        (draft / CARD).write_text(card.to_json(), encoding="utf-8")
        (draft / README).write_text(card.to_markdown(), encoding="utf-8")
    return card


def _check_range(target: pathlib.Path, model: MASt3R, retrieval: RetrievalModel | None) -> None:
    largest = np.finfo(np.float16).max
    for part, tree in (("network", model), ("retrieval model", retrieval)):
        for leaf in jax.tree.leaves(tree):
            if not np.all(np.abs(np.asarray(leaf, np.float32)) <= largest):
                raise CheckpointError(
                    f"{target}: the {part} has numbers that float16 does not hold, beyond "
                    f"{largest:g} or not finite; train it further, or anew"
                )
